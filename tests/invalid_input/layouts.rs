//! Impossible layouts: one message for all ranks, before anything starts, which names possible ones.

use toml::{Table, Value};

use crate::common::{Case, Outcome, finish, mpirun, set, write_config};

/// Runs `train` on the golden case for layouts: 8 heads, 2 key/value heads, 5 layers, 16 samples a step.
#[track_caller]
fn train(ranks: usize, settings: &[(&str, Value)]) -> Outcome {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    let mut config: Table = Case::open("parity").config(&run);
    settings.iter().for_each(|(key, value)| set(&mut config, key, value.clone()));
    let config = write_config(tmp.path(), "config.toml", &config);
    let outcome = finish(mpirun(ranks).args(["train", "--set", "train.steps=1", "--config"]).arg(config));
    assert_eq!(run.join("metrics.jsonl").exists(), outcome.status.success());
    outcome
}

#[test]
fn what_no_number_of_ranks_can_run() {
    for (ranks, settings, needles) in [
        (
            2,
            &[("parallel.tensor", Value::from(3))][..],
            &["parallel.tensor = 3", "(8)", "on 2 ranks the nearest is 2"][..],
        ),
        (4, &[("parallel.tensor", 16.into())], &["parallel.tensor = 16", "on 4 ranks the nearest is 4"]),
        // 16 samples are no multiple of three data-parallel ranks.
        (3, &[("parallel.tensor", 16.into())], &["parallel.tensor = 16", "; the nearest is 8"]),
        (
            4,
            &[("parallel.pipeline", 8.into())],
            &["parallel.pipeline = 8", "(5); on 4 ranks the nearest: pipeline 4 x", " or pipeline 2 x"],
        ),
        (2, &[("parallel.virtual_pipeline", 2.into())], &["parallel.virtual_pipeline = 2", "write 1"]),
        (
            4,
            &[("parallel.tensor", 4.into()), ("train.seq_length", 31.into())],
            &["parallel.tensor = 4", "seq_length (31)", "sequence_parallel = false"],
        ),
        (2, &[("parallel.ranks", 5.into()), ("parallel.tensor", 2.into())], &["parallel.ranks = 5", "4 and 6"]),
    ] {
        println!("{settings:?} on {ranks} ranks");
        once(train(ranks, settings), needles);
    }
}

#[test]
fn what_these_ranks_cannot_run() {
    let (tensor, pipeline) = ("parallel.tensor", "parallel.pipeline");
    for (ranks, settings, needles) in [
        (2, &[(tensor, Value::from(4))][..], &["mpirun -n 2", "the nearest that fit: 4", "tensor 2 x pipeline 1"][..]),
        (4, &[(pipeline, 3.into())], &["mpirun -n 4", "3 or 6", "tensor 1 x pipeline 4"]),
        (4, &[("train.global_batch_size", 6.into())], &["train.global_batch_size = 6", "4 and 8", "3 or 6 ranks"]),
        (
            4,
            &[(pipeline, 2.into()), ("parallel.virtual_pipeline", 2.into()), ("train.global_batch_size", 6.into())],
            &["train.global_batch_size = 6", "interleaved", "4 and 8", "virtual_pipeline = 1"],
        ),
    ] {
        println!("{settings:?} on {ranks} ranks");
        once(train(ranks, settings), needles);
    }
}

#[test]
fn another_number_of_ranks_than_meant_is_a_warning() {
    let outcome = train(2, &[("parallel.ranks", 4.into())]).succeeded();
    assert_eq!(outcome.stderr.matches("warning: parallel.ranks = 4, but this run has 2 ranks").count(), 1);
    let outcome = train(2, &[("parallel.ranks", 2.into())]).succeeded();
    assert!(!outcome.stderr.contains("parallel.ranks"), "{}", outcome.stderr);
}

/// Expects exit 2 and one message for all ranks.
#[track_caller]
fn once(outcome: Outcome, needles: &[&str]) {
    let outcome = outcome.refused(2, needles);
    let said = outcome.stderr.lines().filter(|line| line.contains(needles[0])).count();
    assert_eq!(said, 1, "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("MPI_ABORT") && !outcome.stderr.contains("Finalize"), "{}", outcome.stderr);
}
