//! Stages of training and validation by name, in whole runs: a run gets a stage while it goes on, what was passed may
//! not change, and every validation set has its loss and its bits per byte.

use std::path::{Path, PathBuf};

use serde_json::Value;
use toml::{Table, Value as Toml};

use crate::common::{Case, Outcome, checkout, engine, export, finish, metrics, mpirun, set, write_config};

/// A golden case in two stages, the second from step 6 on, at a rate that does not depend on the number of steps.
fn config(run: &Path) -> Table {
    let mut config = Case::open("two_stages").config(run);
    set(&mut config, "optimizer.schedule", "constant");
    set(&mut config, "train.eval_interval", 3);
    set(&mut config, "train.eval_steps", 1);
    set(&mut config, "checkpoint.interval", 2);
    config
}

fn stage(config: &mut Table, i: usize) -> &mut Table {
    config["data"]["stage"].as_array_mut().unwrap()[i].as_table_mut().unwrap()
}

/// The same with the first stage alone, as `data.train`.
fn first_stage_alone(run: &Path) -> Table {
    let mut config = config(run);
    let train = stage(&mut config, 0)["train"].clone();
    set(&mut config, "data.train", train);
    config["data"].as_table_mut().unwrap().remove("stage");
    config
}

fn run(folder: &Path, command: &[&str], config: &Table) -> Outcome {
    let path = write_config(folder, "config.toml", config);
    finish(engine().args(command).arg("--config").arg(path))
}

/// The lines of a run without its times.
fn lines(run: &Path) -> Vec<Vec<Value>> {
    let keys = ["step", "loss", "grad_norm", "valid_loss", "valid", "consumed_samples"];
    metrics(run).iter().map(|line| keys.map(|key| line.get(key).cloned().unwrap_or_default()).into()).collect()
}

#[test]
fn a_stage_is_appended_and_passed_ones_stay() {
    let tmp = tempfile::tempdir().unwrap();
    let [whole, grown] = ["whole", "grown"].map(|name| tmp.path().join(name));
    run(tmp.path(), &["train"], &config(&whole)).succeeded();

    let mut begun = first_stage_alone(&grown);
    set(&mut begun, "train.steps", 5);
    run(tmp.path(), &["train"], &begun).succeeded();
    // The checkpoint of step 4 is inside the first stage; the border is crossed after it.
    let outcome = run(tmp.path(), &["train", "--from-step", "4"], &config(&grown)).succeeded();
    assert!(!outcome.stderr.contains("in another order"), "{}", outcome.stderr);
    assert_eq!(lines(&whole), lines(&grown));
    assert!(export(&whole, &tmp.path().join("a")) == export(&grown, &tmp.path().join("b")), "the weights differ");

    let change = |what: &dyn Fn(&mut Table), args: &[&str]| {
        let mut config = config(&grown);
        set(&mut config, "train.steps", 14);
        what(&mut config);
        run(tmp.path(), &[&["train"], args].concat(), &config)
    };
    let other_end = |config: &mut Table| _ = stage(config, 0).insert("until_step".into(), 4.into());
    change(&other_end, &[]).refused(2, &["data.stage[0].until_step: was 5, is now 4", "--accept-data-change"]);
    let other_weight = |config: &mut Table| {
        let train = stage(config, 0)["train"].as_array_mut().unwrap();
        train[1]["weight"] = Toml::from(0.7);
    };
    change(&other_weight, &[]).refused(2, &["data.stage[0].train[0].weight: was 0.7, is now 0.5"]);
    let no_stages = |config: &mut Table| *config = first_stage_alone(&grown);
    change(&no_stages, &[]).refused(2, &["data.stage[0].until_step: was 5, is now absent"]);
    let third = |config: &mut Table| {
        stage(config, 1).insert("until_step".into(), 20.into());
        let train = stage(config, 0)["train"].clone();
        let third = Toml::from(Table::from_iter([("train".to_string(), train)]));
        config["data"]["stage"].as_array_mut().unwrap().push(third);
    };
    let outcome = change(&third, &[]).succeeded();
    assert!(outcome.stderr.contains("note: data.stage[2] begins after step 20, and train.steps = 14"), "{outcome:?}");
    change(&other_end, &["--accept-data-change"]).succeeded();
}

#[test]
fn stages_are_shown_before_a_run() {
    let tmp = tempfile::tempdir().unwrap();
    let mut config = config(&tmp.path().join("run"));
    let shown = run(tmp.path(), &["data", "preview"], &config).succeeded().stdout;
    for needle in ["stage 0: steps 1 to 5", "stage 1: steps 6 to 12", "all stages", "valid_ja", "two_stages/code"] {
        assert!(shown.contains(needle), "{needle}: {shown}");
    }
    let samples = run(tmp.path(), &["data", "preview", "--samples", "41"], &config).succeeded().stdout;
    let last: Value = serde_json::from_str(samples.lines().last().unwrap()).unwrap();
    assert_eq!((&last["source"], &last["name"]), (&"data.stage[1].train[1]".into(), &"ja".into()));
    let shown = run(tmp.path(), &["train", "--dry-run"], &config).succeeded().stdout;
    for needle in ["data.stage[0]: steps 1 to 5, from ", "data.stage[1]: steps 6 to 12, from "] {
        assert!(shown.contains(needle), "{needle}: {shown}");
    }
    stage(&mut config, 0)["train"][0].as_table_mut().unwrap().insert("max_epochs".into(), 0.5.into());
    for command in [&["train"][..], &["data", "preview"]] {
        run(tmp.path(), command, &config)
            .refused(2, &["data.stage[0].train[0].max_epochs = 0.5", "the run takes 68 samples", "epochs"]);
    }
}

/// Tokenizes a text as a validation set.
fn tokenized(folder: &Path, name: &str, text: &str) -> PathBuf {
    let (input, output) = (folder.join(format!("{name}.txt")), folder.join(name));
    std::fs::write(&input, text).unwrap();
    let tokenizer = checkout().join("tests/golden/tokenizers/tokenizer.json");
    let mut command = engine();
    command.args(["data", "tokenize", "--input"]).arg(input).arg("--tokenizer").arg(tokenizer);
    finish(command.args(["--eos", "--output"]).arg(&output)).succeeded();
    output
}

/// Bits per byte are those of the targets' text, on one rank and on more: the counts are exact.
#[test]
fn every_set_has_its_loss_and_its_bits_per_byte() {
    let tmp = tempfile::tempdir().unwrap();
    let text = |words: &str| words.repeat(60);
    let sets = [("en", "Once upon a time there was a cat. "), ("ja", "むかしむかし、猫がいた。")];
    let sets = sets.map(|(name, words)| (name, tokenized(tmp.path(), name, &text(words))));
    let valid: Vec<Toml> = sets
        .iter()
        .map(|(_, prefix)| Table::from_iter([("prefix".to_string(), prefix.to_str().unwrap().into())]).into())
        .collect();
    let trained = |name: &str, sets: &[Toml], ranks: usize| {
        let run = tmp.path().join(name);
        let mut config = Case::open("parity").config(&run);
        for (key, value) in [("steps", 2), ("eval_interval", 1), ("eval_steps", 2), ("micro_batch_size", 4)] {
            set(&mut config, &format!("train.{key}"), value);
        }
        set(&mut config, "data.valid", sets.to_vec());
        if ranks == 4 {
            set(&mut config, "parallel.tensor", 2);
        }
        let path = write_config(tmp.path(), &format!("{name}.toml"), &config);
        let outcome = finish(mpirun(ranks).args(["train", "--config"]).arg(&path)).succeeded();
        (metrics(&run), outcome.stdout, path)
    };
    let (lines, shown, config) = trained("one", &valid, 1);
    let (more, _, _) = trained("four", &valid, 4);
    let number = |value: &Value| value.as_f64().unwrap();
    for (line, more) in lines.iter().zip(&more) {
        let mut nats = 0.0;
        for (i, (name, _)) in sets.iter().enumerate() {
            let set = &line["valid"][*name];
            assert_eq!(set["loss_tokens"], 2 * 16 * 32);
            // The targets of this validation, in the order of the samples, and the length of their text.
            let step = line["step"].as_u64().unwrap() as usize;
            let samples = finish(
                engine().args(["data", "preview", "--split", "valid", "--samples", "96", "--config"]).arg(&config),
            );
            let of_set = |line: &&str| line.contains(&format!("\"source\":\"data.valid[{i}]\""));
            let samples = samples.succeeded().stdout;
            let samples = samples.lines().filter(of_set).skip((step - 1) * 32).take(32);
            let bytes: usize = samples.map(|line| text_of(&serde_json::from_str::<Value>(line).unwrap()["ids"])).sum();
            let want = number(&set["loss"]) * 1024.0 / std::f64::consts::LN_2 / bytes as f64;
            assert!((number(&set["bits_per_byte"]) / want - 1.0).abs() < 1e-12, "{name}: {set} {bytes}");
            for (key, bound) in [("loss", 1e-5), ("bits_per_byte", 1e-5), ("loss_tokens", 1e-12)] {
                let off = number(&set[key]) / number(&more["valid"][*name][key]) - 1.0;
                assert!(off.abs() < bound, "{name}, {key}: {set} {more}");
            }
            nats += number(&set["loss"]) * 1024.0;
        }
        assert!((number(&line["valid_loss"]) - nats / 2048.0).abs() < 1e-12);
    }
    assert!(shown.contains(" (en ") && shown.contains(" bits/byte, ja "), "{shown}");

    // A set has the same loss alone, bit for bit, as its only one.
    let (alone, ..) = trained("alone", &valid[1..], 1);
    for (line, alone) in lines.iter().zip(&alone) {
        assert_eq!((&alone["valid"]["ja"], &alone["valid_loss"]), (&line["valid"]["ja"], &line["valid"]["ja"]["loss"]));
    }
    let mut report = engine();
    finish(report.arg("report").arg(tmp.path().join("one"))).succeeded();
    let page = std::fs::read_to_string(tmp.path().join("one/efficiency.html")).unwrap();
    assert!(page.contains("Validation by set") && page.contains("Bits per byte"));
}

/// The bytes of the text of all ids but the first: a byte-level piece spells a byte with each of its characters.
fn text_of(ids: &Value) -> usize {
    let file = checkout().join("tests/golden/tokenizers/tokenizer.json");
    let tokenizer: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let special = |id: u64| tokenizer["added_tokens"].as_array().unwrap().iter().any(|token| token["id"] == id);
    let vocab = tokenizer["model"]["vocab"].as_object().unwrap();
    let piece = |id: u64| vocab.iter().find(|(_, of)| **of == id).unwrap().0.chars().count();
    let targets = ids.as_array().unwrap()[1..].iter().map(|id| id.as_u64().unwrap());
    targets.map(|id| if special(id) { 0 } else { piece(id) }).sum()
}
