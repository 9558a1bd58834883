//! The f32 FMA peak of this machine's cores: a loop of fused multiply-adds on registers, on all threads at once. A
//! claim about the speed of the CPU backend is given together with this number of the same run (`benches/compare.sh`).
//!
//! `cargo bench --bench peak [-- THREADS]` prints GFLOP/s of all threads together. The default number of threads is
//! that of the process's cores.

use pulp::{Arch, Simd, WithSimd};
use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

/// Independent sums: more than the latency times the ports of any core, fewer than AVX2's 16 registers.
const SUMS: usize = 12;
const ITERATIONS: usize = 20_000_000;
/// The best round counts: other work on the machine only slows a core down.
const ROUNDS: usize = 20;

/// `ITERATIONS` multiply-adds into each of `SUMS` vectors.
struct Fma;

impl WithSimd for Fma {
    type Output = f64;

    /// Floating-point operations done.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let [scale, add] = black_box([0.5f32, 1.0]).map(|x| simd.splat_f32s(x));
        let mut sums = [simd.splat_f32s(0.0); SUMS];
        for _ in 0..ITERATIONS {
            for sum in &mut sums {
                *sum = simd.mul_add_f32s(*sum, scale, add);
            }
        }
        black_box(sums.map(|sum| simd.reduce_sum_f32s(sum)));
        let lanes = size_of::<S::f32s>() / size_of::<f32>();
        (2 * lanes * SUMS * ITERATIONS) as f64
    }
}

/// GFLOP/s of one thread in its best round; all threads begin a round together.
fn best(rounds: &Barrier) -> f64 {
    let round = |_| {
        rounds.wait();
        let start = Instant::now();
        let flops = Arch::new().dispatch(Fma);
        flops / start.elapsed().as_secs_f64() / 1e9
    };
    (0..ROUNDS).map(round).fold(0.0, f64::max)
}

fn main() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // Cargo adds `--bench`.
    let threads = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(cores);
    let rounds = Barrier::new(threads);
    let peak: f64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| best(&rounds))).collect();
        workers.into_iter().map(|worker| worker.join().expect("the loop does not panic")).sum()
    });
    println!("{peak:.1}");
}
