//! The kernels' arguments, as `kernels/args.cuh` declares them; both assert the sizes. What launches a kernel
//! hands it a pointer to one of these. Shapes and meanings stand in that file.

mod adamw;
mod elementwise;
mod mlp;
mod norm;
mod rope;

pub use adamw::{AdamW, Step};
pub use elementwise::{Add, Fill, Round, SumSquares};
pub use mlp::SwiGlu;
pub use norm::{RmsNorm, RmsNormBwd, SumRows};
pub use rope::Rope;

use std::fmt;

/// `n` elements of a machine's memory from the address `at` on.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct View {
    at: u64,
    n: u64,
}

impl View {
    /// An argument that a kernel may do without.
    pub const NONE: View = View { at: 0, n: 0 };

    /// # Safety
    /// The `n` elements from `at` on are aligned and live for as long as launches use the view; nothing but these
    /// launches uses what they write, and nothing writes what they read.
    pub unsafe fn new(at: u64, n: usize) -> View {
        View { at, n: n as u64 }
    }

    /// The address of the first element.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.n as usize
    }

    pub fn is_empty(&self) -> bool {
        self.n == 0
    }
}

/// Only the length: what a launch that failed tells of its shapes.
impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}]", self.n)
    }
}

/// The size that a struct has on the device.
macro_rules! sized {
    ($($args:ident: $bytes:literal),*) => {
        $(const _: () = assert!(size_of::<$args>() == $bytes, "as in args.cuh");)*
    };
}
use sized;
