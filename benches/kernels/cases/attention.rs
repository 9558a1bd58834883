//! Causal attention of whole sequences, by the kernels of sm_80 and by those of sm_90a.

use super::{BF16, NEW_BF16, NEW_F32, Sizes};
use crate::case::{Case, Data, Tensor, Work};
use cuda::machine::{Done, Machine, Target};
use cuda::ops::{self, AttentionSaved, Scratch, Shape};
use cuda::tensor::View;

type Forward = fn(&dyn Machine, View, View, View, View, Shape) -> Done;
type Backward = fn(&dyn Machine, View, AttentionSaved, View, Scratch, Shape) -> Done;

/// The kernels of one target.
#[derive(Clone, Copy)]
struct Kernels {
    variant: &'static str,
    forward: Forward,
    backward: Backward,
}

const KERNELS: [Kernels; 2] = [
    Kernels { variant: "sm_80", forward: ops::attention_sm80, backward: ops::attention_bwd_sm80 },
    Kernels { variant: "sm_90a", forward: ops::attention_sm90, backward: ops::attention_bwd_sm90 },
];

pub fn cases(s: &Sizes, target: Target) -> Vec<Case> {
    let there = if target == Target::Sm90a { &KERNELS[..] } else { &KERNELS[..1] };
    let mut all = Vec::new();
    for &(seq, dim) in s.attention {
        let shape = Shape { query: s.heads, kv: s.kv_heads, dim, seq, sequences: s.tokens.div_ceil(seq) };
        all.extend(there.iter().flat_map(|&k| [forward(k, shape), backward(k, shape), both(k, shape)]));
    }
    all
}

/// Floating-point operations of one matrix multiplication, of which the causal mask leaves half.
fn product(s: Shape) -> usize {
    s.sequences * s.seq * s.seq * s.query * s.dim
}

fn label(s: Shape) -> String {
    format!("{}, {}/{} x {}", s.seq, s.query, s.kv, s.dim)
}

/// qkv, starts, o, lse.
fn forward_tensors(s: Shape) -> Vec<Tensor> {
    let rows = s.rows();
    vec![
        Tensor::read(rows * s.qkv_cols(), BF16),
        Tensor::read(rows, Data::U32),
        Tensor::written(rows * s.query * s.dim, NEW_BF16),
        Tensor::written(rows * s.query, NEW_F32),
    ]
}

/// The tensors of the forward pass, do, dqkv, and the scratch.
fn backward_tensors(s: Shape) -> Vec<Tensor> {
    let (rows, mut tensors) = (s.rows(), forward_tensors(s));
    tensors.extend([
        Tensor::read(rows * s.query * s.dim, BF16),
        Tensor::written(rows * s.qkv_cols(), NEW_BF16),
        Tensor::scratch(ops::stats_len(s), 4),
        Tensor::scratch(ops::sums_len(s, ops::attention_parts(s)), 4),
    ]);
    tensors
}

impl Kernels {
    fn forward(&self, m: &dyn Machine, v: &[View], s: Shape) -> Done {
        (self.forward)(m, v[0], v[1], v[2], v[3], s)
    }

    fn backward(&self, m: &dyn Machine, v: &[View], s: Shape) -> Done {
        let saved = AttentionSaved { qkv: v[0], o: v[2], lse: v[3], starts: v[1] };
        let scratch = Scratch { stats: v[6], sums: v[7], parts: ops::attention_parts(s) };
        (self.backward)(m, v[4], saved, v[5], scratch, s)
    }
}

fn forward(k: Kernels, s: Shape) -> Case {
    let case = Case::new("attention", label(s), Work::Flops(2 * product(s)), forward_tensors(s), move |m, v| {
        k.forward(m, v, s)
    });
    case.by(k.variant)
}

fn backward(k: Kernels, s: Shape) -> Case {
    let case = Case::new("attention_bwd", label(s), Work::Flops(5 * product(s)), backward_tensors(s), move |m, v| {
        k.backward(m, v, s)
    });
    case.by(k.variant).prepared(move |m, v| k.forward(m, v, s))
}

fn both(k: Kernels, s: Shape) -> Case {
    let case = Case::new("attention_both", label(s), Work::Flops(7 * product(s)), backward_tensors(s), move |m, v| {
        k.forward(m, v, s)?;
        k.backward(m, v, s)
    });
    case.by(k.variant)
}
