//! The kernels' arguments, as `kernels/args.cuh` declares them; both assert the sizes. What launches a kernel
//! hands it a pointer to one of these. Shapes and meanings stand in that file.

mod adamw;
mod attention;
mod attention_sm90;
mod elementwise;
mod embedding;
mod mlp;
mod norm;
mod rope;
mod xent;

pub use adamw::{AdamW, Clip, Step};
pub use attention::{Attention, AttentionBwd};
pub use attention_sm90::{AttentionTiles, AttentionTilesBwd};
pub use elementwise::{Add, Fill, Round, SumSquares, Widen};
pub use embedding::{Embed, EmbedBwd, EmbedSort};
pub use mlp::SwiGlu;
pub use norm::{RmsNorm, RmsNormBwd, SumRows};
pub use rope::Rope;
pub use xent::{XentCombine, XentGrad, XentStats, XentTotals};

use std::fmt;
use std::ops::Range;

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

    /// The elements `range` of these, which are `T`.
    pub(crate) fn part<T>(&self, range: Range<usize>) -> View {
        assert!(range.start <= range.end && range.end <= self.len(), "elements {range:?} of {}", self.n);
        View { at: self.at + (range.start * size_of::<T>()) as u64, n: range.len() as u64 }
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
