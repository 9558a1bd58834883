//! SwiGLU, GELU, rotary embedding and the elementwise kernels, compared with the CPU's ops.

use crate::common::{Random, act, close, cpus, near, on, places};
use cuda::ops::{self, RopeShape, squares_parts};
use engine::backend::{Backend, CHECKSUM_PARTS, Heads, Rotary};
use engine::cpu::Cpu;
use half::bf16;

const NAN: bf16 = bf16::NAN;

/// Rows and columns: one, odd, around a vector of 8, around a block's 2048.
const SHAPES: [(usize, usize); 9] =
    [(1, 1), (3, 7), (2, 8), (5, 9), (1, 256), (2, 264), (2, 2047), (1, 2048), (2, 2056)];

#[test]
fn swiglu_forward_and_backward() {
    let (cpu, judge) = cpus();
    for ((rows, f), scale) in SHAPES.into_iter().flat_map(|s| [1.0, 1e-5, 30.0, 1e4].map(|x| (s, x))) {
        let mut random = Random::new((rows * f) as u64);
        let (gate_up, dy) = (random.bf16(rows * 2 * f, scale), random.bf16(rows * f, 1.0));
        let plain = cpu.download(&cpu.swiglu(&act(&cpu, &gate_up, rows, 2 * f)));
        let exact = judge.download(&judge.swiglu(&act(&judge, &gate_up, rows, 2 * f)));
        let plain_back = cpu.swiglu_bwd(&act(&cpu, &dy, rows, f), act(&cpu, &gate_up, rows, 2 * f));
        let exact_back = judge.swiglu_bwd(&act(&judge, &dy, rows, f), act(&judge, &gate_up, rows, 2 * f));
        for place in places() {
            let mut y = vec![NAN; rows * f];
            on(place, |m, l| ops::swiglu(m, l.read(&gate_up), l.write(&mut y), f));
            near(&format!("y {rows} x {f}, {scale}"), &y, &plain, &exact, f);
            let mut back = gate_up.clone();
            on(place, |m, l| ops::swiglu_bwd(m, l.read(&dy), l.write(&mut back), f));
            near("dgate, dup", &back, &cpu.download(&plain_back), &judge.download(&exact_back), f);
        }
    }
}

/// Rows and columns: one, odd, around a vector of 8 and a block's 2048, several iterations of a block's loop.
#[test]
fn weighted_swiglu_forward_and_backward() {
    let (cpu, judge) = cpus();
    for (rows, f) in [(0, 8), (1, 1), (3, 7), (2, 8), (5, 264), (2, 2047), (2, 2056), (1, 4104)] {
        let mut random = Random::new((rows * f) as u64);
        let (gate_up, dy) = (random.bf16(rows * 2 * f, 1.0), random.bf16(rows * f, 1.0));
        let weights = random.f32(rows, 1.0);
        let (plain, plain_back, _) = swiglu_on_cpu(&cpu, &gate_up, &dy, &weights, f);
        let (exact, exact_back, dweights) = swiglu_on_cpu(&judge, &gate_up, &dy, &weights, f);
        for place in places() {
            let (mut y, mut back, mut dw) = (vec![bf16::NAN; rows * f], gate_up.clone(), vec![f32::NAN; rows]);
            on(place, |m, l| ops::swiglu_weighted(m, l.read(&gate_up), l.read(&weights), l.write(&mut y), f));
            near(&format!("y {rows} x {f}"), &y, &plain, &exact, f);
            on(place, |m, l| {
                let of_rows = [l.read(&weights), l.write(&mut dw)];
                ops::swiglu_weighted_bwd(m, l.read(&dy), l.write(&mut back), of_rows, f)
            });
            near(&format!("dgate, dup {rows} x {f}"), &back, &plain_back, &exact_back, f);
            close(&format!("dweights {rows} x {f}"), &dw, &dweights, 1e-5);
        }
    }
}

/// y, `[dgate | dup]` and dweights.
fn swiglu_on_cpu<A: engine::cpu::Float>(
    cpu: &Cpu<A>,
    gate_up: &[bf16],
    dy: &[bf16],
    weights: &[f32],
    f: usize,
) -> (Vec<A>, Vec<A>, Vec<f32>) {
    let rows = weights.len();
    if rows == 0 {
        return (Vec::new(), Vec::new(), Vec::new());
    }
    let (mut gate_up, weights) = (act(cpu, gate_up, rows, 2 * f), cpu.upload(weights, rows, 1));
    let (mut y, mut dweights) = (cpu.alloc(rows, f), cpu.alloc(rows, 1));
    cpu.swiglu_weighted(&gate_up, &weights, &mut y);
    cpu.swiglu_weighted_bwd(&act(cpu, dy, rows, f), &mut gate_up, &weights, &mut dweights);
    (cpu.download(&y), cpu.download(&gate_up), cpu.download(&dweights))
}

/// gelu(x) and gelu'(x) in f64. The CPU's ops take 1 + t from a tanh t, of which too little is left where gelu(x) is
/// small for the error of a single number to be judged by theirs.
fn gelu(x: bf16) -> [f64; 2] {
    let (x, root) = (x.to_f64(), (2.0 / std::f64::consts::PI).sqrt());
    let s = 1.0 / (1.0 + (-2.0 * root * (x + 0.044715 * x.powi(3))).exp());
    [x * s, s + 2.0 * x * s * (1.0 - s) * root * (1.0 + 3.0 * 0.044715 * x * x)]
}

/// The CPU's op is that function, up to the error of its tanh.
#[track_caller]
fn gelu_is_the_cpus(x: &[bf16], values: &[f32], slopes: &[f32]) {
    for ((x, value), slope) in x.iter().zip(values).zip(slopes) {
        let [right, right_slope] = gelu(*x);
        let size = x.to_f64().abs();
        assert!((*value as f64 - right).abs() <= 4e-7 * size, "gelu({x}) is {right}, and the CPU's {value}");
        // Both tanh and u' x enter the slope.
        let allowed = 4e-7 * (2.0 + size.min(8.0).powi(3));
        assert!((*slope as f64 - right_slope).abs() <= allowed, "gelu'({x}) is {right_slope}, and the CPU's {slope}");
    }
}

/// Products with numbers whose value is given in f64.
fn times(x: &[f64], y: &[bf16]) -> Vec<f32> {
    x.iter().zip(y).map(|(x, y)| (x * y.to_f64()) as f32).collect()
}

#[test]
fn gelu_forward_and_backward() {
    let (cpu, judge) = cpus();
    for ((rows, f), scale) in SHAPES.into_iter().flat_map(|s| [1.0, 1e-5, 30.0, 1e4].map(|x| (s, x))) {
        let (n, mut random) = (rows * f, Random::new((rows * f) as u64));
        let (x, dy, ones) = (random.bf16(n, scale), random.bf16(n, 1.0), vec![bf16::ONE; n]);
        let of = |x: &[bf16]| act(&cpu, x, rows, f);
        let (values, slopes): (Vec<f64>, Vec<f64>) = x.iter().map(|x| gelu(*x)).map(|[a, b]| (a, b)).unzip();
        let (of_ones, of_x) = (act(&judge, &ones, rows, f), act(&judge, &x, rows, f));
        let on_cpu = (judge.download(&judge.gelu(&of_x)), judge.download(&judge.gelu_bwd(&of_ones, of_x)));
        gelu_is_the_cpus(&x, &on_cpu.0, &on_cpu.1);
        let (plain, back) = (cpu.download(&cpu.gelu(&of(&x))), cpu.download(&cpu.gelu_bwd(&of(&dy), of(&x))));
        for place in places() {
            let (mut y, mut dx) = (vec![NAN; n], x.clone());
            on(place, |m, l| ops::gelu(m, l.read(&x), l.write(&mut y)));
            near(&format!("y {rows} x {f}, {scale}"), &y, &plain, &times(&values, &ones), f);
            on(place, |m, l| ops::gelu_bwd(m, l.read(&dy), l.write(&mut dx)));
            near(&format!("dx {rows} x {f}, {scale}"), &dx, &back, &times(&slopes, &dy), f);
        }
    }
}

#[test]
fn geglu_forward_and_backward() {
    let (cpu, _) = cpus();
    for ((rows, f), scale) in SHAPES.into_iter().flat_map(|s| [1.0, 1e-5, 30.0, 1e4].map(|x| (s, x))) {
        let mut random = Random::new((rows * f) as u64);
        let (gate_up, dy) = (random.bf16(rows * 2 * f, scale), random.bf16(rows * f, 1.0));
        let of_gate_up = || act(&cpu, &gate_up, rows, 2 * f);
        let plain = cpu.download(&cpu.geglu(&of_gate_up()));
        let plain_back = cpu.download(&cpu.geglu_bwd(&act(&cpu, &dy, rows, f), of_gate_up()));
        let (exact, exact_back) = geglu(&gate_up, &dy, f);
        for place in places() {
            let (mut y, mut back) = (vec![NAN; rows * f], gate_up.clone());
            on(place, |m, l| ops::geglu(m, l.read(&gate_up), l.write(&mut y), f));
            near(&format!("y {rows} x {f}, {scale}"), &y, &plain, &exact, f);
            on(place, |m, l| ops::geglu_bwd(m, l.read(&dy), l.write(&mut back), f));
            near(&format!("dgate, dup {rows} x {f}, {scale}"), &back, &plain_back, &exact_back, f);
        }
    }
}

/// y, and `[dgate | dup]`, from f64.
fn geglu(gate_up: &[bf16], dy: &[bf16], f: usize) -> (Vec<f32>, Vec<f32>) {
    let (mut y, mut back) = (Vec::new(), Vec::new());
    for (gate_up, dy) in gate_up.chunks(2 * f).zip(dy.chunks(f)) {
        let (gate, up) = gate_up.split_at(f);
        let (values, slopes): (Vec<f64>, Vec<f64>) = gate.iter().map(|x| gelu(*x)).map(|[a, b]| (a, b)).unzip();
        y.extend(times(&values, up));
        let scaled: Vec<f64> = slopes.iter().zip(dy).map(|(slope, dy)| slope * dy.to_f64()).collect();
        back.extend(times(&scaled, up));
        back.extend(times(&values, dy));
    }
    (y, back)
}

#[test]
fn rope_turns_to_the_same_bits_and_back() {
    let (cpu, _) = cpus();
    let shapes = [(1, 1, 2), (2, 1, 6), (3, 3, 16), (4, 2, 64), (8, 1, 128), (2, 2, 96), (5, 1, 20)];
    for ((query, kv, dim), (seq, rows)) in shapes.into_iter().flat_map(|s| [(1, 1), (5, 15), (16, 16)].map(|r| (s, r)))
    {
        let h = Heads::full(query, kv, dim, seq);
        let (qkv, table) = tables(h, rows);
        let on_cpu = || act(&cpu, &qkv, rows, h.qkv_cols());
        let uploaded = cpu.upload(&table, seq, dim);
        // Positions need not ascend.
        let at: Vec<u32> = (0..rows).map(|row| ((row * 7 + row / seq) % seq) as u32).collect();
        let positions = cpu.upload(&at, rows, 1);
        let r = Rotary { table: &uploaded, positions: &positions };
        let turned = cpu.download(&cpu.rope(on_cpu(), r, h));
        let back = cpu.download(&cpu.rope_bwd(on_cpu(), r, h));
        for place in places() {
            for (sign, right) in [(1.0, &turned), (-1.0, &back)] {
                let mut x = qkv.clone();
                let shape = RopeShape { heads: query + kv, dim, cols: h.qkv_cols(), sign };
                on(place, |m, l| ops::rope(m, l.write(&mut x), l.read(&table), l.read(&at), shape));
                assert_eq!(&x, right, "{h:?}, {rows} rows, sign {sign}");
            }
        }
    }
}

/// Random rows, and a table of angles.
pub fn tables(h: Heads, rows: usize) -> (Vec<bf16>, Vec<f32>) {
    let qkv = Random::new(h.dim as u64).bf16(rows * h.qkv_cols(), 1.0);
    let angle = |i: usize| (i / h.dim) as f32 * 1e4f32.powf(-((i % (h.dim / 2)) as f32) * 2.0 / h.dim as f32);
    let turn = |i: usize| if i % h.dim < h.dim / 2 { angle(i).cos() } else { angle(i).sin() };
    (qkv, (0..h.seq * h.dim).map(turn).collect())
}

fn rounded_by(cpu: &Cpu<bf16>, x: &[f32]) -> Vec<bf16> {
    let mut y = cpu.alloc(1, x.len());
    cpu.round(&cpu.upload(x, 1, x.len()), &mut y);
    cpu.download(&y)
}

#[test]
fn rounding_and_sums_give_the_same_bits() {
    let (cpu, _) = cpus();
    for n in [1, 7, 8, 9, 4096, 40001] {
        let mut random = Random::new(n as u64);
        let (wide, x, y) = (random.f32(n, 1e3), random.bf16(n, 1.0), random.bf16(n, 0.01));
        let rounded = rounded_by(&cpu, &wide);
        let sum = cpu.download(&cpu.add(act(&cpu, &x, 1, n), &act(&cpu, &y, 1, n)));
        let by_factor = cpu.download(&cpu.scale(act(&cpu, &x, 1, n), 0.3));
        for place in places() {
            let (mut r, mut s, mut scaled) = (vec![NAN; n], x.clone(), x.clone());
            on(place, |m, l| ops::scale(m, l.write(&mut scaled), 0.3));
            assert_eq!(scaled, by_factor, "{n}");
            on(place, |m, l| ops::round(m, l.read(&wide), l.write(&mut r)));
            on(place, |m, l| ops::add(m, l.write(&mut s), l.read(&y)));
            assert_eq!((r, s), (rounded.clone(), sum.clone()), "{n}");
            let mut w = vec![-1.0; n + 1];
            on(place, |m, l| ops::widen(m, l.read(&x), l.write(&mut w[..n])));
            assert!(w.iter().zip(&x).all(|(w, x)| *w == x.to_f32()) && w[n] == -1.0, "{n}");
        }
    }
}

#[test]
fn what_bf16_cannot_hold_is_rounded_as_on_the_cpu() {
    let (cpu, _) = cpus();
    let hard = [0.0, -0.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::MAX, f32::INFINITY, -f32::MAX, 1e-40, -1e-45];
    let right = rounded_by(&cpu, &hard);
    let bits = |x: &[bf16]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    for place in places() {
        let (mut got, mut nan) = (vec![NAN; hard.len()], [bf16::ZERO]);
        on(place, |m, l| ops::round(m, l.read(&hard), l.write(&mut got)));
        assert_eq!(bits(&got), bits(&right));
        on(place, |m, l| ops::round(m, l.read(&[f32::NAN]), l.write(&mut nan)));
        assert!(nan[0].is_nan());
    }
}

#[test]
fn copies_and_zeros_stay_in_their_place() {
    for (n, from, to) in [(1, 0, 0), (5, 1, 0), (4096, 0, 4), (9001, 3, 1)] {
        let x = Random::new(7).f32(n + from, 1.0);
        for place in places() {
            let mut y = vec![-1.0; n + to];
            on(place, |m, l| ops::copy(m, l.read(&x[from..]), l.write(&mut y[to..])));
            assert!(y[to..] == x[from..] && y[..to].iter().all(|&y| y == -1.0));
            on(place, |m, l| ops::zero(m, l.write(&mut y[to..])));
            assert!(y[to..].iter().all(|&y| y == 0.0) && y[..to].iter().all(|&y| y == -1.0));
        }
    }
}

#[test]
fn ranges_are_picked_and_put_back() {
    let (cpu, _) = cpus();
    let (whole, late) = (0..9001, 4..5004);
    let cases: [&[_]; 6] =
        [&[], &[whole], &[0..3, 3..4], &[5..5, 9000..9001], &[1..4, 7..1000, 1000..1001, 4096..9001], &[late]];
    for ranges in cases {
        let (x, n) = (Random::new(9).f32(9001, 1.0), ranges.iter().map(|r| r.len()).sum());
        let picked = cpu.download(&cpu.pick(&cpu.upload(&x, 9001, 1), ranges));
        let other = Random::new(8).f32(n, 1.0);
        let mut right = cpu.upload(&x, 9001, 1);
        cpu.put(&cpu.upload(&other, n, 1), ranges, &mut right);
        for place in places() {
            let (mut part, mut after) = (vec![f32::NAN; n], x.clone());
            on(place, |m, l| ops::pick(m, l.read(&x), ranges, l.write(&mut part)));
            on(place, |m, l| ops::put(m, l.read(&other), ranges, l.write(&mut after)));
            assert!(part == picked && after == cpu.download(&right), "{ranges:?}");
        }
    }
}

/// The low half of an f64 may have the bits with which the emulator marks an unset register.
#[test]
fn halves_of_a_sum_may_have_any_bits() {
    let x = [1.0, 65519.0, 155.0, 142.0].map(|n: f32| if n == 1.0 { n } else { n / 2f32.powi(26) });
    let sum: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    assert_eq!(sum.to_bits() as u32, 0xffde_adbe);
    for place in places() {
        let (mut out, mut parts) = ([0.0], vec![f64::NAN; squares_parts(x.len())]);
        on(place, |m, l| ops::sum_squares(m, l.read(&x), l.write(&mut out), l.write(&mut parts)));
        assert_eq!(out, [sum as f32]);
    }
}

#[test]
fn sums_of_squares_do_not_depend_on_the_order_of_blocks() {
    let (cpu, _) = cpus();
    for (n, scale) in [(1, 1.0), (3, 1e15), (1025, 1.0), (50_001, 1e-15)] {
        let x = Random::new(n as u64).f32(n, scale);
        // Small compared with the sum, or it would hide an error there.
        let before = 0.5 * scale * scale;
        let mut right = cpu.upload(&[before], 1, 1);
        cpu.sum_squares(&cpu.upload(&x, n, 1), 0..n, &mut right);
        let all = places().into_iter().map(|place| {
            let (mut out, mut parts) = ([before], vec![f64::NAN; squares_parts(n)]);
            on(place, |m, l| ops::sum_squares(m, l.read(&x), l.write(&mut out), l.write(&mut parts)));
            out
        });
        let all = all.collect::<Vec<_>>();
        assert!(all.iter().all(|o| o == &all[0]), "{all:?}");
        close("sum of squares", &all[0], &cpu.download(&right), 1e-7);
    }
}

/// Ranges that begin and end at any element, and one that gives every thread several vectors.
#[test]
fn checksums_are_those_of_the_cpu() {
    let (cpu, _) = cpus();
    let mut random = Random::new(11);
    let (wide, x) = (random.f32(40_001, 1.0), random.bf16(40_001, 1.0));
    let (on_cpu_wide, on_cpu) = (cpu.upload(&wide, 40_001, 1), act(&cpu, &x, 40_001, 1));
    let sum = |parts: Vec<u32>| parts.into_iter().fold(0, u32::wrapping_add);
    for range in [0..40_001, 5..5, 3..4, 7..16, 8..1032, 1..2050] {
        let right_wide = sum(cpu.download(&cpu.checksum(&on_cpu_wide, range.clone())));
        let right = sum(cpu.download(&cpu.checksum(&on_cpu, range.clone())));
        for place in places() {
            let [mut parts, mut parts_wide] = [(); 2].map(|()| vec![7; CHECKSUM_PARTS]);
            on(place, |m, l| ops::checksum::<f32>(m, l.read(&wide[range.clone()]), l.write(&mut parts_wide)));
            on(place, |m, l| ops::checksum::<bf16>(m, l.read(&x[range.clone()]), l.write(&mut parts)));
            assert_eq!((sum(parts_wide), sum(parts)), (right_wide, right), "{range:?}");
        }
    }
}
