//! Tests that read `config.json` files of both spellings, check models and messages, and write the files back.

mod families;

use super::*;
use crate::config::{AttentionKind, Config, Linear, Llama3, Precision, RopeScaling};
use proptest::prelude::*;

/// Llama 2's file as transformers 4.31 wrote it, made small.
const FOUR: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
  "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 172, "max_position_embeddings": 512,
  "model_type": "llama", "num_attention_heads": 8, "num_hidden_layers": 5, "num_key_value_heads": 4,
  "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null, "tie_word_embeddings": false,
  "torch_dtype": "float16", "transformers_version": "4.31.0", "use_cache": true, "vocab_size": 512
}"#;

/// Llama 3.1's file as transformers 5.17 writes it, made small.
const FIVE: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1,
  "dtype": "float32", "eos_token_id": [2, 3], "head_dim": 16, "hidden_act": "silu", "hidden_size": 64,
  "initializer_range": 0.02, "intermediate_size": 172, "max_position_embeddings": 131072, "mlp_bias": false,
  "model_type": "llama", "num_attention_heads": 8, "num_hidden_layers": 5, "num_key_value_heads": 2,
  "pad_token_id": null, "rms_norm_eps": 1e-05, "rope_parameters": { "factor": 8.0, "high_freq_factor": 4.0,
  "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_theta": 500000.0, "rope_type": "llama3" },
  "tie_word_embeddings": true, "transformers_version": "5.17.0", "use_cache": true, "vocab_size": 512
}"#;

const LLAMA3: RopeScaling = RopeScaling::Llama3(Llama3 {
    factor: 8.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original_max_position_embeddings: 8192,
});

fn checkpoint(json: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), json).unwrap();
    dir
}

fn read(json: &str) -> Result<Model> {
    read_model(checkpoint(json.as_bytes()).path())
}

/// The type that the fields name.
fn dtype_of(fields: &Value) -> &Value {
    fields.get("dtype").unwrap_or(&fields["torch_dtype"])
}

/// `json` with `fields` set over it; null stays null.
fn with(json: &str, fields: Value) -> String {
    let mut object: Map<String, Value> = serde_json::from_str(json).unwrap();
    object.extend(fields.as_object().unwrap().clone());
    Value::Object(object).to_string()
}

#[test]
fn both_spellings_are_read() {
    let old = read(FOUR).unwrap();
    assert_eq!((old.architecture, old.hidden_size, old.head_dim, old.vocab_size), (Architecture::Llama, 64, 8, 512));
    assert_eq!((old.rope_theta, old.rope_scaling, old.tie_word_embeddings), (Some(1e4), RopeScaling::Default, false));
    let new = read(FIVE).unwrap();
    assert_eq!((new.num_key_value_heads, new.head_dim, new.tie_word_embeddings), (2, 16, true));
    assert_eq!((new.rope_theta, new.rope_scaling), (Some(500_000.0), LLAMA3));
    let scaling = json!({ "type": "llama3", "factor": 8, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192 });
    let old = read(&with(FOUR, json!({ "rope_theta": 500000, "rope_scaling": scaling }))).unwrap();
    assert_eq!((old.rope_theta, old.rope_scaling), (Some(500_000.0), LLAMA3));
    let beside = read(&with(FOUR, json!({ "rope_parameters": { "type": "default" }, "rope_theta": 7e5 }))).unwrap();
    assert_eq!((beside.rope_theta, beside.rope_scaling), (Some(7e5), RopeScaling::Default));
}

#[test]
fn what_is_left_out_or_null_is_transformers_default() {
    let nulls = json!({ "head_dim": null, "num_key_value_heads": null, "tie_word_embeddings": null,
        "rms_norm_eps": null, "max_position_embeddings": null, "initializer_range": null, "architectures": null,
        "rope_theta": null, "hidden_act": null, "attention_bias": null });
    let model = read(&with(FOUR, nulls)).unwrap();
    assert_eq!((model.head_dim, model.num_key_value_heads, model.tie_word_embeddings), (8, 8, false));
    assert_eq!((model.rms_norm_eps, model.max_position_embeddings, model.initializer_range), (Some(1e-6), 2048, 0.02));
    let scaling = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0 });
    let short = json!({ "rope_parameters": scaling });
    let RopeScaling::Llama3(scaling) = read(&with(FOUR, short)).unwrap().rope_scaling else { panic!("not llama3") };
    assert_eq!(scaling.original_max_position_embeddings, 512);
}

#[test]
fn a_window_that_is_left_out_is_4096_and_null_is_none() {
    let window = |fields: Value| {
        let mistral = json!({ "model_type": "mistral", "architectures": ["MistralForCausalLM"] });
        read(&with(&with(FOUR, mistral), fields)).unwrap()
    };
    assert_eq!(window(json!({})).sliding_window, Some(4096));
    assert_eq!(window(json!({ "sliding_window": null })).sliding_window, None);
    assert_eq!(window(json!({ "sliding_window": 7 })).layer(4).attention, AttentionKind::Window(7));
    assert_eq!(window(json!({ "num_key_value_heads": null })).num_key_value_heads, 8);
    let out = config_json(&window(json!({ "sliding_window": null })), None, Precision::F32);
    assert_eq!((&out["model_type"], out.get("sliding_window")), (&json!("mistral"), Some(&Value::Null)));
    // Llama's file has no such field; transformers ignores it there.
    let llama = read(&with(FOUR, json!({ "sliding_window": 7 }))).unwrap();
    assert_eq!(llama.layer(0).attention, AttentionKind::Full);
    assert_eq!(config_json(&llama, None, Precision::F32).get("sliding_window"), None);
}

#[test]
fn rotary_scalings_have_transformers_defaults() {
    let scaling = |fields: Value| read(&with(FOUR, json!({ "rope_parameters": fields }))).unwrap().rope_scaling;
    let linear = json!({ "rope_type": "linear", "factor": 2.5 });
    assert_eq!(scaling(linear), RopeScaling::Linear(Linear { factor: 2.5 }));
    let RopeScaling::Yarn(yarn) = scaling(json!({ "rope_type": "yarn", "original_max_position_embeddings": 64 }))
    else {
        panic!("not yarn")
    };
    assert_eq!((yarn.factor, yarn.beta_fast, yarn.beta_slow, yarn.truncate), (8.0, 32.0, 1.0, true));
    assert!((yarn.attention() - (0.1 * 8f64.ln() + 1.0)).abs() < 1e-12);
    let RopeScaling::Yarn(yarn) = scaling(json!({ "rope_type": "yarn", "factor": 4.0, "beta_fast": 0, "mscale": 0.5,
        "beta_slow": null, "mscale_all_dim": 2.0 }))
    else {
        panic!("not yarn")
    };
    assert_eq!((yarn.original_max_position_embeddings, yarn.beta_fast, yarn.beta_slow), (512, 32.0, 1.0));
    assert!((yarn.attention() - (0.05 * 4f64.ln() + 1.0) / (0.2 * 4f64.ln() + 1.0)).abs() < 1e-12);
    // Values that are not set are left out of the file.
    let model = read(&with(FOUR, json!({ "rope_parameters": { "rope_type": "yarn", "factor": 4.0 } }))).unwrap();
    let out = config_json(&model, None, Precision::F32);
    assert_eq!(out["rope_parameters"].get("mscale"), None);
    assert_eq!(out["rope_parameters"]["truncate"], true);
}

#[test]
fn features_that_the_engine_lacks_are_refused_by_name() {
    let cases = [
        (json!({ "hidden_act": "gelu" }), "hidden_act = \"gelu\": this activation is not supported; \"silu\" is"),
        (json!({ "model_type": "gptj" }), "model_type = \"gptj\": must be one of llama, mistral"),
        (json!({ "model_type": null }), "model_type is missing"),
        (json!({ "model_type": "mistral", "sliding_window": 0 }), "sliding_window = 0: must lie in 1 ..= "),
        (json!({ "architectures": ["LlamaForSequenceClassification"] }), "must hold \"LlamaForCausalLM\""),
        (json!({ "quantization_config": { "bits": 4 } }), "quantized weights are not supported"),
        (json!({ "partial_rotary_factor": 0.5 }), "partial rotary embedding is not supported"),
        (
            json!({ "rope_scaling": { "type": "dynamic", "factor": 2.0 } }),
            "rope_scaling.rope_type = \"dynamic\": this rotary embedding is not supported; \"default\", \"linear\", ",
        ),
        (
            json!({ "rope_scaling": { "type": "linear", "factor": 0.5 } }),
            "rope_scaling.factor = 0.5: must lie between 1",
        ),
        (json!({ "rope_scaling": { "type": "linear" } }), "rope_scaling.factor is missing"),
        (
            json!({ "rope_parameters": { "rope_type": "yarn", "factor": 2.0, "beta_slow": 40 } }),
            "rope_parameters.beta_slow = 40: must be below beta_fast (32)",
        ),
        (json!({ "rope_parameters": { "rope_type": "longrope" } }), "\"longrope\""),
        (
            json!({ "rope_parameters": { "partial_rotary_factor": 0.25 } }),
            "rope_parameters.partial_rotary_factor = 0.25",
        ),
        (json!({ "rope_parameters": 5 }), "rope_parameters = 5: must be an object"),
        (json!({ "rope_parameters": { "rope_theta": 5.0 }, "rope_theta": 6.0 }), "rope_theta = 6.0: is given twice"),
        (json!({ "rope_scaling": { "rope_type": "llama3" } }), "rope_scaling.factor is missing"),
        (json!({ "rope_theta": "big" }), "rope_theta = \"big\": must be a finite number"),
        (json!({ "hidden_size": 64.5 }), "hidden_size = 64.5: must be a whole number"),
        (json!({ "hidden_size": 1e300 }), "a whole number"),
        (json!({ "vocab_size": -1 }), "vocab_size = -1: must be a whole number"),
        (json!({ "vocab_size": 0 }), "vocab_size = 0: must lie in 1 ..= "),
        (json!({ "vocab_size": null }), "vocab_size is missing"),
        (json!({ "num_key_value_heads": 3 }), "num_key_value_heads = 3: must divide num_attention_heads (8)"),
    ];
    for (fields, want) in cases {
        let got = read(&with(FOUR, fields.clone())).expect_err(&fields.to_string());
        let message = got.to_string();
        assert!(got.exit_code() == 2 && message.contains(want), "{fields} said\n{message}\nwithout\n{want}");
        assert!(message.contains("config.json: "), "{message}");
    }
}

#[test]
fn an_export_reads_back_and_keeps_fields_that_the_engine_does_not_use() {
    for json in [FOUR, FIVE] {
        let source = checkpoint(json.as_bytes());
        let model = Model { hf: None, ..read_model(source.path()).unwrap() };
        let kept = read_source(source.path()).unwrap();
        for fields in [None, Some(kept.clone())] {
            let out = config_json(&model, fields.clone(), Precision::Bf16);
            assert_eq!(dtype_of(&out), "bfloat16");
            assert_eq!(Model { hf: None, ..read(&out.to_string()).unwrap() }, model);
            if fields.is_some() {
                assert_eq!(out["eos_token_id"], kept["eos_token_id"]);
                assert_eq!(out["transformers_version"], kept["transformers_version"]);
            }
        }
    }
}

/// A configuration with this `[model]` table and the other required keys.
fn config(dir: &Path, model: &str, load: &str) -> Result<Config> {
    let file = dir.join("a.toml");
    let rest = "[train]\nseq_length = 64\nglobal_batch_size = 2\nsteps = 3\n[optimizer]\nlr = 1e-3\n\
        [data]\ntrain = [ { prefix = \"p\" } ]\n[checkpoint]\ndir = \"run\"\n";
    std::fs::write(&file, format!("[model]\n{model}\n{rest}")).unwrap();
    Config::read(&file, &[format!("train.load={load}")])
}

#[test]
fn a_file_takes_its_model_from_a_checkpoint_and_overrides_it() {
    let dir = checkpoint(FIVE.as_bytes());
    let hf = format!("hf = \"{}\"", dir.path().display());
    let got = config(dir.path(), &hf, "random").unwrap();
    assert_eq!(got.model, read_model(dir.path()).unwrap());
    let more = format!("{hf}\nrope_scaling = {{ rope_type = \"default\" }}\nvocab_size = 600");
    let got = config(dir.path(), &more, "random").unwrap();
    assert_eq!(got.model.rope_scaling, RopeScaling::Default);
    assert_eq!((got.model.vocab_size, got.model.rope_theta), (600, Some(5e5)));
    let file = dir.path().join("resolved.toml");
    std::fs::write(&file, got.to_toml()).unwrap();
    assert_eq!(Config::read(&file, &[]).unwrap(), got);
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    assert_eq!(Config::from_resolved(&got.to_toml()).unwrap(), got);
    let message = config(dir.path(), &hf, "random").unwrap_err().to_string();
    assert!(message.contains("a.toml line 2: model.hf = ") && message.contains("no config.json"), "{message}");
}

#[test]
fn a_refused_value_of_a_checkpoint_names_the_checkpoint() {
    let dir = checkpoint(with(FOUR, json!({ "num_key_value_heads": 3 })).as_bytes());
    let hf = format!("hf = \"{}\"", dir.path().display());
    let message = config(dir.path(), &hf, "random").unwrap_err().to_string();
    assert!(message.contains("config.json: num_key_value_heads = 3"), "{message}");
    let message = config(dir.path(), &format!("{hf}\nnum_key_value_heads = 5"), "random").unwrap_err().to_string();
    assert!(message.contains("a.toml line 3: model.num_key_value_heads = 5"), "{message}");
}

#[test]
fn weights_of_another_shape_or_rotary_embedding_are_refused() {
    let dir = checkpoint(FIVE.as_bytes());
    let fitting = Model { hf: None, ..read_model(dir.path()).unwrap() };
    assert!(must_fit(&fitting, dir.path()).is_ok());
    let refusal = |model: &Model| must_fit(model, dir.path()).unwrap_err().to_string();
    let message = refusal(&Model { vocab_size: 600, ..fitting.clone() });
    assert!(message.contains("model.vocab_size = 600: ") && message.contains("has 512"), "{message}");
    let other = Model { rope_theta: Some(1e4), ..fitting.clone() };
    assert!(refusal(&other).contains("model.rope_theta = 10000.0: "));
    assert!(refusal(&Model { rope_scaling: RopeScaling::Default, ..fitting }).contains("model.rope_scaling = "));
    // The model was read from a checkpoint and overridden on purpose.
    assert!(must_fit(&Model { hf: Some(dir.path().into()), ..other }, dir.path()).is_ok());
}

/// An edit: its position, the number of bytes that are removed there, and the text that is inserted instead.
fn edit() -> impl Strategy<Value = (prop::sample::Index, usize, String)> {
    (any::<prop::sample::Index>(), 0usize..9, "[-0-9e.\\[\\]{}\",: a-z日]{0,4}")
}

proptest! {
    #[test]
    fn no_bytes_panic_the_reader(edits in prop::collection::vec(edit(), 1..4)) {
        for text in [FOUR, FIVE] {
            let mut bytes = text.as_bytes().to_vec();
            for (at, cut, piece) in &edits {
                let at = at.index(bytes.len());
                let end = (at + cut).min(bytes.len());
                bytes.splice(at..end, piece.bytes());
            }
            if let Err(e) = read_model(checkpoint(&bytes).path()) {
                prop_assert_eq!(e.exit_code(), 2);
            }
        }
    }

    #[test]
    fn no_value_panics_the_reader(key in any::<prop::sample::Index>(), value in prop_oneof![
        any::<i64>().prop_map(|n| json!(n)), Just(json!("x")), Just(json!([1])),
        prop::sample::select(vec![0.25, 1e-5, -1.0, 1e300, 3e-320]).prop_map(|x| json!(x)),
        Just(json!({ "rope_type": "llama3", "factor": 0 })), any::<u64>().prop_map(|n| json!(n)), Just(json!(true)),
    ]) {
        let object: Map<String, Value> = serde_json::from_str(FIVE).unwrap();
        let key = object.keys().nth(key.index(object.len())).unwrap();
        let mut fields = Map::new();
        fields.insert(key.clone(), value);
        if let Ok(model) = read(&with(FIVE, Value::Object(fields))) {
            let out = config_json(&model, None, Precision::F32).to_string();
            prop_assert_eq!(Model { hf: None, ..read(&out).unwrap() }, Model { hf: None, ..model });
        }
    }
}
