//! `tests/gpu.sh` where there is no device: what it cannot do it says, and the table comes of what others measured.

use std::path::Path;
use std::process::{Command, Output};

/// Runs parts of it on a folder of results.
fn gpu(dir: &Path, parts: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu.sh");
    let mut run = Command::new("bash");
    run.arg(script).args(parts).env("GPU_DIR", dir).env("GPU_TABLES", dir.join("tables")).env_remove("OUT");
    run.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn what_needs_a_device_is_skipped_in_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let parts = ["probes", "kernels", "memcheck", "racecheck", "bench", "peers", "table"];
    let output = gpu(dir.path(), &parts);
    let said = said(&output);
    assert!(output.status.success() && said.ends_with("gpu.sh: 0 green, 0 failed, 7 skipped\n"), "{said}");
    for part in parts {
        assert_eq!(said.lines().filter(|line| line.starts_with(&format!("{part}: skipped: "))).count(), 1, "{said}");
    }
}

#[test]
fn a_part_that_is_not_there_is_named() {
    let output = gpu(Path::new("."), &["probe"]);
    let said = said(&output);
    assert!(output.status.code() == Some(2) && said.contains("no part probe") && said.contains("racecheck"), "{said}");
    let help = gpu(Path::new("."), &["--help"]);
    assert!(help.status.success() && self::said(&help).contains("tests/gpu.sh build"));
}

/// A device that copies 4000 GB/s and multiplies 800 TFLOP/s: one kernel beside its peers, one too slow, one wrong.
const BENCH: &str = r#"{"machine": {"device": "NVIDIA H200", "copy": 4e12, "kernels": "NVRTC 13.0"}}
{"name": "add", "shape": "21", "variant": "", "error": "tensor 0 is NaN"}
{"name": "rope", "shape": "8x4", "variant": "", "seconds": 1e-4, "bytes": 380000000, "flops": 0}
{"name": "zero", "shape": "9", "variant": "", "seconds": 1e-4, "bytes": 100000000, "flops": 0}
{"name": "attention", "shape": "4096", "variant": "sm_80", "seconds": 2e-3, "bytes": 0, "flops": 800000000000}
"#;
const PEERS: &str = r#"{"machine": {"torch": "2.11.0", "cuda": "13.0", "cudnn": 91002, "device": "NVIDIA H200"}}
{"name": "matmul", "shape": "1", "peer": "torch", "seconds": 1e-3, "bytes": 0, "flops": 800000000000, "note": ""}
{"name": "rope", "shape": "8x4", "peer": "torch.compile", "seconds": 1.5e-4, "bytes": 380000000, "flops": 0, "note": ""}
{"name": "rope", "shape": "8x5", "peer": "torch.compile", "seconds": 1e-9, "bytes": 1, "flops": 0, "note": ""}
{"name": "attention", "shape": "4096", "peer": "flash", "seconds": 1e-3, "bytes": 0, "flops": 800000000000, "note": "other bits"}
{"name": "attention", "shape": "4096", "peer": "cuDNN", "error": "no backend"}
"#;

#[test]
fn one_table_comes_of_what_was_measured() {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("the table of tests/gpu.sh is NOT CHECKED: there is no python3");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let results = dir.path().join("results");
    std::fs::create_dir(&results).unwrap();
    let about = "date\t2026-11-21\ndevice\tNVIDIA H200\ndriver\t580.1\ncommit\tabc\nclocks\tat most 1980 MHz\n";
    for (file, text) in
        [("about", about), ("status", "probes\tgreen: 9 passed\n"), ("bench.jsonl", BENCH), ("peers.jsonl", PEERS)]
    {
        std::fs::write(results.join(file), text).unwrap();
    }
    let output = gpu(dir.path(), &["table"]);
    assert!(output.status.success(), "{}", said(&output));
    let table = std::fs::read_to_string(dir.path().join("tables/2026-11-21-nvidia-h200.md")).unwrap();
    for line in [
        "# Kernels on NVIDIA H200, 2026-11-21",
        "- commit: abc",
        "- probes: green: 9 passed",
        "- ceilings, read and written: the device's own copies 4000 GB/s; bf16 products 800 TFLOP/s",
        "| rope | 8x4 |  | 100.0 | 3800 GB/s | 95 % | torch.compile 150.0 (1.50x) |",
        "| zero | 9 |  | 100.0 | 1000 GB/s | 25 % |  |",
        "| attention | 4096 | sm_80 | 2000.0 | 400 TFLOP/s | 50 % | flash 1000.0 (0.50x, other bits) |",
        "- at 80 % of the copies' rate or more: 1 of 2; not zero 9 (25 %)",
        "- slower than a peer: attention 4096 sm_80 (flash, 0.50x)",
        "- WRONG: add 21: tensor 0 is NaN",
        "- not compared: attention 4096, cuDNN: no backend",
    ] {
        assert!(table.lines().any(|l| l == line), "no line {line:?} in\n{table}");
    }
}
