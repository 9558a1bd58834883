//! Runs that fail: all ranks end, at once, with one message.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::{Case, Running, engine, finish, kill_process, metrics, mpirun, set, write_config, write_tokens};

#[test]
fn one_killed_rank_ends_all() {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    let mut config = Case::open("mha_odd_vocab").config(&run);
    set(&mut config, "train.steps", 1_000_000);
    let config = write_config(tmp.path(), "config.toml", &config);

    let mut running = Running::start(mpirun(2).args(["train", "--config"]).arg(config));
    let ended = running.wait_until(|_| metrics(&run).len() >= 3);
    assert!(ended.is_none(), "the run ended before it was disturbed: {:?}", running.outcome());
    let ranks = running.ranks();
    assert_eq!(ranks.len(), 2, "{ranks:?}");
    let start = Instant::now();
    kill_process(ranks[1]);
    let outcome = running.outcome();
    assert!(!outcome.status.success(), "{outcome:?}");
    assert!(start.elapsed() < Duration::from_secs(20), "the others lived for {:?}", start.elapsed());
    let alive = |pid: &&i32| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok();
    assert_eq!(ranks.iter().filter(alive).collect::<Vec<_>>(), Vec::<&i32>::new());
}

#[test]
fn a_run_that_diverges_ends_with_one_message_and_the_last_good_checkpoint() {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    let mut config = Case::open("mha_odd_vocab").config(&run);
    set(&mut config, "optimizer.lr", 1e30);
    set(&mut config, "optimizer.warmup_steps", 0);
    set(&mut config, "optimizer.clip_grad", 0.0);
    // A checkpoint is being written when the run ends.
    set(&mut config, "checkpoint.interval", 1);
    let config = write_config(tmp.path(), "config.toml", &config);
    let outcome = finish(mpirun(2).args(["train", "--config"]).arg(config));
    assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
    assert_eq!(outcome.stderr.matches("training has diverged").count(), 1, "{outcome:?}");
    assert!(!outcome.stderr.contains("MPI_ABORT"), "{outcome:?}");
    let last = metrics(&run).len();
    assert!(last > 0, "the first step was good");
    let latest = std::fs::read_to_string(run.join("checkpoints/latest")).unwrap();
    assert_eq!(latest, format!("step-{last:08}\n"));
    finish(engine().args(["checkpoint", "verify"]).arg(&run)).succeeded();
}

/// A run on two ranks that both read the same samples, and whose token files another program changes after two steps.
/// It must end with one message, exit code 2 and the needles.
fn changed_under_a_run(tokens: &[Vec<u32>], interval: i64, change: impl FnOnce(&Path), needles: &[&str]) {
    let tmp = tempfile::tempdir().unwrap();
    let (run, data) = (tmp.path().join("run"), tmp.path().join("data"));
    let mut config = Case::open("gqa_masked").config(&run);
    write_tokens(&data, tokens);
    let source = toml::Table::from_iter([("prefix".to_string(), data.to_str().unwrap().into())]);
    set(&mut config, "data.train", vec![toml::Value::from(source)]);
    set(&mut config, "data.order", "sequential");
    set(&mut config, "train.steps", 1_000_000);
    set(&mut config, "train.eval_interval", 0);
    set(&mut config, "checkpoint.interval", interval);
    set(&mut config, "parallel.tensor", 2);
    let config = write_config(tmp.path(), "config.toml", &config);

    let mut running = Running::start(mpirun(2).args(["train", "--config"]).arg(config));
    let ended = running.wait_until(|_| metrics(&run).len() >= 2);
    assert!(ended.is_none(), "the run ended before it was disturbed: {:?}", running.outcome());
    change(&data);
    let outcome = running.outcome().refused(2, needles);
    assert_eq!(outcome.stderr.matches(needles[0]).count(), 1, "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("inf"), "{}", outcome.stderr);
}

/// Both ranks meet the damage at the same time.
#[test]
fn a_token_file_written_to_during_a_run_ends_it_with_one_message() {
    let change = |data: &Path| {
        let idx = std::fs::OpenOptions::new().write(true).open(data.with_extension("idx")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&idx, &[0; 12], 34).unwrap();
    };
    let needles = ["data.idx: ", "another program wrote to the file", "data check", ", data: "];
    changed_under_a_run(&[vec![5; 400], vec![7; 300], vec![9; 300]], 0, change, &needles);
}

/// The file has many pages, of which all but the first are gone: reading them through a map would be a SIGBUS.
#[test]
fn a_token_file_cut_during_a_run_ends_it_with_one_message() {
    let change = |data: &Path| {
        let bin = std::fs::OpenOptions::new().write(true).open(data.with_extension("bin")).unwrap();
        bin.set_len(4096).unwrap();
    };
    changed_under_a_run(&[vec![5; 400_000]], 0, change, &["data.bin: ", "it has become shorter", ", data: "]);
}

#[test]
fn ids_outside_the_vocabulary_end_a_run_before_they_are_trained_on() {
    let change = |data: &Path| {
        let bytes = std::fs::metadata(data.with_extension("bin")).unwrap().len();
        let bin = std::fs::OpenOptions::new().write(true).open(data.with_extension("bin")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&bin, &[1, 1, 0, 0].repeat(bytes as usize / 4), 0).unwrap();
    };
    let needles = ["data.bin: ", "has the id 257 at token", "model.vocab_size = ", ", data: "];
    changed_under_a_run(&[vec![5; 400_000]], 0, change, &needles);
}

/// Other ids of the vocabulary are seen before a checkpoint is saved of what was trained on them.
#[test]
fn a_checkpoint_of_other_tokens_is_not_saved() {
    let change = |data: &Path| {
        let bytes = std::fs::metadata(data.with_extension("bin")).unwrap().len();
        let bin = std::fs::OpenOptions::new().write(true).open(data.with_extension("bin")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&bin, &[6, 0, 0, 0].repeat(bytes as usize / 4), 0).unwrap();
    };
    changed_under_a_run(&[vec![5; 400_000]], 10, change, &["data.bin: ", "its content has changed"]);
}

/// `/dev/full` refuses every write: the first line of metrics fails, and the message does not blame the checkpoint.
#[test]
fn unwritable_metrics_are_not_blamed_on_the_checkpoint() {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    std::fs::create_dir_all(&run).unwrap();
    std::os::unix::fs::symlink("/dev/full", run.join("metrics.jsonl")).unwrap();
    let mut config = Case::open("mha_odd_vocab").config(&run);
    set(&mut config, "checkpoint.retry_seconds", 0);
    let config = write_config(tmp.path(), "config.toml", &config);
    let outcome = finish(mpirun(2).args(["train", "--config"]).arg(config));
    let outcome = outcome.refused(1, &["rank 0 on ", "step 1, report: ", "metrics.jsonl: No space left"]);
    let message = outcome.stderr.lines().find(|line| line.contains("metrics.jsonl")).unwrap();
    assert!(!message.contains("checkpoint"), "{}", outcome.stderr);
}

#[test]
fn a_second_run_on_the_same_directory_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    let mut config = Case::open("mha_odd_vocab").config(&run);
    set(&mut config, "train.steps", 1_000_000);
    let config = write_config(tmp.path(), "config.toml", &config);
    let mut first = Running::start(engine().args(["train", "--config"]).arg(&config));
    assert!(first.wait_until(|_| metrics(&run).len() >= 2).is_none());
    finish(engine().args(["train", "--config"]).arg(&config))
        .refused(2, &["checkpoint.dir", "another run is using this directory (process ", " on ", " since "]);
    let killed = first.ranks()[0];
    kill_process(killed);
    first.outcome();
    // The kernel has ended the lock of the dead process; its line is still there.
    let next = finish(engine().args(["train", "--set", "train.steps=3", "--config"]).arg(&config)).succeeded();
    let gone = next.stderr.lines().find(|line| line.contains("takes over its lock")).unwrap();
    assert!(gone.contains(&format!("process {killed} on ")) && gone.contains("is gone"), "{gone}");
}
