//! A rank that dies takes the others with it, at once.

use std::time::{Duration, Instant};

use crate::common::{Case, Running, metrics, mpirun, set, slay, write_config};

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
    slay(ranks[1]);
    let outcome = running.outcome();
    assert!(!outcome.status.success(), "{outcome:?}");
    assert!(start.elapsed() < Duration::from_secs(20), "the others lived for {:?}", start.elapsed());
    let alive = |pid: &&i32| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok();
    assert_eq!(ranks.iter().filter(alive).collect::<Vec<_>>(), Vec::<&i32>::new());
}
