//! Dense models become mixtures of experts from the command line, and are scored and trained.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::{Case, Outcome, checkout, engine, finish, metrics, set, write_config};

fn upcycle(model: &Path, output: &Path, more: &[&str]) -> Outcome {
    let mut command = engine();
    command.args(["checkpoint", "upcycle", "--model"]).arg(model).arg("--output").arg(output);
    finish(command.args(more))
}

/// Nats per token of a text.
fn loss(model: &Path, text: &Path) -> f64 {
    let said = finish(engine().args(["evaluate", "--model"]).arg(model).arg("--text").arg(text)).succeeded().stdout;
    let number = said.lines().flat_map(str::split_whitespace).find_map(|word| word.parse::<f64>().ok());
    number.unwrap_or_else(|| panic!("no number in {said}"))
}

/// A small Llama with a tokenizer, in `dir`.
fn llama(dir: &Path) -> PathBuf {
    let model = dir.join("dense");
    std::fs::create_dir(&model).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(Case::open("parity").dir.join("init").join(file), model.join(file)).unwrap();
    }
    let tokenizer = checkout().join("tests/golden/tokenizers/tokenizer.json");
    std::fs::copy(tokenizer, model.join("tokenizer.json")).unwrap();
    model
}

/// Copies compute what the dense model does, whichever experts the random router chooses, since its weights add up to
/// 1. With columns drawn anew they do not.
#[test]
fn copies_have_the_loss_of_the_dense_model() {
    let tmp = tempfile::tempdir().unwrap();
    let (model, text) = (llama(tmp.path()), tmp.path().join("text.txt"));
    std::fs::write(&text, "The cat sat on the mat. 東京で猫と会った。\n").unwrap();
    let dense = loss(&model, &text);
    let output = tmp.path().join("moe");
    for (experts, top_k) in [("4", "1"), ("4", "2"), ("3", "3")] {
        let said = upcycle(&model, &output, &["--experts", experts, "--top-k", top_k]).succeeded();
        // Embedding and output layer, five layers of attention, router, experts and two norms, and the last norm.
        let attention = 2 * 64 * 64 + 2 * 16 * 64;
        let of = |experts: usize, router: usize| {
            2 * 331 * 64 + 5 * (attention + router * 64 + experts * 3 * 48 * 64 + 2 * 64) + 64
        };
        let [n, k]: [usize; 2] = [experts, top_k].map(|number| number.parse().unwrap());
        let figures = format!("{} parameters in F32, {} of them active; {n} experts in each of 5", of(n, n), of(k, n));
        assert!(said.stdout.contains(&figures), "{} without {figures}", said.stdout);
        let sparse = loss(&output, &text);
        assert!((sparse - dense).abs() < 2e-6 * dense, "{top_k} of {experts} experts: {sparse}, dense {dense}");
    }
    let said = upcycle(&model, &output, &["--experts", "4", "--top-k", "2", "--reinit-ratio", "0.5"]).succeeded();
    assert!(said.stdout.contains("24 of 48 columns of each expert drawn anew"), "{}", said.stdout);
    let other = loss(&output, &text);
    assert!((other - dense).abs() > 1e-3 && other < 10.0, "{other}, dense {dense}");
}

/// The first step of each family has the loss that PyTorch computes for the dense model.
#[test]
fn every_family_trains_from_the_loss_of_the_dense_model() {
    for (name, experts, family) in [("parity", "2", "mixtral"), ("window", "4", "mixtral"), ("qwen3", "4", "qwen3_moe")]
    {
        let (tmp, case) = (tempfile::tempdir().unwrap(), Case::open(name));
        let (moe, run) = (tmp.path().join("moe"), tmp.path().join("run"));
        upcycle(&case.dir.join("init"), &moe, &["--experts", experts, "--top-k", "2", "--seed", "9"]).succeeded();
        let config: Value = serde_json::from_slice(&std::fs::read(moe.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["model_type"], family);
        let mut config = case.config(&run);
        set(&mut config, "model.hf", moe.to_str().unwrap());
        set(&mut config, "train.load", format!("hf:{}", moe.display()));
        let config = write_config(tmp.path(), "config.toml", &config);
        finish(engine().args(["train", "--config"]).arg(config)).succeeded();
        let [got, want] = [&metrics(&run)[0], &case.steps()[0]].map(|step| step["loss"].as_f64().unwrap());
        assert!((got - want).abs() < 5e-6 * want, "{name}: loss {got}, PyTorch's of the dense model {want}");
    }
}

#[test]
fn mistakes_are_named() {
    let tmp = tempfile::tempdir().unwrap();
    let (model, output) = (llama(tmp.path()), tmp.path().join("moe"));
    let refused = |model: &Path, more: &[&str], needles: &[&str]| {
        upcycle(model, &output, more).refused(2, needles);
        assert!(!output.exists(), "nothing is written");
    };
    refused(&model, &["--experts", "0", "--top-k", "1"], &["--experts 0", "1 ..= "]);
    refused(&model, &["--experts", "4", "--top-k", "5"], &["--top-k 5", "1 ..= 4"]);
    refused(&model, &["--experts", "4", "--top-k", "2", "--reinit-ratio", "-0.5"], &["--reinit-ratio -0.5"]);
    refused(&model, &["--experts", "4", "--top-k", "2", "--reinit-ratio", "NaN"], &["--reinit-ratio NaN"]);
    refused(&tmp.path().join("none"), &["--experts", "4", "--top-k", "2"], &["--model", "not a directory"]);
    let moe = Case::open("mixtral").dir.join("init");
    refused(&moe, &["--experts", "4", "--top-k", "2"], &["model_type = \"mixtral\"", "experts already"]);
}
