//! Invalid input: the program exits with 2 before the first step, with one message that names the file, key or flag and
//! the value. The tests are tables of an error and what its message must contain.

mod cuda;
mod driver;
mod files;
mod layouts;
mod models;
mod settings;

use std::path::Path;

use tempfile::TempDir;
use toml::Table;

use crate::common::{Case, Outcome, engine, finish, write_config};

/// Runs `train` with a valid configuration as `change` changes it.
#[track_caller]
fn train(tmp: &TempDir, change: impl Fn(&mut Table), args: &[&str]) -> Outcome {
    let mut config = Case::open("mha_odd_vocab").config(&tmp.path().join("run"));
    change(&mut config);
    let config = write_config(tmp.path(), "config.toml", &config);
    finish(engine().args(["train", "--config"]).arg(config).args(args))
}

/// Expects exit 2, a message of a few lines that contains `needles`, and no run directory that looks started.
#[track_caller]
fn is_refused(outcome: Outcome, tmp: &TempDir, needles: &[&str]) {
    let outcome = outcome.refused(2, needles);
    assert!(outcome.stderr.lines().count() <= 6, "a long message: {}", outcome.stderr);
    assert!(!tmp.path().join("run/metrics.jsonl").exists(), "said after the first step");
}

/// The configuration that these tests change is valid.
#[test]
fn the_valid_configuration_is_accepted() {
    let tmp = tempfile::tempdir().unwrap();
    train(&tmp, |_| (), &["--set", "train.steps=2"]).succeeded();
}

/// Copies the files of a folder.
fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap().map(|e| e.unwrap()) {
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}
