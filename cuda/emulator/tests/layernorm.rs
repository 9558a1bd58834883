//! The LayerNorm kernels, compared with the CPU's op.

use crate::common::{Random, act, close, cpus, emulators, near, on, places};
use cuda::ops::{self, LayerBwd, LayerWeights, layernorm_parts};
use emulator::place::Place;
use engine::backend::{Backend, LayerNorm};
use engine::cpu::{Cpu, Float};
use half::bf16;

/// Rows and columns: one, odd, around a vector of 8, around the share of a warp and of a block, and around the columns
/// whose gradients fit in registers.
const SHAPES: [(usize, usize); 15] = [
    (1, 1),
    (3, 7),
    (2, 8),
    (5, 9),
    (4, 255),
    (2, 256),
    (33, 40),
    (3, 511),
    (40, 520),
    (9, 1032),
    (3, 4096),
    (2, 5001),
    (3, 8192),
    (2, 8200),
    (2, 16384),
];
/// Scales of x, and their means in these scales.
const KINDS: [(f32, f32); 4] = [(1.0, 0.0), (1e-6, 1.0), (1e6, -1.0), (1.0, 20.0)];
const EPS: f32 = 1e-5;
const NAN: bf16 = bf16::NAN;

/// Every shape with every kind; one kind for each of the widest, which take most of the time.
fn shapes_and_kinds() -> impl Iterator<Item = ((usize, usize), (f32, f32))> {
    let kinds = |at, d| if d < 4096 { &KINDS[..] } else { &KINDS[at % KINDS.len()..][..1] };
    SHAPES.iter().enumerate().flat_map(move |(at, &shape)| kinds(at, shape.1).iter().map(move |&kind| (shape, kind)))
}

/// x, dy, dres, w and bias of a shape.
fn inputs(rows: usize, d: usize, (scale, mean): (f32, f32)) -> [Vec<bf16>; 5] {
    let mut random = Random::new((rows * 37 + d) as u64);
    let x = random.f32(rows * d, scale).into_iter().map(|x| bf16::from_f32(x + mean * scale)).collect();
    let [dy, dres] = [1.0, 0.5].map(|s| random.bf16(rows * d, s));
    [x, dy, dres, random.bf16(d, 1.0), random.bf16(d, 1.0)]
}

/// y and the statistics by the CPU's op.
fn on_cpu<A: Float>(cpu: &Cpu<A>, [x, w, bias]: [&[bf16]; 3]) -> (Vec<A>, Vec<f32>) {
    let (rows, d) = (x.len() / w.len(), w.len());
    let (w, bias) = (act(cpu, w, 1, d), act(cpu, bias, 1, d));
    let (y, stats) = cpu.layernorm(&act(cpu, x, rows, d), LayerNorm { w: &w, bias: &bias, eps: EPS });
    (cpu.download(&y), cpu.download(&stats))
}

#[test]
fn forward_and_statistics() {
    let (cpu, judge) = cpus();
    for ((rows, d), kind) in shapes_and_kinds() {
        let [x, _, _, w, bias] = inputs(rows, d, kind);
        let (plain, stats) = on_cpu(&cpu, [&x, &w, &bias]);
        let (exact, _) = on_cpu(&judge, [&x, &w, &bias]);
        for place in places() {
            let (y, got) = forward(place, [&x, &w, &bias]);
            let what = format!("{rows} x {d}, {kind:?}");
            near(&what, &y, &plain, &exact, d);
            for (got, right) in got.chunks(2).zip(stats.chunks(2)) {
                // The mean may be far smaller than the numbers that it is of.
                let allowed = 2e-6 * kind.0 * (1.0 + kind.1.abs());
                assert!((got[0] - right[0]).abs() <= allowed, "{what}: the mean is {}, not {}", got[0], right[0]);
                close(&format!("rstd {what}"), &got[1..], &right[1..], 4e-6);
            }
        }
    }
}

/// The statistics of the CPU, and gradients that are sums of what the registers or the memory of a block keep.
#[test]
fn backward_with_and_without_the_residual() {
    let (cpu, judge) = cpus();
    for ((rows, d), kind) in shapes_and_kinds() {
        let [x, dy, dres, w, bias] = inputs(rows, d, kind);
        let (_, stats) = on_cpu(&cpu, [&x, &w, &bias]);
        let before = [1, 2].map(|seed| Random::new(seed).f32(d, 1.0));
        for with in [&dres[..], &[]] {
            let (plain, _) = backward(&cpu, [with, &dy, &x, &w], &stats, &before);
            let (exact, right) = backward(&judge, [with, &dy, &x, &w], &stats, &before);
            for place in places() {
                let (dx, gradients) = gradients(place, [with, &dy, &x, &w], &stats, &before);
                near(&format!("dx {rows} x {d}, {kind:?}"), &dx, &plain, &exact, d);
                for (name, (got, right)) in ["dw", "dbias"].iter().zip(gradients.iter().zip(&right)) {
                    close(&format!("{name} {rows} x {d}, {kind:?}"), got, right, 1e-5);
                }
            }
        }
    }
}

/// dx and the gradients of the weights by the CPU's op.
fn backward<A: Float>(
    cpu: &Cpu<A>,
    [dres, dy, x, w]: [&[bf16]; 4],
    stats: &[f32],
    before: &[Vec<f32>; 2],
) -> (Vec<A>, [Vec<f32>; 2]) {
    let (rows, d) = (stats.len() / 2, w.len());
    let [mut dw, mut dbias] = [0, 1].map(|i| cpu.upload(&before[i], 1, d));
    let (dy, x, w, stats) =
        (act(cpu, dy, rows, d), act(cpu, x, rows, d), act(cpu, w, 1, d), cpu.upload(stats, rows, 2));
    let dres = (!dres.is_empty()).then(|| act(cpu, dres, rows, d));
    let n = LayerNorm { w: &w, bias: &w, eps: EPS };
    let dx = cpu.layernorm_bwd(dres.as_ref(), dy, &x, &stats, n, [&mut dw, &mut dbias]);
    (cpu.download(&dx), [dw, dbias].map(|g| cpu.download(&g)))
}

#[test]
fn unaligned_rows_have_the_same_bits() {
    // There are more rows than blocks, and blocks of several warps.
    for (rows, d) in [(37, 1032), (3, 64)] {
        let [x, dy, dres, w, bias] = inputs(rows, d, KINDS[0]);
        let (late_x, late_w) = ([&[NAN], &x[..]].concat(), [&[NAN; 5], &w[..]].concat());
        let late_bias = [&[NAN; 3], &bias[..]].concat();
        let before = [1, 2].map(|seed| Random::new(seed).f32(d, 1.0));
        for place in places() {
            let (y, stats) = forward(place, [&x, &w, &bias]);
            let (moved, _) = forward(place, [&late_x[1..], &late_w[5..], &late_bias[3..]]);
            assert_eq!(moved, y, "{rows} x {d}");
            let [aligned, moved] =
                [&x[..], &late_x[1..]].map(|x| gradients(place, [&dres, &dy, x, &w], &stats, &before));
            assert_eq!(aligned, moved, "{rows} x {d}");
        }
    }
}

#[test]
fn the_gradients_of_the_weights_do_not_depend_on_the_order_of_blocks() {
    let [x, dy, _, w, _] = inputs(37, 264, KINDS[0]);
    let (stats, before) = ([0.5; 74], [vec![0.0; 264], vec![0.0; 264]]);
    let all = emulators().map(|place| gradients(&place, [&[], &dy, &x, &w], &stats, &before));
    assert!(all.iter().all(|r| *r == all[0]));
}

fn forward(place: &dyn Place, [x, w, bias]: [&[bf16]; 3]) -> (Vec<bf16>, Vec<f32>) {
    let (mut y, mut stats) = (vec![NAN; x.len()], vec![f32::NAN; 2 * x.len() / w.len()]);
    on(place, |m, l| {
        let n = LayerWeights { w: l.read(w), bias: l.read(bias), eps: EPS };
        ops::layernorm(m, l.read(x), n, l.write(&mut y), l.write(&mut stats))
    });
    (y, stats)
}

fn gradients(
    place: &dyn Place,
    [dres, dy, x, w]: [&[bf16]; 4],
    stats: &[f32],
    before: &[Vec<f32>; 2],
) -> (Vec<bf16>, [Vec<f32>; 2]) {
    let (mut dx, [mut dw, mut dbias]) = (dy.to_vec(), before.clone());
    let mut parts = vec![f32::NAN; layernorm_parts(stats.len() / 2, w.len(), place.machine().processors())];
    on(place, |m, l| {
        let saved = LayerBwd { dres: l.read(dres), x: l.read(x), stats: l.read(stats), w: l.read(w) };
        let gradients = [l.write(&mut dw), l.write(&mut dbias)];
        ops::layernorm_bwd(m, saved, l.write(&mut dx), gradients, l.write(&mut parts))
    });
    (dx, [dw, dbias])
}
