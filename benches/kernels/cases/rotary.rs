//! The packed projection of q, k and v: RoPE, norms of heads, and biases.

use super::{BF16, F32, NEW_BF16, Sizes};
use crate::case::{Case, Data, Tensor, Work};
use cuda::ops::{self, HeadNorms, RopeShape};
use cuda::tensor::View;
use engine::backend::Heads;

pub fn cases(s: &Sizes, processors: usize) -> Vec<Case> {
    vec![rope(s), qk_norm_rope(s), qk_norm_rope_bwd(s, processors), add_bias(s), bias_bwd(s, processors)]
}

fn rope(s: &Sizes) -> Case {
    let (dim, heads) = (s.hidden / s.heads, s.heads + s.kv_heads);
    let cols = (heads + s.kv_heads) * dim;
    let rotation = RopeShape { heads, dim, cols, sign: 1.0 };
    // The angles do not matter, only that cosines and sines are below 1.
    let table = Tensor::read(s.tokens * dim, Data::F32(0.5));
    let positions = Tensor::read(s.tokens, Data::Ids(s.tokens as u32));
    let tensors = vec![Tensor::written(s.tokens * cols, BF16), table, positions];
    let shape = format!("{}x{heads}x{dim}", s.tokens);
    let bytes = 4 * s.tokens * heads * dim;
    Case::new("rope", shape, Work::Bytes(bytes), tensors, move |m, v| ops::rope(m, v[0], v[1], v[2], rotation))
}

fn heads(s: &Sizes) -> Heads {
    Heads::full(s.heads, s.kv_heads, s.hidden / s.heads, s.tokens)
}

/// qkv and its result or gradient, weights of q and k, table and positions.
fn norms(s: &Sizes, y: Tensor) -> Vec<Tensor> {
    let h = heads(s);
    vec![
        Tensor::read(s.tokens * h.qkv_cols(), BF16),
        y,
        Tensor::read(h.dim, BF16),
        Tensor::read(h.dim, BF16),
        Tensor::read(s.tokens * h.dim, Data::F32(0.5)),
        Tensor::read(s.tokens, Data::Ids(s.tokens as u32)),
    ]
}

fn of_heads(v: &[View]) -> HeadNorms {
    HeadNorms { q: v[2], k: v[3], eps: 1e-6, table: v[4], positions: v[5] }
}

fn qk_norm_rope(s: &Sizes) -> Case {
    let (h, n) = (heads(s), s.tokens * heads(s).qkv_cols());
    let shape = format!("{}x{}x{}", s.tokens, h.query + 2 * h.kv, h.dim);
    let tensors = norms(s, Tensor::written(n, NEW_BF16));
    Case::new("qk_norm_rope", shape, Work::Bytes(4 * n), tensors, move |m, v| {
        ops::qk_norm_rope(m, v[0], of_heads(v), h, v[1])
    })
}

fn qk_norm_rope_bwd(s: &Sizes, processors: usize) -> Case {
    let h = heads(s);
    let shape = format!("{}x{}x{}", s.tokens, h.query + h.kv, h.dim);
    let mut tensors = norms(s, Tensor::written(s.tokens * h.qkv_cols(), BF16));
    tensors.extend([Tensor::written(h.dim, F32), Tensor::written(h.dim, F32)]);
    tensors.push(Tensor::scratch(ops::qk_norm_parts(s.tokens, h, processors), 4));
    let bytes = 6 * s.tokens * (h.query + h.kv) * h.dim;
    Case::new("qk_norm_rope_bwd", shape, Work::Bytes(bytes), tensors, move |m, v| {
        ops::qk_norm_rope_bwd(m, v[1], v[0], of_heads(v), h, [v[6], v[7]], v[8])
    })
}

fn add_bias(s: &Sizes) -> Case {
    let (n, d) = (s.tokens * s.hidden, s.hidden);
    let tensors = vec![Tensor::written(n, BF16), Tensor::read(d, BF16)];
    Case::new("add_bias", format!("{}x{d}", s.tokens), Work::Bytes(4 * n), tensors, |m, v| ops::add_bias(m, v[0], v[1]))
}

fn bias_bwd(s: &Sizes, processors: usize) -> Case {
    let (n, d) = (s.tokens * s.hidden, s.hidden);
    let parts = Tensor::scratch(ops::bias_parts(s.tokens, d, processors), 4);
    let tensors = vec![Tensor::read(n, BF16), Tensor::written(d, F32), parts];
    Case::new("bias_bwd", format!("{}x{d}", s.tokens), Work::Bytes(2 * n), tensors, |m, v| {
        ops::bias_bwd(m, v[0], v[1], v[2])
    })
}
