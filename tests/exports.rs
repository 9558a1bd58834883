//! `checkpoint.export_interval`: the exports that a run leaves are those of the command, at any layout, also where the
//! run was killed while it made one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::Table;

use crate::common::{Case, Running, engine, finish, metrics, mpirun, set, write_config};

/// The contents of all files of a folder, by name.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.file_name().unwrap().display().to_string(), std::fs::read(path).unwrap())).collect()
}

fn exports(run: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(run.join("exports")).into_iter().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().display().to_string()).collect();
    names.sort();
    names
}

/// Every complete export equals what `checkpoint export` makes of the same checkpoint.
fn assert_are_of_the_command(run: &Path, scratch: &Path) {
    for name in exports(run).iter().filter(|name| !name.starts_with('.')) {
        let (from, to) = (run.join("checkpoints").join(name), scratch.join("by-command"));
        finish(engine().args(["checkpoint", "export", "--from"]).arg(from).arg("--to").arg(&to)).succeeded();
        assert!(contents(&run.join("exports").join(name)) == contents(&to), "{name}");
    }
}

/// A model to start from, with a file in place of a tokenizer.
fn source(dir: &Path) -> PathBuf {
    let (run, model) = (dir.join("source-run"), dir.join("model"));
    let mut config = Case::open("mha_odd_vocab").config(&run);
    set(&mut config, "train.steps", 1);
    let config = write_config(dir, "source.toml", &config);
    finish(engine().args(["train", "--config"]).arg(config)).succeeded();
    finish(engine().args(["checkpoint", "export", "--from"]).arg(run).arg("--to").arg(&model)).succeeded();
    std::fs::write(model.join("tokenizer.json"), "in place of a tokenizer").unwrap();
    model
}

fn config(model: &Path, run: &Path) -> Table {
    let mut config = Case::open("mha_odd_vocab").config(run);
    set(&mut config, "train.load", format!("hf:{}", model.display()));
    set(&mut config, "checkpoint.interval", 2);
    set(&mut config, "checkpoint.export_interval", 4);
    config
}

#[test]
fn exports_beside_checkpoints_are_those_of_the_command() {
    let tmp = tempfile::tempdir().unwrap();
    let model = source(tmp.path());
    let layouts = [(1, "parallel.tensor"), (2, "parallel.tensor"), (2, "parallel.pipeline")];
    for (i, (ranks, split)) in layouts.into_iter().enumerate() {
        let run = tmp.path().join(format!("run-{i}"));
        let mut config = config(&model, &run);
        set(&mut config, split, ranks as i64);
        let config = write_config(tmp.path(), "config.toml", &config);
        finish(mpirun(ranks).args(["train", "--config"]).arg(config)).succeeded();
        assert_eq!(exports(&run), ["step-00000004", "step-00000008", "step-00000012"]);
        assert!(run.join("exports/step-00000012/tokenizer.json").exists());
        assert_are_of_the_command(&run, tmp.path());
    }
}

/// Killed at any time, also during an export: what has its name is whole, and the run makes the rest when it continues.
#[test]
fn a_killed_run_leaves_whole_exports_and_makes_the_others() {
    let tmp = tempfile::tempdir().unwrap();
    let (model, run) = (source(tmp.path()), tmp.path().join("run"));
    let mut config = config(&model, &run);
    set(&mut config, "train.steps", 60);
    set(&mut config, "checkpoint.keep", 3);
    let config = write_config(tmp.path(), "config.toml", &config);
    let start = || {
        let mut command = mpirun(2);
        command.args(["train", "--config"]).arg(&config);
        command
    };
    let mut killed = Running::start(&mut start());
    let is_exporting = || exports(&run).iter().any(|name| name.starts_with('.'));
    let ended = killed.wait_until(|_| metrics(&run).len() >= 10 && is_exporting());
    assert!(ended.is_none(), "the run ended before it was killed");
    killed.kill();
    finish(&mut start()).succeeded();
    assert_eq!(exports(&run), ["step-00000052", "step-00000056", "step-00000060"]);
    // The checkpoint of step 52 is not kept any more.
    std::fs::remove_dir_all(run.join("exports/step-00000052")).unwrap();
    assert_are_of_the_command(&run, tmp.path());
    // A run that is done makes the export that it was killed at, and no other.
    std::fs::remove_dir_all(run.join("exports/step-00000060")).unwrap();
    finish(&mut start()).succeeded();
    assert_eq!(exports(&run), ["step-00000056", "step-00000060"]);
    assert_are_of_the_command(&run, tmp.path());
}
