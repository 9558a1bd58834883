//! Invalid configurations and command lines.

use toml::{Table, Value};

use super::{is_refused, train};
use crate::common::{Case, engine, finish, mpirun, set, write_config};

/// A key, an invalid value, and what the message must contain.
type Wrong = (&'static str, Value, &'static [&'static str]);

#[track_caller]
fn refuse(table: Vec<Wrong>) {
    for (key, value, needles) in table {
        let tmp = tempfile::tempdir().unwrap();
        println!("{key} = {value}");
        is_refused(train(&tmp, |c| set(c, key, value.clone()), &[]), &tmp, needles);
    }
}

#[test]
fn unknown_keys_and_wrong_types() {
    refuse(vec![
        ("train.sed", 1.into(), &["train", "sed", "seed"]),
        ("optimiser.lr", 1e-3.into(), &["optimiser", "optimizer"]),
        ("data.trian", "x".into(), &["trian", "train"]),
        ("model.num_layers", 3.into(), &["num_layers", "num_hidden_layers"]),
        ("train.steps", "many".into(), &["steps", "many"]),
        ("train.steps", (-3).into(), &["steps", "-3"]),
        ("train.seq_length", 4.5.into(), &["seq_length", "4.5"]),
        ("optimizer.betas", vec![0.9].into(), &["betas"]),
        ("train.precision", "f16".into(), &["precision", "f16", "bf16"]),
        ("train.backend", "tpu".into(), &["backend", "tpu", "cpu"]),
        ("train.recompute", "some".into(), &["recompute", "some", "selective"]),
        ("optimizer.schedule", "cosin".into(), &["schedule", "cosin", "cosine"]),
        ("data.order", "random".into(), &["order", "random", "sequential"]),
    ]);
}

#[test]
fn impossible_sizes() {
    refuse(vec![
        ("train.micro_batch_size", 3.into(), &["global_batch_size", "8", "3"]),
        ("train.micro_batch_size", 0.into(), &["micro_batch_size", "0"]),
        ("train.global_batch_size", 0.into(), &["global_batch_size", "0"]),
        ("train.steps", 0.into(), &["steps", "0"]),
        ("train.seq_length", 161.into(), &["seq_length", "161", "160", "max_position_embeddings"]),
        ("train.seq_length", i64::MAX.into(), &["seq_length"]),
        ("train.global_batch_size", i64::MAX.into(), &["global_batch_size"]),
        ("model.num_attention_heads", 3.into(), &["num_attention_heads", "3"]),
        ("model.num_key_value_heads", 3.into(), &["num_key_value_heads", "3", "4"]),
        ("model.head_dim", 7.into(), &["head_dim", "7"]),
        ("model.hidden_size", 0.into(), &["hidden_size", "0"]),
        ("optimizer.betas", vec![0.9, 1.0].into(), &["betas", "1"]),
        ("optimizer.clip_grad", (-1.0).into(), &["clip_grad", "-1"]),
        ("optimizer.lr", f64::NAN.into(), &["lr", "nan"]),
        ("optimizer.min_lr", 0.5.into(), &["min_lr", "0.5"]),
        ("train.z_loss", (-0.1).into(), &["z_loss", "-0.1"]),
        ("data.split", "1,x,0".into(), &["split", "1,x,0"]),
        ("data.split", "0,0,0".into(), &["split", "0,0,0"]),
        ("data.train", Value::Array(vec![]), &["data.train"]),
    ]);
}

#[test]
fn features_that_are_not_built_are_refused_by_name() {
    refuse(vec![
        ("model.architecture", "gptj".into(), &["architecture", "gptj"]),
        ("model.sliding_window", 16.into(), &["sliding_window", "16"]),
        ("model.num_local_experts", 4.into(), &["num_local_experts", "4"]),
        ("parallel.context", 2.into(), &["context", "2"]),
        ("parallel.expert", 2.into(), &["expert", "2"]),
        ("parallel.order", "tp-dp".into(), &["order", "tp-dp"]),
    ]);
}

#[test]
fn paths_that_are_not_there() {
    let source =
        |prefix: &str| Value::from(vec![Value::from(Table::from_iter([("prefix".to_string(), prefix.into())]))]);
    refuse(vec![
        ("data.train", source("/nowhere/corpus"), &["/nowhere/corpus"]),
        ("data.valid", source("/nowhere/held-out"), &["/nowhere/held-out"]),
        ("model.hf", "/nowhere/model".into(), &["/nowhere/model"]),
        ("train.load", "hf:/nowhere/weights".into(), &["/nowhere/weights"]),
        ("train.load", "hub:meta/llama".into(), &["load", "hub:meta/llama", "hf:"]),
        ("checkpoint.dir", "/proc/nowhere/run".into(), &["/proc/nowhere/run"]),
    ]);
    let tmp = tempfile::tempdir().unwrap();
    let outcome = finish(engine().args(["train", "--config", "/nowhere/config.toml"]));
    is_refused(outcome, &tmp, &["/nowhere/config.toml"]);
}

#[test]
fn text_that_is_not_toml() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("bad.toml");
    for (text, needles) in [
        ("[model]\nhidden_size = = 4\n", &["bad.toml", "2"][..]),
        ("[train]\nsteps = 1\nsteps = 2\n", &["bad.toml", "steps"]),
        ("", &["bad.toml"]),
        ("[train]\nsteps = 99999999999999999999\n", &["bad.toml"]),
    ] {
        std::fs::write(&path, text).unwrap();
        is_refused(finish(engine().args(["train", "--config"]).arg(&path)), &tmp, needles);
    }
    std::fs::write(&path, b"[model]\narchitecture = \"\x93\xfa\"\n").unwrap();
    is_refused(finish(engine().args(["train", "--config"]).arg(&path)), &tmp, &["bad.toml"]);
}

#[test]
fn overrides_and_flags() {
    for (args, needles) in [
        (&["--set", "train.stepz=3"][..], &["stepz", "steps"][..]),
        (&["--set", "train.steps=abc"], &["steps", "abc"]),
        (&["--set", "nonsense"], &["nonsense", "KEY=VALUE"]),
        (&["--set", "train=3"], &["train"]),
        (&["--frobnicate"], &["--frobnicate"]),
        (&["--from-step", "7"], &["7"]),
        (&["--trace", "99", "--set", "train.steps=4"], &["--trace 99", "steps 1 to 4"]),
    ] {
        let tmp = tempfile::tempdir().unwrap();
        println!("{args:?}");
        is_refused(train(&tmp, |_| (), args), &tmp, needles);
    }
    finish(engine().arg("trian")).refused(2, &["trian"]);
    finish(&mut engine()).refused(2, &[]);
}

/// Under mpirun rank 0 reports for all, and all exit with its code.
#[test]
fn one_message_for_all_ranks() {
    for (key, value, needle) in [
        ("train.sed", Value::from(1), "sed"),
        ("train.micro_batch_size", 8.into(), "global_batch_size"), // 8 samples make one rank's micro-batch, not two
        ("train.seq_length", 161.into(), "max_position_embeddings"),
        ("train.load", "hf:/nowhere/weights".into(), "/nowhere/weights"),
    ] {
        let tmp = tempfile::tempdir().unwrap();
        let mut config = Case::open("mha_odd_vocab").config(&tmp.path().join("run"));
        set(&mut config, key, value);
        let config = write_config(tmp.path(), "config.toml", &config);
        let outcome = finish(mpirun(2).args(["train", "--config"]).arg(config)).refused(2, &[needle]);
        let lines = outcome.stderr.lines().filter(|l| l.contains(needle)).count();
        assert_eq!(lines, 1, "{}", outcome.stderr);
        assert!(!outcome.stderr.contains("MPI_ABORT") && !outcome.stderr.contains("Finalize"), "{}", outcome.stderr);
    }
}
