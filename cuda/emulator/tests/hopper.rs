//! The emulator's instructions of sm_90a: products of tiles compared with plain loops, and each planted bug.

use emulator::planted::planted_tiles;
use emulator::{Fault, SCHEDULES, Schedule};
use half::bf16;

const SOURCE: &str = include_str!("../planted/planted_hopper.cu");

/// Small integers `[rows, 64]`, whose sums are exact.
fn tiles(rows: usize) -> Vec<bf16> {
    (0..rows * 64).map(|i| bf16::from_f32((i * 37 % 19 % 3) as f32 - (i / 64 * 5 % 3) as f32 / 2.0)).collect()
}

fn at(x: &[bf16], row: usize, col: usize) -> f32 {
    x.get(row * 64 + col).map_or(0.0, |x| x.to_f32())
}

/// The lines that are marked with this bug.
fn lines(name: &str) -> Vec<u32> {
    let marked = |l: &str| l.split_once("// BUG ").is_some_and(|(_, names)| names.split(' ').any(|n| n == name));
    let lines: Vec<u32> = (1..).zip(SOURCE.lines()).filter(|(_, l)| marked(l)).map(|(n, _)| n).collect();
    assert!(!lines.is_empty(), "no line is marked {name}");
    lines
}

fn report(name: &str, threads: u32, schedule: Schedule) -> Fault {
    let fault = planted_tiles(name, threads, &tiles(192), &mut [0.0; 4096], schedule).expect_err(name);
    assert_eq!((fault.kernel.as_str(), fault.block), (name, [0; 3]));
    fault
}

#[track_caller]
fn seen(name: &str, threads: u32, kinds: &[&str]) {
    for schedule in SCHEDULES {
        let fault = report(name, threads, schedule);
        assert!(kinds.iter().any(|kind| fault.text.starts_with(kind)), "{schedule:?}: {fault}");
        let other = fault.text.split_once("(line ").and_then(|(_, l)| l.split_once(')')?.0.parse().ok());
        let both = [fault.line, other.unwrap_or(fault.line)];
        assert!(
            fault.file == "planted_hopper.cu" && lines(name).iter().any(|l| both.contains(l)),
            "{schedule:?}: {fault}"
        );
    }
}

#[test]
fn a_pipeline_of_products_with_zeros_beyond_the_end() {
    // The last tile has 37 rows.
    let x = tiles(128 + 37);
    for schedule in SCHEDULES {
        let mut y = [f32::NAN; 4096];
        planted_tiles("pipeline_of_tiles", 256, &x, &mut y, schedule).unwrap();
        for (i, y) in y.iter().enumerate() {
            let pair = |t: usize, k: usize| at(&x, t * 64 + i / 64, k) * at(&x, t * 64 + i % 64, k);
            let right: f32 = (0..3).flat_map(|t| (0..64).map(move |k| (t, k))).map(|(t, k)| pair(t, k)).sum();
            assert_eq!(*y, right, "element {i}, {schedule:?}");
        }
    }
}

#[test]
fn a_product_of_registers_with_rows_of_k() {
    let x: Vec<bf16> = tiles(64).iter().map(|x| bf16::from_f32(x.to_f32().signum())).collect();
    let square = |row, col| (0..64).map(|k| at(&x, row, k) * at(&x, col, k)).sum::<f32>();
    let right = |i: usize| (0..64).map(|k| square(i / 64, k) * at(&x, k, i % 64)).sum::<f32>();
    for schedule in SCHEDULES {
        let mut y = [f32::NAN; 4096];
        planted_tiles("cube_of_tile", 128, &x, &mut y, schedule).unwrap();
        assert!((0..4096).all(|i| y[i] == right(i)), "{schedule:?}: {y:?}");
    }
    let mut y = [f32::NAN; 4096];
    let wrong = planted_tiles("wrong_stride", 128, &x, &mut y, Schedule::Forward);
    assert!(wrong.is_err() || (0..4096).any(|i| y[i] != right(i)), "a wrong descriptor gives the right product");
}

#[test]
fn copies_that_are_not_waited_for() {
    for name in ["no_full_wait", "wrong_parity", "no_bytes"] {
        seen(name, 256, &["in flight", "unwritten", "race"]);
    }
    seen("left_copy", 256, &["left: a copy"]);
}

#[test]
fn tiles_that_are_written_over_while_they_are_read() {
    seen("no_empty_wait", 256, &["too many", "race", "in flight"]);
    seen("freed_early", 256, &["race", "in flight"]);
    seen("stored_under_product", 128, &["race"]);
}

#[test]
fn waits_without_end() {
    for name in ["too_many_bytes", "lost_arrival"] {
        for schedule in SCHEDULES {
            let fault = report(name, 256, schedule);
            assert!(fault.text.starts_with("deadlock: the mbarrier"), "{schedule:?}: {fault}");
        }
    }
    seen("group_too_large", 128, &["deadlock: barrier 1 waits for 64 of 128 threads"]);
}

#[test]
fn registers_that_are_touched_while_a_product_uses_them() {
    seen("early_sums", 256, &["in flight: registers"]);
    seen("unpinned", 256, &["in flight: registers"]);
    seen("touched_late", 256, &["unfenced"]);
    seen("waits_for_too_few", 128, &["in flight: the product"]);
    seen("never_waited", 256, &["left: a product"]);
}

#[test]
fn fences_that_are_missing() {
    seen("no_init_fence", 256, &["unfenced: no mbar_init_fence"]);
    seen("no_proxy_fence", 128, &["proxy: a product"]);
    seen("copy_over_stores", 128, &["proxy: a copy"]);
}

#[test]
fn warps_that_do_not_come() {
    seen("lost_warp", 256, &["divergence: the warpgroup's threads"]);
    seen("group_race", 128, &["race", "unwritten"]);
}
