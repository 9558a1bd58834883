//! The gradients of biases of experts, compared with the CPU's ops.

use crate::common::{Random, act, close, cpus, on, places};
use cuda::ops;
use cuda::tensor::View;
use emulator::place::Place;
use engine::backend::{Backend, GroupBias, Groups};
use half::bf16;
use std::ops::Range;

/// Rows of each expert, the first and the number of those that dy has, its columns, and those of the bias.
#[derive(Debug, Clone)]
struct Case {
    counts: Vec<u32>,
    first: usize,
    rows: usize,
    n: usize,
    columns: Range<usize>,
    weighted: bool,
    /// Elements by which dy and the bias begin beyond multiples of 16 bytes.
    late: [usize; 2],
}

fn case(counts: &[u32], n: usize, columns: Range<usize>) -> Case {
    let rows = counts.iter().sum::<u32>() as usize;
    Case { counts: counts.to_vec(), first: 0, rows, n, columns, weighted: true, late: [0; 2] }
}

/// One row and many, experts without rows, more experts than lanes, windows of the rows; some columns and all of them,
/// around a vector and a block's 256, and several iterations of a warp's loop over them and of a block's over rows.
fn cases() -> Vec<Case> {
    let many: Vec<u32> = (0..70).map(|e| [0, 1, 3, 0, 7][e % 5]).collect();
    let part = |first, rows, case: Case| Case { first, rows, ..case };
    let plain = |case: Case| Case { weighted: false, ..case };
    vec![
        case(&[1], 8, 0..8),
        plain(case(&[0, 5, 0, 130, 1, 0], 136, 0..136)),
        case(&[0, 0, 300], 264, 0..264),
        case(&many, 40, 8..32),
        plain(case(&[2; 33], 24, 16..24)),
        part(30, 140, case(&[40, 0, 150, 60], 1304, 0..1304)),
        part(210, 20, plain(case(&[10, 200, 20], 600, 40..560))),
        part(0, 20, case(&[50, 200], 16, 3..8)),
        part(0, 0, case(&[5, 6], 8, 0..8)),
        case(&[3, 70], 5, 0..5),
        case(&[2, 0, 131], 259, 1..258),
        Case { late: [1, 0], ..case(&[9, 4], 24, 0..24) },
        Case { late: [0, 3], ..case(&[9, 140], 40, 8..40) },
        // Rows that no expert counts.
        part(0, 9, case(&[0, 6, 0], 16, 4..12)),
        part(1, 8, case(&[3, 0], 16, 0..16)),
    ]
}

struct Operands {
    dy: Vec<bf16>,
    bias: Vec<bf16>,
    weights: Vec<f32>,
}

impl Case {
    fn experts(&self) -> usize {
        self.counts.len()
    }

    /// The rows of an expert.
    fn rows_of(&self, expert: usize) -> Range<usize> {
        let before: u32 = self.counts[..expert].iter().sum();
        let here = |at: u32| (at as usize).saturating_sub(self.first).min(self.rows);
        here(before)..here(before + self.counts[expert])
    }

    /// Elements that no gradient may read are NaN: the columns without a bias, and the rows that belong to no expert.
    fn operands(&self) -> Operands {
        let mut random = Random::new((self.rows + self.n) as u64);
        let end = self.rows_of(self.experts() - 1).end;
        let mut dy = random.bf16(self.rows * self.n, 1.0);
        for (i, dy) in dy.iter_mut().enumerate() {
            if i / self.n >= end || !self.columns.contains(&(i % self.n)) {
                *dy = bf16::NAN;
            }
        }
        let bias = random.bf16(self.experts() * self.columns.len(), 1.0);
        Operands { dy, bias, weights: random.f32(if self.weighted { self.rows } else { 0 }, 1.0) }
    }

    fn on_cpu(&self, o: &Operands, gradient: Gradient, before: &[f32]) -> Vec<f32> {
        if self.rows == 0 {
            return before.to_vec();
        }
        let (_, cpu) = cpus();
        let (dy, bias) = (act(&cpu, &o.dy, self.rows, self.n), act(&cpu, &o.bias, 1, o.bias.len()));
        let (weights, counts) =
            (cpu.upload(&o.weights, o.weights.len(), 1), cpu.upload(&self.counts, 1, self.experts()));
        let bias = GroupBias { bias: &bias, first: self.columns.start, weights: self.weighted.then_some(&weights) };
        let g = Groups { counts: &counts, first: self.first };
        match gradient {
            Gradient::Bias => {
                let mut to = cpu.upload(before, 1, before.len());
                cpu.grouped_bias_bwd(&dy, bias, g, &mut to);
                cpu.download(&to)
            }
            Gradient::Weights => {
                let mut to = cpu.upload(before, before.len(), 1);
                cpu.grouped_bias_dot(&dy, bias, g, &mut to);
                cpu.download(&to)
            }
        }
    }

    fn on(&self, place: &dyn Place, o: &Operands, gradient: Gradient, before: &[f32]) -> Vec<f32> {
        let [late_dy, late_bias] = self.late;
        let dy = [&vec![bf16::NAN; late_dy], &o.dy[..]].concat();
        let bias = [&vec![bf16::NAN; late_bias], &o.bias[..]].concat();
        let mut to = before.to_vec();
        on(place, |m, l| {
            let g = ops::Groups { counts: l.read(&self.counts), first: self.first };
            let weights = if self.weighted { l.read(&o.weights) } else { View::NONE };
            let bias = ops::GroupBias::new(l.read(&bias[late_bias..]), weights, self.columns.start, self.experts());
            let (dy, to) = (l.read(&dy[late_dy..]), l.write(&mut to));
            match gradient {
                Gradient::Bias => ops::grouped_bias_bwd(m, dy, bias, g, to, self.rows),
                Gradient::Weights => ops::grouped_bias_dot(m, dy, bias, g, to),
            }
        });
        to
    }
}

#[derive(Debug, Clone, Copy)]
enum Gradient {
    Bias,
    Weights,
}

fn compared(gradient: Gradient, len: impl Fn(&Case) -> usize) {
    for case in cases() {
        let (operands, before) = (case.operands(), Random::new(5).f32(len(&case), 1.0));
        let right = case.on_cpu(&operands, gradient, &before);
        assert!(right.iter().all(|x| x.is_finite()), "{case:?}");
        for place in places() {
            let got = case.on(place, &operands, gradient, &before);
            close(&format!("{gradient:?}, {case:?}, {}", place.name()), &got, &right, 1e-5);
        }
    }
}

#[test]
fn gradients_of_biases() {
    compared(Gradient::Bias, |case| case.experts() * case.columns.len());
}

#[test]
fn gradients_of_weights() {
    compared(Gradient::Weights, |case| case.rows);
}

/// Experts without rows and rows without an expert keep what they had, to the bit.
#[test]
fn nothing_else_is_written() {
    let case = Case { rows: 9, ..case(&[0, 6, 0], 16, 4..12) };
    let (operands, minus) = (case.operands(), |x: &f32| x.to_bits() == (-0.0f32).to_bits());
    for place in places() {
        let dbias = case.on(place, &operands, Gradient::Bias, &[-0.0; 24]);
        assert!(dbias[..8].iter().chain(&dbias[16..]).all(minus) && !dbias[8..16].iter().any(minus), "{dbias:?}");
        let dweights = case.on(place, &operands, Gradient::Weights, &[-0.0; 9]);
        assert!(dweights[6..].iter().all(minus) && !dweights[..6].iter().any(minus), "{dweights:?}");
    }
}

/// A weight that is none reaches the gradient of its own expert only.
#[test]
fn nan_stays_with_its_expert() {
    let case = case(&[40, 3, 50], 16, 0..16);
    let mut operands = case.operands();
    operands.weights[41] = f32::NAN;
    for place in places() {
        let dbias = case.on(place, &operands, Gradient::Bias, &[0.0; 48]);
        assert!((0..48).all(|i| dbias[i].is_nan() == (16..32).contains(&i)), "{dbias:?}");
    }
}
