//! Devices, libraries and ranks that fail during a run: one rank reports the fault with its place, and all ranks end.

use std::time::{Duration, Instant};

use toml::Table;

use super::{Site, Vars, apart, small, with};
use crate::common::{Outcome, Running, finish, kill_process, metrics};

/// All ranks must have ended by then, however busy the machine is.
const SOON: Duration = Duration::from_secs(40);

/// A run that does not end by itself.
fn long(site: &Site) -> Table {
    with(&small(site.tmp.path()), &[("train.steps", 1_000_000.into()), ("parallel.tensor", 2.into())])
}

/// Trains on two ranks, of which rank `whom` has a variable that makes it fail.
fn fail(whom: usize, name: &'static str, value: &str) -> Outcome {
    fail_with(whom, name, value, &[])
}

/// The same, with changes of the configuration.
fn fail_with(whom: usize, name: &'static str, value: &str, change: &[(&str, toml::Value)]) -> Outcome {
    let site = Site::with_fake_cuda();
    let vars = |rank| -> Vars {
        let own = (rank == whom).then(|| (name, value.to_string()));
        apart(rank).into_iter().chain(own).chain([("SWALLOW_PATIENCE_S", "3".into())]).collect()
    };
    let start = Instant::now();
    let outcome = finish(&mut site.train("run", 2, &with(&long(&site), change), vars, &[]));
    assert!(start.elapsed() < SOON, "it took {:?}", start.elapsed());
    outcome
}

/// Expects exit 1 and exactly one message, from `rank`.
#[track_caller]
fn says(outcome: Outcome, rank: usize, needles: &[&str]) {
    let outcome = outcome.refused(1, needles);
    for other in 0..2 {
        let count = outcome.stderr.matches(&format!("rank {other} on ")).count();
        assert_eq!(count, usize::from(other == rank), "messages of rank {other}: {}", outcome.stderr);
    }
}

/// Launch 520 is inside a layer; when the kernels of a step change, the number must too.
#[test]
fn an_illegal_address_in_a_kernel() {
    let needles = ["step ", "layer ", "ILLEGAL_ADDRESS", "Xid 13 or 31", "launched there:", " threads, "];
    // Two steps fit into the driver's queue, so that the host waits for the results when the device fails.
    let outcome = fail_with(1, "FAKE_CUDA_FAULT", "700@520", &[("train.global_batch_size", 2.into())]);
    says(outcome, 1, &needles);
}

/// Expects the end of a run that hung, with one report.
#[track_caller]
fn hangs(outcome: Outcome, needles: &[&str]) {
    let outcome = outcome.refused(1, needles);
    assert_eq!(outcome.stderr.matches("no progress for ").count(), 1, "{}", outcome.stderr);
}

/// The message names the oldest collective: the others wait behind it. From the 32nd one on fewer launches follow than
/// the driver's queue takes, so the host reaches the results of the step and waits there.
#[test]
fn a_hanging_collective() {
    let needles =
        ["no progress for ", "reduce-scatter #", " of the tensor group does not complete", "ranks 0, 1", "step "];
    hangs(fail(0, "FAKE_CUDA_NCCL_HANG", "ReduceScatter@32"), &needles);
}

/// Before the first step both ranks wait, and the one that did so first is named.
#[test]
fn a_hanging_setup_of_a_communicator() {
    let outcome = fail(0, "FAKE_CUDA_NCCL_HANG", "any@1");
    hangs(outcome, &["no progress for ", " does not go on: it is before the first step, NCCL: tensor"]);
}

/// The first rank of a group cannot create the communicator: it notifies the others, and no rank waits.
#[test]
fn a_machine_without_a_network() {
    let outcome = fail(0, "FAKE_CUDA_NCCL_ALONE", "1");
    let needles = ["was not connected by NCCL: unhandled system error", "there is no socket interface"];
    let outcome = outcome.refused(1, &[&needles[..], &["the tensor group of ranks [0, 1]"]].concat());
    assert_eq!(outcome.stderr.matches("was not connected").count(), 1, "{}", outcome.stderr);
}

mod exhaustive {
    use super::*;

    #[test]
    fn an_uncorrectable_ecc_error() {
        let needles = ["step ", "ECC_UNCORRECTABLE", "drain this node", "continue from the last checkpoint"];
        says(fail(0, "FAKE_CUDA_FAULT", "214@1500"), 0, &needles);
    }

    /// A driver's launch queue is finite: when it is full, the host blocks in a launch and cannot poll.
    #[test]
    fn a_hanging_collective_while_the_host_is_blocked() {
        let site = Site::with_fake_cuda();
        let hang = |rank| (rank == 0).then(|| ("FAKE_CUDA_NCCL_HANG", "ReduceScatter@32".to_string()));
        let patience = ("SWALLOW_PATIENCE_S", "1".to_string());
        let vars = |rank| apart(rank).into_iter().chain(hang(rank)).chain([patience.clone()]).collect();
        // A step with more launches than a stream's queue holds.
        let config = with(&long(&site), &[("train.global_batch_size", 64.into())]);
        let start = Instant::now();
        let outcome = finish(&mut site.train("run", 2, &config, vars, &[]));
        assert!(start.elapsed() < SOON, "it took {:?}", start.elapsed());
        hangs(outcome, &["no progress for ", "reduce-scatter #", " of the tensor group"]);
    }

    #[test]
    fn a_rank_that_is_killed() {
        let site = Site::with_fake_cuda();
        let mut run = Running::start(&mut site.train("run", 2, &long(&site), apart, &[]));
        let ended = run.wait_until(|_| metrics(&site.dir("run")).len() >= 2);
        assert!(ended.is_none(), "the run ended before it was disturbed: {:?}", run.outcome());
        let ranks = run.ranks();
        assert_eq!(ranks.len(), 2, "{ranks:?}");
        let start = Instant::now();
        kill_process(ranks[1]);
        let outcome = run.outcome();
        assert!(!outcome.status.success() && !outcome.stderr.contains("panicked"), "{outcome:?}");
        assert!(start.elapsed() < SOON, "the others lived for {:?}", start.elapsed());
        let alive = |pid: &&i32| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok();
        assert_eq!(ranks.iter().filter(alive).collect::<Vec<_>>(), Vec::<&i32>::new());
    }
}
