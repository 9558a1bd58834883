//! The interface that kernels are launched through. A device and the emulator implement it, so both run the same ops
//! with the same launch geometry.

use crate::tensor::{TensorMap, Tiles};
use std::ffi::c_void;
use std::fmt::Debug;
use std::marker::PhantomData;

/// The instruction sets that kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The A100's instructions, which every later device supports.
    Sm80,
    /// H100 and H200 only: the copy engine (TMA) with mbarriers, and warpgroup matrix multiplication (wgmma).
    Sm90a,
}

/// A launch configuration: blocks along three axes, threads per block, bytes of dynamic shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    pub grid: [u32; 3],
    pub block: u32,
    pub shared: u32,
}

/// A kernel that takes a pointer to one `A`.
pub struct Kernel<A> {
    pub name: &'static str,
    args: PhantomData<fn(&A)>,
}

impl<A> Kernel<A> {
    /// `extern "C" name` must take one `A`.
    pub const fn named(name: &'static str) -> Self {
        Kernel { name, args: PhantomData }
    }
}

impl<A> Copy for Kernel<A> {}
impl<A> Clone for Kernel<A> {
    fn clone(&self) -> Self {
        *self
    }
}

/// A file of kernels, compiled as one unit.
#[derive(Debug, PartialEq, Eq)]
pub struct File {
    pub name: &'static str,
    pub text: &'static str,
    pub kernels: &'static [&'static str],
    /// The only target that has its instructions; None if every target has them.
    pub only: Option<Target>,
}

impl File {
    /// Whether the file is compiled for `target`.
    pub fn is_for(&self, target: Target) -> bool {
        self.only.is_none_or(|only| only == target)
    }
}

/// Runs kernels.
pub trait Machine {
    fn target(&self) -> Target;

    /// Multiprocessors: persistent grids have as many blocks as run on them at once.
    fn processors(&self) -> usize;

    /// A tensor map of these tiles, on [`Target::Sm90a`] only.
    fn tensor_map(&self, tiles: Tiles) -> Result<TensorMap, String>;

    /// Enqueues the kernel of that name, or returns why it cannot be launched.
    ///
    /// # Safety
    /// `args` points to the struct that the kernel takes. Its views are of this machine's memory, live until the kernel
    /// has run, and are as long as its shapes say; nothing else uses what the kernel writes.
    unsafe fn start(&self, kernel: &'static str, args: *const c_void, geometry: Geometry) -> Result<(), String>;
}

/// A failed launch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kernel}: {what} (launched as {shapes})")]
pub struct Fault {
    pub kernel: &'static str,
    pub what: String,
    /// Geometry and arguments.
    pub shapes: String,
}

/// The result of an op.
pub type Done = Result<(), Fault>;

/// Enqueues a kernel.
///
/// # Safety
/// The views in `args` are of `m`'s memory, live until the kernel has run, and are as long as the shapes in `args` say;
/// nothing else uses what the kernel writes.
pub unsafe fn launch<A: Debug>(m: &dyn Machine, kernel: Kernel<A>, args: &A, geometry: Geometry) -> Done {
    // SAFETY: the kernel's type says which struct it takes; the rest is this function's contract.
    unsafe { m.start(kernel.name, std::ptr::from_ref(args).cast(), geometry) }.map_err(|what| Fault {
        kernel: kernel.name,
        what,
        shapes: format!("{geometry:?} {args:?}"),
    })
}
