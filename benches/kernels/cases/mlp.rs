//! SwiGLU and RoPE.

use super::{BF16, NEW_BF16, Sizes};
use crate::case::{Case, Data, Tensor, Work};
use cuda::ops::{self, RopeShape};

pub fn cases(s: &Sizes) -> Vec<Case> {
    s.ffn.iter().flat_map(|&f| [swiglu(s, f), swiglu_bwd(s, f)]).chain([rope(s)]).collect()
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
    let rotation = RopeShape { heads, dim, cols, sign: 1.0 };
    // The angles do not matter, only that cosines and sines are below 1.
    let table = Tensor::read(s.tokens * dim, Data::F32(0.5));
    let positions = Tensor::read(s.tokens, Data::Ids(s.tokens as u32));
    let tensors = vec![Tensor::written(s.tokens * cols, BF16), table, positions];
    let shape = format!("{}x{heads}x{dim}", s.tokens);
    let bytes = 4 * s.tokens * heads * dim;
    Case::new("rope", shape, Work::Bytes(bytes), tensors, move |m, v| ops::rope(m, v[0], v[1], v[2], rotation))
}
