//! `tests/gpu.sh` on a machine without a device: it reports the parts that it skips, and makes its table of results
//! that were measured elsewhere.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::common::{fake_cuda, program};

/// Runs parts of the script on a folder of results.
fn gpu(dir: &Path, parts: &[&str]) -> Output {
    command(dir, parts).output().unwrap()
}

fn command(dir: &Path, parts: &[&str]) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu.sh");
    let mut run = Command::new("bash");
    run.arg(script).args(parts).env("GPU_DIR", dir).env("GPU_TABLES", dir.join("tables")).env_remove("OUT");
    run
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn what_needs_a_device_is_skipped_in_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let tests = ["probes", "kernels", "memcheck", "racecheck", "train", "layouts", "resume", "sm80"];
    let parts = [&tests[..], &["step", "trace", "bench", "peers", "table"]].concat();
    let output = gpu(dir.path(), &parts);
    let said = said(&output);
    assert!(output.status.success() && said.ends_with("gpu.sh: 0 green, 0 failed, 13 skipped\n"), "{said}");
    for part in parts {
        assert_eq!(said.lines().filter(|line| line.starts_with(&format!("{part}: skipped: "))).count(), 1, "{said}");
    }
}

#[test]
fn an_unknown_part_is_refused() {
    let output = gpu(Path::new("."), &["probe"]);
    let said = said(&output);
    assert!(output.status.code() == Some(2) && said.contains("no part probe") && said.contains("racecheck"), "{said}");
    let help = gpu(Path::new("."), &["--help"]);
    let help = self::said(&help);
    assert!(help.contains("tests/gpu.sh build") && help.contains("--seconds 570 step"), "{help}");
    let wrong = self::said(&gpu(Path::new("."), &["--seconds", "soon", "step"]));
    assert!(wrong.contains("--seconds soon"), "{wrong}");
}

mod exhaustive {
    use super::*;

    /// The program and the scripts on the fake device: the results that a part leaves, the parts that are not run
    /// twice, and the results that are taken to another machine.
    #[test]
    fn a_full_step_and_its_trace_are_measured() {
        if !has_python() {
            return;
        }
        let (tmp, fake_cuda) = (tempfile::tempdir().unwrap(), fake_cuda());
        let [dir, other, out] = ["gpu", "other", "out"].map(|name| tmp.path().join(name));
        [&dir, &out].into_iter().for_each(|dir| std::fs::create_dir(dir).unwrap());
        symlink(program(), dir.join("swallow-engine")).unwrap();
        std::fs::write(dir.join("manifest"), "commit abc\n").unwrap();
        let path = path_with_a_device(tmp.path());
        let run = |parts: &[&str]| {
            let mut command = command(&dir, parts);
            fake_cuda.on(&mut command).env("PATH", &path).env("GPU_SMOKE", "1").env("OUT", &out);
            said(&command.output().unwrap())
        };
        let first = run(&["step", "trace"]);
        assert!(first.ends_with("gpu.sh: 2 green, 0 failed, 0 skipped\n"), "{first}");
        assert!(first.contains("trace: green: nothing computed in "), "{first}");

        let lines = std::fs::read_to_string(dir.join("results/step.jsonl")).unwrap();
        let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let sides: Vec<&str> = lines.iter().map(|line| line["who"].as_str().unwrap()).collect();
        let first = ["engine", "torch.compile", "torch.compile, deterministic"];
        assert_eq!(sides, [&first[..], &first[..2]].concat(), "in turns");
        for line in lines.iter().filter(|line| line["who"] == "engine") {
            assert_eq!((&line["peak_used"], &line["blocks_used"]), (&line["peak_planned"], &line["blocks_planned"]));
            assert!(line["tokens_per_s"].as_f64().unwrap() > 0.0 && line["steps"] == 2, "{line}");
            let [full, by_engine] = ["mfu_full", "engine_mfu_full"].map(|key| line[key].as_f64());
            assert!(by_engine.is_none_or(|mfu| (mfu / full.unwrap()).ln().abs() < 1.0), "{line}");
        }
        let trace = std::fs::read(dir.join("results/trace.json")).unwrap();
        let trace: Value = serde_json::from_slice(&trace).unwrap();
        assert!(trace["traceEvents"].as_array().unwrap().len() > 50);

        assert!(run(&["step", "trace"]).contains("step: done before\ntrace: done before\n"));
        let archive = out.join("results.tar.gz");
        let taken = said(&gpu(&other, &["--take", archive.to_str().unwrap()]));
        assert!(taken.contains("A stand-in"), "{taken}");
        assert!(other.join("results/done/step").exists() && other.join("results/trace.json").exists());
    }
}

/// A PATH with an `nvidia-smi` in `dir` that lists a device.
fn path_with_a_device(dir: &Path) -> String {
    script(&dir.join("nvidia-smi"), "case $1 in -L) echo 'GPU 0: a stand-in';; *) echo 'A stand-in';; esac");
    format!("{}:{}", dir.display(), std::env::var("PATH").unwrap())
}

fn script(path: &Path, text: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

/// Tests that passed are not run again unless the programs change; tests that failed are named.
#[test]
fn a_part_continues_where_it_stopped() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("gpu");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("manifest"), "commit abc\n").unwrap();
    script(&dir.join("swallow-engine"), "echo 'device 0, A stand-in: sm_80'");
    let tests = r#"
        [ $1 != --list ] || { printf 'cuda::%s: test\n' golden::a golden::b other::c; exit; }
        echo $* >>$GPU_DIR/ran
        [ $1 = cuda::golden::a ] || [ -e $GPU_DIR/mended ] || { echo "test $1 ... FAILED"; exit 101; }
    "#;
    script(&dir.join("whole"), tests);
    let path = path_with_a_device(tmp.path());
    let run = |parts: &[&str]| said(&command(&dir, parts).env("PATH", &path).output().unwrap());
    let ran = || std::fs::read_to_string(dir.join("ran")).unwrap().lines().count();

    let late = run(&["--seconds", "0", "train"]);
    assert!(late.contains("train: FAILED: no time was left: call it again"), "{late}");
    let first = run(&["train"]);
    assert!(first.contains("train: FAILED: test groups passed: 1; cuda::golden::b: cuda::golden::b;"), "{first}");
    std::fs::write(dir.join("mended"), "").unwrap();
    assert!(run(&["train"]).contains("train: green: test groups passed: 2"));
    assert!(run(&["train"]).contains("train: done before"));
    assert_eq!(ran(), 3);
    std::fs::write(dir.join("manifest"), "commit def\n").unwrap();
    assert!(run(&["train"]).contains("train: green: test groups passed: 2"));
    assert_eq!(ran(), 5);
}

fn has_python() -> bool {
    // tomllib came with Python 3.11.
    let there = Command::new("python3").args(["-c", "import tomllib"]).status().is_ok_and(|status| status.success());
    if !there {
        eprintln!("the scripts of tests/gpu.sh are NOT CHECKED: there is no python3 of 3.11 or newer");
    }
    there
}

/// Results of a device that copies 4000 GB/s and multiplies 800 TFLOP/s: kernels beside their peers, one that is too
/// slow, one that is wrong. Attention is measured in two variants, of which the faster one counts.
const BENCH: &str = r#"{"machine": {"device": "NVIDIA H200", "copy": 4e12, "kernels": "NVRTC", "memory": 150000000000}}
{"name": "zero", "shape": "21", "variant": "", "error": "tensor 0 is NaN"}
{"name": "rope", "shape": "8x4", "variant": "", "seconds": 1e-4, "bytes": 380000000, "flops": 0}
{"name": "zero", "shape": "9", "variant": "", "seconds": 1e-4, "bytes": 100000000, "flops": 0}
{"name": "adamw", "shape": "9", "variant": "", "seconds": 1e-3, "bytes": 3600000000, "flops": 0}
{"name": "attention", "shape": "4096, 32/8 x 128", "variant": "sm_80", "seconds": 2e-3, "bytes": 0, "flops": 480e9}
{"name": "attention", "shape": "4096, 32/8 x 128", "variant": "sm_90a", "seconds": 1e-3, "bytes": 0, "flops": 480e9}
{"name": "attention", "shape": "4096, 32/8 x 64", "variant": "sm_90a", "seconds": 2e-3, "bytes": 0, "flops": 480e9}
{"name": "attention_bwd", "shape": "4096, 32/8 x 128", "variant": "sm_90a", "seconds": 5e-3, "bytes": 0, "flops": 2e12}
"#;
const PEERS: &str = r#"{"machine": {"torch": "2.11.0", "cuda": "13.0", "cudnn": 91002, "device": "NVIDIA H200"}}
{"name": "matmul", "shape": "1", "peer": "torch", "seconds": 1e-3, "bytes": 0, "flops": 800000000000, "note": ""}
{"name": "rope", "shape": "8x4", "peer": "torch.compile", "seconds": 1.5e-4, "bytes": 380000000, "flops": 0, "note": ""}
{"name": "rope", "shape": "8x5", "peer": "torch.compile", "seconds": 1e-9, "bytes": 1, "flops": 0, "note": ""}
{"name": "attention", "shape": "4096, 32/8 x 128", "peer": "flash", "seconds": 5e-4, "bytes": 0, "flops": 1}
{"name": "attention", "shape": "4096, 32/8 x 64", "peer": "flash", "seconds": 3e-3, "bytes": 0, "flops": 1}
{"name": "attention", "shape": "4096, 32/8 x 128", "peer": "cuDNN", "error": "no backend"}
{"name": "attention_bwd", "shape": "4096, 32/8 x 128", "peer": "flash", "seconds": 4e-3, "bytes": 0, "flops": 1}
{"name":"attention_bwd","shape":"4096, 32/8 x 128","peer":"flash, deterministic","seconds":6e-3,"note":"same bits"}
{"name": "attention_bwd", "shape": "4096, 32/8 x 128", "peer": "cuDNN", "seconds": 3e-3, "bytes": 0, "flops": 1}
"#;

/// Lines of `step.jsonl`: the sides of one case, and a case that failed.
fn step() -> String {
    let side = |who: &str, tokens_per_s: u32, mfu: f64, start_s: u32, more: Value| {
        let mut line = json!({
            "case": "wide-8b-2", "turn": 1, "who": who, "smoke": false, "mfu_full": mfu, "start_s": start_s,
            "tokens_per_s": tokens_per_s, "slowest": tokens_per_s - 100, "fastest": tokens_per_s + 100,
            "step_s": 32768.0 / f64::from(tokens_per_s),
        });
        line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        format!("{line}\n")
    };
    let memory = json!({
        "peak_planned": 100_000_000_000u64, "peak_used": 100_000_000_000u64, "blocks_planned": 9, "blocks_used": 9,
    });
    let compiled = json!({ "peak_used": 120_000_000_000u64, "compiled": "whole" });
    let failed = json!({ "case": "llama-1b-4", "turn": 1, "who": "engine", "smoke": false, "error": "no luck" });
    [
        side("engine", 20000, 0.56, 20, memory),
        side("torch.compile", 19000, 0.53, 80, compiled.clone()),
        side("torch.compile, deterministic", 16000, 0.45, 80, compiled),
        format!("{failed}\n"),
    ]
    .concat()
}

/// A traced step: two matrix products, 274.9 and 2.1 GFLOP in 500 and 50 us, and another kernel.
const TRACE: &str = r#"{"traceEvents": [{"ph": "M", "name": "process_name", "pid": 0, "tid": 0, "args": {}},
{"ph": "X", "name": "matmul a b^T of m x n x k = 8192 x 4096 x 4096", "pid": 0, "tid": 1, "ts": 0.0, "dur": 500.0},
{"ph": "X", "name": "matmul out += a^T b of m x n x k = 1024 x 1024 x 1024", "pid": 0, "tid": 1, "ts": 0, "dur": 50},
{"ph": "X", "name": "rope", "pid": 0, "tid": 1, "ts": 0.0, "dur": 700.0}]}"#;

/// The lines about goals that these results make.
const GOALS: &str = include_str!("golden/goals.txt");

const IDLE: &str = "the trace of step 6 is in a.json; nothing computed in 4.2 % of its 1600.0 ms on this rank\n";

#[test]
fn results_become_one_table() {
    if !has_python() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let results = dir.path().join("results");
    std::fs::create_dir(&results).unwrap();
    let about = "date\t2026-11-21\ndevice\tNVIDIA H200\ndriver\t580.1\ncommit\tabc\nclocks\tat most 1980 MHz\n";
    for (file, text) in [
        ("about", about),
        ("status", "probes\tgreen: 9 passed\n"),
        ("bench.jsonl", BENCH),
        ("peers.jsonl", PEERS),
        ("step.jsonl", &step()),
        ("idle", IDLE),
        ("trace.json", TRACE),
    ] {
        std::fs::write(results.join(file), text).unwrap();
    }
    symlink(program(), dir.path().join("swallow-engine")).unwrap();
    let output = gpu(dir.path(), &["table"]);
    assert!(output.status.success(), "{}", said(&output));
    let table = std::fs::read_to_string(dir.path().join("tables/2026-11-21-nvidia-h200.md")).unwrap();
    for line in [
        "# Kernels and steps on NVIDIA H200, 2026-11-21",
        "- commit: abc",
        "- probes: green: 9 passed",
        "- ceilings, read and written: the device's own copies 4000 GB/s; bf16 products 800 TFLOP/s",
        "| rope | 8x4 |  | 100.0 | 3800 GB/s | 95 % | torch.compile 150.0 (1.50x) |",
        "| zero | 9 |  | 100.0 | 1000 GB/s | 25 % |  |",
        "| attention | 4096, 32/8 x 128 | sm_80 | 2000.0 | 240 TFLOP/s | 30 % | flash 500.0 (0.25x) |",
        "| wide-8b-2 | 1 | engine | 20000 (19900 to 20100) | 56 % | 93.1 | 20.0 s |",
        "| wide-8b-2 | 1 | torch.compile, whole | 19000 (18900 to 19100) | 53 % | 111.8 | 80.0 s |",
        "- at 80 % of the copies' rate or more: 2 of 3; not zero 9 (25 %)",
        "- WRONG: zero 21: tensor 0 is NaN",
        "- not compared: attention 4096, 32/8 x 128, cuDNN: no backend",
        "- matmul_tflops = 503.7",
    ] {
        assert!(table.lines().any(|l| l == line), "no line {line:?} in\n{table}");
    }
    for judged in [&table, &said(&output)] {
        assert!(judged.contains(GOALS), "not these goals:\n{GOALS}\nbut\n{judged}");
    }
    // The program simulates the step that was measured, by the rates of the same device.
    let (_, simulated) =
        table.split_once("- a step of wide-8b-2: measured 1.638 s, simulated ").expect("it was simulated");
    let simulated: f64 = simulated.split(' ').next().unwrap().parse().unwrap();
    assert!((1.0..3.0).contains(&simulated), "{simulated} s");
    let rates = std::fs::read(results.join("rates.json")).unwrap();
    let rates: Value = serde_json::from_slice(&rates).unwrap();
    let memory_gib = rates["memory_gib"].as_f64().unwrap();
    assert!((memory_gib - 139.7).abs() < 0.01 && rates["commit"] == "abc", "{rates}");
    let keys = ["attention_tflops", "attention_backward_tflops", "memory_gb_s", "adamw_gb_s"];
    assert_eq!(keys.map(|key| rates["rates"][key].as_f64().unwrap()), [480.0, 400.0, 3800.0, 3600.0]);
    assert!(rates["rates"].get("xent_stats_gb_s").is_none(), "it was not measured");
}
