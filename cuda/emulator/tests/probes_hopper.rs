//! The primitives of sm_90a by themselves, on every machine that has them, compared with the definition of the PTX ISA.

use crate::common::{Random, on, places_for};
use crate::ptx::with_interpreter;
use cuda::machine::Target;
use emulator::probes::{Tile, probe_tiles};
use half::bf16;

const COLS: usize = 192;
const TILE_WORDS: usize = 64 * 64 / 2;

/// Runs a probe on a matrix on every machine with sm_90a, and checks the `n` words of its result.
#[track_caller]
fn each(name: &'static str, x: &[bf16], tile: Tile, threads: u32, n: usize, judge: impl Fn(&str, &[u32])) {
    let words: Vec<u32> = bytemuck::pod_collect_to_vec(x);
    for place in with_interpreter(places_for(Target::Sm90a)) {
        let mut y = vec![0xdead_0000; n];
        on(place, |m, l| probe_tiles(m, name, [l.read(x), l.read(&words), l.write(&mut y)], tile, threads));
        judge(&format!("{name} on {}", place.name()), &y);
    }
}

fn tile(seq: usize, row: u32, page: u32, sequence: u32) -> Tile {
    Tile { cols: COLS, seq, row, page, sequence }
}

#[test]
pub fn the_copy_engine_swizzles_and_fills_with_zeros() {
    let (seq, sequences) = (150, 2);
    let x = Random::new(1).bf16(seq * sequences * COLS, 1.0);
    for t in [tile(seq, 0, 0, 0), tile(seq, 37, 2, 1), tile(seq, 128, 1, 0), tile(seq, 149, 0, 1), tile(seq, 150, 0, 0)]
    {
        // The 128-byte swizzle: in a row of 128 bytes, the index of each 16 bytes is XORed with the row's index modulo
        // 8.
        let mut right = [bf16::ZERO; 64 * 64];
        for (r, c) in (0..64).flat_map(|r| (0..64).map(move |c| (r, c))) {
            let row = t.row as usize + r;
            if row < seq {
                let from = (t.sequence as usize * seq + row) * COLS + t.page as usize * 64 + c;
                right[r * 64 + ((c / 8) ^ (r % 8)) * 8 + c % 8] = x[from];
            }
        }
        let right: Vec<u32> = bytemuck::pod_collect_to_vec(&right);
        each("probe_tma", &x, t, 128, 2 * TILE_WORDS, |what, y| assert_eq!(y, right.repeat(2), "{what}, {t:?}"));
    }
}

#[test]
pub fn a_piece_of_memory_comes_whole() {
    let x = Random::new(5).bf16(64 * COLS, 1.0);
    let words: Vec<u32> = bytemuck::pod_collect_to_vec(&x);
    let mut right: Vec<u32> = (0..128).collect();
    right[8..20].copy_from_slice(&words[5 * COLS / 2..][..12]);
    each("probe_bulk", &x, tile(64, 5, 0, 0), 128, 128, |what, y| assert_eq!(y, right, "{what}"));
}

#[test]
pub fn mbarriers_and_barriers_of_warps_order_what_threads_write() {
    let x = Random::new(2).bf16(64 * COLS, 1.0);
    let words: Vec<u32> = bytemuck::pod_collect_to_vec(&x);
    let reversed: Vec<u32> = words[..7 * 64].chunks_exact(64).flat_map(|w| w.iter().rev().copied()).collect();
    each("probe_mbarrier", &x, tile(64, 0, 0, 0), 128, 7 * 64, |what, y| assert_eq!(y, reversed, "{what}"));
    // The first warp's words, then those of the last two warps, exchanged.
    let right = [&words[..32], &words[96..128], &words[64..96]].concat();
    each("probe_group", &x, tile(64, 0, 0, 0), 128, 96, |what, y| assert_eq!(y, right, "{what}"));
}

#[test]
pub fn registers_keep_their_values_when_they_change_hands() {
    let x = Random::new(3).bf16(64 * COLS, 1.0);
    let words: Vec<u32> = bytemuck::pod_collect_to_vec(&x);
    let sum = |t: usize| (0..160).fold(0u32, |sum, i| sum.wrapping_mul(3).wrapping_add(words[(t + i) % 384]));
    let right: Vec<u32> = (0..384).map(|t| if t < 128 { words[t] } else { sum(t) }).collect();
    each("probe_registers", &x, tile(64, 0, 0, 0), 384, 384, |what, y| assert_eq!(y, right, "{what}"));
}

/// y `[64, n]` of a product, and the initial value that it is added to.
struct Product {
    name: &'static str,
    n: usize,
    /// Whether a and b are stored with rows of k.
    across: [bool; 2],
    first: f64,
}

const fn product(name: &'static str, n: usize, across: bool, first: f64) -> Product {
    Product { name, n, across: [false, across], first }
}

const fn left_across(name: &'static str, n: usize, across: bool) -> Product {
    Product { name, n, across: [true, across], first: 0.0 }
}

const PRODUCTS: [Product; 13] = [
    product("probe_wgmma_64", 64, false, 0.0),
    product("probe_wgmma_128", 128, false, 0.0),
    product("probe_wgmma_across_64", 64, true, 0.0),
    product("probe_wgmma_across_128", 128, true, 0.0),
    left_across("probe_wgmma_left_across_64", 64, false),
    left_across("probe_wgmma_left_across_128", 128, false),
    left_across("probe_wgmma_both_across_64", 64, true),
    left_across("probe_wgmma_both_across_128", 128, true),
    product("probe_wgmma_registers_64", 64, false, 1.0),
    product("probe_wgmma_registers_128", 128, false, 1.0),
    product("probe_wgmma_registers_across_64", 64, true, 1.0),
    product("probe_wgmma_registers_across_128", 128, true, 1.0),
    product("probe_proxy_fence", 64, false, 0.0),
];

#[test]
pub fn products_of_warpgroups() {
    for (scale, whole) in [(4.0, true), (1.0, false)] {
        let numbers = Random::new(4).f32(192 * COLS, scale);
        let x: Vec<bf16> = numbers.iter().map(|&x| bf16::from_f32(if whole { x.round() } else { x })).collect();
        let at = |row: usize, col: usize| x[row * COLS + col].to_f64();
        for p in &PRODUCTS {
            let [left, right] = p.across;
            let a = |i: usize, k: usize| if left { at(k, i) } else { at(i, k) };
            let b = |k: usize, j: usize| if right { at(64 + k, j) } else { at(64 + j, k) };
            each(p.name, &x, tile(192, 0, 0, 0), 128, 64 * p.n, |what, y| {
                for (i, &y) in y.iter().enumerate() {
                    let terms = (0..64).map(|k| a(i / p.n, k) * b(k, i % p.n));
                    let (right, sizes) = terms.fold((p.first, p.first), |(sum, sizes), x| (sum + x, sizes + x.abs()));
                    // Sums of integers are exact.
                    let allowed = if whole { 0.0 } else { sizes * 2f64.powi(-20) };
                    let got = f64::from(f32::from_bits(y));
                    assert!((got - right).abs() <= allowed, "{what}: element {i} is {got}, not {right}");
                }
            });
        }
    }
}
