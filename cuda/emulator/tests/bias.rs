//! The kernels of biases, compared with the CPU's ops.

use crate::common::{Random, act, close, cpus, emulators, on, places};
use cuda::ops::{self, bias_parts};
use emulator::place::Place;
use engine::backend::Backend;
use half::bf16;

/// Rows and columns: one, odd, around a vector of 8, a block's 256 and 2048 columns, several slabs with a short last
/// one, several iterations of a block's loop.
const SHAPES: [(usize, usize); 12] = [
    (1, 1),
    (3, 7),
    (2, 8),
    (33, 9),
    (5, 255),
    (2, 256),
    (70, 264),
    (1, 2047),
    (3, 2056),
    (31, 4096),
    (1000, 40),
    (257, 5),
];

#[test]
fn a_bias_gives_the_cpus_bits() {
    let (cpu, _) = cpus();
    for (rows, n) in SHAPES {
        let mut random = Random::new((rows * n) as u64);
        let (x, bias) = (random.bf16(rows * n, 1.0), random.bf16(n, 1.0));
        let right = cpu.download(&cpu.add_bias(act(&cpu, &x, rows, n), &act(&cpu, &bias, 1, n)));
        let late = [&[bf16::NAN], &bias[..]].concat();
        for place in places() {
            for bias in [&bias[..], &late[1..]] {
                let mut sum = x.clone();
                on(place, |m, l| ops::add_bias(m, l.write(&mut sum), l.read(bias)));
                assert_eq!(sum, right, "{rows} x {n}");
            }
        }
    }
}

/// A router's logits are in f32.
#[test]
fn a_bias_is_added_to_sums() {
    for (rows, n) in [(1, 1), (7, 6), (3, 128), (5, 300)] {
        let mut random = Random::new(n as u64);
        let (x, bias) = (random.f32(rows * n, 1.0), random.bf16(n, 1.0));
        let right: Vec<f32> = x.iter().enumerate().map(|(i, x)| x + bias[i % n].to_f32()).collect();
        for place in places() {
            let mut sum = x.clone();
            on(place, |m, l| ops::add_bias_f32(m, l.write(&mut sum), l.read(&bias)));
            assert_eq!(sum, right, "{rows} x {n}");
        }
    }
}

#[test]
fn the_gradient_is_the_sum_of_the_rows() {
    let (_, judge) = cpus();
    for (rows, n) in SHAPES {
        let mut random = Random::new((rows + n) as u64);
        let (dy, before) = (random.bf16(rows * n, 1.0), random.f32(n, 1.0));
        let mut right = judge.upload(&before, 1, n);
        judge.bias_bwd(&act(&judge, &dy, rows, n), &mut right);
        let late = [&[bf16::NAN; 3], &dy[..]].concat();
        for place in places() {
            let [aligned, moved] = [&dy[..], &late[3..]].map(|dy| gradient(place, dy, &before));
            close(&format!("dbias {rows} x {n}"), &aligned, &judge.download(&right), 1e-5);
            assert_eq!(aligned, moved, "{rows} x {n}");
        }
    }
}

#[test]
fn the_gradient_does_not_depend_on_the_order_of_blocks() {
    let dy = Random::new(5).bf16(1000 * 300, 1.0);
    let all = emulators().map(|place| gradient(&place, &dy, &[0.0; 300]));
    assert!(all.iter().all(|r| *r == all[0]));
}

fn gradient(place: &dyn Place, dy: &[bf16], before: &[f32]) -> Vec<f32> {
    let (n, mut dbias) = (before.len(), before.to_vec());
    let mut parts = vec![f32::NAN; bias_parts(dy.len() / n, n, place.machine().processors())];
    on(place, |m, l| ops::bias_bwd(m, l.read(dy), l.write(&mut dbias), l.write(&mut parts)));
    dbias
}
