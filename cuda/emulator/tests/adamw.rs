//! The kernels of AdamW and of gradient clipping leave the same bits as the CPU's ops: each element is independent.

use crate::common::{Random, close, cpus, emulators, on, places};
use cuda::ops::{self, NORMS, Norms, State, Step, adamw_parts};
use emulator::place::Place;
use engine::backend::{AdamW, Backend, Rule};
use half::bf16;

const HP: Step = Step {
    lr: 3e-4,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.1,
    correction1: 0.271,
    correction2: 0.142_625,
    decayed: 0,
};

const FACTOR: [f32; 3] = [7.0, 0.37, 0.0];

/// The main parameters, m and v.
type Shard = [Vec<f32>; 3];

/// The gradient and the state of n elements.
fn inputs(n: usize, scale: f32) -> (Vec<f32>, Shard) {
    let mut random = Random::new(n as u64);
    let (g, master, m, v) = (random.f32(n, scale), random.f32(n, 1.0), random.f32(n, 0.1), random.f32(n, 0.1));
    (g, [master, m, v.iter().map(|v| v * v).collect()])
}

/// State and weights after a step.
fn step(place: &dyn Place, g: &[f32], [mut a, mut b, mut c]: Shard, hp: Step) -> (Shard, Vec<bf16>) {
    let mut out = vec![bf16::NAN; g.len()];
    on(place, |m, l| {
        let s = State { master: l.write(&mut a), m: l.write(&mut b), v: l.write(&mut c) };
        ops::adamw(m, l.read(g), l.read(&FACTOR), s, l.write(&mut out), hp)
    });
    ([a, b, c], out)
}

#[test]
fn a_step_gives_the_same_bits() {
    let (cpu, _) = cpus();
    let shapes = [(1, 0), (3, 3), (4, 2), (1025, 513), (9001, 9000), (20_003, 700)];
    for ((n, decayed), scale) in shapes.into_iter().flat_map(|s| [1.0, 1e-12, 1e6].map(|x| (s, x))) {
        let (g, state) = inputs(n, scale);
        let [mut master, mut m, mut v] = state.clone().map(|x| cpu.upload(&x, n, 1));
        let Step { lr, beta1, beta2, eps, weight_decay, correction1, correction2, .. } = HP;
        let hp = AdamW { lr, beta1, beta2, eps, weight_decay, correction1, correction2, decayed };
        let (on_g, on_factor) = (cpu.upload(&g, n, 1), cpu.upload(&FACTOR, 1, 3));
        let mut weights = cpu.alloc(n, 1);
        cpu.adamw(&on_g, &on_factor, &mut master, &mut m, &mut v, &mut weights, hp);
        for place in places() {
            let (after, out) = step(place, &g, state.clone(), Step { decayed, ..HP });
            assert_eq!(after, [&master, &m, &v].map(|x| cpu.download(x)), "{n}, {decayed}, {scale}");
            assert_eq!(out, cpu.download(&weights));
        }
    }
}

/// State, weights and sums of squares after a step.
fn step_with_norms(
    place: &dyn Place,
    g: &[f32],
    [mut a, mut b, mut c]: Shard,
    hp: Step,
) -> (Shard, Vec<bf16>, [f32; NORMS]) {
    let (n, mut squares) = (g.len(), [0.25; NORMS]);
    let (mut out, mut parts) = (vec![bf16::NAN; n], vec![f64::NAN; adamw_parts(n)]);
    on(place, |m, l| {
        let s = State { master: l.write(&mut a), m: l.write(&mut b), v: l.write(&mut c) };
        let norms = Norms { squares: l.write(&mut squares), parts: l.write(&mut parts) };
        ops::adamw_norms(m, l.read(g), l.read(&FACTOR), s, l.write(&mut out), hp, norms)
    });
    ([a, b, c], out, squares)
}

fn norms_are_right(place: &dyn Place, n: usize) {
    // Without eps, the padding after the last element would compute 0 / 0.
    let ((g, before), hp) = (inputs(n, 1.0), Step { decayed: n / 2, eps: 0.0, ..HP });
    let (after, weights, squares) = step_with_norms(place, &g, before.clone(), hp);
    let without = step(place, &g, before.clone(), hp);
    assert!(after == without.0 && weights == without.1, "{n}, {}", place.name());
    let square = |x: &mut dyn Iterator<Item = f32>| 0.25 + x.map(|x| x as f64 * x as f64).sum::<f64>() as f32;
    let right = [
        square(&mut g.iter().map(|g| g * FACTOR[1])),
        square(&mut after[0].iter().copied()),
        square(&mut before[0].iter().zip(&after[0]).map(|(before, after)| before - after)),
        square(&mut after[1].iter().copied()),
        square(&mut after[2].iter().copied()),
    ];
    for (at, (got, right)) in squares.iter().zip(right).enumerate() {
        // The change of the weight includes the weight's rounding.
        close(&format!("sum {at} of {n}"), &[*got], &[right], if at == 2 { 1e-4 } else { 2e-7 });
    }
}

#[test]
fn norms_on_the_way_leave_the_step_as_it_is() {
    for place in places() {
        [1, 3, 4, 1025, 9001].into_iter().for_each(|n| norms_are_right(place, n));
    }
    // More elements than all blocks process in one pass.
    norms_are_right(&emulators()[0], (1 << 20) + 1027);
}

#[test]
fn norms_do_not_depend_on_the_order_of_blocks() {
    let (g, state) = inputs(50_003, 1.0);
    let all = emulators().map(|place| step_with_norms(&place, &g, state.clone(), HP).2.map(f32::to_bits));
    assert!(all.iter().all(|squares| *squares == all[0]));
}

#[test]
fn the_factor_that_clips_has_the_same_bits() {
    let (cpu, _) = cpus();
    let squares = [0.0, 1e-38, 1e-7, 0.3, 4.0, 1e9, 3e38, f32::INFINITY, f32::NAN];
    for ((square, tokens), clip) in squares
        .into_iter()
        .flat_map(|s| [0.0, 1.0, 3.0, 4096.0, 1e7].map(|t| (s, t)))
        .flat_map(|s| [0.0, 1.0, 0.1, 1e-6, 1e30].map(|c| (s, c)))
    {
        let (square, totals) = ([square], [2.0, 5.0, tokens, 7.0, 8.0]);
        let rule = Rule { clip, window: 2, threshold: 6.0, skips: false };
        let mut state = cpu.upload(&[0.0; 6], 1, 6);
        let judged = cpu.judge(&cpu.upload(&square, 1, 1), &cpu.upload(&totals, 1, 5), &mut state, rule);
        let right = cpu.download(&judged);
        for place in places() {
            let (mut out, mut state) = ([f32::NAN; 3], [0.0; 6]);
            on(place, |m, l| {
                ops::judge(m, l.read(&square), l.read(&totals), l.write(&mut state), rule, l.write(&mut out))
            });
            let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
            assert!(out.iter().zip(&right).all(same), "{square:?}, {tokens}, {clip}: {out:?}, not {right:?}");
        }
    }
}

/// A series of steps with spikes of both kinds and numbers that are not finite, judged alike by every machine, with the
/// same window afterwards.
#[test]
fn judgements_and_the_window_have_the_same_bits() {
    let (cpu, _) = cpus();
    let noise = Random::new(7).f32(40, 1.0);
    let mut steps: Vec<[f32; 2]> = noise.chunks(2).map(|x| [5.0 + 0.1 * x[0], 2.0 + 0.2 * x[1]]).collect();
    for (at, spike) in [(9, [9.0, 2.0]), (11, [5.0, 4.0]), (13, [5.0, f32::INFINITY])] {
        steps[at] = spike;
    }
    for (threshold, skips) in [(3.0, true), (3.0, false), (0.0, true)] {
        let rule = Rule { clip: 1.0, window: 5, threshold, skips };
        let mut right = cpu.upload(&[0.0; 12], 1, 12);
        let places = places();
        let mut states = vec![[0.0; 12]; places.len()];
        let mut seen = Vec::new();
        for [loss, norm] in &steps {
            let (square, totals) = ([norm * norm * 64.0], [loss * 8.0, 0.0, 8.0, 0.0, 0.0]);
            let judged = cpu.judge(&cpu.upload(&square, 1, 1), &cpu.upload(&totals, 1, 5), &mut right, rule);
            let judged = cpu.download(&judged).iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            seen.push(f32::from_bits(judged[2]));
            for (place, state) in places.iter().zip(&mut states) {
                let place = *place;
                let mut out = [f32::NAN; 3];
                on(place, |m, l| {
                    ops::judge(m, l.read(&square), l.read(&totals), l.write(state), rule, l.write(&mut out))
                });
                assert_eq!(out.map(f32::to_bits).to_vec(), judged, "{loss}, {norm}, {}", place.name());
                assert_eq!(state.to_vec(), cpu.download(&right), "{loss}, {norm}, {}", place.name());
            }
        }
        // After a step that is not finite none is accepted.
        let wanted = if threshold > 0.0 { [1.0, 2.0, 3.0, 3.0] } else { [0.0, 0.0, 3.0, 3.0] };
        assert_eq!([9, 11, 13, 14].map(|at| seen[at]), wanted);
    }
}

#[test]
fn a_step_that_is_skipped_changes_nothing() {
    let (g, before) = inputs(1025, 1.0);
    for place in places() {
        let ([mut a, mut b, mut c], mut out) = (before.clone(), vec![bf16::ONE; g.len()]);
        on(place, |m, l| {
            let s = State { master: l.write(&mut a), m: l.write(&mut b), v: l.write(&mut c) };
            ops::adamw(m, l.read(&g), l.read(&[1.0, f32::NAN, 3.0]), s, l.write(&mut out), HP)
        });
        assert_eq!([a, b, c], before, "{}", place.name());
        assert!(out.iter().all(|&w| w == bf16::ONE));
    }
}
