//! Each layer's hand-written backward is compared with finite differences of its forward.
//!
//! The scalar is f = sum of r * y with a fixed random r; its derivative along a random direction u of one input is
//! (f(x + e u) - f(x - e u)) / 2e, and must equal the sum of dx * u.

use engine::backend::{Acc, Act, Backend, Heads, Tensor, TensorView, TensorViewMut};
use engine::cpu::Cpu;
use engine::layers::attention::Pattern;
use engine::layers::region::Region;
use engine::layers::{Ctx, block, embedding, head};
use engine::layout::mesh::GroupKind;
use engine::model::init;
use engine::model::param_specs::{Attention, Block, Embedding, Head, Mlp};

type C = Cpu<f32>;

const T: usize = 10;
const D: usize = 24;
const F: usize = 20;
const V: usize = 13;
const HEADS: Heads = Heads::full(4, 2, 6, 5);

/// One input of a layer: `values` is `rows` x `cols`.
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

/// The tensors of one block in the order of [`block_inputs`].
fn block_inputs() -> Vec<Input> {
    vec![
        input("x", T, D, 1.0),
        norm("norm1"),
        input("qkv", HEADS.qkv_cols(), D, 0.3),
        input("out", D, HEADS.out_cols(), 0.3),
        norm("norm2"),
        input("gate_up", 2 * F, D, 0.3),
        input("down", D, F, 0.3),
    ]
}

fn block_weights(t: &[Act<C>]) -> block::Weights<'_, C> {
    Block {
        attention: Attention { qkv: view(&t[2]), out: view(&t[3]) },
        mlp: Mlp { gate_up: view(&t[5]), down: view(&t[6]) },
        norm1: view(&t[1]),
        norm2: view(&t[4]),
    }
}

fn check_block(cx: &Ctx<C>, p: &Pattern<C>, slim: fn(block::Saved<C>) -> block::Saved<C>) {
    let b = cx.b;
    let inputs = block_inputs();
    let r = noise("r", T * D);
    let tensors: Vec<_> = inputs.iter().map(|x| up(b, x)).collect();
    let mut grads: Vec<_> = inputs.iter().map(|x| zeros(b, x.rows, x.cols)).collect();
    let w = block_weights(&tensors);
    let (_, saved) = block::forward(cx, p, &w, b.copy(&tensors[0]));
    let dy = b.upload(&r, T, D);
    let dx = {
        let [_, norm1, qkv, out, norm2, gate_up, down] = &mut grads[..] else { unreachable!() };
        let mut g = Block {
            attention: Attention { qkv: view_mut(qkv), out: view_mut(out) },
            mlp: Mlp { gate_up: view_mut(gate_up), down: view_mut(down) },
            norm1: view_mut(norm1),
            norm2: view_mut(norm2),
        };
        block::backward(cx, p, &w, dy, slim(saved), &mut g)
    };
    let mut gradients: Vec<_> = grads.iter().map(|g| b.download(g)).collect();
    gradients[0] = b.download(&dx);
    hold("block", inputs, gradients, |inputs| {
        let t: Vec<_> = inputs.iter().map(|x| up(b, x)).collect();
        dot(b, &block::forward(cx, p, &block_weights(&t), b.copy(&t[0])).0, &r)
    });
}

fn check_embedding(cx: &Ctx<C>) {
    let b = cx.b;
    let inputs = vec![input("table", V, D, 1.0)];
    let r = noise("r", T * D);
    let ids = b.upload(&[3u32, 1, 4, 1, 5, 9, 2, 6, 5, 3], T, 1);
    let mut dtable = zeros(b, V, D);
    embedding::backward(cx, &ids, &b.upload(&r, T, D), &mut Embedding { table: view_mut(&mut dtable) });
    hold("embedding", inputs, vec![b.download(&dtable)], |inputs| {
        let table = up(b, &inputs[0]);
        dot(b, &embedding::forward(cx, &Embedding { table: view(&table) }, &ids), &r)
    });
}

fn check_head(cx: &Ctx<C>, z_loss: f32) {
    let b = cx.b;
    let inputs = vec![input("x", T, D, 1.0), norm("norm"), input("head", V, D, 0.5)];
    // The targets of rows 2 and 6 do not count.
    let rows = b.upload(&[0u32, 1, 3, 4, 5, 7, 8, 9, 2, 6], T, 1);
    let places = b.upload(&[0u32, 1, T as u32, 2, 3, 4, T as u32, 5, 6, 7], T, 1);
    let ids = b.upload(&[3u32, 1, 1, 5, 9, 6, 5, 12, 4, 2], T, 1);
    let weights = b.upload(&[1.0f32, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0], T, 1);
    let targets = head::Targets { rows: &rows, places: &places, ids: &ids, weights: &weights, counted: T - 2, z_loss };
    let t: Vec<_> = inputs.iter().map(|x| up(b, x)).collect();
    let (mut norm, mut table) = (zeros(b, 1, D), zeros(b, V, D));
    let dx = {
        let w = Head { table: view(&t[2]), norm: view(&t[1]) };
        let mut g = Head { table: view_mut(&mut table), norm: view_mut(&mut norm) };
        head::forward(cx, &w, &t[0], &targets, &mut g, &mut zeros(b, 1, 3))
    };
    let gradients = vec![b.download(&dx), b.download(&norm), b.download(&table)];
    hold("head", inputs, gradients, |inputs| {
        let t: Vec<_> = inputs.iter().map(|x| up(b, x)).collect();
        let w = Head { table: view(&t[2]), norm: view(&t[1]) };
        let mut totals = zeros(b, 1, 3);
        head::evaluate(cx, &w, &t[0], &targets, &mut totals);
        let totals = b.download(&totals);
        totals[0] as f64 + (z_loss * totals[1]) as f64
    });
}

#[test]
fn every_layers_backward_is_the_derivative_of_its_forward() {
    let b = C::new(2);
    let region = Region::new(b.group(GroupKind::Tensor, &[0]), false);
    let angles: Vec<f32> = (0..HEADS.seq * HEADS.dim / 2).map(|i| i as f32 * 0.37).collect();
    let pairs = HEADS.dim / 2;
    let rows = angles.chunks(pairs).flat_map(|row| row.iter().map(|a| a.cos()).chain(row.iter().map(|a| a.sin())));
    let rope = b.upload(&rows.collect::<Vec<_>>(), HEADS.seq, HEADS.dim);
    // The second sequence has two documents.
    let starts = b.upload(&[0u32, 0, 0, 0, 0, 0, 0, 2, 2, 2], T, 1);
    let positions = b.upload(&[0u32, 1, 2, 3, 4, 0, 1, 0, 1, 2], T, 1);
    let pattern = Pattern { heads: HEADS, rope: &rope, positions: &positions, starts: &starts };
    let cx = Ctx { b: &b, region: &region, eps: 1e-5, vocab_start: 0 };
    check_block(&cx, &pattern, |saved| saved);
    check_block(&cx, &pattern, block::Saved::slim);
    check_embedding(&cx);
    check_head(&cx, 0.0);
    check_head(&cx, 0.1);
}
