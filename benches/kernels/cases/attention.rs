//! Causal attention of whole sequences and with Gemma 2's caps and windows, by the kernels of sm_80 and by those of
//! sm_90a; sinks.

use super::{BF16, F32, NEW_BF16, NEW_F32, Sizes, Special};
use crate::case::{Case, Data, Tensor, Work};
use cuda::machine::{Done, Machine, Target};
use cuda::ops::{self, AttentionSaved, HEAD_DIMS, HEAD_DIMS_SM90, Scratch, Shape};
use cuda::tensor::View;

type Forward = fn(&dyn Machine, View, View, View, View, Shape) -> Done;
type Backward = fn(&dyn Machine, View, AttentionSaved, View, Scratch, Shape) -> Done;

/// The kernels of one target.
#[derive(Clone, Copy)]
struct Kernels {
    variant: &'static str,
    dims: &'static [usize],
    forward: Forward,
    backward: Backward,
}

const KERNELS: [Kernels; 2] = [
    Kernels { variant: "sm_80", dims: &HEAD_DIMS, forward: ops::attention_sm80, backward: ops::attention_bwd_sm80 },
    Kernels {
        variant: "sm_90a",
        dims: &HEAD_DIMS_SM90,
        forward: ops::attention_sm90,
        backward: ops::attention_bwd_sm90,
    },
];

pub fn cases(s: &Sizes, target: Target) -> Vec<Case> {
    let there = if target == Target::Sm90a { &KERNELS[..] } else { &KERNELS[..1] };
    let mut all = Vec::new();
    for &(seq, dim) in s.attention {
        let shape = Shape::full(s.heads, s.kv_heads, dim, seq, s.tokens.div_ceil(seq));
        all.extend(there.iter().flat_map(|&k| passes(k, Windowed { shape, window: seq })));
    }
    for &Special { seq, window, heads, kv_heads, dim, cap } in s.special {
        let shape = Shape { cap, ..Shape::full(heads, kv_heads, dim, seq, s.tokens.div_ceil(seq)) };
        let there = there.iter().filter(|k| k.dims.contains(&dim));
        all.extend(there.flat_map(|&k| passes(k, Windowed { shape, window })));
    }
    all.extend(sinks(s));
    all
}

/// Elements of a head of GPT-OSS.
const SINK_DIM: usize = 64;

/// Sinks are added, and their gradients.
fn sinks(s: &Sizes) -> [Case; 2] {
    let (n, stats) = (s.tokens * s.heads * SINK_DIM, s.tokens * s.heads);
    let (shape, sinks) = (format!("{} x {} x {SINK_DIM}", s.tokens, s.heads), Tensor::read(s.heads, BF16));
    let forward = vec![Tensor::written(n, BF16), Tensor::written(stats, F32), sinks];
    let [do_, o] = [(); 2].map(|()| Tensor::read(n, BF16));
    let backward = vec![do_, o, Tensor::read(stats, Data::Positive(4.0)), sinks, Tensor::written(s.heads, F32)];
    [
        Case::new("add_sinks", shape.clone(), Work::Bytes(4 * n + 8 * stats), forward, |m, v| {
            ops::add_sinks(m, v[0], v[1], v[2])
        }),
        Case::new("sinks_bwd", shape, Work::Bytes(4 * n + 4 * stats), backward, |m, v| {
            ops::sinks_bwd(m, v[0], [v[1], v[2]], v[3], v[4])
        }),
    ]
}

/// Attention over the last so many positions.
#[derive(Clone, Copy)]
struct Windowed {
    shape: Shape,
    window: usize,
}

/// Floating-point operations of one matrix multiplication, of which the causal mask leaves half or, of a window, less.
fn product(Windowed { shape: s, window }: Windowed) -> usize {
    s.sequences * window * (2 * s.seq - window) * s.query * s.dim
}

fn label(Windowed { shape: s, window }: Windowed) -> String {
    let window = if window < s.seq { format!(", window {window}") } else { String::new() };
    let cap = if s.cap.is_some() { ", capped" } else { "" };
    format!("{}, {}/{} x {}{cap}{window}", s.seq, s.query, s.kv, s.dim)
}

/// qkv, starts, o, lse.
fn forward_tensors(Windowed { shape: s, window }: Windowed) -> Vec<Tensor> {
    let rows = s.rows();
    vec![
        Tensor::read(rows * s.qkv_cols(), BF16),
        Tensor::read(rows, Data::Starts { seq: s.seq, window }),
        Tensor::written(rows * s.query * s.dim, NEW_BF16),
        Tensor::written(rows * s.query, NEW_F32),
    ]
}

/// The tensors of the forward pass, do, dqkv, and the scratch.
fn backward_tensors(w: Windowed) -> Vec<Tensor> {
    let (s, mut tensors) = (w.shape, forward_tensors(w));
    let rows = s.rows();
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

fn passes(k: Kernels, w: Windowed) -> [Case; 3] {
    [forward(k, w), backward(k, w), both(k, w)]
}

fn forward(k: Kernels, w: Windowed) -> Case {
    let case = Case::new("attention", label(w), Work::Flops(2 * product(w)), forward_tensors(w), move |m, v| {
        k.forward(m, v, w.shape)
    });
    case.by(k.variant)
}

fn backward(k: Kernels, w: Windowed) -> Case {
    let case = Case::new("attention_bwd", label(w), Work::Flops(5 * product(w)), backward_tensors(w), move |m, v| {
        k.backward(m, v, w.shape)
    });
    case.by(k.variant).prepared(move |m, v| k.forward(m, v, w.shape))
}

fn both(k: Kernels, w: Windowed) -> Case {
    let case = Case::new("attention_both", label(w), Work::Flops(7 * product(w)), backward_tensors(w), move |m, v| {
        k.forward(m, v, w.shape)?;
        k.backward(m, v, w.shape)
    });
    case.by(k.variant)
}
