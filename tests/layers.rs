//! Each layer's hand-written backward is compared with finite differences of its forward.
//!
//! The scalar is f = sum of r * y with a fixed random r; its derivative along a random direction u of one input is
//! (f(x + e u) - f(x - e u)) / 2e, and must equal the sum of dx * u.

use engine::backend::{Acc, Act, Backend, Heads, Rotary, Tensor, TensorView, TensorViewMut, Total};
use engine::config::{Activation, NormKind};
use engine::cpu::Cpu;
use engine::layers::attention::Pattern;
use engine::layers::norm::Norms;
use engine::layers::region::Region;
use engine::layers::{Ctx, block, embedding, head};
use engine::layout::mesh::GroupKind;
use engine::model::init;
use engine::model::param_specs::{Attention, Block, Embedding, FeedForward, Head, HeadNorms, Linear, Mlp, Norm};

type C = Cpu<f32>;

const T: usize = 10;
const D: usize = 24;
const F: usize = 20;
const V: usize = 13;
fn heads() -> Heads {
    Heads::full(4, 2, 6, 5)
}

/// One input of a layer: `values` is `rows` x `cols`.
#[derive(Clone)]
struct Input {
    name: &'static str,
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

fn input(name: &'static str, rows: usize, cols: usize, std: f64) -> Input {
    let mut values = vec![0.0; rows * cols];
    init::normal(7, name, std, 0, &mut values);
    Input { name, rows, cols, values }
}

fn norm(name: &'static str) -> Input {
    let mut x = input(name, 1, D, 0.2);
    x.values.iter_mut().for_each(|v| *v += 1.0);
    x
}

fn noise(name: &str, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    init::normal(11, name, 1.0, 0, &mut values);
    values
}

/// Compares `gradients`, in the order of `inputs`, with central differences of `f`.
fn hold(what: &str, mut inputs: Vec<Input>, gradients: Vec<Vec<f32>>, f: impl Fn(&[Input]) -> f64) {
    assert_eq!(inputs.len(), gradients.len());
    for i in 0..inputs.len() {
        let name = inputs[i].name;
        let u = noise(name, inputs[i].values.len());
        let before = inputs[i].values.clone();
        let e = 3e-3;
        let at = |inputs: &mut Vec<Input>, e: f32| {
            inputs[i].values = before.iter().zip(&u).map(|(x, u)| x + e * u).collect();
            f(inputs)
        };
        // Fourth-order differences: rounding in the f32 forward needs a step that is too large for second order.
        let d1 = at(&mut inputs, e) - at(&mut inputs, -e);
        let d2 = at(&mut inputs, 2.0 * e) - at(&mut inputs, -2.0 * e);
        let numeric = (8.0 * d1 - d2) / (12.0 * e as f64);
        inputs[i].values = before;
        let analytic: f64 = gradients[i].iter().zip(&u).map(|(g, u)| *g as f64 * *u as f64).sum();
        let scale: f64 = gradients[i].iter().map(|g| (*g as f64).powi(2)).sum::<f64>().sqrt();
        assert!(scale > 0.0, "{what}: the gradient of {name} is zero");
        assert!(
            (numeric - analytic).abs() < 2e-3 * scale,
            "{what} {name}: {numeric} by differences, {analytic} by backward"
        );
    }
}

fn up(b: &C, x: &Input) -> Act<C> {
    b.upload(&x.values, x.rows, x.cols)
}

fn zeros(b: &C, rows: usize, cols: usize) -> Acc<C> {
    let mut x = b.alloc(rows, cols);
    b.zero(&mut x);
    x
}

fn view(x: &Tensor<C, f32>) -> TensorView<'_, C, f32> {
    x.view(0, x.rows(), x.cols())
}

fn view_mut(x: &mut Tensor<C, f32>) -> TensorViewMut<'_, C, f32> {
    let (rows, cols) = x.shape();
    x.view_mut(0, rows, cols)
}

fn dot(b: &C, y: &Act<C>, r: &[f32]) -> f64 {
    b.download(y).iter().zip(r).map(|(y, r)| *y as f64 * *r as f64).sum()
}

/// A kind of block: which of the optional parameters it has, and how many products go into its MLP.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    norms: NormKind,
    activation: Activation,
    biases: bool,
    sinks: bool,
    head_norms: bool,
    post_norms: bool,
}

const LLAMA: Kind = Kind {
    name: "llama",
    norms: NormKind::Rms,
    activation: Activation::SwiGlu,
    biases: false,
    sinks: false,
    head_norms: false,
    post_norms: false,
};

/// The parameters of a block: names, sizes and values, in the shape of the block.
fn block_inputs(kind: Kind) -> Block<Input> {
    let (up, h) = (kind.activation.products() * F, heads());
    let linear = |name: &'static str, bias: &'static str, rows, cols| Linear {
        weight: input(name, rows, cols, 0.3),
        bias: kind.biases.then(|| input(bias, 1, rows, 0.3)),
    };
    let layer = kind.norms == NormKind::Layer;
    let norm = |name: &'static str, bias: &'static str| Norm {
        weight: norm(name),
        bias: layer.then(|| input(bias, 1, D, 0.3)),
    };
    Block {
        attention: Attention {
            sinks: kind.sinks.then(|| input("sinks", 1, h.query, 2.0)),
            qkv: linear("qkv", "qkv bias", h.qkv_cols(), D),
            out: linear("out", "out bias", D, h.out_cols()),
            norms: kind
                .head_norms
                .then(|| HeadNorms { q: input("q norm", 1, h.dim, 1.0), k: input("k norm", 1, h.dim, 1.0) }),
        },
        feed_forward: FeedForward::Mlp(Mlp {
            up: linear("up", "up bias", up, D),
            down: linear("down", "down bias", D, F),
        }),
        norm1: norm("norm1", "norm1 bias"),
        norm2: norm("norm2", "norm2 bias"),
        post1: kind.post_norms.then(|| norm("post1", "")),
        post2: kind.post_norms.then(|| norm("post2", "")),
    }
}

/// The tensors of a block, in the order of its parameters after x.
fn weights<'t>(kind: Kind, tensors: &'t [Act<C>]) -> block::Weights<'t, C> {
    let mut next = tensors.iter();
    block_inputs(kind).map(&mut |_| view(next.next().expect("a tensor for each parameter")))
}

fn check_block(cx: &Ctx<C>, p: &Pattern<C>, kind: Kind, slim: fn(block::Saved<C>) -> block::Saved<C>) {
    let b = cx.b;
    let cx = &Ctx { norms: Norms { kind: kind.norms, eps: 1e-5 }, activation: kind.activation, ..*cx };
    let inputs = || [vec![input("x", T, D, 1.0)], block_inputs(kind).all()].concat();
    let r = noise("r", T * D);
    let tensors: Vec<_> = inputs().iter().map(|x| up(b, x)).collect();
    let mut grads: Vec<_> = inputs()[1..].iter().map(|x| zeros(b, x.rows, x.cols)).collect();
    let w = weights(kind, &tensors[1..]);
    let (_, saved) = block::forward(cx, p, &w, b.copy(&tensors[0]));
    let dy = b.upload(&r, T, D);
    let dx = {
        let mut next = grads.iter_mut();
        let mut g = block_inputs(kind).map(&mut |_| view_mut(next.next().expect("a gradient for each parameter")));
        block::backward(cx, p, &w, dy, slim(saved), &mut g, None)
    };
    let gradients = std::iter::once(&dx).chain(&grads).map(|g| b.download(g)).collect();
    hold(kind.name, inputs(), gradients, |inputs| {
        let t: Vec<_> = inputs.iter().map(|x| up(b, x)).collect();
        dot(b, &block::forward(cx, p, &weights(kind, &t[1..]), b.copy(&t[0])).0, &r)
    });
}

fn check_embedding(cx: &Ctx<C>, positions: &Tensor<C, u32>) {
    let b = cx.b;
    let inputs = vec![input("table", V, D, 1.0), input("positions", 5, D, 1.0)];
    let r = noise("r", T * D);
    let ids = b.upload(&[3u32, 1, 4, 1, 5, 9, 2, 6, 5, 3], T, 1);
    let tokens = embedding::Tokens { ids: &ids, positions };
    let (mut dtable, mut dpositions) = (zeros(b, V, D), zeros(b, 5, D));
    let mut g = Embedding { table: view_mut(&mut dtable), positions: Some(view_mut(&mut dpositions)) };
    embedding::backward(cx, &tokens, b.upload(&r, T, D), &mut g);
    hold("embedding", inputs, vec![b.download(&dtable), b.download(&dpositions)], |inputs| {
        let [table, positions] = [0, 1].map(|i| up(b, &inputs[i]));
        let w = Embedding { table: view(&table), positions: Some(view(&positions)) };
        dot(b, &embedding::forward(cx, &w, &tokens), &r)
    });
}

fn check_head(cx: &Ctx<C>, z_loss: f32, cap: Option<f32>) {
    let b = cx.b;
    let inputs = vec![input("x", T, D, 1.0), norm("norm"), input("head", V, D, 0.5)];
    // The targets of rows 2 and 6 do not count.
    let rows = b.upload(&[0u32, 1, 3, 4, 5, 7, 8, 9, 2, 6], T, 1);
    let places = b.upload(&[0u32, 1, T as u32, 2, 3, 4, T as u32, 5, 6, 7], T, 1);
    let ids = b.upload(&[3u32, 1, 1, 5, 9, 6, 5, 12, 4, 2], T, 1);
    let weights = b.upload(&[1.0f32, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0], T, 1);
    let targets =
        head::Targets { rows: &rows, places: &places, ids: &ids, weights: &weights, counted: T - 2, z_loss, cap };
    let t: Vec<_> = inputs.iter().map(|x| up(b, x)).collect();
    let (mut norm, mut table) = (zeros(b, 1, D), zeros(b, V, D));
    let dx = {
        let w = Head { table: view(&t[2]), norm: Norm { weight: view(&t[1]), bias: None } };
        let mut g = Head { table: view_mut(&mut table), norm: Norm { weight: view_mut(&mut norm), bias: None } };
        head::forward(cx, &w, &t[0], &targets, &mut g, &mut zeros(b, 1, Total::COUNT))
    };
    let gradients = vec![b.download(&dx), b.download(&norm), b.download(&table)];
    hold("head", inputs, gradients, |inputs| {
        let t: Vec<_> = inputs.iter().map(|x| up(b, x)).collect();
        let w = Head { table: view(&t[2]), norm: Norm { weight: view(&t[1]), bias: None } };
        let mut totals = zeros(b, 1, Total::COUNT);
        head::evaluate(cx, &w, &t[0], &targets, &mut |stats, weights| b.xent_totals(stats, weights, &mut totals));
        let totals = b.download(&totals);
        totals[0] as f64 + (z_loss * totals[1]) as f64
    });
}

#[test]
fn every_layers_backward_is_the_derivative_of_its_forward() {
    let b = C::new(2);
    let region = Region::new(b.group(GroupKind::Tensor, &[0]), false);
    let angles: Vec<f32> = (0..heads().seq * heads().dim / 2).map(|i| i as f32 * 0.37).collect();
    let pairs = heads().dim / 2;
    let rows = angles.chunks(pairs).flat_map(|row| row.iter().map(|a| a.cos()).chain(row.iter().map(|a| a.sin())));
    let rope = b.upload(&rows.collect::<Vec<_>>(), heads().seq, heads().dim);
    // The second sequence has two documents.
    let starts = b.upload(&[0u32, 0, 0, 0, 0, 0, 0, 2, 2, 2], T, 1);
    let positions = b.upload(&[0u32, 1, 2, 3, 4, 0, 1, 0, 1, 2], T, 1);
    let rotary = Rotary { table: &rope, positions: &positions };
    let pattern = Pattern { heads: heads(), rotary: Some(rotary), starts: &starts };
    let norms = Norms { kind: NormKind::Rms, eps: 1e-5 };
    let activation = Activation::SwiGlu;
    let cx = Ctx {
        b: &b,
        region: &region,
        norms,
        activation,
        moe: None,
        embedding_scale: None,
        vocab_start: 0,
        hidden_start: 0,
        positions_start: 0,
    };
    let capped = Heads { cap: Some(1.5), scale: 0.3, ..heads() };
    for slim in [|saved| saved, block::Saved::slim] as [fn(_) -> _; 2] {
        check_block(&cx, &pattern, LLAMA, slim);
        check_block(&cx, &pattern, Kind { name: "with biases", biases: true, ..LLAMA }, slim);
        check_block(&cx, &pattern, Kind { name: "with sinks", sinks: true, ..LLAMA }, slim);
        check_block(&cx, &pattern, Kind { name: "qwen3", head_norms: true, ..LLAMA }, slim);
        let (norms, activation) = (NormKind::RmsPlusOne, Activation::GeGlu);
        let gemma = Kind { name: "gemma2", norms, activation, post_norms: true, ..LLAMA };
        check_block(&cx, &Pattern { heads: capped, ..pattern }, gemma, slim);
        let (norms, activation) = (NormKind::Layer, Activation::Gelu);
        let gpt = Kind { name: "gpt2", norms, activation, biases: true, ..LLAMA };
        check_block(&cx, &Pattern { rotary: None, ..pattern }, gpt, slim);
    }
    check_embedding(&cx, &positions);
    check_embedding(&Ctx { embedding_scale: Some(2.5), ..cx }, &positions);
    check_head(&cx, 0.0, None);
    check_head(&cx, 0.1, Some(1.5));
}
