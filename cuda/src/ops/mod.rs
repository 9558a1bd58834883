//! Each op of the backend's contract as launches of kernels. Tensors are views of a machine's memory; what an op
//! needs beside them is handed in as scratch, of a length that `geometry` says.
//!
//! A view is only made where its memory is known to live and to be used by nothing else (`View::new`), and the
//! ops hold the views to the shapes: that is what their launches rely on.

mod adamw;
mod attention;
mod attention_sm90;
mod elementwise;
mod embedding;
mod mlp;
mod norm;
mod rope;
mod xent;

pub use adamw::{Norms, State, adamw, adamw_norms, clip_factor};
pub use attention::{AttentionSaved, Scratch, Shape, attention, attention_bwd, attention_bwd_sm80, attention_sm80};
pub use attention_sm90::{attention_bwd_sm90, attention_sm90};
pub use elementwise::{add, copy, pick, put, round, sum_squares, widen, zero};
pub use embedding::{EmbedScratch, embed, embed_bwd};
pub use mlp::{swiglu, swiglu_bwd};
pub use norm::{NormBwd, rmsnorm, rmsnorm_bwd, rmsnorm_recompute};
pub use rope::{Turn, rope};
pub use xent::{Rows, xent_combine, xent_grad, xent_stats, xent_totals};
