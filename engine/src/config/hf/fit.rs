//! Does a checkpoint fit the model that is to start from it?

use super::export::rope_json;
use super::{file, read_model};
use crate::config::Model;
use crate::error::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// Can `model` start from the checkpoint in `dir`? An error names the first field that differs. What only changes the computation may differ where the model was itself read
/// from a checkpoint (`hf = "DIR"`): then it was overridden on purpose.
pub fn must_fit(model: &Model, dir: &Path) -> Result<()> {
    let theirs = read_model(dir)?;
    let shape = |m: &Model| {
        [
            ("hidden_size", m.hidden_size.to_string()),
            ("intermediate_size", m.intermediate_size.to_string()),
            ("num_hidden_layers", m.num_hidden_layers.to_string()),
            ("num_attention_heads", m.num_attention_heads.to_string()),
            ("num_key_value_heads", m.num_key_value_heads.to_string()),
            ("head_dim", m.head_dim.to_string()),
            ("vocab_size", m.vocab_size.to_string()),
            ("tie_word_embeddings", m.tie_word_embeddings.to_string()),
        ]
    };
    let differs = |key: &str, ours: String, theirs: String| {
        Err(Error::user(format!(
            "model.{key} = {ours}: {}, which train.load names, has {theirs}; write hf = \"{}\" in [model], or load another",
            file(dir),
            dir.display()
        )))
    };
    for ((key, ours), (_, theirs)) in shape(model).into_iter().zip(shape(&theirs)) {
        if ours != theirs {
            return differs(key, ours, theirs);
        }
    }
    if model.hf.is_some() {
        return Ok(());
    }
    if model.rope_scaling != theirs.rope_scaling {
        let words = |scaling| Value::Object(rope_json(scaling)).to_string();
        return differs("rope_scaling", words(model.rope_scaling), words(theirs.rope_scaling));
    }
    let numbers = [
        ("rope_theta", model.rope_theta, theirs.rope_theta),
        ("rms_norm_eps", model.rms_norm_eps, theirs.rms_norm_eps),
    ];
    // serde_json may read the last digit of a long number differently from toml.
    match numbers.into_iter().find(|(_, ours, theirs)| (ours - theirs).abs() > 1e-12 * theirs) {
        Some((key, ours, theirs)) => differs(key, ours.to_string(), theirs.to_string()),
        None => Ok(()),
    }
}
