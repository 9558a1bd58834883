//! The samples of a step: shown by `data inspect --step`, and left out of the loss by `spike.skip`.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;
use toml::Table;

use crate::common::{Case, Outcome, checkout, engine, finish, metrics, set, write_config};

/// A folder with a run of two steps of two samples on a text and on masked, packed pairs.
struct Desk {
    tmp: TempDir,
    config: PathBuf,
}

impl Desk {
    fn new(order: &str) -> Desk {
        let tmp = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(tmp.path().join(name), text).unwrap();
            tmp.path().join(name)
        };
        let text = file("a.txt", &"Once upon a time there was a cat. ".repeat(20));
        let pairs = file("p.jsonl", &"{\"ja\": \"a\", \"en\": \"cat\"}\n".repeat(8));
        let template = file("t.txt", "JA: {A}\nEN: {B}!\n");
        let flags = ["--pairs", "--pair-keys", "ja,en", "--direction", "ja-en", "--template"].map(Path::new);
        let flags = [&flags[..1], &[&*pairs], &flags[1..], &[&*template]].concat();
        tokenize(tmp.path(), &[Path::new("--input"), &text], "text");
        tokenize(tmp.path(), &flags, "pairs");
        let mut config = Case::open("parity").config(&tmp.path().join("run"));
        let source = |name: &str| {
            let prefix = tmp.path().join(name).to_str().unwrap().to_string();
            let keys = [("prefix", prefix.into()), ("weight", 1.0.into()), ("pack", (name == "pairs").into())];
            toml::Value::from(Table::from_iter(keys.map(|(key, value): (_, toml::Value)| (key.to_string(), value))))
        };
        set(&mut config, "data.train", vec![source("text"), source("pairs")]);
        set(&mut config, "data.order", order);
        set(&mut config, "train.global_batch_size", 2);
        set(&mut config, "train.steps", 2);
        set(&mut config, "data.allow_mixed_tokenizers", true);
        let config = write_config(tmp.path(), "config.toml", &config);
        Desk { tmp, config }
    }

    fn run(&self, command: &[&str], more: &[&str]) -> Outcome {
        finish(engine().current_dir(self.tmp.path()).args(command).arg("--config").arg(&self.config).args(more))
    }

    fn inspect(&self, step: &str, more: &[&str]) -> Outcome {
        self.run(&["data", "inspect", "--step", step], more)
    }
}

fn tokenize(folder: &Path, records: &[&Path], output: &str) {
    let tokenizer = checkout().join("tests/golden/tokenizers/tokenizer.json");
    let mut command = engine();
    command.args(["data", "tokenize"]).args(records).arg("--tokenizer").arg(tokenizer);
    finish(command.arg("--output").arg(folder.join(output))).succeeded();
}

/// Each sample of a step has the place that `data preview` gives it.
#[test]
fn a_step_shows_its_samples() {
    for order in ["megatron", "sequential"] {
        let desk = Desk::new(order);
        let said = desk.inspect("2", &[]).succeeded().stdout;
        assert!(said.starts_with("step 2 of 2: samples 2 to 3\n\nsample 2: "), "{said}");
        let preview = desk.run(&["data", "preview", "--samples", "4"], &[]).succeeded().stdout;
        let samples: Vec<Value> = preview.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let shown: Vec<&str> = said.split("\nsample ").skip(1).collect();
        assert_eq!(shown.len(), 2, "{said}");
        for (sample, shown) in samples[2..].iter().zip(shown) {
            let name = sample["name"].as_str().unwrap();
            assert!(shown.starts_with(&format!("{}: {name} (", sample["sample"])), "{shown}");
            for piece in sample["pieces"].as_array().unwrap() {
                let [document, offset, count] = [0, 1, 2].map(|i| piece[i].as_u64().unwrap());
                let line = format!("  document {document}, tokens {offset}..{}:", offset + count);
                assert!(shown.contains(&line), "no {line} in {shown}");
            }
            match name {
                "text" => assert!(shown.contains("32 of 32 targets count in the loss\n") && shown.contains(" cat. ")),
                _ => assert!(shown.contains("    [----] 0..") && shown.contains(": \"cat\"\n"), "{shown}"),
            }
        }
    }
    let desk = Desk::new("sequential");
    let short = desk.inspect("1", &["--tokens", "1", "--set", "spike.skip=[[0, 1]]"]).succeeded().stdout;
    assert!(short.contains("0 of 32 targets count in the loss, left out by spike.skip\n"), "{short}");
    assert!(short.lines().all(|line| line.len() < 200), "{short}");
    for step in ["0", "3"] {
        desk.inspect(step, &[]).refused(2, &[&format!("--step {step}: "), "1 to 2 (train.steps)"]);
    }
    desk.inspect("1", &["text"]).refused(2, &["[PREFIX]", "cannot be used with", "--step"]);
    finish(engine().args(["data", "inspect", "--step", "1"])).refused(2, &["--config"]);
    finish(engine().args(["data", "inspect"])).refused(2, &["PREFIX"]);
}

/// The samples of the run go on in their order, and the ranges may change where it continues.
#[test]
fn skipped_samples_are_left_out_of_the_loss() {
    let desk = Desk::new("sequential");
    let train = |more: &[&str]| desk.run(&["train"], more).succeeded();
    train(&["--set", "checkpoint.dir=plain", "--set", "train.steps=3"]);
    let said = train(&["--set", "spike.skip=[[2, 3], [4, 900]]"]).stderr;
    assert!(said.contains("spike.skip: the targets of 1 of the 4 samples of this run do not count"), "{said}");
    train(&["--set", "spike.skip=[[3, 6]]", "--set", "train.steps=3"]);
    let (plain, skipped) = (metrics(&desk.tmp.path().join("plain")), metrics(&desk.tmp.path().join("run")));
    let column = |run: &[Value], key: &str| run.iter().map(|step| step[key].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(column(&plain, "tokens"), column(&skipped, "tokens"));
    assert_eq!(column(&plain, "consumed_samples"), column(&skipped, "consumed_samples"));
    assert_eq!(plain[0]["loss"], skipped[0]["loss"]);
    let counted = [column(&plain, "loss_tokens"), column(&skipped, "loss_tokens")];
    // Sample 2 is one of the text, with 32 targets; all of the third step are skipped.
    assert_eq!(counted[1], [counted[0][0], counted[0][1] - 32, 0]);
    assert_ne!(plain[1]["loss"], skipped[1]["loss"]);
}
