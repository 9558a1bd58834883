//! Where kernels run: a device, or the emulator. Both are launched by the same ops, with the same geometry.

use crate::geometry::Geometry;
use crate::kernels::Kernel;
use crate::tensor::{TensorMap, Tiles};
use std::ffi::c_void;
use std::fmt::Debug;

/// What kernels may be written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// What an A100 has, and every device after it.
    Sm80,
    /// What only H100 and H200 have: the copy engine with its barriers, and the products of warpgroups.
    Sm90a,
}

/// What runs kernels.
pub trait Machine {
    fn target(&self) -> Target;

    /// Multiprocessors: persistent grids are as large as what runs on them at once.
    fn processors(&self) -> usize;

    /// How kernels find these tiles; only where the target is [`Target::Sm90a`].
    fn tensor_map(&self, tiles: Tiles) -> Result<TensorMap, String>;

    /// Starts the kernel of that name after what was started before; says what is wrong where that cannot be.
    ///
    /// # Safety
    /// `args` points to the struct that the kernel takes, its views are of this machine's memory and live until
    /// the kernel has run, nothing else uses what it writes, and the views are as long as its shapes say.
    unsafe fn start(&self, kernel: &'static str, args: *const c_void, geometry: Geometry) -> Result<(), String>;
}

/// A launch that did not go well.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kernel}: {what} (launched as {shapes})")]
pub struct Fault {
    pub kernel: &'static str,
    pub what: String,
    /// Its geometry and arguments.
    pub shapes: String,
}

/// What an op returns.
pub type Done = Result<(), Fault>;

/// Starts a kernel.
///
/// # Safety
/// The views in `args` are of `m`'s memory and live until the kernel has run, nothing else uses what it
/// writes, and they are as long as the shapes in `args` say.
pub unsafe fn launch<A: Debug>(m: &dyn Machine, kernel: Kernel<A>, args: &A, geometry: Geometry) -> Done {
    // SAFETY: the kernel's type says which struct it takes; the rest is this function's contract.
    unsafe { m.start(kernel.name, std::ptr::from_ref(args).cast(), geometry) }.map_err(|what| Fault {
        kernel: kernel.name,
        what,
        shapes: format!("{geometry:?} {args:?}"),
    })
}
