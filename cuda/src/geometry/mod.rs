//! How many blocks of how many threads each kernel is launched with: pure functions of shapes and of the device's
//! processors, so that the emulator and a device launch the same.

mod adamw;
pub mod attention;
pub mod attention_sm90;
mod elementwise;
mod embedding;
mod largest;
mod mlp;
mod norm;
mod rope;
mod xent;

pub use adamw::{NORMS, adamw_norms, adamw_parts, clip_factor};
pub use elementwise::{elementwise, squares, squares_parts, squares_total};
pub use embedding::{EMBED_ROWS, embed, embed_bwd, embed_keys, embed_merge, embed_parts, embed_sort, embed_words};
pub use largest::largest;
pub use mlp::swiglu;
pub use norm::{NORM_BWD_COLUMNS, NORM_COLUMNS, norm_parts, rmsnorm, rmsnorm_bwd, sum_rows};
pub use rope::rope;
pub use xent::{xent_combine, xent_grad, xent_stats, xent_totals};

/// Blocks along three axes, threads of a block, bytes of its shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    pub grid: [u32; 3],
    pub block: u32,
    pub shared: u32,
}

/// Threads of most kernels.
const BLOCK: u32 = 256;
