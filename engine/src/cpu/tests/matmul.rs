//! Products over shapes with one row, odd sizes, more than one tile each way, several parts of the depth and several
//! strips.

use super::reference::{matmul, transpose};
use super::{THREADS, acc, act, close, random, values};
use crate::backend::Backend;
use crate::cpu::{Cpu, Float};
use half::bf16;

const SHAPES: [(usize, usize, usize); 10] = [
    (1, 1, 1),
    (1, 33, 17),
    (17, 1, 9),
    (5, 7, 1),
    (63, 65, 1030),
    (300, 70, 33),
    (20, 1100, 20),
    (513, 1030, 3),
    (13, 33, 5000),
    (3, 1037, 4097),
];

fn products<A: Float>() {
    let b = Cpu::<A>::new(THREADS);
    for (m, n, k) in SHAPES {
        let (x, y) = (random::<A>(m * k, 1), random::<A>(k * n, 2));
        let right = matmul(&x, &y, m, n);
        let (xt, yt) = (transpose(&x, m), transpose(&y, k));
        let nt = b.matmul_nt(&act(&b, &x, m), &act(&b, &yt, n));
        close::<A>(&format!("nt {m} {n} {k}"), &values(&b, &nt), &right);
        let bias = random::<A>(n, 4);
        let mut biased = b.alloc(m, n);
        b.matmul_nt_bias_into(&act(&b, &x, m), &act(&b, &yt, n), &act(&b, &bias, 1), &mut biased);
        let with_bias: Vec<f64> = right.iter().enumerate().map(|(i, x)| x + bias[i % n]).collect();
        close::<A>(&format!("nt + bias {m} {n} {k}"), &values(&b, &biased), &with_bias);
        let nn = b.matmul_nn(&act(&b, &x, m), &act(&b, &y, k));
        close::<A>(&format!("nn {m} {n} {k}"), &values(&b, &nn), &right);
        let before = random::<f32>(m * n, 3);
        let mut out = acc(&b, &before, m);
        b.matmul_tn_acc(&act(&b, &xt, k), &act(&b, &y, k), &mut out);
        let right: Vec<f64> = right.iter().zip(&before).map(|(x, y)| x + y).collect();
        close::<f32>(&format!("tn {m} {n} {k}"), &values(&b, &out), &right);
        assert_eq!([nt.shape(), nn.shape(), out.shape()], [(m, n); 3]);
    }
}

#[test]
fn products_in_f32() {
    products::<f32>();
}

#[test]
fn products_in_bf16() {
    products::<bf16>();
}

#[test]
fn an_accumulated_product_adds_to_a_lent_part() {
    let b = Cpu::<f32>::new(1);
    let (x, y) = (random::<f32>(6, 1), random::<f32>(8, 2));
    let mut flat = acc(&b, &vec![0.5; 40], 1);
    let mut part = flat.view_mut(20, 3, 4);
    b.matmul_tn_acc(&act(&b, &x, 2), &act(&b, &y, 2), &mut part);
    let product = matmul(&transpose(&x, 2), &y, 3, 4);
    let mut right = vec![0.5; 40];
    right[20..32].iter_mut().zip(product).for_each(|(r, p)| *r += p);
    close::<f32>("flat", &values(&b, &flat), &right);
}
