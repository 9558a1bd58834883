//! RMSNorm and LayerNorm.

use super::{BF16, F32, NEW_BF16, NEW_F32, Sizes};
use crate::case::{Case, Data, Tensor, Work};
use cuda::ops::{self, LayerBwd, LayerWeights, NormBwd, NormWeight};
use cuda::tensor::View;

/// Small weights, so that gradients, which are computed in place, do not grow from launch to launch.
const SMALLER: Data = Data::Bf16(0.5);

pub fn cases(s: &Sizes, processors: usize) -> Vec<Case> {
    vec![
        rmsnorm(s),
        add_rmsnorm(s),
        rmsnorm_recompute(s),
        rmsnorm_bwd(s, processors),
        rmsnorm_bwd_add(s, processors),
        layernorm(s),
        layernorm_bwd(s, processors),
        layernorm_bwd_add(s, processors),
    ]
}

fn weight(w: View) -> NormWeight {
    NormWeight { w, eps: 1e-5, offset: 0.0 }
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
        ops::rmsnorm(m, v[0], View::NONE, weight(v[1]), v[2], v[3])
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
        ops::rmsnorm(m, v[0], v[1], weight(v[2]), v[3], v[4])
    })
}

fn rmsnorm_recompute(s: &Sizes) -> Case {
    let (n, shape) = rows(s);
    let rstd = Tensor::read(s.tokens, Data::Positive(1.0));
    let tensors = vec![Tensor::read(n, BF16), rstd, Tensor::read(s.hidden, BF16), Tensor::written(n, NEW_BF16)];
    Case::new("rmsnorm_recompute", shape, Work::Bytes(4 * n), tensors, |m, v| {
        ops::rmsnorm_recompute(m, v[0], v[1], weight(v[2]), v[3])
    })
}

/// x, rstd, w, dy, dw and partial sums; dres follows if there is one.
fn norm_gradients(s: &Sizes, processors: usize) -> Vec<Tensor> {
    let (n, d) = (s.tokens * s.hidden, s.hidden);
    vec![
        Tensor::read(n, BF16),
        Tensor::read(s.tokens, Data::Positive(1.0)),
        Tensor::read(d, SMALLER),
        Tensor::written(n, BF16),
        Tensor::written(d, F32),
        Tensor::scratch(ops::norm_parts(s.tokens, d, processors), 4),
    ]
}

fn rmsnorm_bwd(s: &Sizes, processors: usize) -> Case {
    let (n, shape) = rows(s);
    Case::new("rmsnorm_bwd", shape, Work::Bytes(6 * n), norm_gradients(s, processors), |m, v| {
        let saved = NormBwd { dres: View::NONE, x: v[0], rstd: v[1], n: weight(v[2]) };
        ops::rmsnorm_bwd(m, saved, v[3], v[4], v[5])
    })
}

fn rmsnorm_bwd_add(s: &Sizes, processors: usize) -> Case {
    let (n, shape) = rows(s);
    let mut tensors = norm_gradients(s, processors);
    tensors.push(Tensor::read(n, BF16));
    Case::new("rmsnorm_bwd_add", shape, Work::Bytes(8 * n), tensors, |m, v| {
        ops::rmsnorm_bwd(m, NormBwd { dres: v[6], x: v[0], rstd: v[1], n: weight(v[2]) }, v[3], v[4], v[5])
    })
}

fn layernorm(s: &Sizes) -> Case {
    let (n, shape) = rows(s);
    let tensors = vec![
        Tensor::read(n, BF16),
        Tensor::read(s.hidden, BF16),
        Tensor::read(s.hidden, BF16),
        Tensor::written(n, NEW_BF16),
        Tensor::written(2 * s.tokens, NEW_F32),
    ];
    Case::new("layernorm", shape, Work::Bytes(4 * n), tensors, |m, v| {
        ops::layernorm(m, v[0], LayerWeights { w: v[1], bias: v[2], eps: 1e-5 }, v[3], v[4])
    })
}

/// x, statistics, w, dy, dw, dbias and partial sums; dres follows if there is one.
fn layer_gradients(s: &Sizes, processors: usize) -> Vec<Tensor> {
    let (n, d) = (s.tokens * s.hidden, s.hidden);
    vec![
        Tensor::read(n, BF16),
        Tensor::read(2 * s.tokens, Data::Positive(1.0)),
        Tensor::read(d, SMALLER),
        Tensor::written(n, BF16),
        Tensor::written(d, F32),
        Tensor::written(d, F32),
        Tensor::scratch(ops::layernorm_parts(s.tokens, d, processors), 4),
    ]
}

fn layernorm_bwd(s: &Sizes, processors: usize) -> Case {
    let (n, shape) = rows(s);
    Case::new("layernorm_bwd", shape, Work::Bytes(6 * n), layer_gradients(s, processors), |m, v| {
        let saved = LayerBwd { dres: View::NONE, x: v[0], stats: v[1], w: v[2] };
        ops::layernorm_bwd(m, saved, v[3], [v[4], v[5]], v[6])
    })
}

fn layernorm_bwd_add(s: &Sizes, processors: usize) -> Case {
    let (n, shape) = rows(s);
    let mut tensors = layer_gradients(s, processors);
    tensors.push(Tensor::read(n, BF16));
    Case::new("layernorm_bwd_add", shape, Work::Bytes(8 * n), tensors, |m, v| {
        ops::layernorm_bwd(m, LayerBwd { dres: v[7], x: v[0], stats: v[1], w: v[2] }, v[3], [v[4], v[5]], v[6])
    })
}
