//! A real trained model, stories260K, with its tokenizer and real text. The files are not part of the project: these
//! tests look for them in `../shared/data`, and say that they are skipped where the files are missing.

use std::path::{Path, PathBuf};

use toml::Table;

use crate::common::{engine, finish, metrics, mpirun, read_tensors, set, write_config};

/// The paths of the model and the text, if both exist.
fn real_data() -> Option<(PathBuf, PathBuf)> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    let (model, text) = (data.join("stories260K/hf"), data.join("tinystories_sample/tinystories_sample.txt"));
    if model.exists() && text.exists() {
        return Some((model, text));
    }
    println!("skipped: no {} or no {}", model.display(), text.display());
    None
}

#[test]
fn stories_evaluate_to_the_published_loss() {
    let Some((model, text)) = real_data() else { return };
    let mut command = engine();
    command.arg("evaluate").arg("--model").arg(model).arg("--text").arg(text).args(["--separator", "<|endoftext|>"]);
    let said = finish(&mut command).succeeded().stdout.replace(',', "");
    assert!(said.contains("1.2664") && said.contains("1804"), "{said}");
}

#[test]
fn import_and_export_are_bit_for_bit() {
    let Some((model, _)) = real_data() else { return };
    let tmp = tempfile::tempdir().unwrap();
    let (run, out) = (tmp.path().join("run"), tmp.path().join("hf"));
    finish(engine().args(["checkpoint", "import", "--from"]).arg(&model).arg("--to").arg(&run)).succeeded();
    finish(engine().args(["checkpoint", "export", "--dtype", "f32", "--from"]).arg(&run).arg("--to").arg(&out))
        .succeeded();
    let [before, after] = [&model, &out].map(|dir| read_tensors(&dir.join("model.safetensors")));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (name, weights) in &before {
        let same = weights.iter().zip(&after[name]).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same && weights.len() == after[name].len(), "{name}");
    }
    let config = |dir: &Path| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap()
    };
    let (before, after) = (config(&model), config(&out));
    for (key, value) in before.as_object().unwrap() {
        assert_eq!(after.get(key), Some(value), "{key}");
    }
}

#[test]
fn it_continues_training_on_real_text() {
    let Some((model, text)) = real_data() else { return };
    let tmp = tempfile::tempdir().unwrap();
    let (prefix, run) = (tmp.path().join("stories"), tmp.path().join("run"));
    let mut tokenize = engine();
    tokenize
        .args(["data", "tokenize", "--bos", "--input"])
        .arg(text)
        .arg("--tokenizer")
        .arg(model.join("tokenizer.model"));
    finish(tokenize.arg("--output").arg(&prefix)).succeeded();

    let mut config = Table::new();
    set(&mut config, "model.hf", model.to_str().unwrap());
    for (key, value) in [("seq_length", 128), ("micro_batch_size", 2), ("global_batch_size", 4), ("steps", 30)] {
        set(&mut config, &format!("train.{key}"), value);
    }
    set(&mut config, "train.backend", "cpu");
    set(&mut config, "train.load", format!("hf:{}", model.display()));
    set(&mut config, "optimizer.lr", 1e-3);
    let source = Table::from_iter([("prefix".to_string(), prefix.to_str().unwrap().into())]);
    set(&mut config, "data.train", vec![toml::Value::from(source)]);
    set(&mut config, "checkpoint.dir", run.to_str().unwrap());
    let config = write_config(tmp.path(), "config.toml", &config);
    finish(mpirun(2).args(["train", "--config"]).arg(config)).succeeded();

    let losses = metrics(&run).iter().map(|m| m["loss"].as_f64().unwrap()).collect::<Vec<_>>();
    assert!(losses[0] < 2.5, "a trained model starts low: {losses:?}");
    assert!(losses[29] < losses[0] - 0.3, "it learns the text by heart: {losses:?}");
}
