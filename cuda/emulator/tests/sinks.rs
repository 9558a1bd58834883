//! Sinks of attention, compared with the CPU's ops.

use crate::common::{Random, act, close, cpus, near, on, places};
use cuda::ops;
use emulator::place::Place;
use engine::backend::Backend;
use engine::cpu::{Cpu, Float};
use half::bf16;

/// o `[T, H d]`, do, lse `[T, H]` and sinks `[H]`.
struct Case {
    rows: usize,
    dim: usize,
    o: Vec<bf16>,
    do_: Vec<bf16>,
    lse: Vec<f32>,
    sinks: Vec<bf16>,
}

/// Rows, heads and the size of a head: a thread, a vector, odd ones, a warp; several blocks, several iterations of a
/// block's loop.
const SHAPES: [(usize, usize, usize); 9] =
    [(1, 1, 1), (1, 1, 8), (3, 2, 64), (5, 3, 5), (2, 5, 96), (7, 3, 128), (70, 2, 256), (600, 2, 64), (65, 3, 20)];

impl Case {
    /// Sinks like the other scores, far below and far above them.
    fn random((rows, heads, dim): (usize, usize, usize)) -> Case {
        let mut random = Random::new((rows * heads * dim) as u64);
        let far = [0.0, 40.0, -40.0, 300.0, -300.0];
        let sinks = random.f32(heads, 1.0).into_iter().zip(far).map(|(sink, far)| bf16::from_f32(sink + far)).collect();
        let (o, do_) = (random.bf16(rows * heads * dim, 1.0), random.bf16(rows * heads * dim, 1.0));
        Case { rows, dim, o, do_, lse: random.f32(rows * heads, 3.0), sinks }
    }

    fn cols(&self) -> usize {
        self.sinks.len() * self.dim
    }

    fn on_cpu<A: Float>(&self, cpu: &Cpu<A>) -> (Vec<A>, Vec<f32>) {
        let (o, lse) = (act(cpu, &self.o, self.rows, self.cols()), cpu.upload(&self.lse, self.rows, self.sinks.len()));
        let (o, lse) = cpu.add_sinks(o, lse, &act(cpu, &self.sinks, 1, self.sinks.len()));
        (cpu.download(&o), cpu.download(&lse))
    }

    /// With o and the sinks so many elements behind a multiple of 16 bytes.
    fn on(&self, place: &dyn Place, late: usize) -> (Vec<bf16>, Vec<f32>) {
        let [mut o, sinks] = [&self.o, &self.sinks].map(|x| [&vec![bf16::NAN; late], &x[..]].concat());
        let mut lse = self.lse.clone();
        on(place, |m, l| ops::add_sinks(m, l.write(&mut o[late..]), l.write(&mut lse), l.read(&sinks[late..])));
        (o.split_off(late), lse)
    }

    /// The case as it is after `add_sinks`.
    fn with_sinks(self) -> Case {
        let (cpu, judge) = cpus();
        let (o, lse) = (self.on_cpu(&cpu).0, self.on_cpu(&judge).1);
        Case { o, lse, ..self }
    }

    fn gradient(&self, place: &dyn Place, before: &[f32], late: usize) -> Vec<f32> {
        let [o, do_, sinks] = [&self.o, &self.do_, &self.sinks].map(|x| [&vec![bf16::NAN; late], &x[..]].concat());
        let mut dsinks = before.to_vec();
        on(place, |m, l| {
            let saved = [l.read(&o[late..]), l.read(&self.lse)];
            ops::sinks_bwd(m, l.read(&do_[late..]), saved, l.read(&sinks[late..]), l.write(&mut dsinks))
        });
        dsinks
    }
}

#[test]
fn sinks_are_added() {
    let (cpu, judge) = cpus();
    for shape in SHAPES {
        let case = Case::random(shape);
        let ((plain, _), (exact, right)) = (case.on_cpu(&cpu), case.on_cpu(&judge));
        for (place, late) in places().into_iter().flat_map(|place| [0, 3].map(|late| (place, late))) {
            let (o, lse) = case.on(place, late);
            near(&format!("o of {shape:?}, {late} late"), &o, &plain, &exact, case.dim);
            for (at, (lse, right)) in lse.iter().zip(&right).enumerate() {
                assert!((lse - right).abs() <= right.abs() * 1e-6 + 1e-6, "lse {at} of {shape:?}: {lse}, not {right}");
            }
        }
    }
}

/// One that is far below takes nothing, to the bit, and one that is far above takes everything.
#[test]
fn far_sinks_take_nothing_or_everything() {
    let mut case = Case::random((9, 2, 64));
    case.sinks = [-200.0, 200.0].map(bf16::from_f32).to_vec();
    for place in places() {
        let (o, lse) = case.on(place, 0);
        for (i, (o, before)) in o.iter().zip(&case.o).enumerate() {
            assert!(if i / 64 % 2 == 0 { o == before } else { *o == bf16::ZERO }, "o {i} is {o}");
        }
        let expected = case.lse.iter().enumerate().map(|(at, lse)| if at % 2 == 0 { *lse } else { 200.0 });
        assert_eq!(lse, expected.collect::<Vec<_>>());
    }
}

/// Only in the head and the row whose logsumexp is none, and in the head whose sink is none.
#[test]
fn nan_stays() {
    let (rows, heads, dim) = (4, 3, 8);
    let mut case = Case::random((rows, heads, dim));
    case.lse[heads] = f32::NAN;
    case.sinks[2] = bf16::NAN;
    let is_none = |at: usize| at == heads || at % heads == 2;
    let (_, judge) = cpus();
    let (o_of_cpu, of_cpu) = case.on_cpu(&judge);
    assert!((0..rows * heads).all(|at| of_cpu[at].is_nan() == is_none(at)), "{of_cpu:?}");
    assert!((0..rows * heads * dim).all(|i| o_of_cpu[i].is_nan() == is_none(i / dim)));
    for place in places() {
        let (o, lse) = case.on(place, 0);
        assert!((0..rows * heads).all(|at| lse[at].is_nan() == is_none(at)), "{lse:?}");
        assert!((0..rows * heads * dim).all(|i| o[i].is_nan() == is_none(i / dim)), "{o:?}");
    }
}

#[test]
fn gradients() {
    let (_, judge) = cpus();
    for shape in SHAPES {
        let (case, heads) = (Case::random(shape).with_sinks(), shape.1);
        let before = Random::new(7).f32(heads, 1.0);
        let mut right = judge.upload(&before, 1, heads);
        let of = |x: &[bf16]| act(&judge, x, case.rows, case.cols());
        let (lse, sinks) = (judge.upload(&case.lse, case.rows, heads), act(&judge, &case.sinks, 1, heads));
        judge.sinks_bwd(&of(&case.do_), &of(&case.o), &lse, &sinks, &mut right);
        for place in places() {
            for late in [0, 3] {
                let dsinks = case.gradient(place, &before, late);
                close(&format!("dsinks of {shape:?}, {late} late"), &dsinks, &judge.download(&right), 1e-5);
            }
        }
    }
}

/// The gradient is that of a loss (do . o') by differences, in f64.
#[test]
fn gradients_are_those_of_the_output() {
    let case = Case::random((5, 1, 16));
    let loss = |sink: f64| -> f64 {
        let rows = case.o.chunks(16).zip(case.do_.chunks(16)).zip(&case.lse);
        let of_row = |((o, do_), lse): ((&[bf16], &[bf16]), &f32)| {
            let share = 1.0 / (1.0 + (sink - f64::from(*lse)).exp());
            o.iter().zip(do_).map(|(o, do_)| o.to_f64() * do_.to_f64()).sum::<f64>() * share
        };
        rows.map(of_row).sum()
    };
    let sink = case.sinks[0].to_f64();
    let right = ((loss(sink + 1e-4) - loss(sink - 1e-4)) / 2e-4) as f32;
    let case = case.with_sinks();
    for place in places() {
        let dsinks = case.gradient(place, &[0.0], 0);
        // o' is rounded to bf16.
        assert!((dsinks[0] - right).abs() <= 1e-2 * right.abs() + 1e-2, "{dsinks:?}, not {right}");
    }
}
