//! The norms of heads with the rotation, compared with the CPU's op.

use crate::common::{Random, act, close, cpus, emulators, near, on, places};
use crate::pointwise::tables;
use cuda::ops::{self, HeadNorms, qk_norm_parts};
use emulator::place::Place;
use engine::backend::{Backend, HeadRms, Heads, Rotary};
use engine::cpu::{Cpu, Float};
use half::bf16;

/// Heads of q and k and their size: the sizes of models, odd vectors, fewer lanes than a power of two, one lane, a
/// warp.
const HEADS: [(usize, usize, usize); 9] =
    [(4, 2, 64), (8, 1, 128), (2, 2, 256), (3, 3, 16), (2, 2, 96), (5, 1, 20), (1, 1, 2), (2, 1, 512), (6, 2, 40)];
/// Sequence lengths and rows.
const ROWS: [(usize, usize); 3] = [(1, 1), (5, 15), (16, 48)];
const EPS: f32 = 1e-6;

struct Case {
    h: Heads,
    qkv: Vec<bf16>,
    dy: Vec<bf16>,
    weights: [Vec<bf16>; 2],
    table: Vec<f32>,
    positions: Vec<u32>,
    /// The gradients of the weights before.
    before: [Vec<f32>; 2],
}

impl Case {
    fn new((query, kv, dim): (usize, usize, usize), (seq, rows): (usize, usize), scale: f32) -> Case {
        let h = Heads::full(query, kv, dim, seq);
        let (n, mut random) = (rows * h.qkv_cols(), Random::new((rows * dim) as u64));
        // Positions need not ascend.
        let positions = (0..rows).map(|row| ((row * 7 + row / seq) % seq) as u32).collect();
        Case {
            h,
            qkv: random.bf16(n, scale),
            dy: random.bf16(n, 1.0),
            weights: [1.0, 0.5].map(|scale| random.bf16(dim, scale)),
            table: tables(h, rows).1,
            positions,
            before: [1.0, 2.0].map(|scale| random.f32(dim, scale)),
        }
    }

    fn rows(&self) -> usize {
        self.positions.len()
    }

    /// y, dqkv and the gradients of the weights by the CPU's ops.
    fn on_cpu<A: Float>(&self, cpu: &Cpu<A>) -> (Vec<A>, Vec<A>, [Vec<f32>; 2]) {
        let (h, rows) = (self.h, self.rows());
        let of = |x: &[bf16]| act(cpu, x, rows, h.qkv_cols());
        let [q, k] = [0, 1].map(|i| act(cpu, &self.weights[i], 1, h.dim));
        let n = HeadRms { q: &q, k: &k, eps: EPS };
        let (table, positions) = (cpu.upload(&self.table, h.seq, h.dim), cpu.upload(&self.positions, rows, 1));
        let r = Rotary { table: &table, positions: &positions };
        let y = cpu.qk_norm_rope(&of(&self.qkv), n, r, h);
        let [mut dq, mut dk] = [0, 1].map(|i| cpu.upload(&self.before[i], 1, h.dim));
        let dqkv = cpu.qk_norm_rope_bwd(of(&self.dy), &of(&self.qkv), n, r, h, [&mut dq, &mut dk]);
        (cpu.download(&y), cpu.download(&dqkv), [dq, dk].map(|g| cpu.download(&g)))
    }

    fn forward(&self, place: &dyn Place, qkv: &[bf16]) -> Vec<bf16> {
        let mut y = vec![bf16::NAN; qkv.len()];
        on(place, |m, l| {
            let [q, k] = [0, 1].map(|i| l.read(&self.weights[i]));
            let n = HeadNorms { q, k, eps: EPS, table: l.read(&self.table), positions: l.read(&self.positions) };
            ops::qk_norm_rope(m, l.read(qkv), n, self.h, l.write(&mut y))
        });
        y
    }

    fn backward(&self, place: &dyn Place, qkv: &[bf16]) -> (Vec<bf16>, [Vec<f32>; 2]) {
        let (mut dqkv, [mut dq, mut dk]) = (self.dy.clone(), self.before.clone());
        let mut parts = vec![f32::NAN; qk_norm_parts(self.rows(), self.h, place.machine().processors())];
        on(place, |m, l| {
            let [q, k] = [0, 1].map(|i| l.read(&self.weights[i]));
            let n = HeadNorms { q, k, eps: EPS, table: l.read(&self.table), positions: l.read(&self.positions) };
            let gradients = [l.write(&mut dq), l.write(&mut dk)];
            ops::qk_norm_rope_bwd(m, l.write(&mut dqkv), l.read(qkv), n, self.h, gradients, l.write(&mut parts))
        });
        (dqkv, [dq, dk])
    }
}

#[test]
fn forward_and_backward() {
    let (cpu, judge) = cpus();
    for (heads, rows) in HEADS.into_iter().flat_map(|heads| ROWS.map(|rows| (heads, rows))) {
        for scale in [1.0, 1e-4, 1e5] {
            let case = Case::new(heads, rows, scale);
            let (plain, plain_back, _) = case.on_cpu(&cpu);
            let (exact, exact_back, right) = case.on_cpu(&judge);
            let what = format!("{:?}, {} rows, {scale}", case.h, case.rows());
            for place in places() {
                let y = case.forward(place, &case.qkv);
                near(&format!("y of {what}"), &y, &plain, &exact, case.h.dim);
                let (dqkv, gradients) = case.backward(place, &case.qkv);
                near(&format!("dqkv of {what}"), &dqkv, &plain_back, &exact_back, case.h.dim);
                for (got, right) in gradients.iter().zip(&right) {
                    close(&format!("gradients of weights, {what}"), got, right, 1e-5);
                }
            }
        }
    }
}

/// The heads of v, and their gradients, are as they were.
#[test]
fn v_is_copied() {
    let case = Case::new((3, 2, 64), (5, 10), 1.0);
    let from = 5 * 64;
    for place in places() {
        let (y, (dqkv, _)) = (case.forward(place, &case.qkv), case.backward(place, &case.qkv));
        for (new, old) in [(&y, &case.qkv), (&dqkv, &case.dy)] {
            let rows = new.chunks(case.h.qkv_cols()).zip(old.chunks(case.h.qkv_cols()));
            assert!(rows.into_iter().all(|(new, old)| new[from..] == old[from..]));
        }
    }
}

#[test]
fn unaligned_rows_have_the_same_bits() {
    let case = Case::new((3, 2, 64), (5, 35), 1.0);
    let late = [&[bf16::NAN; 3], &case.qkv[..]].concat();
    for place in places() {
        assert_eq!(case.forward(place, &case.qkv), case.forward(place, &late[3..]));
        assert_eq!(case.backward(place, &case.qkv), case.backward(place, &late[3..]));
    }
}

/// There are more rows than the blocks take at once.
#[test]
fn the_gradients_of_the_weights_do_not_depend_on_the_order_of_blocks() {
    let case = Case::new((4, 2, 128), (61, 122), 1.0);
    let all = emulators().map(|place| case.backward(&place, &case.qkv));
    assert!(all.iter().all(|r| *r == all[0]));
    let (_, judge) = cpus();
    let (_, _, right) = case.on_cpu(&judge);
    all[0].1.iter().zip(&right).for_each(|(got, right)| close("gradients of weights", got, right, 1e-5));
}
