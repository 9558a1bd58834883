//! Each primitive by itself, on every machine, compared with the definition of the PTX ISA in plain Rust: exactly, or
//! within the error that the PTX ISA states.

use crate::common::{Random, on, places};
use crate::ptx::with_interpreter;
use cuda::kernels::HEADERS;
use emulator::probes::{FILE, HOPPER, THREADS, probe};
use half::{bf16, f16};

/// Thread blocks of the elementwise probes.
const BLOCKS: usize = 96;
const N: usize = BLOCKS * THREADS;

/// Runs a probe on `x` on every machine in turn; `judge` checks the `n` words of its result.
#[track_caller]
fn each(name: &'static str, grid: [u32; 3], x: &[u32], n: usize, judge: impl Fn(&str, &[u32])) {
    for place in with_interpreter(places()) {
        let mut y = vec![0xdead_0000; n];
        on(place, |m, l| probe(m, name, l.read(x), l.write(&mut y), grid));
        judge(&format!("{name} on {}", place.name()), &y);
    }
}

/// A probe with one result a thread, from `count` f32 each.
#[track_caller]
fn numbers<const K: usize>(name: &'static str, x: &[f32], judge: impl Fn([f32; K], u32) -> Result<(), f64>) {
    let bits: Vec<u32> = x.iter().map(|x| x.to_bits()).collect();
    each(name, [BLOCKS as u32, 1, 1], &bits, N, |what, y| {
        for (x, &y) in x.chunks_exact(K).zip(y) {
            let x: [f32; K] = x.try_into().unwrap();
            if let Err(right) = judge(x, y) {
                panic!("{what}: of {x:?} it makes {:e} ({y:#x}), not {right:e}", f32::from_bits(y));
            }
        }
    });
}

fn exactly(right: f32, y: u32) -> Result<(), f64> {
    if right.to_bits() == y { Ok(()) } else { Err(right.into()) }
}

/// Equal within two units in the last place, the largest error that the PTX ISA allows here; subnormals count as zero.
fn about(right: f64, y: u32) -> Result<(), f64> {
    let (got, tiny) = (f64::from(f32::from_bits(y)), f64::from(f32::MIN_POSITIVE));
    let near = (got - right).abs() <= right.abs() * 2f64.powi(-22);
    let small = right.abs() < tiny && got.abs() <= tiny;
    let large = right.abs() * (1.0 + 2f64.powi(-22)) > f64::from(f32::MAX) && got.is_infinite();
    if near || (small && got == 0.0) || (small && right.abs() > tiny * 0.99) || large { Ok(()) } else { Err(right) }
}

/// Finite numbers of every exponent, including zeros and subnormals.
fn any(seed: u64, n: usize) -> Vec<f32> {
    let finite = |bits: u32| f32::from_bits(if bits >> 23 & 255 == 255 { bits ^ 1 << 30 } else { bits });
    let hard = [0.0, -0.0, 1.0, f32::MIN_POSITIVE, 1e-40, f32::MAX, -f32::MAX].into_iter();
    hard.chain(Random::new(seed).bits(n).into_iter().map(finite)).take(n).collect()
}

#[test]
pub fn packing_rounds_to_nearest_even() {
    let x = Random::new(1).bits(2 * N);
    // Every NaN becomes the same NaN.
    let round = |x: u32| {
        let x = f32::from_bits(x);
        if x.is_nan() { 0x7fff } else { u32::from(bf16::from_f32(x).to_bits()) }
    };
    each("probe_pack2", [BLOCKS as u32, 1, 1], &x, N, |what, y| {
        let right: Vec<u32> = x.chunks_exact(2).map(|x| round(x[0]) | round(x[1]) << 16).collect();
        assert_eq!(y, right, "{what}");
    });
}

#[test]
pub fn halves_of_words_as_f16() {
    let x = Random::new(14).bits(2 * N);
    let round = |x: u32| {
        let x = f32::from_bits(x);
        if x.is_nan() { 0x7fff } else { u32::from(f16::from_f32(x).to_bits()) }
    };
    // Most f32 are out of the range of f16; half of these are in it.
    let near = |(i, x): (usize, u32)| if i % 2 == 0 { x } else { x & 0x87ff_ffff | 0x3800_0000 };
    let x: Vec<u32> = x.into_iter().enumerate().map(near).collect();
    each("probe_pack2_f16", [BLOCKS as u32, 1, 1], &x, N, |what, y| {
        let right: Vec<u32> = x.chunks_exact(2).map(|x| round(x[0]) | round(x[1]) << 16).collect();
        assert_eq!(y, right, "{what}");
    });
    // Every f16 but the NaNs.
    let number = |h: u16| if f16::from_bits(h).is_nan() { h & 0x83ff } else { h };
    let halves: Vec<u16> = (0..2 * N).map(|i| number((i * 11) as u16)).collect();
    let right: Vec<u32> = halves.iter().map(|&h| f16::from_bits(h).to_f32().to_bits()).collect();
    let words: Vec<u32> = halves.chunks_exact(2).map(|h| u32::from(h[0]) | u32::from(h[1]) << 16).collect();
    each("probe_halves_f16", [BLOCKS as u32, 1, 1], &words, 2 * N, |what, y| assert_eq!(y, right, "{what}"));
}

#[test]
pub fn the_larger_of_two() {
    let mut x = any(15, 2 * N);
    (0..2 * N).step_by(5).for_each(|i| x[i] = f32::NAN);
    numbers("probe_larger", &x, |[a, b], y| match (a.is_nan(), b.is_nan()) {
        (true, true) => {
            if f32::from_bits(y).is_nan() {
                Ok(())
            } else {
                Err(f64::NAN)
            }
        }
        (true, false) => exactly(b, y),
        (false, true) => exactly(a, y),
        // The maximum of two zeros is the positive one.
        _ if a == b => exactly(if a.is_sign_negative() { b } else { a }, y),
        _ => exactly(if a > b { a } else { b }, y),
    });
}

#[test]
pub fn the_larger_of_each_half() {
    let x = Random::new(16).bits(2 * N);
    let larger = |a: u32, b: u32| {
        let (x, y) = (bf16::from_bits(a as u16), bf16::from_bits(b as u16));
        match (x.is_nan(), y.is_nan()) {
            (true, true) => 0x7fff,
            (true, false) => u32::from(y.to_bits()),
            (false, true) => u32::from(x.to_bits()),
            // The maximum of two zeros is the positive one.
            _ => u32::from(if x > y || (x == y && y.is_sign_negative()) { x } else { y }.to_bits()),
        }
    };
    each("probe_larger2", [BLOCKS as u32, 1, 1], &x, N, |what, y| {
        let of = |x: &[u32]| larger(x[0], x[1]) | larger(x[0] >> 16, x[1] >> 16) << 16;
        assert_eq!(y, x.chunks_exact(2).map(of).collect::<Vec<_>>(), "{what}");
    });
}

#[test]
pub fn sums_products_and_quotients_are_rounded_once() {
    let x = any(2, 3 * N);
    numbers("probe_fmadd", &x, |[a, b, c], y| exactly(a.mul_add(b, c), y));
    numbers("probe_unfused", &x, |[a, b, c], y| exactly(a * b + c, y));
    // 0 / 0 is a NaN with unspecified bits.
    let same = |right: f32, y| if right.is_nan() && f32::from_bits(y).is_nan() { Ok(()) } else { exactly(right, y) };
    let quotients = any(3, 2 * N).into_iter().map(|x| if x == 0.0 { 3.0 } else { x }).collect::<Vec<_>>();
    numbers("probe_div_rn", &quotients, |[a, b], y| same(a / b, y));
    let positive = any(4, N).into_iter().map(f32::abs).collect::<Vec<_>>();
    numbers("probe_sqrt_rn", &positive, |[a], y| exactly(a.sqrt(), y));
    // Terms of about the same size: two roundings, of the product and of the sum, differ from one.
    let close = Random::new(5).f32(3 * N, 1.0);
    numbers("probe_fmadd", &close, |[a, b, c], y| exactly(a.mul_add(b, c), y));
    numbers("probe_unfused", &close, |[a, b, c], y| exactly(a * b + c, y));
}

#[test]
pub fn sums_in_f64() {
    let x = Random::new(6).f32(3 * N, 1e3);
    let bits: Vec<u32> = x.iter().map(|x| x.to_bits()).collect();
    let sum = |x: &[f32]| f64::from(x[0]).mul_add(x[1].into(), x[2].into()).to_bits();
    let right: Vec<u32> = x.chunks_exact(3).map(sum).flat_map(|s| [s as u32, (s >> 32) as u32]).collect();
    each("probe_fmadd64", [BLOCKS as u32, 1, 1], &bits, 2 * N, |what, y| assert_eq!(y, right, "{what}"));
}

#[test]
pub fn what_is_approximate_is_near() {
    let flushed = |x: f32| if x.is_subnormal() { 0.0 * x } else { x };
    let (wide, near) = (any(7, N), Random::new(8).f32(N, 20.0));
    for x in [&wide, &near] {
        numbers("probe_fast_exp2", x, |[a], y| about(f64::from(flushed(a)).exp2(), y));
        numbers("probe_fast_rcp", x, |[a], y| about(1.0 / f64::from(flushed(a)), y));
        let positive: Vec<f32> = x.iter().map(|x| x.abs()).collect();
        // The logarithm of 0 is not finite.
        let above: Vec<f32> = positive.iter().map(|&x| if x == 0.0 { 1.0 } else { x }).collect();
        numbers("probe_ln", &above, |[a], y| about(f64::from(a).ln(), y));
        // Near 1 the bound on the error of a logarithm is absolute.
        let log2 = |a| f64::from(flushed(a)).log2();
        numbers("probe_fast_log2", &positive, |[a], y| {
            let near = (f64::from(f32::from_bits(y)) - log2(a)).abs() <= 1e-6;
            if near { Ok(()) } else { about(log2(a), y) }
        });
        numbers("probe_fast_rsqrt", &positive, |[a], y| about(1.0 / f64::from(flushed(a)).sqrt(), y));
    }
}

#[test]
pub fn every_thread_knows_where_it_is() {
    let (grid, threads) = ([3, 2, 2], THREADS as u32);
    let mut right = Vec::new();
    for at in 0..3 * 2 * 2 * threads {
        let block = at / threads;
        right.extend([at % threads, threads, block % 3, block / 3 % 2, block / 6, 3]);
    }
    each("probe_indices", grid, &[0], right.len(), |what, y| assert_eq!(y, right, "{what}"));
}

#[test]
pub fn memory_keeps_what_it_is_given() {
    let x = Random::new(9).bits(4 * N);
    let grid = [BLOCKS as u32, 1, 1];
    let reversed: Vec<u32> = x.chunks_exact(4).rev().flatten().copied().collect();
    for kernel in ["probe_wide", "probe_whole"] {
        each(kernel, grid, &x, 4 * N, |what, y| assert_eq!(y, reversed, "{what}"));
    }
    let exchanged: Vec<u32> = x[..2 * N].chunks_exact(2).flat_map(|pair| [pair[1], pair[0]]).collect();
    each("probe_eight", grid, &x[..2 * N], 2 * N, |what, y| assert_eq!(y, exchanged, "{what}"));
    let words: Vec<u32> = x[..N].chunks_exact(THREADS).flat_map(|b| b.iter().rev().copied()).collect();
    each("probe_shared", grid, &x[..N], N, |what, y| assert_eq!(y, words, "{what}"));
    let wide = |b: &[u32]| b.chunks_exact(4).rev().flatten().copied().collect::<Vec<_>>();
    let right: Vec<u32> = x.chunks_exact(4 * THREADS).flat_map(wide).collect();
    each("probe_shared16", grid, &x, 4 * N, |what, y| assert_eq!(y, right, "{what}"));
    let lane = |t: usize| t / THREADS * THREADS + ((THREADS - 1 - t % THREADS) ^ 5);
    let right: Vec<u32> = (0..N).flat_map(|t| x[2 * lane(t)..][..2].to_vec()).collect();
    each("probe_words64", grid, &x[..2 * N], 2 * N, |what, y| assert_eq!(y, right, "{what}"));
    each("probe_fresh", grid, &x[..N], N, |what, y| assert_eq!(y, &x[..N], "{what}"));
    each("probe_shared_base", grid, &[0], N, |what, y| assert_eq!(y, [0; N], "{what}"));
    let warps: Vec<u32> = x[..N].chunks_exact(32).flat_map(|w| w.iter().rev().copied()).collect();
    each("probe_warp_sync", grid, &x[..N], N, |what, y| assert_eq!(y, warps, "{what}"));
}

#[test]
pub fn copies_bring_their_bytes_and_zeros() {
    let x = Random::new(10).bits(4 * N);
    let piece = |thread: usize, bytes: usize| {
        let mut piece = bytemuck::pod_collect_to_vec::<u32, u8>(&x[4 * thread..][..4]);
        piece[bytes..].fill(0);
        bytemuck::pod_collect_to_vec::<u8, u32>(&piece)
    };
    // The second copy for thread t was started by its partner in the other warp, from the words of t.
    let right: Vec<u32> = (0..N).flat_map(|t| [piece(t, t % 17), piece(t, 16 - (t ^ 32) % 17 % 16)].concat()).collect();
    each("probe_cp_async16", [BLOCKS as u32, 1, 1], &x, 8 * N, |what, y| assert_eq!(y, right, "{what}"));
}

#[test]
pub fn lanes_hand_each_other_their_values() {
    let mut random = Random::new(11);
    let (values, wanted) = (random.bits(N), random.bits(N).iter().map(|l| l % 32).collect::<Vec<_>>());
    let grid = [BLOCKS as u32, 1, 1];
    let of = |t: usize, lane: u32| values[t / 32 * 32 + lane as usize];
    let right: Vec<u32> = (0..N).map(|t| of(t, wanted[t])).collect();
    each("probe_shfl", grid, &[&values[..], &wanted].concat(), N, |what, y| assert_eq!(y, right, "{what}"));
    let right: Vec<u32> =
        (0..N).flat_map(|t| (1..32).map(move |mask| (t, (t as u32 % 32) ^ mask))).map(|(t, l)| of(t, l)).collect();
    each("probe_shfl_xor", grid, &values, 31 * N, |what, y| assert_eq!(y, right, "{what}"));
    // Few values, so that some are no thread's.
    let few: Vec<u32> = values.iter().map(|v| v % 32 / 3 * 3).collect();
    let warp = |t: usize| &few[t / 32 * 32..][..32];
    let right: Vec<u32> = (0..N).flat_map(|t| (0..32).map(move |bit| u32::from(warp(t).contains(&bit)))).collect();
    each("probe_warp_any", grid, &few, 32 * N, |what, y| assert_eq!(y, right, "{what}"));
}

#[test]
pub fn matrices_come_in_fragments() {
    let x = Random::new(12).bits(4 * N);
    let halves: Vec<u16> = bytemuck::pod_collect_to_vec(&x);
    // Element (r, c) of matrix m of the warp of thread t: lane 8 m + r has the address of the row.
    let element = |t: usize, m: usize, r: usize, c: usize| u32::from(halves[(t / 32 * 32 + 8 * m + r) * 8 + c]);
    let fragment = |t: usize, m: usize, trans: bool| {
        let (g, c) = (t % 32 / 4, t % 4 * 2);
        let at = |i| if trans { element(t, m, c + i, g) } else { element(t, m, g, c + i) };
        at(0) | at(1) << 16
    };
    for (name, trans) in [("probe_ldmatrix", false), ("probe_ldmatrix_trans", true)] {
        let right: Vec<u32> = (0..4 * N).map(|i| fragment(i / 4, i % 4, trans)).collect();
        each(name, [BLOCKS as u32, 1, 1], &x, 4 * N, |what, y| assert_eq!(y, right, "{what}"));
    }
}

/// One warp's product: a `[16, 16]`, b `[16, 8]`, c `[16, 8]`.
struct Product {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

impl Product {
    /// Numbers that bf16 represents exactly: small integers, or any about 1.
    fn random(random: &mut Random, integers: bool) -> Self {
        let mut numbers = |n| {
            let x = random.f32(n, if integers { 8.0 } else { 1.0 });
            x.iter().map(|&x| if integers { x.round() } else { bf16::from_f32(x).to_f32() }).collect()
        };
        Product { a: numbers(256), b: numbers(128), c: numbers(128) }
    }

    /// The ten words of a lane, in the order of `mma` in `prim.cuh`.
    fn words(&self, lane: usize) -> [u32; 10] {
        let (g, t) = (lane / 4, lane % 4 * 2);
        let pair =
            |x: f32, y: f32| u32::from(bf16::from_f32(x).to_bits()) | u32::from(bf16::from_f32(y).to_bits()) << 16;
        let a = |r: usize, c: usize| pair(self.a[r * 16 + c], self.a[r * 16 + c + 1]);
        let b = |r: usize| pair(self.b[r * 8 + g], self.b[(r + 1) * 8 + g]);
        let c = |r: usize, c: usize| self.c[r * 8 + c].to_bits();
        let c = [c(g, t), c(g, t + 1), c(g + 8, t), c(g + 8, t + 1)];
        [a(g, t), a(g + 8, t), a(g, t + 8), a(g + 8, t + 8), b(t), b(t + 8), c[0], c[1], c[2], c[3]]
    }

    /// Element e of a lane's result, and the sum of the absolute values of its terms.
    fn element(&self, lane: usize, e: usize) -> (f64, f64) {
        let (row, col) = (lane / 4 + e / 2 * 8, lane % 4 * 2 + e % 2);
        let terms = (0..16).map(|k| f64::from(self.a[row * 16 + k]) * f64::from(self.b[k * 8 + col]));
        let all = terms.chain([self.c[row * 8 + col].into()]);
        all.fold((0.0, 0.0), |(sum, sizes), x| (sum + x, sizes + x.abs()))
    }
}

#[test]
pub fn products_of_warps() {
    for integers in [true, false] {
        let mut random = Random::new(13);
        let products: Vec<Product> = (0..N / 32).map(|_| Product::random(&mut random, integers)).collect();
        let x: Vec<u32> = (0..N).flat_map(|t| products[t / 32].words(t % 32)).collect();
        each("probe_mma", [BLOCKS as u32, 1, 1], &x, 4 * N, |what, y| {
            for (i, &y) in y.iter().enumerate() {
                let (right, sizes) = products[i / 128].element(i / 4 % 32, i % 4);
                // Integers are exact; other sums keep at least the f32 bits of their largest term.
                let allowed = if integers { 0.0 } else { sizes * 2f64.powi(-21) };
                let got = f64::from(f32::from_bits(y));
                assert!(
                    (got - right).abs() <= allowed,
                    "{what}: element {} of thread {} is {got}, not {right}",
                    i % 4,
                    i / 4
                );
            }
        });
    }
}

/// A primitive without a probe would first run inside a kernel.
#[test]
fn every_primitive_has_a_probe() {
    for (header, file) in [("prim.cuh", FILE), ("prim_hopper.cuh", HOPPER)] {
        // The name that a line declares after DEVICE and its type, up to the parenthesis.
        let text = HEADERS.iter().find(|h| h.0 == header).unwrap().1;
        let declared = text.lines().filter_map(|l| l.split_once("DEVICE ")?.1.split_once('(')?.0.rsplit(' ').next());
        let code: String = file.text.lines().map(|l| l.split("//").next().unwrap_or("")).collect();
        let used = |name: &str| code.contains(&format!("{name}(")) || code.contains(&format!("{name}<"));
        let without: Vec<&str> = declared.filter(|name| !used(name)).collect();
        assert_eq!(without, [""; 0], "{header}");
        let kernels = file.text.lines().filter_map(|l| l.strip_prefix("KERNEL(")?.split(',').next());
        assert_eq!(kernels.collect::<Vec<_>>(), file.kernels);
    }
}
