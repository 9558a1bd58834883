//! Each op of the backend's contract as launches of kernels. Tensors are views of a machine's memory; what an op
//! needs beside them is handed in as scratch, of a length that `geometry` says.
//!
//! A view is only made where its memory is known to live and to be used by nothing else (`View::new`), and the
//! ops hold the views to the shapes: that is what their launches rely on.

mod adamw;
mod elementwise;
mod mlp;
mod norm;
mod rope;

pub use adamw::{State, adamw};
pub use elementwise::{add, copy, round, sum_squares, zero};
pub use mlp::{swiglu, swiglu_bwd};
pub use norm::{NormBwd, rmsnorm, rmsnorm_again, rmsnorm_bwd};
pub use rope::{Turn, rope};
