//! Grouped matrix products, compared with the CPU's ops.

use crate::common::{Random, act, close, cpus, emulators, near, on, places, places_for};
use cuda::machine::Target;
use cuda::ops::{self, GroupBias};
use cuda::tensor::View;
use emulator::place::Place;
use engine::backend::{self, Backend, Groups};
use engine::cpu::{Cpu, Float};
use half::bf16;

/// Rows of each expert, the first and the number of those that the matrices have, and the sizes of the weights.
#[derive(Debug, Clone)]
struct Case {
    counts: Vec<u32>,
    first: usize,
    rows: usize,
    n: usize,
    k: usize,
    /// Elements by which x, w, and the result begin beyond multiples of 16 bytes.
    late: [usize; 3],
    bias: Option<Bias>,
}

/// A bias of `width` columns from `first` on, which begins `late` elements beyond a multiple of 16 bytes.
#[derive(Debug, Clone, Copy)]
struct Bias {
    first: usize,
    width: usize,
    weighted: bool,
    late: usize,
}

fn case(counts: &[u32], n: usize, k: usize) -> Case {
    let rows = counts.iter().sum::<u32>() as usize;
    Case { counts: counts.to_vec(), first: 0, rows, n, k, late: [0; 3], bias: None }
}

fn part(counts: &[u32], first: usize, rows: usize, n: usize, k: usize) -> Case {
    Case { first, rows, ..case(counts, n, k) }
}

/// One tile and several, experts without rows and with rows that do not fill a tile, all rows of one expert, more
/// experts than lanes, windows of the rows; sizes around a vector, a page and a tile, one and several tiles deep.
fn cases() -> Vec<Case> {
    let many: Vec<u32> = (0..70).map(|e| [0, 1, 3, 0, 7][e % 5]).collect();
    vec![
        case(&[1], 8, 8),
        case(&[0, 5, 0, 130, 1, 0], 136, 72),
        case(&[0, 0, 300], 64, 200),
        case(&[128, 128], 264, 64),
        // The host launches no more tiles than these have.
        case(&[0, 129, 1], 8, 8),
        case(&many, 24, 40),
        case(&[2; 33], 8, 136),
        part(&[40, 0, 150, 60], 30, 140, 72, 64),
        part(&[10, 200, 20], 210, 20, 16, 16),
        part(&[50, 200], 0, 20, 16, 16),
        part(&[5, 6], 0, 0, 8, 8),
        case(&[3, 70], 5, 7),
        case(&[2, 0, 131], 130, 66),
        Case { late: [0, 1, 0], ..case(&[9, 4], 24, 72) },
        Case { late: [3, 0, 1], ..case(&[9, 140], 40, 24) },
    ]
}

impl Case {
    fn numbers(&self, seed: u64, late: usize, len: usize) -> Vec<bf16> {
        Random::new(seed + len as u64).bf16(late + len, 1.0)
    }

    fn weights(&self) -> usize {
        self.counts.len() * self.n * self.k
    }

    /// The CPU's groups.
    fn with<A: Float, T>(&self, cpu: &Cpu<A>, work: impl FnOnce(Groups<Cpu<A>>) -> T) -> T {
        let counts = cpu.upload(&self.counts, 1, self.counts.len());
        work(Groups { counts: &counts, first: self.first })
    }

    /// y `[rows, cols]` of x with `depth` columns; `nt` says which product.
    fn on_cpu<A: Float>(&self, cpu: &Cpu<A>, x: &[bf16], w: &[bf16], nt: bool) -> Vec<A> {
        let (cols, depth) = if nt { (self.n, self.k) } else { (self.k, self.n) };
        if self.rows == 0 {
            return Vec::new();
        }
        let mut y = cpu.upload(&vec![A::store(0.0); self.rows * cols], self.rows, cols);
        let (x, w) = (act(cpu, x, self.rows, depth), act(cpu, w, self.counts.len() * self.n, self.k));
        let (bias, weights) = self.bias_and_weights();
        let (bias, weights) = (act(cpu, &bias, 1, bias.len()), cpu.upload(&weights, weights.len(), 1));
        let bias = self.bias.map(|b| {
            let weights = b.weighted.then_some(&weights);
            backend::GroupBias { bias: &bias, first: b.first, weights }
        });
        self.with(cpu, |g| match nt {
            true => cpu.grouped_nt(&x, &w, bias, g, &mut y),
            false => cpu.grouped_nn(&x, &w, g, &mut y),
        });
        cpu.download(&y)
    }

    /// A bias as large as the sums that it is added to.
    fn bias_and_weights(&self) -> (Vec<bf16>, Vec<f32>) {
        let Some(b) = self.bias else { return (Vec::new(), Vec::new()) };
        let mut random = Random::new(6);
        let bias = random.bf16(self.counts.len() * b.width, (self.k as f32).sqrt());
        (bias, if b.weighted { random.f32(self.rows, 1.0) } else { Vec::new() })
    }

    fn on(&self, place: &dyn Place, x: &[bf16], w: &[bf16], y: &mut [bf16], of: (bool, Target)) {
        let (bias, weights) = self.bias_and_weights();
        self.on_with(place, [x, w], y, of, &bias, &weights);
    }

    /// The same with this bias and these weights of it.
    fn on_with(
        &self,
        place: &dyn Place,
        [x, w]: [&[bf16]; 2],
        y: &mut [bf16],
        (nt, target): (bool, Target),
        bias: &[bf16],
        weights: &[f32],
    ) {
        let [late_x, late_w, late_y] = self.late;
        let bias = [&vec![bf16::NAN; self.bias.map_or(0, |b| b.late)][..], bias].concat();
        on(place, |m, l| {
            let g = ops::Groups { counts: l.read(&self.counts), first: self.first };
            let bias = self.bias.map_or(GroupBias::NONE, |b| {
                let weights = if b.weighted { l.read(weights) } else { View::NONE };
                GroupBias::new(l.read(&bias[b.late..]), weights, b.first, self.counts.len())
            });
            let (x, w, y) = (l.read(&x[late_x..]), l.read(&w[late_w..]), l.write(&mut y[late_y..]));
            let (cols, depth) = if nt { (self.n, self.k) } else { (self.k, self.n) };
            let shape = [self.rows, cols, depth];
            match (nt, target) {
                (true, Target::Sm90a) if self.rows > 0 => ops::grouped_nt_sm90(m, [x, w, y], bias, g, shape),
                (false, Target::Sm90a) if self.rows > 0 => ops::grouped_nn_sm90(m, [x, w, y], g, shape),
                (true, _) => ops::grouped_nt(m, x, w, bias, g, y, self.rows),
                (false, _) => ops::grouped_nn(m, x, w, g, y, self.rows),
            }
        });
    }

    fn acc_on(&self, place: &dyn Place, dy: &[bf16], x: &[bf16], dw: &mut [f32], target: Target) {
        let [late_dy, late_x, late_dw] = self.late;
        on(place, |m, l| {
            let g = ops::Groups { counts: l.read(&self.counts), first: self.first };
            let (dy, x, dw) = (l.read(&dy[late_dy..]), l.read(&x[late_x..]), l.write(&mut dw[late_dw..]));
            match target {
                Target::Sm90a if self.rows > 0 => {
                    ops::grouped_tn_acc_sm90(m, [dy, x, dw], g, [self.rows, self.n, self.k])
                }
                _ => ops::grouped_tn_acc(m, dy, x, g, dw, self.rows),
            }
        });
    }
}

fn rows_times_weights(cases: Vec<Case>, nt: bool, target: Target) {
    let (cpu, judge) = cpus();
    for case in cases {
        let (cols, depth) = if nt { (case.n, case.k) } else { (case.k, case.n) };
        let [late_x, late_w, late_y] = case.late;
        let x = case.numbers(1, late_x, case.rows * depth);
        let w = case.numbers(2, late_w, case.weights());
        let plain = case.on_cpu(&cpu, &x[late_x..], &w[late_w..], nt);
        let exact = case.on_cpu(&judge, &x[late_x..], &w[late_w..], nt);
        for place in places_for(target) {
            let mut y = vec![bf16::NAN; late_y + case.rows * cols];
            case.on(place, &x, &w, &mut y, (nt, target));
            near(&format!("{case:?}, {}", place.name()), &y[late_y..], &plain, &exact, cols);
            assert!(y[..late_y].iter().all(|y| y.is_nan()));
        }
    }
}

#[test]
fn rows_times_transposed_weights() {
    rows_times_weights(cases(), true, Target::Sm80);
}

#[test]
fn rows_times_plain_weights() {
    rows_times_weights(cases(), false, Target::Sm80);
}

/// Tiles with and without all of their columns, several in a block, one stage and more than there are, windows of the
/// rows; no rows at all.
fn cases_sm90(nt: bool) -> Vec<Case> {
    let of = |counts: &[u32], first, rows, to: usize, from: usize| {
        let (n, k) = if nt { (to, from) } else { (from, to) };
        part(counts, first, rows, n, k)
    };
    let many: Vec<u32> = (0..40).map(|e| [0, 1, 3][e % 3]).collect();
    vec![
        of(&[1], 0, 1, 128, 64),
        of(&[0, 5, 0, 130, 1, 0], 0, 136, 384, 64),
        of(&[0, 70, 60], 0, 130, 128, 448),
        // Halves of a product's columns, in the last tile and in the only one.
        of(&[0, 70, 60], 0, 130, 192, 64),
        of(&[3, 0, 140], 0, 143, 320, 128),
        of(&many, 0, 52, 256, 64),
        of(&[40, 0, 150, 60], 30, 140, 128, 128),
        of(&[5, 6], 0, 0, 128, 64),
    ]
}

#[test]
fn rows_times_transposed_weights_on_sm90() {
    rows_times_weights(cases_sm90(true), true, Target::Sm90a);
}

#[test]
fn rows_times_plain_weights_on_sm90() {
    rows_times_weights(cases_sm90(false), false, Target::Sm90a);
}

/// All columns and some of them, from the first one or another on, as many as a tile has and more.
fn biased(cases: Vec<Case>) -> Vec<Case> {
    let with = |(i, case): (usize, Case)| {
        let n = case.n;
        let columns = [(0, n), (n / 3, n - n / 3), (n / 2, n.div_ceil(4)), (n - 1, 1)];
        [0, 1].map(|turn| {
            let (first, width) = columns[(2 * i + turn) % 4];
            let bias = Some(Bias { first, width, weighted: i % 3 != turn, late: i % 2 * 3 });
            Case { bias, ..case.clone() }
        })
    };
    cases.into_iter().enumerate().flat_map(with).collect()
}

#[test]
fn rows_plus_biases() {
    rows_times_weights(biased(cases()), true, Target::Sm80);
}

#[test]
fn rows_plus_biases_on_sm90() {
    rows_times_weights(biased(cases_sm90(true)), true, Target::Sm90a);
}

/// 257 is no bf16: it would be rounded to 256 before 1 is added.
#[test]
fn a_sum_with_a_bias_is_rounded_once() {
    for (n, k, target) in [(8, 8, Target::Sm80), (5, 7, Target::Sm80), (128, 64, Target::Sm90a)] {
        let bias = Some(Bias { first: 0, width: n, weighted: false, late: 0 });
        let case = Case { bias, ..case(&[3], n, k) };
        let numbers = |rows: usize, first: f32| {
            let row = |i: usize| [first, 1.0].get(i % k).copied().unwrap_or(0.0);
            (0..rows * k).map(|i| bf16::from_f32(row(i))).collect::<Vec<_>>()
        };
        let (x, w) = (numbers(3, 256.0), numbers(n, 1.0));
        for place in places_for(target) {
            let mut y = vec![bf16::NAN; 3 * n];
            case.on_with(place, [&x, &w], &mut y, (true, target), &vec![bf16::ONE; n], &[]);
            assert!(y.iter().all(|y| *y == bf16::from_f32(258.0)), "{}: {y:?}", place.name());
        }
    }
}

/// A weight that is none leaves no number in the columns of the bias, and the others as they are.
#[test]
fn a_bias_is_only_in_its_columns() {
    for (n, k, target) in [(40, 8, Target::Sm80), (37, 7, Target::Sm80), (256, 64, Target::Sm90a)] {
        let bias = Some(Bias { first: 9, width: 20, weighted: true, late: 0 });
        let case = Case { bias, ..case(&[2, 3], n, k) };
        let (x, w) = (case.numbers(1, 0, case.rows * k), case.numbers(2, 0, case.weights()));
        let (bias, mut weights) = case.bias_and_weights();
        weights[3] = f32::NAN;
        for place in places_for(target) {
            let mut y = vec![bf16::ZERO; case.rows * n];
            case.on_with(place, [&x, &w], &mut y, (true, target), &bias, &weights);
            let none = |i: usize| i / n == 3 && (9..29).contains(&(i % n));
            assert!((0..y.len()).all(|i| y[i].is_nan() == none(i)), "{}: {y:?}", place.name());
        }
    }
}

fn sums_of_products(cases: Vec<Case>, target: Target) {
    let (_, judge) = cpus();
    for case in cases {
        let [late_dy, late_x, late_dw] = case.late;
        let dy = case.numbers(3, late_dy, case.rows * case.n);
        let x = case.numbers(4, late_x, case.rows * case.k);
        let before = Random::new(5).f32(late_dw + case.weights(), 1.0);
        let mut right = judge.upload(&before[late_dw..], case.counts.len() * case.n, case.k);
        if case.rows > 0 {
            let dy = act(&judge, &dy[late_dy..], case.rows, case.n);
            let x = act(&judge, &x[late_x..], case.rows, case.k);
            case.with(&judge, |g| judge.grouped_tn_acc(&dy, &x, g, &mut right));
        }
        for place in places_for(target) {
            let mut dw = before.clone();
            case.acc_on(place, &dy, &x, &mut dw, target);
            close(&format!("{case:?}, {}", place.name()), &dw[late_dw..], &judge.download(&right), 1e-5);
            assert_eq!(dw[..late_dw], before[..late_dw]);
        }
    }
}

#[test]
fn gradients_of_weights() {
    sums_of_products(cases(), Target::Sm80);
}

/// Tiles with and without all of their rows and columns; experts that end inside a tile of rows and at its end, one
/// tile deep and more than there are stages; windows of the rows.
#[test]
fn gradients_of_weights_on_sm90() {
    let many: Vec<u32> = (0..40).map(|e| [0, 1, 3][e % 3]).collect();
    let cases = vec![
        case(&[1], 64, 64),
        case(&[0, 5, 0, 130, 64, 0], 128, 320),
        case(&[0, 0, 390], 192, 256),
        case(&many, 64, 128),
        part(&[40, 0, 150, 60], 30, 140, 192, 192),
        part(&[50, 200], 0, 20, 64, 64),
        part(&[5, 6], 0, 0, 128, 64),
        Case { late: [0, 0, 2], ..case(&[9, 4], 64, 448) },
    ];
    sums_of_products(cases, Target::Sm90a);
}

/// An expert without rows leaves its gradient as it is, to the bit, and rows that no expert counts are left out.
#[test]
fn nothing_else_is_written() {
    let case = part(&[0, 6, 0], 0, 9, 16, 8);
    let (x, w) = (case.numbers(1, 0, case.rows * case.k), case.numbers(2, 0, case.weights()));
    for place in places() {
        let mut y = vec![bf16::NAN; case.rows * case.n];
        case.on(place, &x, &w, &mut y, (true, Target::Sm80));
        assert!(y[..6 * case.n].iter().all(|y| !y.is_nan()) && y[6 * case.n..].iter().all(|y| y.is_nan()));
    }
    nothing_else_is_added(&case, Target::Sm80);
    nothing_else_is_added(&Case { n: 64, k: 64, ..case }, Target::Sm90a);
}

/// Rows that no expert counts are no numbers.
fn nothing_else_is_added(case: &Case, target: Target) {
    let rows = |seed, cols| {
        let mut rows = case.numbers(seed, 0, case.rows * cols);
        rows[6 * cols..].fill(bf16::NAN);
        rows
    };
    let (x, dy) = (rows(1, case.k), rows(3, case.n));
    for place in places_for(target) {
        let mut dw = vec![-0.0f32; case.weights()];
        case.acc_on(place, &dy, &x, &mut dw, target);
        let of_expert = |e: usize| &dw[e * case.n * case.k..][..case.n * case.k];
        let same = |e| of_expert(e).iter().all(|dw| dw.to_bits() == (-0.0f32).to_bits());
        assert!(same(0) && same(2) && !same(1) && dw.iter().all(|dw| !dw.is_nan()), "{}", place.name());
    }
}

/// Blocks copy the rows and weights of their own tiles only: those beyond the last tile do nothing.
#[test]
fn only_tiles_with_rows_are_computed() {
    let [place, ..] = emulators();
    let case = case(&[0, 5, 0, 130, 1, 0, 0, 0, 0, 0], 136, 72);
    let (x, w) = (case.numbers(1, 0, case.rows * case.k), case.numbers(2, 0, case.weights()));
    let mut y = vec![bf16::NAN; case.rows * case.n];
    case.on(&place, &x, &w, &mut y, (true, Target::Sm80));
    // Two tiles of columns read all rows; four tiles of rows read the weights of an expert.
    let bytes = 2 * (2 * case.rows * case.k + 4 * case.n * case.k);
    assert_eq!(place.stats().copied as usize, bytes);
}
