//! The RMSNorm kernels, compared with the CPU's op.

use crate::common::{Random, act, close, cpus, emulators, near, on, places};
use cuda::ops::{self, NormBwd, NormWeight, norm_parts};
use emulator::place::Place;
use engine::backend::{Act, Backend, Rms};
use engine::cpu::Cpu;
use half::bf16;

/// Rows and columns: one, odd, around a vector of 8, around the share of a warp and of a block.
const SHAPES: [(usize, usize); 14] = [
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
    (1, 8200),
    (2, 16384),
];
/// Scales of x, and offsets of the weights.
const KINDS: [(f32, f32); 4] = [(1.0, 0.0), (1e-6, 0.0), (1e6, 0.0), (1.0, 1.0)];
const EPS: f32 = 1e-5;
const NAN: bf16 = bf16::NAN;

/// Every shape with every kind; one kind for each of the widest, which take most of the time.
fn shapes_and_kinds() -> impl Iterator<Item = ((usize, usize), (f32, f32))> {
    let kinds = |at, d| if d < 4096 { &KINDS[..] } else { &KINDS[at % KINDS.len()..][..1] };
    SHAPES.iter().enumerate().flat_map(move |(at, &shape)| kinds(at, shape.1).iter().map(move |&kind| (shape, kind)))
}

/// x, r or dy, dres, and w of a shape.
fn inputs(rows: usize, d: usize, scale: f32) -> [Vec<bf16>; 4] {
    let mut random = Random::new((rows * 31 + d) as u64);
    let [x, y, z] = [scale, 1.0, 0.5].map(|s| random.bf16(rows * d, s));
    [x, y, z, random.bf16(d, 1.0)]
}

fn rms<B: Backend>(w: &Act<B>, offset: f32) -> Rms<'_, B> {
    Rms { w, eps: EPS, offset }
}

#[test]
fn forward_and_again() {
    let (cpu, judge) = cpus();
    for ((rows, d), (scale, offset)) in shapes_and_kinds() {
        let [x, _, _, w] = inputs(rows, d, scale);
        let (on_cpu, w_on_cpu) = (act(&cpu, &x, rows, d), act(&cpu, &w, 1, d));
        let (plain, plain_rstd) = cpu.rmsnorm(&on_cpu, rms(&w_on_cpu, offset));
        let (exact, _) = judge.rmsnorm(&act(&judge, &x, rows, d), rms(&act(&judge, &w, 1, d), offset));
        for place in places() {
            let (mut y, mut rstd) = (vec![NAN; rows * d], vec![f32::NAN; rows]);
            forward(place, [&x, &w], offset, &mut [], &mut y, &mut rstd);
            near("y", &y, &cpu.download(&plain), &judge.download(&exact), d);
            close("rstd", &rstd, &cpu.download(&plain_rstd), 1e-6);
            // The same rstd gives the same bits.
            let mut again = vec![NAN; rows * d];
            on(place, |m, l| {
                let n = NormWeight { w: l.read(&w), eps: 0.0, offset };
                ops::rmsnorm_recompute(m, l.read(&x), l.read(&rstd), n, l.write(&mut again))
            });
            assert_eq!(again, y);
            let theirs = cpu.rmsnorm_recompute(&on_cpu, &cpu.upload(&rstd, rows, 1), rms(&w_on_cpu, offset));
            assert_eq!(y, cpu.download(&theirs), "{rows} x {d}");
        }
    }
}

#[test]
fn forward_with_the_residual() {
    let (cpu, judge) = cpus();
    for (rows, d) in SHAPES {
        let [x, r, _, w] = inputs(rows, d, 1.0);
        let of = |x: &[bf16]| act(&cpu, x, rows, d);
        let (h, y, _) = cpu.add_rmsnorm(&of(&x), of(&r), rms(&act(&cpu, &w, 1, d), 1.0));
        // The reference starts from the rounded sum, since that is what the forward saves.
        let sum = act(&judge, &cpu.download(&h), rows, d);
        let (exact, _) = judge.rmsnorm(&sum, rms(&act(&judge, &w, 1, d), 1.0));
        for place in places() {
            let (mut to_h, mut to_y, mut rstd) = (r.clone(), vec![NAN; rows * d], vec![f32::NAN; rows]);
            forward(place, [&x, &w], 1.0, &mut to_h, &mut to_y, &mut rstd);
            assert_eq!(to_h, cpu.download(&h), "{rows} x {d}");
            near("y", &to_y, &cpu.download(&y), &judge.download(&exact), d);
        }
    }
}

#[test]
fn backward_with_and_without_the_residual() {
    let (cpu, judge) = cpus();
    for ((rows, d), (scale, offset)) in shapes_and_kinds() {
        let [x, dy, dres, w] = inputs(rows, d, scale);
        let (_, rstd) = cpu.rmsnorm(&act(&cpu, &x, rows, d), rms(&act(&cpu, &w, 1, d), offset));
        let (rstd, before) = (cpu.download(&rstd), Random::new(1).f32(d, 1.0));
        for with in [&dres[..], &[]] {
            let (plain, _) = backward(&cpu, [with, &dy, &x, &w], offset, &rstd, &before);
            let (exact, exact_dw) = backward(&judge, [with, &dy, &x, &w], offset, &rstd, &before);
            for place in places() {
                let (mut dx, mut dw) = (dy.clone(), before.clone());
                gradients(place, [with, &x, &w], offset, &rstd, &mut dx, &mut dw);
                near(&format!("dx {rows} x {d}, {scale}"), &dx, &plain, &exact, d);
                close("dw", &dw, &exact_dw, 1e-5);
            }
        }
    }
}

/// dx and dw of the CPU's op.
fn backward<A: engine::cpu::Float>(
    cpu: &Cpu<A>,
    [dres, dy, x, w]: [&[bf16]; 4],
    offset: f32,
    rstd: &[f32],
    dw: &[f32],
) -> (Vec<A>, Vec<f32>) {
    let (rows, d) = (rstd.len(), w.len());
    let mut dw = cpu.upload(dw, 1, d);
    let (dy, x, w, rstd) = (act(cpu, dy, rows, d), act(cpu, x, rows, d), act(cpu, w, 1, d), cpu.upload(rstd, rows, 1));
    let dx = match dres {
        [] => cpu.rmsnorm_bwd(dy, &x, &rstd, rms(&w, offset), &mut dw),
        dres => cpu.rmsnorm_bwd_add(&act(cpu, dres, rows, d), dy, &x, &rstd, rms(&w, offset), &mut dw),
    };
    (cpu.download(&dx), cpu.download(&dw))
}

#[test]
fn unaligned_rows_of_a_flat_block() {
    let [x, _, _, w] = inputs(4, 64, 1.0);
    let (late_x, late_w) = ([&[NAN], &x[..]].concat(), [&[NAN; 5], &w[..]].concat());
    for place in places() {
        let (mut y, mut moved, mut rstd) = (vec![NAN; 256], vec![NAN; 259], [0.0; 4]);
        forward(place, [&x, &w], 0.0, &mut [], &mut y, &mut rstd);
        forward(place, [&late_x[1..], &late_w[5..]], 0.0, &mut [], &mut moved[3..], &mut rstd);
        assert_eq!(moved[3..], y);
    }
}

#[test]
fn unaligned_rows_have_the_same_gradients() {
    // There are more rows than blocks, and blocks of several warps.
    for (rows, d) in [(37, 1032), (3, 64)] {
        let [x, dy, dres, w] = inputs(rows, d, 1.0);
        let (late, rstd) = ([&[NAN], &x[..]].concat(), vec![0.5; rows]);
        for place in places() {
            let [aligned, moved] = [&x[..], &late[1..]].map(|x| {
                let (mut dx, mut dw) = (dy.clone(), vec![0.0; d]);
                gradients(place, [&dres, x, &w], 1.0, &rstd, &mut dx, &mut dw);
                (dx, dw)
            });
            assert_eq!(aligned, moved, "{rows} x {d}");
        }
    }
}

#[test]
fn the_weights_gradient_does_not_depend_on_the_order_of_blocks() {
    let [x, dy, _, w] = inputs(37, 264, 1.0);
    let rstd = vec![1.0; 37];
    let all = emulators().map(|place| {
        let (mut dx, mut dw) = (dy.clone(), vec![0.0; 264]);
        gradients(&place, [&[], &x, &w], 0.0, &rstd, &mut dx, &mut dw);
        (dx, dw)
    });
    assert!(all.iter().all(|r| *r == all[0]));
}

fn forward(place: &dyn Place, [x, w]: [&[bf16]; 2], offset: f32, h: &mut [bf16], y: &mut [bf16], rstd: &mut [f32]) {
    on(place, |m, l| {
        let n = NormWeight { w: l.read(w), eps: EPS, offset };
        ops::rmsnorm(m, l.read(x), l.write(h), n, l.write(y), l.write(rstd))
    });
}

fn gradients(
    place: &dyn Place,
    [dres, x, w]: [&[bf16]; 3],
    offset: f32,
    rstd: &[f32],
    dx: &mut [bf16],
    dw: &mut [f32],
) {
    let mut parts = vec![f32::NAN; norm_parts(rstd.len(), w.len(), place.machine().processors())];
    on(place, |m, l| {
        let n = NormWeight { w: l.read(w), eps: EPS, offset };
        let saved = NormBwd { dres: l.read(dres), x: l.read(x), rstd: l.read(rstd), n };
        ops::rmsnorm_bwd(m, saved, l.write(dx), l.write(dw), l.write(&mut parts))
    });
}
