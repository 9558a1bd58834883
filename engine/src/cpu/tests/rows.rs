//! Element-wise ops, biases, activations, embedding.

use super::reference::{geglu, gelu, swiglu};
use super::{THREADS, acc, act, close, close_to_differences, column, differences, dot, random, values};
use crate::backend::Backend;
use crate::cpu::{Cpu, Float};
use half::bf16;

fn elementwise<A: Float>() {
    let b = Cpu::<A>::new(THREADS);
    for (rows, cols) in [(1, 1), (3, 5), (400, 401)] {
        let (x, y) = (random::<A>(rows * cols, 1), random::<A>(rows * cols, 2));
        let sum = b.add(act(&b, &x, rows), &act(&b, &y, rows));
        close::<A>("sum", &values(&b, &sum), &x.iter().zip(&y).map(|(x, y)| x + y).collect::<Vec<_>>());
        assert_eq!(values(&b, &b.copy(&act(&b, &x, rows))), x);
        let scaled = values(&b, &b.scale(act(&b, &x, rows), 1.7));
        close::<A>("scaled", &scaled, &x.iter().map(|x| x * 1.7f32 as f64).collect::<Vec<_>>());

        let (bias, before) = (random::<A>(cols, 5), random::<f32>(cols, 6));
        let biased = b.add_bias(act(&b, &x, rows), &act(&b, &bias, 1));
        let right: Vec<f64> = x.iter().enumerate().map(|(i, x)| x + bias[i % cols]).collect();
        close::<A>("x + bias", &values(&b, &biased), &right);
        let mut dbias = acc(&b, &before, 1);
        b.bias_bwd(&act(&b, &y, rows), &mut dbias);
        let right: Vec<f64> = (0..cols).map(|i| before[i] + (0..rows).map(|r| y[r * cols + i]).sum::<f64>()).collect();
        close::<f32>("dbias", &values(&b, &dbias), &right);
        let exact = random::<f32>(rows * cols, 3);
        let mut wide = acc(&b, &exact, rows);
        let right: Vec<A> = exact.iter().map(|&x| A::store(x as f32)).collect();
        let mut rounded = b.alloc(rows, cols);
        b.round(&wide, &mut rounded);
        assert_eq!(b.download(&rounded), right);
        b.zero(&mut wide);
        assert!(b.download(&wide).iter().all(|&x| x == 0.0));
    }
}

fn gates<A: Float>() {
    let b = Cpu::<A>::new(THREADS);
    for (rows, f) in [(1, 1), (3, 17), (70, 33), (5, 1376)] {
        let x: Vec<f64> = random::<A>(rows * 2 * f, 1).into_iter().map(|x| 8.0 * x).collect();
        let dy = random::<A>(rows * f, 2);
        close::<A>("swiglu", &values(&b, &b.swiglu(&act(&b, &x, rows))), &swiglu(&x, f));
        let right = differences(&x, |x| dot(&swiglu(x, f), &dy));
        let got = b.swiglu_bwd(&act(&b, &dy, rows), act(&b, &x, rows));
        close_to_differences::<A>("dgate, dup", &values(&b, &got), &right, 1e-6);

        close::<A>("geglu", &values(&b, &b.geglu(&act(&b, &x, rows))), &geglu(&x, f));
        let right = differences(&x, |x| dot(&geglu(x, f), &dy));
        let got = b.geglu_bwd(&act(&b, &dy, rows), act(&b, &x, rows));
        close_to_differences::<A>("dgate, dup of GeGLU", &values(&b, &got), &right, 2e-6);

        let x = &x[..rows * f];
        let all = |x: &[f64]| -> Vec<f64> { x.iter().map(|&x| gelu(x)).collect() };
        close::<A>("gelu", &values(&b, &b.gelu(&act(&b, x, rows))), &all(x));
        let right = differences(x, |x| dot(&all(x), &dy));
        let got = b.gelu_bwd(&act(&b, &dy, rows), act(&b, x, rows));
        close_to_differences::<A>("dx of gelu", &values(&b, &got), &right, 2e-6);
    }
}

fn embedding<A: Float>() {
    let b = Cpu::<A>::new(THREADS);
    let ids = [5, 0, 3, 9, 3, 3, 4, u32::MAX, 2, 8];
    for (held, cols, first) in [(10, 33, 0), (4, 200, 3), (1, 1, 9)] {
        let (table, dy) = (random::<A>(held * cols, 1), random::<A>(ids.len() * cols, 2));
        let before = random::<f32>(held * cols, 3);
        let row = |id: u32| (id as usize).checked_sub(first).filter(|&row| row < held);
        let y = b.embed(&column(&b, &ids), &act(&b, &table, held), first);
        let right: Vec<f64> = ids
            .iter()
            .flat_map(|&id| row(id).map_or(vec![0.0; cols], |row| table[row * cols..][..cols].to_vec()))
            .collect();
        assert_eq!(values(&b, &y), right);

        let mut dtable = acc(&b, &before, held);
        b.embed_bwd(&column(&b, &ids), &act(&b, &dy, ids.len()), first, &mut dtable);
        let mut right = before;
        for (at, &id) in ids.iter().enumerate() {
            let Some(row) = row(id) else { continue };
            right[row * cols..][..cols].iter_mut().zip(&dy[at * cols..]).for_each(|(sum, dy)| *sum += dy);
        }
        close::<f32>("dtable", &values(&b, &dtable), &right);
    }
}

#[test]
fn rows_in_f32() {
    elementwise::<f32>();
    gates::<f32>();
    embedding::<f32>();
}

#[test]
fn rows_in_bf16() {
    elementwise::<bf16>();
    gates::<bf16>();
    embedding::<bf16>();
}

#[test]
fn a_gate_far_out_is_finite() {
    let b = Cpu::<f32>::new(1);
    let x = [-1e4, -100.0, 100.0, 1e4, 1.0, 1.0, 1.0, 1.0];
    assert_eq!(values(&b, &b.swiglu(&act(&b, &x, 1)))[2..], [100.0, 1e4]);
    let d = values(&b, &b.swiglu_bwd(&act(&b, &[1.0; 4], 1), act(&b, &x, 1)));
    assert!(d.iter().all(|d| d.is_finite()), "{d:?}");
    assert_eq!(d[2..4], [1.0, 1.0]);
}
