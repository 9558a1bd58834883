//! The sort of choices by expert, copies of rows and sums of rows: bit for bit as on the CPU.

use crate::common::{Random, act, cpus, on, places};
use bytemuck::Pod;
use cuda::ops;
use engine::backend::Backend;
use half::bf16;

/// Choices of some distribution over the experts.
fn choices(kind: &str, n: usize, experts: usize) -> Vec<u32> {
    let noise = Random::new((n * 7 + experts) as u64).bits(n);
    let of = |i: usize| match kind {
        "one" => experts / 2,
        "last" => experts - 1,
        // Some experts have no choices.
        "few" => [0, 0, experts - 1, experts / 3][i % 4],
        "even" => i % experts,
        "random" => noise[i] as usize % experts,
        _ => panic!("{kind}"),
    };
    (0..n).map(|i| of(i) as u32).collect()
}

/// Choices: one, odd, around a chunk of the sort, several chunks, more chunks than a warp has lanes.
#[test]
fn choices_are_sorted_by_expert() {
    let (cpu, _) = cpus();
    let shapes = [(1, 1), (5, 3), (31, 60), (1023, 8), (1024, 33), (1025, 7), (2500, 128), (3100, 4096), (34_000, 5)];
    for ((n, experts), kind) in
        shapes.into_iter().flat_map(|s| ["one", "last", "few", "even", "random"].map(|k| (s, k)))
    {
        if n > 10_000 && kind != "random" {
            continue;
        }
        let chosen = choices(kind, n, experts);
        let right = cpu.sort_choices(&cpu.upload(&chosen, n, 1), experts);
        for place in places() {
            let [mut order, mut of] = [vec![u32::MAX; n], vec![u32::MAX; n]];
            let mut counts = vec![u32::MAX; experts];
            on(place, |m, l| {
                let [order, of] = [l.write(&mut order), l.write(&mut of)];
                ops::sort_choices(m, l.read(&chosen), order, of, l.write(&mut counts))
            });
            let what = format!("{n} choices of {experts} experts, {kind}, {}", place.name());
            assert!(order == cpu.download(&right.order), "the order of {what}");
            assert!(of == cpu.download(&right.places), "the places of {what}");
            assert!(counts == cpu.download(&right.counts), "the counts of {what}");
        }
    }
}

fn rows_are_taken<T: Pod + PartialEq + std::fmt::Debug>(make: impl Fn(&mut Random, usize) -> Vec<T>, unset: T) {
    for (n, cols, per, late) in [
        (0, 8, 1, 0),
        (1, 1, 1, 0),
        (9, 7, 1, 0),
        (300, 1, 4, 0),
        (2500, 1, 1, 1),
        (6, 8, 3, 0),
        (5, 264, 2, 0),
        (5, 264, 2, 1),
        (700, 24, 2, 0),
        (3000, 120, 2, 0),
    ] {
        let mut random = Random::new((n * cols) as u64);
        let rows = n.max(1) * 2;
        let x = make(&mut random, late + rows * cols);
        let index: Vec<u32> = random.bits(n).iter().map(|i| i % (rows * per) as u32).collect();
        let right: Vec<T> = index.iter().flat_map(|&i| x[late..][i as usize / per * cols..][..cols].to_vec()).collect();
        for place in places() {
            let mut y = vec![unset; late + n * cols];
            on(place, |m, l| {
                let (x, index) = (l.read(&x[late..]), l.read(&index));
                ops::take_rows::<T>(m, x, index, per, l.write(&mut y[late..]), cols)
            });
            assert_eq!(y[late..], right, "{n} rows of {cols} columns, {per}");
        }
    }
}

#[test]
fn rows_are_taken_by_index() {
    rows_are_taken(|random, n| random.bf16(n, 1.0), bf16::ZERO);
    rows_are_taken(|random, n| random.f32(n, 1.0), 0.0f32);
    rows_are_taken(|random, n| random.bits(n), 0u32);
}

#[test]
fn rows_of_a_token_are_added_in_order() {
    let (cpu, _) = cpus();
    for (tokens, k, d, late) in
        [(1, 1, 1, 0), (3, 2, 7, 0), (5, 8, 8, 0), (4, 5, 264, 0), (4, 5, 264, 3), (2, 64, 40, 0), (3, 3, 2056, 0)]
    {
        let mut random = Random::new((tokens * k * d) as u64);
        let x = random.bf16(late + tokens * k * d, 1.0);
        let noise = random.bits(tokens * k);
        // Numbers of very different sizes, so that another order leaves other sums.
        let size = |i: usize| bf16::from_f32(((i / d * 7) as f32 % 40.0).exp2());
        let x: Vec<bf16> = x.iter().enumerate().map(|(i, x)| x * size(i)).collect();
        let mut of: Vec<u32> = (0..(tokens * k) as u32).collect();
        of.sort_by_key(|&i| noise[i as usize]);
        let right = cpu.sum_rows(&act(&cpu, &x[late..], tokens * k, d), &cpu.upload(&of, tokens, k));
        for place in places() {
            let mut y = vec![bf16::NAN; late + tokens * d];
            on(place, |m, l| {
                let (x, of) = (l.read(&x[late..]), l.read(&of));
                ops::sum_choices(m, x, of, l.write(&mut y[late..]), d)
            });
            assert_eq!(y[late..], cpu.download(&right), "{tokens} x {k} rows of {d}");
        }
    }
}
