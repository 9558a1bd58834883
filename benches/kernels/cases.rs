//! The kernels and their shapes: layers of Llama 3 8B and of a 7B with Swallow's vocabulary, 8192 tokens. The same cases,
//! small, are what the device is held to the emulator with.

use crate::case::{Case, Data, Tensor, Work};
use cuda::args::Step;
use cuda::geometry;
use cuda::ops::{self, NormBwd, State, Turn};

/// Sizes of the cases.
pub struct Sizes {
    pub tokens: usize,
    pub hidden: usize,
    /// F of each model.
    pub ffn: &'static [usize],
    pub heads: usize,
    pub kv_heads: usize,
    /// Elements of what goes element by element.
    pub elements: usize,
}

pub const FULL: Sizes =
    Sizes { tokens: 8192, hidden: 4096, ffn: &[14336, 11008], heads: 32, kv_heads: 8, elements: 1 << 27 };

/// Sizes that the emulator runs in no time, beside the vectors and blocks of the kernels.
pub const SMALL: Sizes = Sizes { tokens: 21, hidden: 264, ffn: &[344], heads: 6, kv_heads: 2, elements: 5003 };

const BF16: Data = Data::Bf16(1.0);
const F32: Data = Data::F32(1.0);
/// Gradients and weights that keep what is run in its own place from growing.
const SMALLER: Data = Data::Bf16(0.5);
const NEW_BF16: Data = Data::Empty(2);
const NEW_F32: Data = Data::Empty(4);

/// All cases, for a machine of so many processors.
pub fn cases(s: &Sizes, processors: usize) -> Vec<Case> {
    let mut all =
        vec![rmsnorm(s), add_rmsnorm(s), rmsnorm_again(s), rmsnorm_bwd(s, processors), rmsnorm_bwd_add(s, processors)];
    all.extend(s.ffn.iter().flat_map(|&f| [swiglu(s, f), swiglu_bwd(s, f)]));
    all.push(rope(s));
    all.extend([adamw(s.elements), sum_squares(s.elements), round(s.elements), add(s.elements)]);
    all.extend([copy(s.elements), zero(s.elements)]);
    all
}

fn rows(s: &Sizes) -> (usize, String) {
    (s.tokens * s.hidden, format!("{}x{}", s.tokens, s.hidden))
}

fn rmsnorm(s: &Sizes) -> Case {
    let (n, shape) = rows(s);
    let tensors = vec![
        Tensor::read(n, BF16),
        Tensor::read(s.hidden, BF16),
        Tensor::written(n, NEW_BF16),
        Tensor::written(s.tokens, NEW_F32),
    ];
    Case::new("rmsnorm", shape, Work::Bytes(4 * n), tensors, |m, v| {
        ops::rmsnorm(m, v[0], cuda::args::View::NONE, v[1], 1e-5, v[2], v[3])
    })
}

fn add_rmsnorm(s: &Sizes) -> Case {
    let (n, shape) = rows(s);
    let tensors = vec![
        Tensor::read(n, BF16),
        Tensor::written(n, BF16),
        Tensor::read(s.hidden, BF16),
        Tensor::written(n, NEW_BF16),
        Tensor::written(s.tokens, NEW_F32),
    ];
    Case::new("add_rmsnorm", shape, Work::Bytes(8 * n), tensors, |m, v| {
        ops::rmsnorm(m, v[0], v[1], v[2], 1e-5, v[3], v[4])
    })
}

fn rmsnorm_again(s: &Sizes) -> Case {
    let (n, shape) = rows(s);
    let rstd = Tensor::read(s.tokens, Data::Positive(1.0));
    let tensors = vec![Tensor::read(n, BF16), rstd, Tensor::read(s.hidden, BF16), Tensor::written(n, NEW_BF16)];
    Case::new("rmsnorm_again", shape, Work::Bytes(4 * n), tensors, |m, v| ops::rmsnorm_again(m, v[0], v[1], v[2], v[3]))
}

/// x, rstd, w, dy, dw, parts, and dres where there is one.
fn norm_gradients(s: &Sizes, processors: usize) -> Vec<Tensor> {
    let (n, d) = (s.tokens * s.hidden, s.hidden);
    vec![
        Tensor::read(n, BF16),
        Tensor::read(s.tokens, Data::Positive(1.0)),
        Tensor::read(d, SMALLER),
        Tensor::written(n, BF16),
        Tensor::written(d, F32),
        Tensor::scratch(geometry::norm_parts(s.tokens, d, processors), 4),
    ]
}

fn rmsnorm_bwd(s: &Sizes, processors: usize) -> Case {
    let (n, shape) = rows(s);
    Case::new("rmsnorm_bwd", shape, Work::Bytes(6 * n), norm_gradients(s, processors), |m, v| {
        let saved = NormBwd { dres: cuda::args::View::NONE, x: v[0], rstd: v[1], w: v[2] };
        ops::rmsnorm_bwd(m, saved, v[3], v[4], v[5])
    })
}

fn rmsnorm_bwd_add(s: &Sizes, processors: usize) -> Case {
    let (n, shape) = rows(s);
    let mut tensors = norm_gradients(s, processors);
    tensors.push(Tensor::read(n, BF16));
    Case::new("rmsnorm_bwd_add", shape, Work::Bytes(8 * n), tensors, |m, v| {
        ops::rmsnorm_bwd(m, NormBwd { dres: v[6], x: v[0], rstd: v[1], w: v[2] }, v[3], v[4], v[5])
    })
}

fn swiglu(s: &Sizes, f: usize) -> Case {
    let n = s.tokens * f;
    let tensors = vec![Tensor::read(2 * n, BF16), Tensor::written(n, NEW_BF16)];
    let shape = format!("{}x{f}", s.tokens);
    Case::new("swiglu", shape, Work::Bytes(6 * n), tensors, move |m, v| ops::swiglu(m, v[0], v[1], f))
}

fn swiglu_bwd(s: &Sizes, f: usize) -> Case {
    let n = s.tokens * f;
    let tensors = vec![Tensor::read(n, BF16), Tensor::written(2 * n, BF16)];
    let shape = format!("{}x{f}", s.tokens);
    Case::new("swiglu_bwd", shape, Work::Bytes(10 * n), tensors, move |m, v| ops::swiglu_bwd(m, v[0], v[1], f))
}

fn rope(s: &Sizes) -> Case {
    let (dim, heads) = (s.hidden / s.heads, s.heads + s.kv_heads);
    let cols = (heads + s.kv_heads) * dim;
    let turn = Turn { heads, dim, cols, seq: s.tokens, sign: 1.0 };
    // Angles of no matter: a table of cosines and sines has numbers below 1.
    let tensors = vec![Tensor::written(s.tokens * cols, BF16), Tensor::read(s.tokens * dim, Data::F32(0.5))];
    let shape = format!("{}x{heads}x{dim}", s.tokens);
    let bytes = 4 * s.tokens * heads * dim;
    Case::new("rope", shape, Work::Bytes(bytes), tensors, move |m, v| ops::rope(m, v[0], v[1], turn))
}

fn adamw(n: usize) -> Case {
    let step = Step {
        lr: 3e-4,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        correction1: 0.5,
        correction2: 0.2,
        decayed: n,
    };
    let tensors = vec![
        Tensor::read(n, F32),
        Tensor::read(2, F32),
        Tensor::written(n, F32),
        Tensor::written(n, Data::F32(0.1)),
        Tensor::written(n, Data::Positive(0.01)),
        Tensor::written(n, NEW_BF16),
    ];
    Case::new("adamw", n.to_string(), Work::Bytes(30 * n), tensors, move |m, v| {
        ops::adamw(m, v[0], v[1], State { master: v[2], m: v[3], v: v[4] }, v[5], step)
    })
}

fn sum_squares(n: usize) -> Case {
    let parts = Tensor::scratch(geometry::squares_parts(n), 8);
    let tensors = vec![Tensor::read(n, F32), Tensor::written(1, F32), parts];
    Case::new("sum_squares", n.to_string(), Work::Bytes(4 * n), tensors, |m, v| ops::sum_squares(m, v[0], v[1], v[2]))
}

fn round(n: usize) -> Case {
    let tensors = vec![Tensor::read(n, F32), Tensor::written(n, NEW_BF16)];
    Case::new("round", n.to_string(), Work::Bytes(6 * n), tensors, |m, v| ops::round(m, v[0], v[1]))
}

fn add(n: usize) -> Case {
    let tensors = vec![Tensor::written(n, BF16), Tensor::read(n, BF16)];
    Case::new("add", n.to_string(), Work::Bytes(6 * n), tensors, |m, v| ops::add(m, v[0], v[1]))
}

fn copy(n: usize) -> Case {
    let tensors = vec![Tensor::read(n, F32), Tensor::written(n, NEW_F32)];
    Case::new("copy_f32", n.to_string(), Work::Bytes(8 * n), tensors, |m, v| ops::copy(m, v[0], v[1]))
}

fn zero(n: usize) -> Case {
    Case::new("zero", n.to_string(), Work::Bytes(4 * n), vec![Tensor::written(n, NEW_F32)], |m, v| ops::zero(m, v[0]))
}
