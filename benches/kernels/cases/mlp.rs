//! SwiGLU, GELU and GeGLU.

use super::{BF16, NEW_BF16, Sizes};
use crate::case::{Case, Tensor, Work};
use cuda::ops;

pub fn cases(s: &Sizes) -> Vec<Case> {
    let of = |f| [swiglu(s, f), swiglu_bwd(s, f), geglu(s, f), geglu_bwd(s, f), gelu(s, f), gelu_bwd(s, f)];
    s.ffn.iter().flat_map(|&f| of(f)).collect()
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

fn geglu(s: &Sizes, f: usize) -> Case {
    let n = s.tokens * f;
    let tensors = vec![Tensor::read(2 * n, BF16), Tensor::written(n, NEW_BF16)];
    let shape = format!("{}x{f}", s.tokens);
    Case::new("geglu", shape, Work::Bytes(6 * n), tensors, move |m, v| ops::geglu(m, v[0], v[1], f))
}

fn geglu_bwd(s: &Sizes, f: usize) -> Case {
    let n = s.tokens * f;
    let tensors = vec![Tensor::read(n, BF16), Tensor::written(2 * n, BF16)];
    let shape = format!("{}x{f}", s.tokens);
    Case::new("geglu_bwd", shape, Work::Bytes(10 * n), tensors, move |m, v| ops::geglu_bwd(m, v[0], v[1], f))
}

fn gelu(s: &Sizes, f: usize) -> Case {
    let n = s.tokens * f;
    let tensors = vec![Tensor::read(n, BF16), Tensor::written(n, NEW_BF16)];
    Case::new("gelu", format!("{}x{f}", s.tokens), Work::Bytes(4 * n), tensors, |m, v| ops::gelu(m, v[0], v[1]))
}

fn gelu_bwd(s: &Sizes, f: usize) -> Case {
    let n = s.tokens * f;
    let tensors = vec![Tensor::read(n, BF16), Tensor::written(n, BF16)];
    Case::new("gelu_bwd", format!("{}x{f}", s.tokens), Work::Bytes(6 * n), tensors, |m, v| ops::gelu_bwd(m, v[0], v[1]))
}
