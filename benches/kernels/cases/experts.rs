//! Layers with experts: the router, the dispatch of rows, weighted SwiGLU, also with a clamped gate, grouped products,
//! also as a call of cuBLASLt for each expert, and biases of experts.

use super::{BF16, F32, NEW_BF16, NEW_F32, Sizes};
use crate::case::{Case, Data, Tensor, Work, counts};
use cuda::blas::{Blas, Form, Product};
use cuda::machine::{Done, Machine};
use cuda::ops::{self, GroupBias, Groups, Routed};
use cuda::tensor::View;
use engine::backend::{Router, Total};
use engine::config::RouterWeights;
use std::rc::Rc;

/// The sizes of a layer with experts: hidden size, intermediate size of an expert, experts, and those of a token.
#[derive(Clone, Copy)]
pub struct Layer {
    pub hidden: usize,
    pub ffn: usize,
    pub experts: usize,
    pub k: usize,
}

pub fn cases(s: &Sizes) -> Vec<Case> {
    let of = |l| {
        let products = FORMS.into_iter().map(move |form| grouped(s, l, form));
        let dispatch = [route(s, l), route_bwd(s, l), sort(s, l), take_rows(s, l), sum_choices(s, l)];
        dispatch
            .into_iter()
            .chain(GATES.iter().flat_map(move |gate| weighted(s, l, gate)))
            .chain(products)
            .chain(biases(s, l))
    };
    s.experts.iter().flat_map(|&l| of(l)).collect()
}

fn shape(s: &Sizes, l: Layer, rest: &str) -> String {
    format!("{}x{} of {} experts{rest}", s.tokens, l.k, l.experts)
}

fn router(l: Layer) -> Router {
    Router { per_token: l.k, weights: RouterWeights::OfChosen }
}

fn route(s: &Sizes, l: Layer) -> Case {
    let (all, chosen) = (s.tokens * l.experts, s.tokens * l.k);
    let tensors = vec![Tensor::read(all, F32), Tensor::scratch(chosen, 4), Tensor::written(chosen, NEW_F32)];
    let bytes = Work::Bytes(4 * all + 8 * chosen);
    Case::new("route", shape(s, l, ""), bytes, tensors, move |m, v| ops::route(m, v[0], router(l), v[1], v[2]))
}

fn route_bwd(s: &Sizes, l: Layer) -> Case {
    let (all, n, seq) = (s.tokens * l.experts, s.tokens * l.k, s.tokens.div_ceil(2));
    let tensors = vec![
        Tensor::read(n, F32),
        Tensor::read(all, F32),
        Tensor::read(n, Data::Ids(l.experts as u32)),
        Tensor::read(1, F32),
        Tensor::written(Total::COUNT, F32),
        Tensor::written(l.experts, F32),
        Tensor::scratch(ops::route_parts(s.tokens, l.experts), 4),
        Tensor::written(all, NEW_F32),
    ];
    Case::new("route_bwd", shape(s, l, ""), Work::Bytes(8 * all + 8 * n), tensors, move |m, v| {
        let [dweights, logits, chosen, targets] = [v[0], v[1], v[2], v[3]];
        let of = Routed { dweights, logits, chosen, targets, seq, factors: [1e-2, 1e-3] };
        ops::route_bwd(m, of, router(l), [v[4], v[5]], v[6], v[7])
    })
}

fn sort(s: &Sizes, l: Layer) -> Case {
    let n = s.tokens * l.k;
    let new = |len| Tensor::scratch(len, 4);
    let tensors = vec![Tensor::read(n, Data::Ids(l.experts as u32)), new(n), new(n), new(l.experts)];
    Case::new("sort_choices", shape(s, l, ""), Work::Bytes(12 * n), tensors, |m, v| {
        ops::sort_choices(m, v[0], v[1], v[2], v[3])
    })
}

fn take_rows(s: &Sizes, l: Layer) -> Case {
    let (n, d, k) = (s.tokens * l.k, l.hidden, l.k);
    let index = Tensor::read(n, Data::Ids(n as u32));
    let tensors = vec![Tensor::read(s.tokens * d, BF16), index, Tensor::written(n * d, NEW_BF16)];
    let bytes = Work::Bytes(2 * s.tokens * d + 2 * n * d + 4 * n);
    Case::new("take_rows", shape(s, l, &format!(", {d}")), bytes, tensors, move |m, v| {
        ops::take_rows::<half::bf16>(m, v[0], v[1], k, v[2], d)
    })
}

fn sum_choices(s: &Sizes, l: Layer) -> Case {
    let (n, d) = (s.tokens * l.k, l.hidden);
    let places = Tensor::read(n, Data::Ids(n as u32));
    let tensors = vec![Tensor::read(n * d, BF16), places, Tensor::written(s.tokens * d, NEW_BF16)];
    let bytes = Work::Bytes(2 * s.tokens * d + 2 * n * d + 4 * n);
    Case::new("sum_choices", shape(s, l, &format!(", {d}")), bytes, tensors, move |m, v| {
        ops::sum_choices(m, v[0], v[1], v[2], d)
    })
}

/// The two passes of a gated activation.
struct Gate {
    names: [&'static str; 2],
    forward: fn(&dyn Machine, View, View, View, usize) -> Done,
    backward: fn(&dyn Machine, View, View, [View; 2], usize) -> Done,
}

const GATES: [Gate; 2] = [
    Gate {
        names: ["swiglu_weighted", "swiglu_weighted_bwd"],
        forward: ops::swiglu_weighted,
        backward: ops::swiglu_weighted_bwd,
    },
    Gate {
        names: ["clamped_swiglu_weighted", "clamped_swiglu_weighted_bwd"],
        forward: ops::clamped_swiglu_weighted,
        backward: ops::clamped_swiglu_weighted_bwd,
    },
];

/// Forward and backward.
fn weighted(s: &Sizes, l: Layer, gate: &'static Gate) -> [Case; 2] {
    let (rows, f) = (s.tokens * l.k, l.ffn);
    let (n, shape) = (rows * f, format!("{rows}x{f}"));
    let forward = vec![Tensor::read(2 * n, BF16), Tensor::read(rows, F32), Tensor::written(n, NEW_BF16)];
    let weights = [Tensor::read(rows, F32), Tensor::written(rows, NEW_F32)];
    let backward = [Tensor::read(n, BF16), Tensor::written(2 * n, BF16)].into_iter().chain(weights).collect();
    [
        Case::new(gate.names[0], shape.clone(), Work::Bytes(6 * n + 4 * rows), forward, move |m, v| {
            (gate.forward)(m, v[0], v[1], v[2], f)
        }),
        Case::new(gate.names[1], shape, Work::Bytes(10 * n + 8 * rows), backward, move |m, v| {
            (gate.backward)(m, v[0], v[1], [v[2], v[3]], f)
        }),
    ]
}

/// The three products of the first matrix of an expert: [R, D] -> [R, 2F], back, and the gradient of the weights.
const FORMS: [Form; 3] = [Form::Nt, Form::Nn, Form::TnAcc];

/// A case without a launch: the rows' matrices of 2F and of D columns, the weights, and the counts.
fn product(s: &Sizes, l: Layer, form: Form, variant: &'static str) -> Case {
    let (rows, n, d) = (s.tokens * l.k, 2 * l.ffn, l.hidden);
    let (outer, inner, weights) = (rows * n, rows * d, l.experts * n * d);
    let read = |len| Tensor::read(len, BF16);
    let (name, mut tensors) = match form {
        Form::Nt => ("grouped_nt", vec![Tensor::written(outer, NEW_BF16), read(inner), read(weights)]),
        Form::Nn => ("grouped_nn", vec![read(outer), Tensor::written(inner, NEW_BF16), read(weights)]),
        _ => ("grouped_tn_acc", vec![read(outer), read(inner), Tensor::written(weights, F32)]),
    };
    tensors.push(Tensor::read(l.experts, Data::Counts(rows)));
    let shape = format!("{rows}x{n}x{d} of {} experts", l.experts);
    Case::new(name, shape, Work::Flops(2 * rows * n * d), tensors, |_, _| Ok(())).by(variant)
}

fn grouped(s: &Sizes, l: Layer, form: Form) -> Case {
    let rows = s.tokens * l.k;
    let launch = move |m: &dyn Machine, v: &[View]| {
        let g = Groups { counts: v[3], first: 0 };
        match form {
            Form::Nt => ops::grouped_nt(m, v[1], v[2], GroupBias::NONE, g, v[0], rows),
            Form::Nn => ops::grouped_nn(m, v[0], v[2], g, v[1], rows),
            _ => ops::grouped_tn_acc(m, v[0], v[1], g, v[2], rows),
        }
    };
    Case { launch: Box::new(launch), ..product(s, l, form, "one kernel") }
}

/// The first product with a bias, and the gradients of a weighted bias of its result.
fn biases(s: &Sizes, l: Layer) -> [Case; 3] {
    let (rows, n, experts) = (s.tokens * l.k, 2 * l.ffn, l.experts);
    let of = move |v: &[View]| (Groups { counts: v[2], first: 0 }, GroupBias::new(v[1], v[3], 0, experts));
    let mut product = product(s, l, Form::Nt, "with a bias");
    product.tensors.push(Tensor::read(experts * n, BF16));
    let launch = move |m: &dyn Machine, v: &[View]| {
        let bias = GroupBias::new(v[4], View::NONE, 0, experts);
        ops::grouped_nt(m, v[1], v[2], bias, Groups { counts: v[3], first: 0 }, v[0], rows)
    };
    let tensors = |to: usize| {
        let (dy, bias) = (Tensor::read(rows * n, BF16), Tensor::read(experts * n, BF16));
        let counts = Tensor::read(experts, Data::Counts(rows));
        vec![dy, bias, counts, Tensor::read(rows, F32), Tensor::written(to, F32)]
    };
    let shape = format!("{rows}x{n} of {experts} experts");
    let bytes = Work::Bytes(2 * rows * n + 4 * rows);
    [
        Case { launch: Box::new(launch), ..product },
        Case::new("grouped_bias_bwd", shape.clone(), bytes, tensors(experts * n), move |m, v| {
            let (g, bias) = of(v);
            ops::grouped_bias_bwd(m, v[0], bias, g, v[4], rows)
        }),
        Case::new("grouped_bias_dot", shape, bytes, tensors(rows), move |m, v| {
            let (g, bias) = of(v);
            ops::grouped_bias_dot(m, v[0], bias, g, v[4])
        }),
    ]
}

/// The same products by calls of cuBLASLt, for which the host knows the rows of each expert.
pub fn by_library(s: &Sizes, blas: &Rc<Blas>) -> Vec<Case> {
    let all = s.experts.iter().flat_map(|&l| FORMS.map(|form| (l, form)));
    all.map(|(l, form)| {
        let (rows, n, d, blas) = (s.tokens * l.k, 2 * l.ffn, l.hidden, blas.clone());
        let launch = move |_: &dyn Machine, v: &[View]| {
            let mut first = 0;
            for (expert, of) in counts(rows, l.experts).into_iter().map(|of| of as usize).enumerate() {
                let part = |view: View, cols: usize| part(view, first * cols, of * cols, 2);
                let (outer, inner, size) = (part(v[0], n), part(v[1], d), n * d);
                first += of;
                let weights = |each| self::part(v[2], expert * size, size, each);
                match form {
                    _ if of == 0 => {}
                    Form::Nt => blas.run(Product::new(form, of, n, d), inner, weights(2), outer)?,
                    Form::Nn => blas.run(Product::new(form, of, d, n), outer, weights(2), inner)?,
                    _ => blas.run(Product::new(form, n, d, of), outer, inner, weights(4))?,
                }
            }
            Ok(())
        };
        Case { launch: Box::new(launch), ..product(s, l, form, "cuBLASLt, a call for each expert") }
    })
    .collect()
}

/// `len` elements of `each` bytes from element `first` on.
fn part(view: View, first: usize, len: usize, each: usize) -> View {
    assert!(first + len <= view.len(), "elements {first} .. {} of {}", first + len, view.len());
    // SAFETY: these are elements of the view.
    unsafe { View::new(view.at() + (first * each) as u64, len) }
}
