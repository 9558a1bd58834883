//! The cases: the kernels at the shapes of Llama 3 8B and of a 7B model with Swallow's vocabulary, 8192 tokens;
//! attention also at those of Gemma 2, experts at those of Mixtral 8x7B and of Qwen 3 30B-A3B. Small versions of these
//! cases are compared with the emulator. Kernels that work on a few numbers (`judge`, `xent_combine`, `xent_totals`)
//! are left out, since their time is that of an empty launch.

mod attention;
pub mod experts;
mod loss;
mod mlp;
mod norm;
mod optimizer;
mod rotary;

use crate::case::{Case, Data};
use cuda::machine::Target;

/// Sizes of the cases.
pub struct Sizes {
    pub tokens: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    /// Intermediate sizes F.
    pub ffn: &'static [usize],
    /// Vocabulary sizes V, and the rows of a chunk of logits.
    pub vocab: &'static [usize],
    pub chunk: usize,
    /// Sequence lengths and head sizes of attention.
    pub attention: &'static [(usize, usize)],
    /// Attention with a cap, a window or heads of 256.
    pub special: &'static [Special],
    /// Layers with experts.
    pub experts: &'static [experts::Layer],
    /// Elements of the elementwise kernels and the optimizer.
    pub elements: usize,
}

/// Attention of sequences of `seq` positions, of which a query sees the last `window`, by query and key/value heads of
/// `dim` elements.
#[derive(Clone, Copy)]
pub struct Special {
    pub seq: usize,
    pub window: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    pub cap: Option<f32>,
}

/// The layers of Gemma 2 9B (without a cap too, since no other model here has heads of 256), and those of 27B.
const NINE: Special = Special { seq: 8192, window: 8192, heads: 16, kv_heads: 8, dim: 256, cap: Some(50.0) };
const TWENTY_SEVEN: Special = Special { heads: 32, kv_heads: 16, dim: 128, ..NINE };

pub const FULL: Sizes = Sizes {
    tokens: 8192,
    hidden: 4096,
    heads: 32,
    kv_heads: 8,
    ffn: &[14336, 11008],
    vocab: &[128256, 43176],
    chunk: 2048,
    attention: &[(4096, 128), (8192, 128), (4096, 64), (8192, 64)],
    special: &[
        Special { cap: None, ..NINE },
        NINE,
        Special { window: 4096, ..NINE },
        TWENTY_SEVEN,
        Special { window: 4096, ..TWENTY_SEVEN },
    ],
    experts: &[
        experts::Layer { hidden: 4096, ffn: 14336, experts: 8, k: 2 },
        experts::Layer { hidden: 2048, ffn: 768, experts: 128, k: 8 },
    ],
    elements: 1 << 27,
};

/// Sizes that the emulator runs quickly, which are not multiples of the kernels' vectors and blocks.
pub const SMALL: Sizes = Sizes {
    tokens: 21,
    hidden: 264,
    heads: 6,
    kv_heads: 2,
    ffn: &[344],
    vocab: &[1003],
    chunk: 9,
    attention: &[(150, 128), (150, 64)],
    special: &[
        Special { seq: 150, window: 150, heads: 2, kv_heads: 1, dim: 256, cap: None },
        Special { seq: 150, window: 40, heads: 2, kv_heads: 1, dim: 256, cap: Some(2.0) },
        Special { seq: 150, window: 40, heads: 2, kv_heads: 1, dim: 128, cap: Some(2.0) },
    ],
    experts: &[experts::Layer { hidden: 264, ffn: 40, experts: 6, k: 3 }],
    elements: 5003,
};

const BF16: Data = Data::Bf16(1.0);
const F32: Data = Data::F32(1.0);
const NEW_BF16: Data = Data::Empty(2);
const NEW_F32: Data = Data::Empty(4);

/// All cases that a device of this target runs, for so many multiprocessors.
pub fn cases(s: &Sizes, processors: usize, target: Target) -> Vec<Case> {
    let mut all = norm::cases(s, processors);
    all.extend(mlp::cases(s));
    all.extend(experts::cases(s));
    all.extend(rotary::cases(s, processors));
    all.extend(attention::cases(s, target));
    all.extend(loss::cases(s));
    all.extend(optimizer::cases(s.elements));
    all
}
