//! Norms of heads, rotary positions, attention and their backwards: ratios of heads 1 to 8, head sizes odd and even,
//! sequences shorter and longer than a tile, full, windowed and packed with documents.

use super::reference::{attention, head_norms, rope};
use super::{THREADS, acc, act, close, close_to_differences, column, differences, dot, random, values, within};
use crate::backend::{Backend, HeadRms, Heads, Rotary};
use crate::cpu::{Cpu, Float};
use half::bf16;

fn heads() -> [(usize, Heads); 10] {
    [
        (1, Heads::full(1, 1, 2, 1)),
        (2, Heads::full(2, 1, 6, 9)),
        (1, Heads::full(3, 3, 48, 64)),
        (2, Heads::full(4, 2, 16, 65)),
        (1, Heads::full(8, 1, 8, 130)),
        (1, Heads::full(6, 2, 64, 100)),
        (1, Heads::full(1, 1, 128, 70)),
        (3, Heads::full(7, 7, 10, 33)),
        (1, Heads { cap: Some(1.5), ..Heads::full(4, 2, 16, 65) }),
        (1, Heads { cap: Some(3.0), scale: 0.2, ..Heads::full(2, 1, 256, 70) }),
    ]
}

/// Masks: a query attends to everything before it, to itself alone, to 70 positions, or to documents of 1, 2, 3, ..
/// tokens.
fn starts(h: Heads, sequences: usize) -> [Vec<u32>; 4] {
    let document = |t: usize| (0..).map(|n| n * (n + 1) / 2).take_while(|&start| start <= t).last().unwrap_or(0);
    let rules: [&dyn Fn(usize) -> usize; 4] = [&|_| 0, &|t| t, &|t| t.saturating_sub(69), &document];
    rules.map(|rule| (0..sequences * h.seq).map(|t| rule(t % h.seq) as u32).collect())
}

fn qkv<A: Float>(h: Heads, sequences: usize, seed: u64) -> Vec<f64> {
    random::<A>(sequences * h.seq * h.qkv_cols(), seed).into_iter().map(|x| 2.0 * x).collect()
}

/// The tolerance beyond the result's own: P is rounded before its product, by up to half a unit of the largest value.
fn slack<A: Float>() -> f64 {
    if A::ROUNDS { 1.0 / 256.0 } else { 1e-5 }
}

fn forward<A: Float>() {
    let b = Cpu::<A>::new(THREADS);
    for (sequences, h) in heads() {
        for starts in starts(h, sequences) {
            let x = qkv::<A>(h, sequences, 1);
            let (o, lse) = b.attention(&act(&b, &x, sequences * h.seq), &column(&b, &starts), h);
            let right = attention(&x, &starts, h);
            let relative = if A::ROUNDS { 1.0 / 256.0 } else { 1e-5 };
            within(&format!("o of {h:?}"), &values(&b, &o), &right.0, relative, slack::<A>());
            close::<f32>(&format!("logsumexp of {h:?}"), &values(&b, &lse), &right.1);
        }
    }
}

fn backward<A: Float>() {
    let b = Cpu::<A>::new(THREADS);
    for (sequences, h) in heads() {
        for starts in starts(h, sequences) {
            let (rows, x) = (sequences * h.seq, qkv::<A>(h, sequences, 1));
            let do_ = random::<A>(rows * h.out_cols(), 2);
            let (input, seen) = (act(&b, &x, rows), column(&b, &starts));
            let (o, lse) = b.attention(&input, &seen, h);
            let dqkv = b.attention_bwd(&act(&b, &do_, rows), &o, &lse, &input, &seen, h);
            let right = differences(&x, |x| dot(&attention(x, &starts, h).0, &do_));
            close_to_differences::<A>(&format!("dqkv of {h:?}"), &values(&b, &dqkv), &right, 3.0 * slack::<A>());
        }
    }
}

fn rotation<A: Float>() {
    let b = Cpu::<A>::new(THREADS);
    for (sequences, h) in heads() {
        let angles = random::<f32>((h.seq + 3) * h.dim / 2, 3);
        let rows = angles.chunks(h.dim / 2);
        let table: Vec<f64> = rows.flat_map(|a| a.iter().map(|a| a.cos()).chain(a.iter().map(|a| a.sin()))).collect();
        let (x, on_device) = (qkv::<A>(h, sequences, 1), acc(&b, &table, h.seq + 3));
        // The positions are not in order: an op takes any positions of the batch.
        let at: Vec<u32> = (0..sequences * h.seq).map(|row| (row % h.seq + row / h.seq % 4) as u32).collect();
        let positions = column(&b, &at);
        let rotary = Rotary { table: &on_device, positions: &positions };
        let turned = b.rope(act(&b, &x, sequences * h.seq), rotary, h);
        close::<A>("rope", &values(&b, &turned), &rope(&x, &table, &at, h, 1.0));
        let back = b.rope_bwd(act(&b, &x, sequences * h.seq), rotary, h);
        close::<A>("rope_bwd", &values(&b, &back), &rope(&x, &table, &at, h, -1.0));
        norm_and_rotation(&b, &x, &table, &at, h);
    }
}

/// The norms of heads and the rotation, in one op.
fn norm_and_rotation<A: Float>(b: &Cpu<A>, x: &[f64], table: &[f64], at: &[u32], h: Heads) {
    let (rows, eps) = (at.len(), 1e-5);
    let [wq, wk] = [4, 5].map(|seed| random::<A>(h.dim, seed));
    let dy = random::<A>(x.len(), 6);
    let (table_here, positions) = (acc(b, table, table.len() / h.dim), column(b, at));
    let rotary = Rotary { table: &table_here, positions: &positions };
    let (q, k) = (act(b, &wq, 1), act(b, &wk, 1));
    let n = HeadRms { q: &q, k: &k, eps: eps as f32 };
    let right = |x: &[f64], w: [&[f64]; 2]| rope(&head_norms(x, w, eps, h), table, at, h, 1.0);

    let input = act(b, x, rows);
    let y = b.qk_norm_rope(&input, n, rotary, h);
    close::<A>(&format!("qk_norm_rope of {h:?}"), &values(b, &y), &right(x, [&wq, &wk]));

    let before = random::<f32>(h.dim, 7);
    let (mut dq, mut dk) = (acc(b, &before, 1), acc(b, &before, 1));
    let dx = b.qk_norm_rope_bwd(act(b, &dy, rows), &input, n, rotary, h, [&mut dq, &mut dk]);
    let slopes = differences(x, |x| dot(&right(x, [&wq, &wk]), &dy));
    close_to_differences::<A>(&format!("dqkv of {h:?}"), &values(b, &dx), &slopes, 2e-5);
    let added = |list: Vec<(usize, f64)>| -> Vec<_> { list.iter().map(|&(i, d)| (i, d + before[i])).collect() };
    let slopes = added(differences(&wq, |w| dot(&right(x, [w, &wk]), &dy)));
    close_to_differences::<f32>("dw of q", &values(b, &dq), &slopes, 2e-5);
    let slopes = added(differences(&wk, |w| dot(&right(x, [&wq, w]), &dy)));
    close_to_differences::<f32>("dw of k", &values(b, &dk), &slopes, 2e-5);
}

#[test]
fn the_rotation_of_gradients_is_the_inverse() {
    let (h, b) = (Heads::full(2, 1, 6, 9), Cpu::<f32>::new(1));
    let angles = random::<f32>(27, 1);
    let rows = angles.chunks(3);
    let table: Vec<f64> = rows.flat_map(|a| a.iter().map(|a| a.cos()).chain(a.iter().map(|a| a.sin()))).collect();
    let (x, table) = (qkv::<f32>(h, 1, 2), acc(&b, &table, 9));
    let positions = column(&b, &[0, 1, 2, 3, 0, 1, 2, 8, 7]);
    let rotary = Rotary { table: &table, positions: &positions };
    let there = b.rope(act(&b, &x, 9), rotary, h);
    close::<f32>("there and back", &values(&b, &b.rope_bwd(there, rotary, h)), &x);
}

#[test]
fn large_scores_neither_overflow_nor_lose_the_maximum() {
    let (h, b) = (Heads::full(1, 1, 16, 80), Cpu::<f32>::new(1));
    let x: Vec<f64> = qkv::<f32>(h, 1, 1).into_iter().map(|x| 20.0 * x).collect();
    let all = vec![0; 80];
    let (o, lse) = b.attention(&act(&b, &x, 80), &column(&b, &all), h);
    let right = attention(&x.iter().map(|x| *x as f32 as f64).collect::<Vec<_>>(), &all, h);
    within("o", &values(&b, &o), &right.0, 1e-3, 1e-3);
    within("logsumexp", &values(&b, &lse), &right.1, 1e-5, 1e-5);
}

/// Attention whose softmax has one more score, the sink of the head, without a value.
fn with_sinks(qkv: &[f64], starts: &[u32], h: Heads, sinks: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (o, lse) = attention(qkv, starts, h);
    let all: Vec<f64> = lse.iter().zip(sinks.iter().cycle()).map(|(lse, s)| lse + (s - lse).exp().ln_1p()).collect();
    let share = |at: usize| (lse[at / h.dim] - all[at / h.dim]).exp();
    (o.iter().enumerate().map(|(at, o)| o * share(at)).collect(), all)
}

fn sinks<A: Float>() {
    let b = Cpu::<A>::new(THREADS);
    for (sequences, h) in heads() {
        for starts in starts(h, sequences) {
            let (rows, x) = (sequences * h.seq, qkv::<A>(h, sequences, 1));
            let (do_, sinks) = (random::<A>(rows * h.out_cols(), 2), random::<A>(h.query, 3));
            let sinks: Vec<f64> = sinks.iter().map(|sink| 4.0 * sink).collect();
            let (input, seen, of) = (act(&b, &x, rows), column(&b, &starts), act(&b, &sinks, 1));
            let (o, lse) = b.attention(&input, &seen, h);
            let (o, lse) = b.add_sinks(o, lse, &of);
            let right = with_sinks(&x, &starts, h, &sinks);
            let relative = if A::ROUNDS { 1.0 / 128.0 } else { 1e-5 };
            within(&format!("o of {h:?}"), &values(&b, &o), &right.0, relative, slack::<A>());
            close::<f32>(&format!("logsumexp of {h:?}"), &values(&b, &lse), &right.1);

            let (grads, mut dsinks) = (act(&b, &do_, rows), acc(&b, &vec![1.0; h.query], 1));
            b.sinks_bwd(&grads, &o, &lse, &of, &mut dsinks);
            let dsinks: Vec<f64> = values(&b, &dsinks).iter().map(|d| d - 1.0).collect();
            let by_sink = differences(&sinks, |s| dot(&with_sinks(&x, &starts, h, s).0, &do_));
            // A sum of products with the rounded o, whose errors do not cancel where the products do.
            close_to_differences::<f32>(&format!("dsinks of {h:?}"), &dsinks, &by_sink, 12.0 * slack::<A>());
            let dqkv = b.attention_bwd(&grads, &o, &lse, &input, &seen, h);
            let by_input = differences(&x, |x| dot(&with_sinks(x, &starts, h, &sinks).0, &do_));
            close_to_differences::<A>(&format!("dqkv of {h:?}"), &values(&b, &dqkv), &by_input, 3.0 * slack::<A>());
        }
    }
}

#[test]
fn learned_sinks() {
    sinks::<f32>();
    sinks::<bf16>();
}

/// A sink far below the scores changes nothing, and one far above leaves nothing.
#[test]
fn sinks_of_any_size_are_finite() {
    let b = Cpu::<f32>::new(1);
    let (o, lse) = (act(&b, &[1.0, 2.0, 3.0, 4.0], 1), acc(&b, &[0.5, 0.5], 1));
    let (o, lse) = b.add_sinks(o, lse, &act(&b, &[-1e30, 1e30], 1));
    assert_eq!(values(&b, &o), [1.0, 2.0, 0.0, 0.0]);
    assert_eq!(values(&b, &lse), [0.5, 1e30f32 as f64]);
    let mut dsinks = acc(&b, &[0.0, 0.0], 1);
    b.sinks_bwd(&act(&b, &[1.0; 4], 1), &o, &lse, &act(&b, &[-1e30, 1e30], 1), &mut dsinks);
    assert_eq!(values(&b, &dsinks), [0.0, 0.0]);
}

#[test]
fn attention_in_f32() {
    forward::<f32>();
    backward::<f32>();
    rotation::<f32>();
}

#[test]
fn attention_in_bf16() {
    forward::<bf16>();
    backward::<bf16>();
    rotation::<bf16>();
}
