//! The emulator reports each planted bug with kernel, thread and line, under every order of threads.

use cuda::kernels::HEADERS;
use emulator::planted::planted;
use emulator::{Fault, SCHEDULES, Schedule};

const SOURCE: &str = include_str!("../planted/planted.cu");

/// The line that is marked with this bug.
fn line(name: &str) -> u32 {
    let mark = format!("// BUG {name}");
    let at = SOURCE.lines().position(|l| l.ends_with(&mark));
    at.unwrap_or_else(|| panic!("no line is marked {mark}")) as u32 + 1
}

fn report(name: &str, schedule: Schedule) -> Fault {
    let x = (0..256).map(|i| i as f32).collect::<Vec<_>>();
    let fault = planted(name, &x, &mut [0.0; 64], schedule).expect_err(name);
    assert_eq!((fault.kernel.as_str(), fault.block), (name, [0; 3]));
    fault
}

#[track_caller]
fn seen(name: &str, kind: &str) {
    for schedule in SCHEDULES {
        let fault = report(name, schedule);
        assert!(fault.text.starts_with(kind), "{schedule:?}: {fault}");
        assert_eq!((fault.file.as_str(), fault.line), ("planted.cu", line(name)), "{schedule:?}: {fault}");
    }
}

/// The order of threads decides which of the two accesses of a race is the second: the report names both lines. Under
/// some orders the read comes before any write.
#[test]
fn races_under_every_order() {
    for (name, schedule) in
        ["race", "race_of_a_warp", "race_in_a_loop", "overwritten"].into_iter().flat_map(|n| SCHEDULES.map(|s| (n, s)))
    {
        let fault = report(name, schedule);
        assert!(fault.text.starts_with("race: ") || name == "race" && fault.text.starts_with("unwritten: "), "{fault}");
        let both = [fault.line, second_line(&fault.text).unwrap_or(fault.line)];
        assert!(both.contains(&line(name)), "{schedule:?}: {fault}");
    }
}

fn second_line(text: &str) -> Option<u32> {
    text.split_once("(line ")?.1.split_once(')')?.0.parse().ok()
}

#[test]
fn copies_that_are_still_in_flight() {
    seen("no_wait", "in flight");
    seen("waits_too_little", "in flight");
}

#[test]
fn threads_that_never_come() {
    seen("lost_thread", "divergence: a barrier waits for thread 32, which has left");
    seen("lost_lane", "divergence: the warp's lanes do not all come here; thread 5 has left");
    seen("two_barriers", "divergence: thread 32 waits at another barrier");
}

#[test]
fn values_that_were_never_set() {
    seen("unset", "unset");
    seen("unset_mma", "unset");
    seen("unwritten", "unwritten");
    for schedule in SCHEDULES {
        assert_eq!(report("unwritten", schedule).thread, 63);
    }
}

#[test]
fn accesses_outside() {
    seen("tail", "out of bounds: elements 256 .. 257 of 256");
    seen("odd_wide", "misaligned");
    seen("beyond_shared", "out of bounds: 4 bytes at 4096 of 4096");
    for schedule in SCHEDULES {
        assert_eq!((report("tail", schedule).thread, report("beyond_shared", schedule).thread), (0, 0));
    }
}

#[test]
fn a_product_is_right_and_its_bank_conflicts_are_counted() {
    let x = (0..256).map(|i| (i * 37 % 19) as f32 - 9.0).collect::<Vec<_>>();
    let right = |at: usize| (0..16).map(|k| x[at / 8 * 16 + k] * x[at % 8 * 16 + k]).sum::<f32>();
    for (name, conflicts) in [("product", 0), ("conflicts", 8 * 7)] {
        for schedule in SCHEDULES {
            let mut y = [f32::NAN; 128];
            let stats = planted(name, &x, &mut y, schedule).unwrap();
            assert_eq!(stats.conflicts, conflicts, "{name}");
            assert!((0..128).all(|i| y[i] == right(i)), "{name}, {schedule:?}: {y:?}");
        }
    }
}

/// Kernels must not use what the emulator cannot see: memory without a shadow, PTX outside the primitives.
#[test]
fn kernels_use_the_primitives_only() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../kernels");
    let files = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect::<Vec<_>>();
    assert!(files.len() >= 8, "{files:?}");
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let wrong = if name.starts_with("prim") { vec![] } else { foreign(&text) };
        assert!(wrong.is_empty(), "{name}: {wrong:?}");
    }
    assert_eq!(
        foreign("#include <cuda.h>\n__shared__ float x;\n// asm\n asm(\"\");"),
        ["#include <cuda.h>", "__shared__", "asm"]
    );
}

fn foreign(text: &str) -> Vec<&str> {
    let own: Vec<String> = HEADERS.iter().map(|(name, _)| format!("#include \"{name}\"")).collect();
    let code = text.lines().map(|l| l.split("//").next().unwrap_or(""));
    let line = |l: &'static str| l;
    let banned = ["__shared__", "asm", "__global__", "threadIdx", "atomicAdd", "__syncthreads"].map(line);
    let mut out = Vec::new();
    for l in code {
        if l.trim_start().starts_with("#include") && !own.iter().any(|o| o == l.trim()) {
            out.push(l.trim());
        }
        let words = l.split(|c: char| !c.is_alphanumeric() && c != '_');
        out.extend(words.filter(|w| banned.contains(w)));
    }
    out
}
