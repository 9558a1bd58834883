//! The router's kernels, compared with the CPU's ops.

use crate::common::{Random, close, cpus, on, places};
use cuda::ops::{self, Routed, route_parts};
use engine::backend::{Backend, Tensor};
use engine::backend::{Balance, Choices, Router, Total};
use engine::config::RouterWeights;
use engine::cpu::Cpu;
use half::bf16;

/// Tokens, experts, choices of a token and tokens of a sequence: one of each, numbers of experts around a warp and not
/// powers of two, all experts chosen, more choices than lanes, sequences of odd length and a last one that is shorter.
const SHAPES: [(usize, usize, usize, usize); 9] = [
    (1, 1, 1, 1),
    (9, 4, 2, 9),
    (5, 6, 6, 5),
    (33, 31, 4, 11),
    (20, 33, 1, 7),
    (48, 60, 8, 24),
    (17, 128, 8, 17),
    (7, 300, 64, 3),
    (3, 4096, 33, 3),
];
const WEIGHTS: [RouterWeights; 2] = [RouterWeights::OfAll, RouterWeights::OfChosen];

/// A row of logits after the other: any numbers; few different ones; numbers that are not finite.
fn logits(tokens: usize, experts: usize) -> Vec<f32> {
    let mut all = Random::new((tokens * 31 + experts) as u64).f32(tokens * experts, 3.0);
    for (token, row) in all.chunks_mut(experts).enumerate().filter(|(token, _)| token % 3 > 0) {
        row.iter_mut().for_each(|x| *x = x.round() / 2.0 * if token % 2 == 0 { 1.0 } else { -0.0 });
    }
    all
}

fn odd_logits(tokens: usize, experts: usize) -> Vec<f32> {
    let mut all = logits(tokens, experts);
    let odd = [f32::NAN, f32::NEG_INFINITY, f32::INFINITY, -f32::NAN];
    for (token, row) in all.chunks_mut(experts).enumerate() {
        row.iter_mut().step_by(1 + token % 4).for_each(|x| *x = odd[token / 2 % 4]);
    }
    all
}

/// Within a millionth part of what weights can be; a NaN where there must be one.
#[track_caller]
fn alike(what: &str, got: &[f32], right: &[f32]) {
    for (at, (got, right)) in got.iter().zip(right).enumerate() {
        let same = (got - right).abs() <= 2e-6 + 1e-5 * right.abs() || got.is_nan() && right.is_nan();
        assert!(same, "{what}: number {at} is {got}, not {right}");
    }
}

#[test]
fn routes_to_the_largest_logits() {
    let (cpu, _) = cpus();
    for ((tokens, experts, k, _), weights) in SHAPES.into_iter().flat_map(|s| WEIGHTS.map(|w| (s, w))) {
        let r = Router { per_token: k, weights };
        for logits in [logits(tokens, experts), odd_logits(tokens, experts)] {
            let right = cpu.route(&cpu.upload(&logits, tokens, experts), r);
            let (right, right_weights) = (cpu.download(&right.experts), cpu.download(&right.weights));
            for place in places() {
                let (mut chosen, mut got) = (vec![u32::MAX; tokens * k], vec![-1.0; tokens * k]);
                on(place, |m, l| ops::route(m, l.read(&logits), r, l.write(&mut chosen), l.write(&mut got)));
                assert_eq!(chosen, right, "{tokens} x {experts}, {r:?}");
                alike(&format!("weights of {tokens} x {experts}, {r:?}"), &got, &right_weights);
            }
        }
    }
}

/// A router's backward: inputs, and the CPU's results.
struct Case {
    shape: (usize, usize, usize, usize),
    r: Router,
    factors: [f32; 2],
    targets: f32,
    logits: Vec<f32>,
    chosen: Vec<u32>,
    dweights: Vec<f32>,
    totals: [f32; Total::COUNT],
    load: Vec<f32>,
}

/// Gradient, totals and load.
type Results = (Vec<f32>, Vec<f32>, Vec<f32>);

impl Case {
    fn new(shape: (usize, usize, usize, usize), weights: RouterWeights, factors: [f32; 2], targets: f32) -> Case {
        let (tokens, experts, k, _) = shape;
        let (r, logits, mut random) = (Router { per_token: k, weights }, logits(tokens, experts), Random::new(5));
        let (cpu, _) = cpus();
        let chosen = cpu.download(&cpu.route(&cpu.upload(&logits, tokens, experts), r).experts);
        let (dweights, load) = (random.f32(tokens * k, 1.0), vec![3.0; experts]);
        Case { shape, r, factors, targets, logits, chosen, dweights, totals: [1.0, 2.0, 3.0, 0.5, 0.25], load }
    }

    fn on_cpu(&self, cpu: &Cpu<bf16>) -> Results {
        let (tokens, experts, k, seq) = self.shape;
        let weights = cpu.upload(&vec![0.0; tokens * k], tokens, k);
        let choices = Choices { experts: cpu.upload(&self.chosen, tokens, k), weights };
        let [mut totals, mut load] =
            [&self.totals[..], &self.load].map(|x: &[f32]| -> Tensor<_, f32> { cpu.upload(x, 1, x.len()) });
        let targets = cpu.upload(&[self.targets], 1, 1);
        let balance = Balance { seq, factors: self.factors, targets: &targets };
        let (dw, logits) = (cpu.upload(&self.dweights, tokens, k), cpu.upload(&self.logits, tokens, experts));
        let dlogits = cpu.route_bwd(&dw, &logits, &choices, self.r, balance, [&mut totals, &mut load]);
        (cpu.download(&dlogits), cpu.download(&totals), cpu.download(&load))
    }

    fn on(&self, place: &'static dyn emulator::place::Place) -> Results {
        let (tokens, experts, _, seq) = self.shape;
        let (mut dlogits, mut totals, mut load) =
            (vec![f32::NAN; tokens * experts], self.totals.to_vec(), self.load.clone());
        let mut scratch = vec![f32::NAN; route_parts(tokens, experts)];
        let targets = [self.targets];
        on(place, |m, l| {
            let of = Routed {
                dweights: l.read(&self.dweights),
                logits: l.read(&self.logits),
                chosen: l.read(&self.chosen),
                targets: l.read(&targets),
                seq,
                factors: self.factors,
            };
            let sums = [l.write(&mut totals), l.write(&mut load)];
            ops::route_bwd(m, of, self.r, sums, l.write(&mut scratch), l.write(&mut dlogits))
        });
        (dlogits, totals, load)
    }
}

#[test]
fn gradients_of_the_router() {
    let (cpu, _) = cpus();
    let settings = [([0.0, 0.0], 0.0), ([0.01, 0.001], 640.0), ([1.0, 0.5], 0.5)];
    for ((shape, weights), (factors, targets)) in
        SHAPES.into_iter().flat_map(|s| WEIGHTS.map(|w| (s, w))).flat_map(|s| settings.map(|f| (s, f)))
    {
        let case = Case::new(shape, weights, factors, targets);
        let (right, totals, load) = case.on_cpu(&cpu);
        for place in places() {
            let (got, got_totals, got_load) = case.on(place);
            let what = format!("{shape:?}, {weights:?}, {factors:?}");
            for (got, right) in got.chunks(shape.1).zip(right.chunks(shape.1)) {
                let size = right.iter().chain(&case.dweights).fold(0.0f32, |m, x| m.max(x.abs()));
                let far =
                    got.iter().zip(right).position(|(a, b)| (a - b).abs().is_nan() || (a - b).abs() > 1e-5 * size);
                assert!(far.is_none(), "{what}: {got:?}, not {right:?}");
            }
            for (got, right) in got_totals.iter().zip(&totals) {
                close(&format!("totals of {what}"), &[*got], &[*right], 1e-5);
            }
            assert_eq!(got_load, load, "the load of {what}");
        }
    }
}
