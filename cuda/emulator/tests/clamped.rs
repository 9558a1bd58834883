//! The clamped gate of GPT-OSS, compared with the CPU's ops.

use crate::common::{Random, act, close, cpus, near, on, places};
use cuda::ops;
use emulator::place::Place;
use engine::backend::Backend;
use engine::cpu::{Cpu, Float};
use half::bf16;

/// The operands of both passes: `[gate | up]` `[R, 2F]`, dy `[R, F]`, and weights `[R]`.
struct Case {
    gate_up: Vec<bf16>,
    dy: Vec<bf16>,
    weights: Vec<f32>,
    f: usize,
}

impl Case {
    /// Numbers up to about three times `scale`.
    fn random(rows: usize, f: usize, scale: f32) -> Case {
        let mut random = Random::new((rows * f) as u64);
        let (gate_up, dy) = (random.bf16(rows * 2 * f, scale), random.bf16(rows * f, 1.0));
        Case { gate_up, dy, weights: random.f32(rows, 1.0), f }
    }

    /// y, `[dgate | dup]` and dweights.
    fn on_cpu<A: Float>(&self, cpu: &Cpu<A>) -> (Vec<A>, Vec<A>, Vec<f32>) {
        let (rows, f) = (self.weights.len(), self.f);
        if rows == 0 {
            return (Vec::new(), Vec::new(), Vec::new());
        }
        let (mut gate_up, weights) = (act(cpu, &self.gate_up, rows, 2 * f), cpu.upload(&self.weights, rows, 1));
        let (mut y, mut dweights) = (cpu.alloc(rows, f), cpu.alloc(rows, 1));
        cpu.clamped_swiglu_weighted(&gate_up, &weights, &mut y);
        cpu.clamped_swiglu_weighted_bwd(&act(cpu, &self.dy, rows, f), &mut gate_up, &weights, &mut dweights);
        (cpu.download(&y), cpu.download(&gate_up), cpu.download(&dweights))
    }

    fn on(&self, place: &dyn Place) -> (Vec<bf16>, Vec<bf16>, Vec<f32>) {
        let (rows, f) = (self.weights.len(), self.f);
        let (mut y, mut back, mut dw) = (vec![bf16::NAN; rows * f], self.gate_up.clone(), vec![f32::NAN; rows]);
        on(place, |m, l| {
            ops::clamped_swiglu_weighted(m, l.read(&self.gate_up), l.read(&self.weights), l.write(&mut y), f)
        });
        on(place, |m, l| {
            let of_rows = [l.read(&self.weights), l.write(&mut dw)];
            ops::clamped_swiglu_weighted_bwd(m, l.read(&self.dy), l.write(&mut back), of_rows, f)
        });
        (y, back, dw)
    }
}

/// Rows and columns: one, odd, around a vector of 8 and a block's 2048, several iterations of a block's loop; numbers
/// that are hardly ever, often, and nearly always beyond the clamps.
#[test]
fn forward_and_backward() {
    let (cpu, judge) = cpus();
    for (rows, f) in [(0, 8), (1, 1), (3, 7), (2, 8), (5, 264), (2, 2047), (2, 2056), (1, 4104)] {
        for scale in [1.0, 8.0, 300.0] {
            let case = Case::random(rows, f, scale);
            let (plain, plain_back, _) = case.on_cpu(&cpu);
            let (exact, exact_back, dweights) = case.on_cpu(&judge);
            for place in places() {
                let (y, back, dw) = case.on(place);
                near(&format!("y {rows} x {f}, {scale}"), &y, &plain, &exact, f);
                near(&format!("dgate, dup {rows} x {f}, {scale}"), &back, &plain_back, &exact_back, f);
                close(&format!("dweights {rows} x {f}, {scale}"), &dw, &dweights, 1e-5);
            }
        }
    }
}

/// The formula itself, at and beside the clamps: there the gradient ends, and a gate has no lower one.
#[test]
fn gradients_end_behind_the_clamps() {
    let sigmoid = |x: f32| 1.0 / (1.0 + (-1.702 * x).exp());
    let below = |x: f32| if x > 7.0 { 0.0 } else { 1.0 };
    let within = |x: f32| if x.abs() > 7.0 { 0.0 } else { 1.0 };
    let around = [-7.03125f32, -7.0, -6.96875, 0.5, 6.96875, 7.0, 7.03125];
    let pairs: Vec<(f32, f32)> = around.iter().flat_map(|gate| around.map(|up| (*gate, up))).collect();
    let f = pairs.len();
    let gate_up = pairs.iter().map(|(gate, _)| gate).chain(pairs.iter().map(|(_, up)| up));
    let gate_up = gate_up.map(|x| bf16::from_f32(*x)).collect();
    let case = Case { gate_up, dy: vec![bf16::ONE; f], weights: vec![2.0], f };
    for place in places() {
        let (y, back, _) = case.on(place);
        for (i, (gate, up)) in pairs.iter().copied().enumerate() {
            let (g, u) = (gate.min(7.0), up.clamp(-7.0, 7.0));
            let s = sigmoid(g);
            let right = [
                2.0 * (u + 1.0) * g * s,
                2.0 * below(gate) * (u + 1.0) * s * (1.0 + 1.702 * g * (1.0 - s)),
                2.0 * within(up) * g * s,
            ];
            let got = [y[i], back[i], back[f + i]].map(bf16::to_f32);
            for (got, right) in got.into_iter().zip(right) {
                assert!((got - right).abs() <= right.abs() / 200.0, "gate {gate}, up {up}: {got}, not {right}");
            }
        }
    }
}

/// A number that is none is not clamped away.
#[test]
fn nan_stays() {
    let (cpu, _) = cpus();
    let mut case = Case::random(3, 20, 8.0);
    case.gate_up[3] = bf16::NAN;
    case.gate_up[40 + 20 + 5] = bf16::NAN;
    let nan = |x: &[bf16]| x.iter().map(|x| x.is_nan()).collect::<Vec<_>>();
    let (right, right_back, _) = case.on_cpu(&cpu);
    assert!(right[3].is_nan() && right[20 + 5].is_nan() && nan(&right).iter().filter(|nan| **nan).count() == 2);
    for place in places() {
        let (y, back, dw) = case.on(place);
        assert_eq!((nan(&y), nan(&back)), (nan(&right), nan(&right_back)), "{}", place.name());
        assert!(dw[0].is_nan() && dw[1].is_nan() && !dw[2].is_nan(), "{dw:?}");
    }
}
