//! The `config.json` of an export.

use crate::config::names::Named;
use crate::config::{Model, Precision, RopeScaling};
use serde_json::{Map, Value, json};

/// The `config.json` of an export: the fields of `source` that the engine does not use, and those
/// that it does, in the spellings of transformers 4 and 5 side by side.
pub fn config_json(model: &Model, source: Option<Map<String, Value>>, dtype: Precision) -> Value {
    let mut out = source.unwrap_or_default();
    out.insert("model_type".into(), json!(model.architecture.name()));
    for (key, value) in [
        ("architectures", json!(["LlamaForCausalLM"])),
        ("hidden_act", json!("silu")),
        ("attention_bias", json!(false)),
        ("mlp_bias", json!(false)),
        ("attention_dropout", json!(0.0)),
    ] {
        if out.get(key).is_none_or(Value::is_null) {
            out.insert(key.into(), value);
        }
    }
    let dtype = match dtype {
        Precision::F32 => "float32",
        Precision::Bf16 => "bfloat16",
    };
    let scaling = rope_json(model.rope_scaling);
    let mut parameters = scaling.clone();
    parameters.insert("rope_theta".into(), json!(model.rope_theta));
    let stretched = model.rope_scaling != RopeScaling::Default;
    for (key, value) in [
        ("hidden_size", json!(model.hidden_size)),
        ("intermediate_size", json!(model.intermediate_size)),
        ("num_hidden_layers", json!(model.num_hidden_layers)),
        ("num_attention_heads", json!(model.num_attention_heads)),
        ("num_key_value_heads", json!(model.num_key_value_heads)),
        ("head_dim", json!(model.head_dim)),
        ("vocab_size", json!(model.vocab_size)),
        ("max_position_embeddings", json!(model.max_position_embeddings)),
        ("rms_norm_eps", json!(model.rms_norm_eps)),
        ("tie_word_embeddings", json!(model.tie_word_embeddings)),
        ("initializer_range", json!(model.initializer_range)),
        ("rope_theta", json!(model.rope_theta)),
        ("rope_scaling", if stretched { Value::Object(scaling) } else { Value::Null }),
        ("rope_parameters", Value::Object(parameters)),
        ("torch_dtype", json!(dtype)),
        ("dtype", json!(dtype)),
    ] {
        out.insert(key.into(), value);
    }
    // A Llama-3 file may carry it outside, where transformers prefers it.
    out.shift_remove("original_max_position_embeddings");
    Value::Object(out)
}

/// A `rope_scaling` object.
pub fn rope_json(scaling: RopeScaling) -> Map<String, Value> {
    let fields = match scaling {
        RopeScaling::Default => vec![("rope_type", json!("default"))],
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => vec![
            ("rope_type", json!("llama3")),
            ("factor", json!(factor)),
            ("low_freq_factor", json!(low_freq_factor)),
            ("high_freq_factor", json!(high_freq_factor)),
            ("original_max_position_embeddings", json!(original_max_position_embeddings)),
        ],
    };
    fields.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}
