//! All ranks start from the same checkpoint, weights, data, program and environment. A rank that differs from rank 0
//! ends the run with one message that names it and its host, before the first step.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use toml::Table;

use crate::common::{
    Case, Outcome, checkout, engine, finish, metrics, mpirun_alone, program, set, write_config, write_tokens,
};

/// Two ranks that split the data.
const DATA: &str = "parallel.order=tp-cp-ep-dp-pp";

/// Two ranks, each with a directory of its own, to which the configuration's paths are relative.
struct Ranks {
    tmp: TempDir,
    config: Table,
}

impl Ranks {
    fn new() -> Ranks {
        let tmp = tempfile::tempdir().unwrap();
        let mut config = Case::open("parity").config(Path::new("run"));
        set(&mut config, "train.steps", 4);
        set(&mut config, "checkpoint.interval", 2);
        ["first", "second"].iter().for_each(|rank| std::fs::create_dir(tmp.path().join(rank)).unwrap());
        Ranks { tmp, config }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.tmp.path().join(path)
    }

    /// Trains on one rank in the directory `name`.
    fn train_alone(&self, name: &str, args: &[&str]) {
        std::fs::create_dir_all(self.path(name)).unwrap();
        let config = write_config(self.tmp.path(), "alone.toml", &self.config);
        let mut command = engine();
        command.current_dir(self.path(name)).args(["train", "--config"]).arg(config).args(args);
        finish(&mut command).succeeded();
    }

    /// Copies the run in `from` for the rank `to`, in place of what it has.
    fn give(&self, from: &str, to: &str) {
        std::fs::create_dir_all(self.path(to)).unwrap();
        let to = self.path(to).join("run");
        if to.exists() {
            std::fs::remove_dir_all(&to).unwrap();
        }
        assert!(Command::new("cp").arg("-r").args([self.path(from).join("run"), to]).status().unwrap().success());
    }

    fn set_latest(&self, rank: &str, step: u64) {
        std::fs::write(self.path(rank).join("run/checkpoints/latest"), format!("step-{step:08}\n")).unwrap();
    }

    /// Trains on two ranks: each with variables of its own and a program.
    fn start(&self, ranks: [(&[&str], &Path); 2], args: &[&str]) -> Outcome {
        let config = write_config(self.tmp.path(), "config.toml", &self.config);
        let mut command = mpirun_alone();
        for (name, (variables, program)) in ["first", "second"].into_iter().zip(ranks) {
            command.args([":"].iter().skip(usize::from(name == "first"))).args(["-n", "1", "--wdir"]);
            command.arg(self.path(name)).arg("env").args(variables).arg(program).args(["train", "--config"]);
            command.arg(&config).args(args);
        }
        finish(&mut command)
    }

    fn train(&self, args: &[&str]) -> Outcome {
        let program = program();
        self.start([(&[], &program), (&[], &program)], args)
    }
}

/// One message, which names rank 1 and its host and holds all of `needles`.
#[track_caller]
fn is_refused(outcome: Outcome, needles: &[&str]) {
    let outcome = outcome.refused(2, needles);
    let errors: Vec<&str> = outcome.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{}", outcome.stderr);
    assert!(errors[0].starts_with("error: rank 1 on "), "{}", outcome.stderr);
}

#[test]
fn ranks_do_not_continue_from_different_checkpoints() {
    let ranks = Ranks::new();
    are_refused_other_checkpoints(&ranks, &[DATA]);
    // A file system that is not mounted on one node.
    std::fs::remove_dir_all(ranks.path("second/run")).unwrap();
    is_refused(ranks.train(&[]), &["no checkpoint of step 4"]);
    ranks.give("base", "second");
    std::fs::remove_dir_all(ranks.path("first/run")).unwrap();
    is_refused(ranks.train(&[]), &["newest checkpoint is of step 4", "sees no checkpoint"]);
}

/// At each layout, ranks whose checkpoints differ are refused. Leaves one and the same run for both.
fn are_refused_other_checkpoints(ranks: &Ranks, layouts: &[&str]) {
    ranks.train_alone("base", &[]);
    ranks.train_alone("other", &["--set", "optimizer.lr=1e-4"]);
    ranks.give("base", "longer");
    ranks.train_alone("longer", &["--set", "train.steps=6"]);
    for layout in layouts {
        let refused = |needles: &[&str]| is_refused(ranks.train(&["--set", layout, "--set", "train.steps=6"]), needles);
        ranks.give("base", "first");
        // An outdated view that lacks the newest checkpoint.
        ranks.give("base", "second");
        std::fs::remove_dir_all(ranks.path("second/run/checkpoints/step-00000004")).unwrap();
        ranks.set_latest("second", 2);
        refused(&["no checkpoint of step 4", "from which rank 0 on ", "the same file system"]);
        // Another run's checkpoint under the same name.
        ranks.give("other", "second");
        refused(&["step 4 has another manifest.json than on rank 0 ("]);
        // Rank 0 is the one with the outdated view.
        ranks.give("longer", "second");
        refused(&["newest checkpoint is of step 6, but rank 0 on ", "sees step 4"]);
    }
}

/// Rank 0's flags hold for all ranks, so those of another rank would have no effect.
#[test]
fn ranks_are_not_started_with_different_flags() {
    let ranks = Ranks::new();
    let program = program();
    let wrapper = ranks.path("wrapper.sh");
    std::fs::write(&wrapper, format!("#!/bin/sh\nexec {} \"$@\" --set optimizer.lr=2e-3\n", program.display()))
        .unwrap();
    std::fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let outcome = ranks.start([(&[], &program), (&[], &wrapper)], &[]);
    is_refused(outcome, &["optimizer.lr=2e-3\", but rank 0 on ", "the same command line"]);
}

/// A network file system may serve an old `latest` for a while: the run continues from rank 0's checkpoint.
#[test]
fn an_outdated_latest_alone_changes_nothing() {
    continues_with_an_outdated_latest(&[DATA]);
}

fn continues_with_an_outdated_latest(layouts: &[&str]) {
    let ranks = Ranks::new();
    ranks.train_alone("base", &[]);
    for layout in layouts {
        // No saves, since the ranks' directories are not the same.
        let args = ["--set", layout, "--set", "train.steps=6"];
        let args = [&args[..], &["--set", "checkpoint.interval=0", "--set", "checkpoint.at_end=false"]].concat();
        let losses = |latest: u64| -> Vec<Value> {
            ["first", "second"].iter().for_each(|rank| ranks.give("base", rank));
            ranks.set_latest("second", latest);
            let outcome = ranks.train(&args).succeeded();
            assert!(outcome.stderr.contains("continuing run after step 4"), "{}", outcome.stderr);
            let steps = metrics(&ranks.path("first/run"));
            assert_eq!(steps.len(), 6);
            steps.iter().flat_map(|step| [step["loss"].clone(), step["grad_norm"].clone()]).collect()
        };
        assert_eq!(losses(2), losses(4), "{layout}");
    }
}

#[test]
fn ranks_do_not_train_on_different_data() {
    let mut ranks = Ranks::new();
    let source = Table::from_iter([("prefix".to_string(), "tokens".into())]);
    set(&mut ranks.config, "data.train", vec![toml::Value::from(source)]);
    set(&mut ranks.config, "train.eval_interval", 0);
    for (rank, token) in [("first", 3), ("second", 4)] {
        write_tokens(&ranks.path(rank).join("tokens"), &[(0..4000).map(|i| i * token % 100).collect()]);
    }
    is_refused(ranks.train(&[]), &["data.train[0].bin is ", "on rank 0 (", "the same data"]);
    assert!(!ranks.path("first/run").exists(), "nothing was written");
}

#[test]
fn ranks_do_not_start_from_different_weights() {
    let mut ranks = Ranks::new();
    set(&mut ranks.config, "model.hf", "init");
    set(&mut ranks.config, "train.load", "hf:init");
    for rank in ["first", "second"] {
        let from = Case::open("parity").dir.join("init");
        assert!(Command::new("cp").arg("-r").arg(from).arg(ranks.path(rank)).status().unwrap().success());
    }
    let file = ranks.path("second/init/model.safetensors");
    let mut weights = std::fs::read(&file).unwrap();
    *weights.last_mut().unwrap() ^= 1;
    std::fs::write(&file, weights).unwrap();
    is_refused(ranks.train(&[]), &["train.load = \"hf:init\": the files differ from those on rank 0 ("]);
}

/// A score of several models, or of texts cut by several tokenizers, would be none.
#[test]
fn ranks_do_not_evaluate_different_models() {
    let ranks = Ranks::new();
    for rank in ["first", "second"] {
        let (init, tokenizer) = (Case::open("parity").dir.join("init"), checkout().join("tests/golden/tokenizers"));
        assert!(Command::new("cp").arg("-r").arg(init).arg(ranks.path(rank)).status().unwrap().success());
        std::fs::copy(tokenizer.join("tokenizer.json"), ranks.path(rank).join("init/tokenizer.json")).unwrap();
        std::fs::write(ranks.path(rank).join("a.txt"), "Once upon a time.<|endoftext|>There was a cat.").unwrap();
    }
    let evaluate = || {
        let mut command = mpirun_alone();
        for rank in ["first", "second"] {
            command.args([":"].iter().skip(usize::from(rank == "first"))).args(["-n", "1", "--wdir"]);
            command.arg(ranks.path(rank)).arg(program()).args(["evaluate", "--model", "init", "--text", "a.txt"]);
        }
        finish(&mut command)
    };
    let change = |file: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let path = ranks.path("second/init").join(file);
        let whole = std::fs::read(&path).unwrap_or_default();
        let mut bytes = whole.clone();
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        (path, whole)
    };
    // Rank 0 reads the text for all.
    std::fs::write(ranks.path("second/a.txt"), "Another text.").unwrap();
    let said = evaluate().succeeded().stdout;
    assert!(said.contains("characters          33"), "{said}");
    let (path, whole) = change("model.safetensors", &|bytes| *bytes.last_mut().unwrap() ^= 1);
    is_refused(evaluate(), &["--model init: the files differ from those on rank 0 ("]);
    std::fs::write(path, whole).unwrap();
    let (path, whole) = change("tokenizer.json", &|bytes| bytes.push(b' '));
    is_refused(evaluate(), &["the tokenizer of --model init: the files differ from those on rank 0 ("]);
    std::fs::write(path, whole).unwrap();
    change("tokenizer_config.json", &|bytes| bytes.extend(b"{ \"bos_token\": null }"));
    is_refused(evaluate(), &["the tokenizer of --model init: "]);
}

/// Variables that change results must agree; paths, devices and node names may differ.
#[test]
fn ranks_do_not_run_in_different_environments() {
    let ranks = Ranks::new();
    let program = program();
    let train = |first: &[&str], second: &[&str]| ranks.start([(first, &program), (second, &program)], &[]);
    let values = ["NCCL_ALGO is \"Tree\"", "it is \"Ring\"", "mpirun -x NCCL_ALGO"];
    is_refused(train(&["NCCL_ALGO=Ring"], &["NCCL_ALGO=Tree"]), &values);
    is_refused(train(&[], &["NVIDIA_TF32_OVERRIDE=0"]), &["NVIDIA_TF32_OVERRIDE is \"0\"", "it is not set"]);
    std::fs::remove_dir(ranks.path("second")).unwrap();
    std::os::unix::fs::symlink(ranks.path("first"), ranks.path("second")).unwrap();
    train(&["NCCL_HOSTID=a", "CUDA_VISIBLE_DEVICES=0"], &["NCCL_HOSTID=b", "CUDA_VISIBLE_DEVICES=1"]).succeeded();
}

#[test]
fn ranks_do_not_run_different_programs() {
    let ranks = Ranks::new();
    let (program, other) = (program(), ranks.path("other-build"));
    let mut bytes = std::fs::read(&program).unwrap();
    // A note of type 3 holds the build ID.
    let note = [&3u32.to_le_bytes()[..], b"GNU\0"].concat();
    let at = bytes.windows(note.len()).position(|window| window == note).expect("the linker writes a build ID");
    bytes[at + note.len()] ^= 1;
    std::fs::write(&other, bytes).unwrap();
    let permissions = std::fs::metadata(&program).unwrap().permissions();
    std::fs::set_permissions(&other, permissions).unwrap();
    is_refused(ranks.start([(&[], &program), (&[], &other)], &[]), &["another build", "the same executable"]);
}

mod exhaustive {
    use super::*;

    /// Two ranks that split the tensors, or the layers.
    const MODEL: [&str; 2] = ["parallel.tensor=2", "parallel.pipeline=2"];

    #[test]
    fn ranks_that_split_the_model_do_not_continue_from_different_checkpoints() {
        are_refused_other_checkpoints(&Ranks::new(), &MODEL);
    }

    #[test]
    fn an_outdated_latest_changes_nothing_where_ranks_split_the_model() {
        continues_with_an_outdated_latest(&MODEL);
    }

    /// Shards that ranks save to directories of their own would never make a checkpoint.
    #[test]
    fn a_new_run_does_not_begin_where_ranks_have_directories_of_their_own() {
        let ranks = Ranks::new();
        is_refused(
            ranks.train(&[]),
            &["checkpoint.dir = run: this is not the directory of rank 0 on ", "same file system"],
        );
        assert!(!ranks.path("second/run").exists());
    }
}
