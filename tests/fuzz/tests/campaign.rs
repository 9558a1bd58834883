//! The harness on a parser with planted mistakes, and a short campaign over all targets.

use std::path::Path;
use std::process::{Command, Output};

fn fuzz(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fuzz")).args(arguments).output().unwrap()
}

/// What `fuzz` says of a planted input, and whether it ends well.
fn planted(input: &str) -> (String, bool) {
    let tmp = tempfile::tempdir().unwrap();
    std::fs::write(tmp.path().join("input"), input).unwrap();
    let output = fuzz(&["--target", "planted", "--input", tmp.path().to_str().unwrap()]);
    (String::from_utf8(output.stdout).unwrap(), output.status.success())
}

#[test]
fn sound_inputs_are_told_from_refused_ones() {
    assert_eq!(planted("fine"), ("accepted\n".into(), true));
    assert_eq!(planted("other"), ("refused: \"other\" is not planted\n".into(), true));
}

#[test]
fn every_planted_mistake_is_seen() {
    let mistakes = [
        ("panic", "panicked at"),
        ("thread", "planted on a thread"),
        ("abort", "signal: 6"),
        ("spin", "more than 2 s of processor time"),
        ("memory", "more than 1024 MiB of memory: memory allocation of 2147483648 bytes failed"),
    ];
    for (input, reason) in mistakes {
        let (said, fine) = planted(input);
        assert!(said.contains(reason) && !fine, "{input}: {said}");
    }
}

#[test]
fn every_committed_seed_ends_as_it_must() {
    ends_well(&["--inputs", "1"]);
}

mod exhaustive {
    use super::*;

    #[test]
    fn damaged_inputs_end_as_they_must() {
        ends_well(&["--inputs", "400"]);
    }
}

/// Runs a campaign, over the targets that start the program too where it is built.
#[track_caller]
fn ends_well(arguments: &[&str]) {
    let engine = Path::new(env!("CARGO_BIN_EXE_fuzz")).with_file_name("swallow-engine");
    assert!(engine.is_file(), "{}: build the program, as `cargo test --workspace` does", engine.display());
    let output = fuzz(arguments);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
}
