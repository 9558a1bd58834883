//! The backend's ops as kernel launches: a file per kernel family with the kernels' arguments, their launch geometry
//! and the ops. Tensors are views of a machine's memory; scratch is passed in, its length given by a function of the
//! family.
//!
//! Geometry is a pure function of shapes and of the device's multiprocessors, so the emulator and a device launch the
//! same. Arguments have the layout of `kernels/args*.cuh`, which document shapes and meanings; both sides assert the
//! size. The caller of `View::new` guarantees memory that lives and is not used elsewhere, and the ops check the views'
//! lengths: the SAFETY comments of their launches rely on both.

/// Declares the files of a family, and the kernels in each: name and argument struct.
macro_rules! kernels {
    (@only) => { None };
    (@only $target:ident) => { Some(crate::machine::Target::$target) };
    ($($file:ident = $path:literal $(only $target:ident)? {
        $($see:vis $kernel:ident = $name:literal: $args:ident;)*
    })*) => {
        $($($see const $kernel: Kernel<$args> = Kernel::named($name);)*)*
        $(pub(crate) const $file: File = File {
            name: $path,
            text: include_str!(concat!("../../kernels/", $path)),
            kernels: &[$($name),*],
            only: kernels!(@only $($target)?),
        };)*
    };
}

/// Asserts the size that an argument struct has on the device.
macro_rules! sized {
    ($($args:ident: $bytes:literal),*) => {
        $(const _: () = assert!(size_of::<$args>() == $bytes, "as in kernels/args*.cuh");)*
    };
}

mod adamw;
mod attention;
mod attention_sm90;
mod bias;
mod dispatch;
mod elementwise;
mod embedding;
mod gelu;
mod grouped;
mod grouped_bias;
mod grouped_sm90;
mod largest;
mod layernorm;
mod qk_norm;
mod rmsnorm;
mod rope;
mod router;
mod sinks;
mod swiglu;
mod xent;

pub use adamw::*;
pub use attention::*;
pub use attention_sm90::*;
pub use bias::*;
pub use dispatch::*;
pub use elementwise::*;
pub use embedding::*;
pub use gelu::*;
pub use grouped::*;
pub use grouped_bias::*;
pub use grouped_sm90::*;
pub use largest::largest;
pub use layernorm::*;
pub use qk_norm::*;
pub use rmsnorm::*;
pub use rope::*;
pub use router::*;
pub use sinks::*;
pub use swiglu::*;
pub use xent::*;

use crate::machine::{Done, Machine, Target};
use crate::tensor::View;

/// Threads per block of most kernels.
const BLOCK: u32 = 256;

/// Writes o `[T, H d]` and the logsumexp `[T, H]` of qkv `[T, (H + 2G) d]`. A query attends from position `starts[t]`
/// to its own; starts `[T]` ascend within a sequence and never exceed the query's position. bf16 matrices are aligned
/// to 16 bytes. Heads of 256 have the kernels of sm_80 on all devices.
pub fn attention(m: &dyn Machine, qkv: View, starts: View, o: View, lse: View, s: Shape) -> Done {
    match m.target() {
        Target::Sm90a if HEAD_DIMS_SM90.contains(&s.dim) => attention_sm90(m, qkv, starts, o, lse, s),
        Target::Sm80 | Target::Sm90a => attention_sm80(m, qkv, starts, o, lse, s),
    }
}

/// Writes dqkv `[T, (H + 2G) d]` from do `[T, H d]`.
pub fn attention_bwd(
    m: &dyn Machine,
    do_: View,
    saved: AttentionSaved,
    dqkv: View,
    scratch: Scratch,
    s: Shape,
) -> Done {
    match m.target() {
        Target::Sm90a if HEAD_DIMS_SM90.contains(&s.dim) => attention_bwd_sm90(m, do_, saved, dqkv, scratch, s),
        Target::Sm80 | Target::Sm90a => attention_bwd_sm80(m, do_, saved, dqkv, scratch, s),
    }
}
