//! Invalid Hugging Face checkpoints.

use std::path::PathBuf;

use engine::checkpoint::{AcceptedSteps, Header, Options, Piece, Position, Saver, Solo, StateKind};
use engine::config::hf;
use engine::model::param_specs::all_tensors;
use engine::model::rect::Rect;
use serde_json::{Value, json};

use super::{copy_dir, is_refused, train};
use crate::common::{Case, Outcome, engine, finish, set};

/// A copy of a valid checkpoint that a test may change.
struct Model(tempfile::TempDir);

impl Model {
    fn new() -> Model {
        let model = Model(tempfile::tempdir().unwrap());
        copy_dir(&Case::open("mha_odd_vocab").dir.join("init"), &model.0.path().join("hf"));
        model
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("hf").join(name)
    }

    fn train(&self) -> Outcome {
        let hf = self.path("");
        let change = |c: &mut toml::Table| {
            set(c, "model.hf", hf.to_str().unwrap());
            set(c, "train.load", format!("hf:{}", hf.display()));
        };
        train(&self.0, change, &[])
    }

    /// Training from it and importing it are refused.
    #[track_caller]
    fn is_refused(&self, needles: &[&str]) {
        is_refused(self.train(), &self.0, needles);
        let run = self.0.path().join("imported");
        finish(engine().args(["checkpoint", "import", "--from"]).arg(self.path("")).arg("--to").arg(&run))
            .refused(2, needles);
        assert!(!run.join("checkpoints/latest").exists());
    }
}

#[test]
fn weights_that_are_not_finite() {
    let model = Model::new();
    let mut bytes = std::fs::read(model.path("model.safetensors")).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(model.path("model.safetensors"), bytes).unwrap();
    model.is_refused(&["model.norm.weight: 1 value is not finite, the first is NaN in row 0, column"]);
}

/// A checkpoint whose files are as they were written, but with an infinity in a weight.
#[test]
fn a_checkpoint_of_weights_that_are_not_finite() {
    let tmp = tempfile::tempdir().unwrap();
    let (run, model) = (tmp.path().join("run"), hf::read_model(&Case::open("mha_odd_vocab").dir.join("init")).unwrap());
    let position = Position { step: 5, consumed_samples: 40 };
    let (config, identity) = (model.to_toml(), model.identity());
    let header = Header { position, config, identity, accepted: AcceptedSteps::default() };
    let pieces = all_tensors(&model).into_iter().map(|tensor| {
        let mut data = vec![0.5; tensor.len()];
        if tensor.name == "lm_head.weight" {
            data[3] = f32::INFINITY;
        }
        let (rect, kind) = (Rect::whole(tensor.shape()), StateKind::Master);
        Ok(Piece { name: tensor.name, dims: tensor.dims, rect, kind, data: data.into() })
    });
    Saver::new(&run, Options::default(), "a test".into()).save(&Solo, &header, pieces).unwrap();
    let what = "lm_head.weight: 1 value is not finite, the first is inf in row 0, column 3";
    let verified = finish(engine().args(["checkpoint", "verify"]).arg(&run));
    let verified = verified.refused(1, &["step-00000005: 1 tensor with values that are not finite", what]);
    assert!(verified.stdout.contains("pieces match their checksums\n") && verified.stdout.contains(what));
    let to = tmp.path().join("out");
    finish(engine().args(["checkpoint", "export", "--from"]).arg(&run).arg("--to").arg(&to)).refused(2, &[what]);
    assert!(!to.exists());
}

#[test]
fn configs_that_the_engine_does_not_have() {
    for (key, value, needles) in [
        ("hidden_act", json!("gelu"), &["config.json", "hidden_act", "gelu"][..]),
        ("attention_bias", json!(true), &["q_proj.bias and 7 more: missing"]),
        ("mlp_bias", json!(true), &["gate_proj.bias and 5 more: missing"]),
        ("num_experts", json!(8), &["config.json", "num_experts", "8"]),
        ("final_logit_softcapping", json!(30.0), &["config.json", "final_logit_softcapping", "30.0"]),
        ("rope_parameters", json!({"rope_type": "longrope", "rope_theta": 1e4}), &["config.json", "longrope"]),
        ("model_type", json!("gpt_neox"), &["config.json", "gpt_neox"]),
        ("hidden_size", json!("wide"), &["config.json", "hidden_size", "wide"]),
        ("hidden_size", json!(-4), &["config.json", "hidden_size", "-4"]),
        ("vocab_size", Value::Null, &["config.json", "vocab_size"]),
    ] {
        let model = Model::new();
        let mut config: Value = serde_json::from_slice(&std::fs::read(model.path("config.json")).unwrap()).unwrap();
        config[key] = value;
        std::fs::write(model.path("config.json"), config.to_string()).unwrap();
        println!("{key}");
        model.is_refused(needles);
    }
}

#[test]
fn a_config_that_is_not_json() {
    for text in ["", "{", "[]", "{\"hidden_size\": 40,}", "{\"hidden_size\": 1e999}"] {
        let model = Model::new();
        std::fs::write(model.path("config.json"), text).unwrap();
        println!("{text}");
        model.is_refused(&["config.json"]);
    }
}

/// The file begins with the length of a JSON header, which has the offsets of each tensor.
#[test]
fn broken_safetensors() {
    let whole = std::fs::read(Model::new().path("model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let length = |n: u64| [&n.to_le_bytes(), &whole[8..]].concat();
    let replaced = |from: &str, to: &str| {
        let json = String::from_utf8(whole[8..header].to_vec()).unwrap();
        assert!(json.contains(from), "no {from} in {json}");
        let json = json.replacen(from, to, 1);
        [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &whole[header..]].concat()
    };
    for (what, bytes, needle) in [
        ("empty", vec![], "model.safetensors"),
        ("cut header", whole[..100].to_vec(), "model.safetensors"),
        ("cut data", whole[..whole.len() - 4].to_vec(), "model.safetensors"),
        ("longer", [&whole[..], b"more"].concat(), "model.safetensors"),
        ("huge header", length(u64::MAX), "model.safetensors"),
        ("large header", length(1 << 40), "model.safetensors"),
        ("not a float", replaced("\"F32\"", "\"I32\""), "I32"),
        ("other name", replaced("\"model.norm.weight\"", "\"model.norm.w\""), "model.norm.w"),
        ("other shape", replaced("[131,40]", "[40,131]"), "131"),
    ] {
        let model = Model::new();
        std::fs::write(model.path("model.safetensors"), bytes).unwrap();
        println!("{what}");
        model.is_refused(&[needle]);
    }
}

#[test]
fn files_that_are_missing() {
    let model = Model::new();
    std::fs::remove_file(model.path("model.safetensors")).unwrap();
    model.is_refused(&["model.safetensors"]);
    std::fs::remove_file(model.path("config.json")).unwrap();
    model.is_refused(&["config.json"]);
}

#[test]
fn a_shape_that_differs_from_the_checkpoint() {
    let model = Model::new();
    let hf = format!("hf:{}", model.path("").display());
    let change = |c: &mut toml::Table| {
        set(c, "train.load", hf.clone());
        set(c, "model.vocab_size", 140);
    };
    is_refused(train(&model.0, change, &[]), &model.0, &["vocab_size", "131", "140"]);
}

#[test]
fn evaluating_and_exporting_missing_files() {
    let model = Model::new();
    let nowhere = "/nowhere/run";
    let out = model.0.path().join("out");
    finish(engine().args(["checkpoint", "export", "--from", nowhere, "--to"]).arg(&out)).refused(2, &[nowhere]);
    finish(engine().args(["checkpoint", "inspect", nowhere])).refused(2, &[nowhere]);
    finish(engine().args(["checkpoint", "verify", nowhere])).refused(2, &[nowhere]);
    let evaluate = |text: &str| finish(engine().args(["evaluate", "--text", text, "--model"]).arg(model.path("")));
    std::fs::write(model.path("some.txt"), "some text").unwrap();
    evaluate(model.path("some.txt").to_str().unwrap()).refused(2, &["tokenizer"]);
    let tokenizer = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizers/tokenizer.model");
    std::fs::copy(tokenizer, model.path("tokenizer.model")).unwrap();
    evaluate("/nowhere/text.txt").refused(2, &["/nowhere/text.txt"]);
}
