//! The run's directory: the one process that may write to it, and the files that failed runs leave there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{
    Case, Outcome, Running, engine, finish, kill_process, metrics, mpirun, program, set, write_config,
};

/// The files of a directory with their contents, without those that a run keeps appending to.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.is_dir() {
            true => files.extend(contents(&entry)),
            false => _ = files.insert(entry.clone(), std::fs::read(&entry).unwrap()),
        }
    }
    let grows = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        ["metrics.jsonl", "ranks.jsonl", "timeline.json"].contains(&&*name) || name.starts_with("events.")
    };
    files.retain(|path, _| !grows(path));
    files
}

/// The command, with `limit` bytes as the largest file that it can write: a full disk without one.
fn on_full_disk(limit: u64, args: &[&str]) -> Outcome {
    let script = format!("ulimit -f {}; exec \"$@\"", limit / 512);
    finish(Command::new("sh").args(["-c", &script, "sh"]).arg(program()).args(args))
}

#[test]
fn a_refused_second_run_changes_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    let mut config = Case::open("mha_odd_vocab").config(&run);
    set(&mut config, "train.steps", 1_000_000);
    let config = write_config(tmp.path(), "first.toml", &config);
    let other = write_config(tmp.path(), "second.toml", &Case::open("gqa_masked").config(&run));
    let mut first = Running::start(engine().args(["train", "--config"]).arg(&config));
    assert!(first.wait_until(|_| metrics(&run).len() >= 2).is_none());
    let before = contents(&run);
    for command in [&mut engine(), &mut mpirun(2)] {
        let second = finish(command.args(["train", "--config"]).arg(&other));
        let second = second.refused(2, &["checkpoint.dir = ", "another run is using this directory"]);
        assert!(!second.stderr.contains("continuing"), "{}", second.stderr);
    }
    let init = Case::open("gqa_masked").dir.join("init");
    let import = finish(engine().args(["checkpoint", "import", "--from"]).arg(init).arg("--to").arg(&run));
    import.refused(2, &["--to = ", "another run is using this directory"]);
    assert!(contents(&run) == before, "a refused run has changed the directory");
    kill_process(first.ranks()[0]);
    first.outcome();
}

/// Dead processes leave files behind, and a full disk needs their space before anything is written.
#[test]
fn leftovers_of_dead_runs_are_removed() {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    let mut config = Case::open("mha_odd_vocab").config(&run);
    set(&mut config, "train.steps", 1);
    let config = write_config(tmp.path(), "config.toml", &config);
    let train = || finish(engine().args(["train", "--config"]).arg(&config)).succeeded();
    train();
    let leftovers = ["checkpoints/.step-00000009.tmp", ".source.tmp"].map(|name| run.join(name));
    leftovers.iter().for_each(|dir| std::fs::create_dir(dir).unwrap());
    let files = ["checkpoints/.latest.tmp", "config.toml.partial", "timeline.json.partial"].map(|name| run.join(name));
    files.iter().for_each(|file| std::fs::write(file, "half of").unwrap());
    train();
    for left in leftovers.iter().chain(&files) {
        assert!(!left.exists(), "{}", left.display());
    }
}

/// The disk fills up in the middle of a line of metrics, and has room again later.
#[test]
fn a_run_continues_when_the_disk_has_room_again() {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    let mut config = Case::open("mha_odd_vocab").config(&run);
    set(&mut config, "train.steps", 1_000_000);
    set(&mut config, "checkpoint.interval", 5);
    set(&mut config, "checkpoint.keep", 1);
    let path = write_config(tmp.path(), "config.toml", &config);
    // Empty lines make the metrics the longest file, which reaches the limit first.
    std::fs::create_dir(&run).unwrap();
    std::fs::write(run.join("metrics.jsonl"), "\n".repeat(4 << 20)).unwrap();
    let mut running = Running::start(engine().args(["train", "--config"]).arg(&path));
    assert!(running.wait_until(|_| run.join("checkpoints/latest").exists()).is_none());
    let limit = format!("--fsize={}", std::fs::metadata(run.join("metrics.jsonl")).unwrap().len() + 3000);
    let rank = running.ranks()[0].to_string();
    assert!(Command::new("prlimit").args(["--pid", &rank, &limit]).status().unwrap().success());
    running.outcome().refused(1, &["metrics.jsonl: File too large", "(ulimit -f) allows no larger file"]);

    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let whole = |line: &str| line.is_empty() || line.ends_with('}');
    assert!(text.ends_with('\n') && text.lines().all(whole), "half a line is left");
    let steps = metrics(&run).len();
    set(&mut config, "train.steps", steps as i64 + 3);
    let path = write_config(tmp.path(), "config.toml", &config);
    finish(engine().args(["train", "--config"]).arg(path)).succeeded();
    assert_eq!(metrics(&run).len(), steps + 3);
}

#[test]
fn tools_on_a_full_disk_fail_and_leave_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let (run, to) = (tmp.path().join("run"), tmp.path().join("to"));
    let case = Case::open("mha_odd_vocab");
    let mut config = case.config(&run);
    set(&mut config, "train.steps", 1);
    let config = write_config(tmp.path(), "config.toml", &config);
    finish(engine().args(["train", "--config"]).arg(config)).succeeded();
    let init = case.dir.join("init");
    let [run, to, init] = [&run, &to, &init].map(|path| path.to_str().unwrap());
    let before = contents(Path::new(run));
    for args in
        [["checkpoint", "export", "--from", run, "--to", to], ["checkpoint", "import", "--from", init, "--to", to]]
    {
        on_full_disk(4096, &args).refused(1, &["File too large"]);
        let left: Vec<PathBuf> = contents(tmp.path()).into_keys().filter(|path| path.starts_with(to)).collect();
        assert!(left.is_empty(), "{args:?} has left {left:?}");
    }
    on_full_disk(1024, &["report", run]).refused(1, &["efficiency", "File too large"]);
    let after = contents(Path::new(run));
    let same = after.iter().filter(|(path, bytes)| before.get(*path) == Some(bytes)).count();
    assert_eq!(same, before.len(), "a failed report has changed files");
    assert!(!after.keys().any(|path| path.extension().is_some_and(|kind| kind == "partial")), "{:?}", after.keys());
}

/// Scratch space is purged: a run with checkpoints needs its base model no longer.
#[test]
fn a_run_continues_without_its_base_model() {
    let tmp = tempfile::tempdir().unwrap();
    let (run, base) = (tmp.path().join("run"), tmp.path().join("base"));
    let case = Case::open("mha_odd_vocab");
    assert!(Command::new("cp").arg("-r").args([case.dir.join("init"), base.clone()]).status().unwrap().success());
    let mut config = case.config(&run);
    set(&mut config, "model.hf", base.to_str().unwrap());
    set(&mut config, "train.load", format!("hf:{}", base.display()));
    set(&mut config, "train.steps", 2);
    let config = write_config(tmp.path(), "config.toml", &config);
    let train = |config: &Path, steps: &str| finish(engine().args(["train", "--set", steps, "--config"]).arg(config));
    train(&config, "train.steps=2").succeeded();
    std::fs::rename(&base, tmp.path().join("gone")).unwrap();
    let outcome = train(&config, "train.steps=3").succeeded();
    assert!(outcome.stderr.contains("note: model.hf = ") && outcome.stderr.contains("after step 2"), "{outcome:?}");
    train(&run.join("config.toml"), "train.steps=4").succeeded();
    assert_eq!(metrics(&run).len(), 4);
    // Without a checkpoint, the run needs the base model's directory.
    std::fs::remove_dir_all(run.join("checkpoints")).unwrap();
    train(&config, "train.steps=3").refused(2, &["model.hf = ", "there is no config.json in this directory"]);
}
