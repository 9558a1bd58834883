//! Grouped matrix products, compared with the CPU's ops.

use crate::common::{Random, act, close, cpus, emulators, near, on, places, places_for};
use cuda::machine::Target;
use cuda::ops;
use emulator::place::Place;
use engine::backend::{Backend, Groups};
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
}

fn case(counts: &[u32], n: usize, k: usize) -> Case {
    let rows = counts.iter().sum::<u32>() as usize;
    Case { counts: counts.to_vec(), first: 0, rows, n, k, late: [0; 3] }
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
        self.with(cpu, |g| if nt { cpu.grouped_nt(&x, &w, g, &mut y) } else { cpu.grouped_nn(&x, &w, g, &mut y) });
        cpu.download(&y)
    }

    fn on(&self, place: &dyn Place, x: &[bf16], w: &[bf16], y: &mut [bf16], (nt, target): (bool, Target)) {
        let [late_x, late_w, late_y] = self.late;
        on(place, |m, l| {
            let g = ops::Groups { counts: l.read(&self.counts), first: self.first };
            let (x, w, y) = (l.read(&x[late_x..]), l.read(&w[late_w..]), l.write(&mut y[late_y..]));
            let (cols, depth) = if nt { (self.n, self.k) } else { (self.k, self.n) };
            let shape = [self.rows, cols, depth];
            match (nt, target) {
                (true, Target::Sm90a) if self.rows > 0 => ops::grouped_nt_sm90(m, [x, w, y], g, shape),
                (false, Target::Sm90a) if self.rows > 0 => ops::grouped_nn_sm90(m, [x, w, y], g, shape),
                (true, _) => ops::grouped_nt(m, x, w, g, y, self.rows),
                (false, _) => ops::grouped_nn(m, x, w, g, y, self.rows),
            }
        });
    }

    fn acc_on(&self, place: &dyn Place, dy: &[bf16], x: &[bf16], dw: &mut [f32]) {
        let [late_dy, late_x, late_dw] = self.late;
        on(place, |m, l| {
            let g = ops::Groups { counts: l.read(&self.counts), first: self.first };
            let (dy, x, dw) = (l.read(&dy[late_dy..]), l.read(&x[late_x..]), l.write(&mut dw[late_dw..]));
            ops::grouped_tn_acc(m, dy, x, g, dw, self.rows)
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

#[test]
fn gradients_of_weights() {
    let (_, judge) = cpus();
    for case in cases() {
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
        for place in places() {
            let mut dw = before.clone();
            case.acc_on(place, &dy, &x, &mut dw);
            close(&format!("{case:?}, {}", place.name()), &dw[late_dw..], &judge.download(&right), 1e-5);
            assert_eq!(dw[..late_dw], before[..late_dw]);
        }
    }
}

/// An expert without rows leaves its gradient as it is, to the bit, and rows that no expert counts are left out.
#[test]
fn nothing_else_is_written() {
    let case = part(&[0, 6, 0], 0, 9, 16, 8);
    let (x, w) = (case.numbers(1, 0, case.rows * case.k), case.numbers(2, 0, case.weights()));
    let dy = case.numbers(3, 0, case.rows * case.n);
    for place in places() {
        let mut y = vec![bf16::NAN; case.rows * case.n];
        case.on(place, &x, &w, &mut y, (true, Target::Sm80));
        assert!(y[..6 * case.n].iter().all(|y| !y.is_nan()) && y[6 * case.n..].iter().all(|y| y.is_nan()));
        let mut dw = vec![-0.0f32; case.weights()];
        case.acc_on(place, &dy, &x, &mut dw);
        let of_expert = |e: usize| &dw[e * case.n * case.k..][..case.n * case.k];
        let same = |e| of_expert(e).iter().all(|dw| dw.to_bits() == (-0.0f32).to_bits());
        assert!(same(0) && same(2) && !same(1), "{}", place.name());
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
