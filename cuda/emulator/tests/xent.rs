//! The cross-entropy kernels, compared with the CPU's ops.

use crate::common::{Random, act, close, cpus, emulators, on, places};
use cuda::ops::{self, Rows};
use emulator::place::Place;
use engine::backend::{Backend, Xent};
use engine::cpu::{Cpu, Float};
use half::bf16;

/// Rows and columns: one, odd, around a vector of 8, around a block's share, several iterations of a block's loop.
const SHAPES: [(usize, usize); 13] = [
    (1, 1),
    (3, 1),
    (9, 5),
    (5, 7),
    (3, 8),
    (5, 9),
    (4, 255),
    (2, 256),
    (3, 264),
    (5, 2047),
    (7, 5397),
    (1, 16_391),
    (2, 40_001),
];
const SCALES: [f32; 5] = [1.0, 1e4, 1e-6, 20.0, 0.0];
/// The id of the first column.
const FIRST: usize = 1000;
/// No soft-cap.
const PLAIN: Xent = Xent { first: FIRST, z_loss: 1e-4, cap: None };
/// Gemma 2's soft-cap, and one that most logits exceed.
const CAPPED: [Xent; 2] = [Xent { cap: Some(30.0), ..PLAIN }, Xent { cap: Some(1.5), ..PLAIN }];

/// Logits of about `scale`, shifted by 3.2: with scale 0 they are all equal.
fn logits(rows: usize, cols: usize, scale: f32) -> Vec<bf16> {
    let x = Random::new((rows * 31 + cols) as u64).f32(rows * cols, scale);
    x.into_iter().map(|x| bf16::from_f32(x + 3.2)).collect()
}

/// Targets at both ends of the rank's columns, in the middle, and just outside on both sides.
fn targets(rows: usize, cols: usize) -> Vec<u32> {
    let at = [FIRST, FIRST + cols - 1, FIRST - 1, FIRST + cols / 2, FIRST + cols, 0, u32::MAX as usize];
    (0..rows).map(|row| at[row % at.len()] as u32).collect()
}

/// Weights; some rows are ignored.
fn weights(rows: usize) -> Vec<f32> {
    (0..rows).map(|row| [1.0, 0.5, 0.0, 2.0][row % 4]).collect()
}

#[track_caller]
fn same_statistics(what: &str, got: &[f32], right: &[f32]) {
    assert_eq!(got.len(), right.len(), "{what}");
    for (got, right) in got.chunks(3).zip(right.chunks(3)) {
        assert_eq!((got[0], got[2]), (right[0], right[2]), "{what}: max and target of {right:?}");
        close(what, &got[1..2], &right[1..2], 2e-6);
    }
}

fn stats_of<A: Float>(cpu: &Cpu<A>, x: &[bf16], targets: &[u32], of: Xent) -> Vec<f32> {
    let rows = targets.len();
    cpu.download(&cpu.xent_stats(&act(cpu, x, rows, x.len() / rows), &cpu.upload(targets, rows, 1), of))
}

fn emulated_stats(place: &dyn Place, x: &[bf16], targets: &[u32], of: Xent) -> Vec<f32> {
    let mut stats = vec![f32::NAN; 3 * targets.len()];
    on(place, |m, l| ops::xent_stats(m, l.read(x), l.read(targets), of, l.write(&mut stats)));
    stats
}

#[test]
fn statistics() {
    let (cpu, _) = cpus();
    for ((rows, cols), scale) in SHAPES.into_iter().flat_map(|s| SCALES.map(|x| (s, x))) {
        let (x, targets) = (logits(rows, cols, scale), targets(rows, cols));
        let right = stats_of(&cpu, &x, &targets, PLAIN);
        for place in places() {
            let what = format!("{rows} x {cols}, {scale}, {}", place.name());
            same_statistics(&what, &emulated_stats(place, &x, &targets, PLAIN), &right);
        }
    }
}

/// The statistics of one row of capped logits, in f64.
fn capped_stats(x: &[bf16], target: u32, cap: f32) -> [f64; 3] {
    let cap = cap as f64;
    let c: Vec<f64> = x.iter().map(|x| cap * (x.to_f64() / cap).tanh()).collect();
    let max = c.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let held = (target as usize).checked_sub(FIRST).and_then(|at| c.get(at));
    [max, c.iter().map(|c| (c - max).exp()).sum(), held.copied().unwrap_or(f64::NEG_INFINITY)]
}

/// Within the error of a tanh in f32.
#[track_caller]
fn near_capped(what: &str, got: &[f32], right: &[[f64; 3]], cap: f32) {
    assert_eq!(got.len(), 3 * right.len(), "{what}");
    for (got, right) in got.chunks(3).zip(right) {
        for (at, allowed) in [(0, 5e-7 * cap), (1, (2e-6 + 1e-6 * cap) * right[1] as f32), (2, 5e-7 * cap)] {
            let (got, right) = (got[at] as f64, right[at]);
            assert!(got == right || (got - right).abs() <= allowed as f64, "{what}: {at} is {got}, not {right}");
        }
    }
}

#[test]
fn statistics_of_capped_logits() {
    let (cpu, _) = cpus();
    for ((rows, cols), scale) in SHAPES.into_iter().flat_map(|s| SCALES.map(|x| (s, x))) {
        let (x, targets) = (logits(rows, cols, scale), targets(rows, cols));
        for (of, cap) in CAPPED.map(|of| (of, of.cap.unwrap())) {
            let rows = x.chunks(cols).zip(&targets);
            let right: Vec<[f64; 3]> = rows.map(|(x, target)| capped_stats(x, *target, cap)).collect();
            near_capped("the CPU", &stats_of(&cpu, &x, &targets, of), &right, cap);
            for place in places() {
                let what = format!("{} x {cols}, {scale}, {cap}, {}", targets.len(), place.name());
                near_capped(&what, &emulated_stats(place, &x, &targets, of), &right, cap);
            }
        }
    }
}

/// A logit that is not finite is capped like any other; what is no number stays none.
#[test]
fn infinite_logits_are_capped() {
    for cols in [9, 300, 20_000] {
        let mut x = vec![bf16::NEG_INFINITY; cols];
        x[cols / 2] = bf16::from_f32(-2.0);
        let of = CAPPED[1];
        let right = [capped_stats(&x, FIRST as u32 + 1, 1.5)];
        assert_eq!(right[0][2], -1.5);
        for place in places() {
            let got = emulated_stats(place, &x, &[FIRST as u32 + 1], of);
            near_capped("-infinity", &got, &right, 1.5);
            let with_nan = [&x[..cols - 1], &[bf16::NAN]].concat();
            assert!(emulated_stats(place, &with_nan, &[0], of)[1].is_nan());
        }
    }
}

/// A logit of -infinity contributes nothing, also where a thread has no other.
#[test]
fn logits_that_are_masked() {
    for cols in [9, 300, 20_000] {
        let mut x = vec![bf16::NEG_INFINITY; cols];
        (x[cols / 2], x[cols - 1]) = (bf16::from_f32(-2.0), bf16::from_f32(-3.0));
        for place in places() {
            let stats = emulated_stats(place, &x, &[0], PLAIN);
            same_statistics("masked", &stats, &[-2.0, 1.0 + (-1.0f32).exp(), f32::NEG_INFINITY]);
        }
    }
}

/// Rows of odd length are not aligned; the first may be unaligned too.
#[test]
fn rows_that_begin_anywhere() {
    for (late, cols) in (0..8).flat_map(|late| [3, 8, 77, 5397].map(|cols| (late, cols))) {
        let x = [vec![bf16::NAN; late], logits(3, cols, 1.0)].concat();
        for of in [PLAIN, CAPPED[0]] {
            let case = Case::of(&x[late..], targets(3, cols), vec![1.0, 0.0, 0.5], of);
            for place in places() {
                let stats = emulated_stats(place, &x[late..], &case.targets, of);
                match of.cap {
                    None => same_statistics("late rows", &stats, &case.stats),
                    Some(cap) => {
                        let rows = x[late..].chunks(cols).zip(&case.targets);
                        let right: Vec<[f64; 3]> = rows.map(|(x, target)| capped_stats(x, *target, cap)).collect();
                        near_capped("late rows", &stats, &right, cap);
                    }
                }
                let mut moved = x.clone();
                case.gradient(place, &mut moved[late..]);
                case.judge(&moved[late..]);
                assert!(moved[..late].iter().all(|x| x.is_nan()));
            }
        }
    }
}

#[test]
fn statistics_of_several_ranks() {
    let (cpu, _) = cpus();
    for (ranks, rows) in [1, 2, 3, 8].into_iter().flat_map(|n| [1, 5, 255, 257, 700].map(|r| (n, r))) {
        let mut random = Random::new((ranks * rows) as u64);
        let mut stats = random.f32(3 * ranks * rows, 30.0);
        for (at, s) in stats.chunks_mut(3).enumerate() {
            (s[1], s[2]) = (s[1].abs() + 1.0, if at / rows == at % ranks { s[2] } else { f32::NEG_INFINITY });
        }
        let right = cpu.download(&cpu.xent_combine(&cpu.upload(&stats, ranks * rows, 3), ranks));
        for place in places() {
            let mut combined = vec![f32::NAN; 3 * rows];
            on(place, |m, l| ops::xent_combine(m, l.read(&stats), l.write(&mut combined)));
            same_statistics(&format!("{ranks} ranks, {rows} rows"), &combined, &right);
        }
    }
}

#[test]
fn totals_leave_out_rows_without_weight() {
    let (cpu, _) = cpus();
    for rows in [1, 5, 31, 255, 256, 257, 2048] {
        let mut stats = Random::new(rows as u64).f32(3 * rows, 4.0);
        let weights = weights(rows);
        for (s, w) in stats.chunks_mut(3).zip(&weights) {
            s[1] = s[1].abs() + 1.0;
            if *w == 0.0 {
                s.copy_from_slice(&[f32::NAN, 0.0, f32::NEG_INFINITY]);
            }
        }
        let before = [0.25, 0.5, 0.125, 3.0, 4.0];
        let mut right = cpu.upload(&before, 1, 5);
        cpu.xent_totals(&cpu.upload(&stats, rows, 3), &cpu.upload(&weights, rows, 1), &mut right);
        for place in places() {
            let mut totals = before;
            on(place, |m, l| ops::xent_totals(m, l.read(&stats), l.read(&weights), l.write(&mut totals)));
            for (got, right) in totals.iter().zip(cpu.download(&right)) {
                close(&format!("totals of {rows} rows"), &[*got], &[right], 1e-6);
            }
        }
    }
}

/// The inputs of the gradient, and the CPU's results.
struct Case {
    x: Vec<bf16>,
    targets: Vec<u32>,
    weights: Vec<f32>,
    stats: Vec<f32>,
    plain: Vec<bf16>,
    exact: Vec<f32>,
    of: Xent,
}

impl Case {
    fn of(x: &[bf16], targets: Vec<u32>, weights: Vec<f32>, of: Xent) -> Self {
        let (cpu, judge) = cpus();
        let stats = stats_of(&cpu, x, &targets, of);
        let plain = on_cpu(&cpu, x, &stats, &targets, &weights, of);
        let exact = match of.cap {
            None => on_cpu(&judge, x, &stats, &targets, &weights, of),
            Some(cap) => capped_gradient(x, &stats, &targets, &weights, cap),
        };
        Case { x: x.to_vec(), targets, weights, stats, plain, exact, of }
    }

    fn gradient(&self, place: &dyn Place, x: &mut [bf16]) {
        on(place, |m, l| {
            let (stats, targets, weights) = (l.read(&self.stats), l.read(&self.targets), l.read(&self.weights));
            ops::xent_grad(m, l.write(x), Rows { stats, targets, weights }, self.of)
        });
    }

    /// At most twice the error of the CPU's bf16 gradient, plus one rounding, plus the effect on p of rounding log Z to
    /// f32.
    #[track_caller]
    fn judge(&self, got: &[bf16]) {
        assert_eq!(got.len(), self.x.len());
        let cols = got.len() / self.targets.len();
        for (at, got) in got.iter().enumerate() {
            let (row, exact, plain) = (at / cols, self.exact[at], self.plain[at].to_f32());
            let (log_z, w) = (self.stats[3 * row] + self.stats[3 * row + 1].ln(), self.weights[row]);
            let p = (exact + if self.targets[row] as usize == FIRST + at % cols { w } else { 0.0 }).abs();
            let of_cap = self.of.cap.map_or(0.0, |cap| 1e-6 * cap);
            let of_p = p * (log_z.abs().max(8.0) * 2f32.powi(-23) + 4e-6 + of_cap) + 1e-37;
            let allowed = 2.0 * (plain - exact).abs() + exact.abs() / 256.0 + of_p;
            let what = || format!("{}, {cols} columns, row {row}: {got}, not {exact}; bf16 gives {plain}", at % cols);
            assert!((got.to_f32() - exact).abs() <= allowed, "{}", what());
            assert!(w != 0.0 || got.to_bits() == 0, "{}", what());
        }
    }
}

/// The gradient with a soft-cap, in f64.
fn capped_gradient(x: &[bf16], stats: &[f32], targets: &[u32], weights: &[f32], cap: f32) -> Vec<f32> {
    let (cols, cap) = (x.len() / targets.len(), cap as f64);
    let gradient = |(at, x): (usize, &bf16)| {
        let row = at / cols;
        let (log_z, w) = (stats[3 * row] as f64 + (stats[3 * row + 1] as f64).ln(), weights[row] as f64);
        let t = (x.to_f64() / cap).tanh();
        let p = w * (1.0 + 2.0 * PLAIN.z_loss as f64 * log_z) * (cap * t - log_z).exp();
        let hit = if targets[row] as usize == FIRST + at % cols { w } else { 0.0 };
        // 1 - t^2 without cancellation.
        ((p - hit) * (x.to_f64() / cap).cosh().powi(-2)) as f32
    };
    x.iter().enumerate().map(gradient).collect()
}

fn on_cpu<A: Float>(cpu: &Cpu<A>, x: &[bf16], stats: &[f32], targets: &[u32], weights: &[f32], of: Xent) -> Vec<A> {
    let rows = targets.len();
    let (stats, weights) = (cpu.upload(stats, rows, 3), cpu.upload(weights, rows, 1));
    let (x, targets) = (act(cpu, x, rows, x.len() / rows), cpu.upload(targets, rows, 1));
    cpu.download(&cpu.xent_grad(x, &stats, &targets, &weights, of))
}

#[test]
fn gradients() {
    for ((rows, cols), scale) in SHAPES.into_iter().flat_map(|s| SCALES.map(|x| (s, x))) {
        for of in [PLAIN, CAPPED[0], CAPPED[1]] {
            let case = Case::of(&logits(rows, cols, scale), targets(rows, cols), weights(rows), of);
            for place in places() {
                let mut x = case.x.clone();
                case.gradient(place, &mut x);
                case.judge(&x);
            }
        }
    }
}

/// Near p = 1 the target's gradient is a small difference, which must not be computed from rounded numbers.
#[test]
fn the_targets_gradient_is_rounded_last() {
    let (gap, cols) = (7.0f32, 300);
    let mut x = vec![bf16::ZERO; cols];
    x[17] = bf16::from_f32(gap + (cols as f32).ln());
    let case = Case::of(&x, vec![FIRST as u32 + 17], vec![1.0], PLAIN);
    assert!((1e-4..0.003).contains(&case.exact[17].abs()), "{}", case.exact[17]);
    for place in places() {
        let mut x = case.x.clone();
        case.gradient(place, &mut x);
        close("at the target", &[x[17].to_f32()], &[case.exact[17]], 1.0 / 256.0 + 1e-3);
    }
}

/// The logits of a row without weight do not matter.
#[test]
fn rows_without_weight_become_zeros() {
    for place in places() {
        let mut x = vec![bf16::NAN; 2 * 77];
        let (stats, targets) = ([f32::NAN; 6], [u32::MAX, 0]);
        on(place, |m, l| {
            let rows = Rows { stats: l.read(&stats), targets: l.read(&targets), weights: l.read(&[0.0, 0.0]) };
            ops::xent_grad(m, l.write(&mut x), rows, PLAIN)
        });
        assert!(x.iter().all(|x| x.to_bits() == 0), "{}", place.name());
    }
}

#[test]
fn the_order_of_threads_changes_no_bit() {
    let (x, targets, weights) = (logits(5, 40_001, 1.0), targets(5, 40_001), weights(5));
    let case = Case::of(&x, targets, weights, PLAIN);
    let all = emulators().map(|place| {
        let (stats, mut x, mut totals) =
            (emulated_stats(&place, &case.x, &case.targets, PLAIN), case.x.clone(), [0.0; 5]);
        case.gradient(&place, &mut x);
        on(&place, |m, l| ops::xent_totals(m, l.read(&stats), l.read(&case.weights), l.write(&mut totals)));
        (stats.iter().map(|s| s.to_bits()).collect::<Vec<_>>(), x, totals.map(f32::to_bits))
    });
    assert!(all.iter().all(|r| *r == all[0]));
}
