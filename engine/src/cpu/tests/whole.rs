//! All ops one after another, in the order of a training step: the results have the same bits on any number of threads,
//! and no block is taken from the system after the first round.

use super::{acc, act, column, random};
use crate::backend::{AdamW, Backend, Heads, Rms, Rotary, Rule, Tensor, Total, Xent};
use crate::cpu::{Cpu, Float};
use half::bf16;

fn heads() -> Heads {
    Heads::full(4, 2, 18, 150)
}
const LOSS: Xent = Xent { first: 0, z_loss: 1e-3, cap: None };
const ROWS: usize = 300;
const D: usize = 72;
const F: usize = 203;
const V: usize = 1109;

/// Runs every op and returns the bytes of the results.
fn round<A: Float>(b: &Cpu<A>) -> Vec<u8> {
    let heads = heads();
    let weight = |rows: usize, cols: usize, seed| act(b, &random::<A>(rows * cols, seed), rows);
    let ids: Vec<u32> = (0..ROWS).map(|row| (row * row % V) as u32).collect();
    let (ids, starts) = (column(b, &ids), column(b, &vec![0; ROWS]));
    let positions = column(b, &(0..ROWS).map(|row| (row % heads.seq) as u32).collect::<Vec<_>>());
    let (table, norm) = (weight(V, D, 1), weight(1, D, 2));
    let angles = acc(b, &random::<f32>(heads.seq * heads.dim, 3), heads.seq);
    let rotary = Rotary { table: &angles, positions: &positions };
    let rms = Rms { w: &norm, eps: 1e-5, offset: 0.0 };

    let x = b.embed(&ids, &table, 0);
    let (y, rstd) = b.rmsnorm(&x, rms);
    let qkv = b.rope(b.matmul_nt(&y, &weight(heads.qkv_cols(), D, 4)), rotary, heads);
    let (o, lse) = b.attention(&qkv, &starts, heads);
    let (h, y2, rstd2) = b.add_rmsnorm(&x, b.matmul_nt(&o, &weight(D, heads.out_cols(), 5)), rms);
    let (up, down) = (weight(2 * F, D, 6), weight(D, F, 7));
    let gate_up = b.matmul_nt(&y2, &up);
    let product = b.swiglu(&gate_up);
    let last = b.add(b.matmul_nt(&product, &down), &h);

    let (weights, mut totals) = (acc(b, &[1.0; ROWS], ROWS), acc(b, &[0.0; Total::COUNT], 1));
    let logits = b.matmul_nt(&last, &table);
    let stats = b.xent_stats(&logits, &ids, LOSS);
    b.xent_totals(&stats, &weights, &mut totals);
    let dlogits = b.xent_grad(logits, &stats, &ids, &weights, LOSS);

    let (mut dtable, mut dup, mut dw) = (b.alloc(V, D), b.alloc(2 * F, D), b.alloc(1, D));
    [&mut dtable, &mut dup, &mut dw].into_iter().for_each(|g| b.zero(g));
    b.matmul_tn_acc(&dlogits, &last, &mut dtable);
    let dlast = b.matmul_nn(&dlogits, &table);
    let dgate_up = b.swiglu_bwd(&b.matmul_nn(&dlast, &down), gate_up);
    b.matmul_tn_acc(&dgate_up, &y2, &mut dup);
    let dh = b.rmsnorm_bwd_add(&dlast, b.matmul_nn(&dgate_up, &up), &h, &rstd2, rms, &mut dw);
    let do_ = b.matmul_nn(&dh, &weight(D, heads.out_cols(), 5));
    let dqkv = b.rope_bwd(b.attention_bwd(&do_, &o, &lse, &qkv, &starts, heads), rotary, heads);
    let dy = b.matmul_nn(&dqkv, &weight(heads.qkv_cols(), D, 4));
    let again = b.rmsnorm_recompute(&x, &rstd, rms);
    let dx = b.rmsnorm_bwd(b.add(dy, &again), &x, &rstd, rms, &mut dw);
    b.embed_bwd(&ids, &dx, 0, &mut dtable);

    let mut square = acc(b, &[0.0], 1);
    b.sum_squares(&dtable, 0..V * D, &mut square);
    let rule = Rule { clip: 1.0, window: 2, threshold: 6.0, skips: false };
    let factor = b.judge(&square, &totals, &mut acc(b, &[0.0; 6], 1), rule);
    let [mut master, mut m, mut v] = [8, 9, 10].map(|seed| acc(b, &random::<f32>(V * D, seed), V));
    b.zero(&mut v);
    let hp = AdamW {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        correction1: 0.1,
        correction2: 0.05,
        decayed: V * D / 2,
    };
    let mut new = b.alloc(V, D);
    b.adamw(&dtable, &factor, &mut master, &mut m, &mut v, &mut new, hp);
    let acts = [new, dx, dqkv, dlogits, last].map(|x| bytes(b, &x));
    [acts.concat(), [dtable, dup, dw, square, factor, master, m, v, totals, stats].map(|x| bytes(b, &x)).concat()]
        .concat()
}

fn bytes<A: Float, T: Float>(b: &Cpu<A>, x: &Tensor<Cpu<A>, T>) -> Vec<u8> {
    bytemuck::cast_slice(&b.download(x)).to_vec()
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let alone = (round(&Cpu::<f32>::new(1)), round(&Cpu::<bf16>::new(1)));
    for threads in [2, 3] {
        assert!(round(&Cpu::<f32>::new(threads)) == alone.0, "f32 on {threads} threads");
        assert!(round(&Cpu::<bf16>::new(threads)) == alone.1, "bf16 on {threads} threads");
    }
}

fn second_round<A: Float>() {
    let b = Cpu::<A>::new(2);
    let first = round(&b);
    let usage = b.usage();
    assert!(round(&b) == first);
    assert_eq!(b.usage(), usage);
    assert_eq!(usage.in_use, 0);
}

#[test]
fn the_second_round_takes_nothing_from_the_system() {
    second_round::<f32>();
    second_round::<bf16>();
}
