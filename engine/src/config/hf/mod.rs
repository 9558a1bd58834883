//! A Hugging Face checkpoint's `config.json`, in the spellings of transformers 4 and 5: read into
//! the form of a `[model]` table. Features that the engine lacks are refused by name. Writing it is
//! [`export`]'s; weights are not here.

mod export;
mod fit;
#[cfg(test)]
mod tests;

pub use export::config_json;
pub use fit::must_fit;

use super::origins::{Origins, join, shorten};
use super::raw::{Raw, RawRope, Read};
use super::{Model, model, unbuilt};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// What `LlamaConfig` takes where the file is silent; the sizes themselves have to be there.
const DEFAULTS: [(&str, f64); 2] = [("rms_norm_eps", 1e-6), ("initializer_range", 0.02)];
const LENGTH: (&str, i64) = ("max_position_embeddings", 2048);
/// Fields that mean the same in a `[model]` table.
const SHARED: [&str; 11] = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "initializer_range",
];

/// The shape of the checkpoint in `dir`.
pub fn read_model(dir: &Path) -> Result<Model> {
    let (mut table, at) = model_table(dir)?;
    table.insert("hf".into(), dir.display().to_string().into());
    let raw = Raw::read(&toml::Table::from_iter([("model".to_string(), table.into())]).into(), "", &at)?;
    unbuilt::refuse(&raw, &at)?;
    model::validate(raw.model.expect("it was just put in"), &at)
}

/// All fields of `dir/config.json`, as they stand.
pub fn read_source(dir: &Path) -> Result<Map<String, Value>> {
    let path = dir.join("config.json");
    let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::user(format!("{}: not a JSON object: {e}", path.display())))
}

/// `dir/config.json` in the form of a `[model]` table, and where each of its keys stands.
pub fn model_table(dir: &Path) -> Result<(toml::Table, Origins)> {
    let mut source = read_source(dir)?;
    // A null is the same as nothing.
    source.retain(|_, value| !value.is_null());
    let reader = Reader { file: file(dir), source: &source };
    reader.refuse_the_unknown()?;
    let mut at = Origins::new(file(dir));
    for key in SHARED.iter().chain(&["rope_theta"]) {
        at.put(&join("model", key), reader.label(key));
    }
    at.put("model.architecture", reader.label("model_type"));
    let mut table = toml::Table::new();
    table.insert("architecture".into(), reader.architecture()?.into());
    for (key, value) in SHARED.iter().filter_map(|&key| Some((key, source.get(key)?))) {
        table.insert(key.into(), reader.toml(key, value)?);
    }
    for (key, value) in DEFAULTS {
        table.entry(key).or_insert(value.into());
    }
    table.entry(LENGTH.0).or_insert(LENGTH.1.into());
    let rope = reader.rope()?;
    table.insert("rope_theta".into(), reader.toml("rope_theta", &rope.theta)?);
    at.put("model.rope_scaling", reader.label(rope.name));
    for key in RawRope::KEYS {
        at.put(&format!("model.rope_scaling.{key}"), reader.label(&join(rope.name, key)));
    }
    table.insert("rope_scaling".into(), rope.scaling.into());
    Ok((table, at))
}

/// The name of `dir`'s file in messages.
fn file(dir: &Path) -> String {
    dir.join("config.json").display().to_string()
}

/// The rotary embedding's fields, whichever way they were spelled.
struct Rope {
    theta: Value,
    scaling: toml::Table,
    /// The field that held the scaling.
    name: &'static str,
}

struct Reader<'a> {
    file: String,
    /// Without nulls.
    source: &'a Map<String, Value>,
}

impl Reader<'_> {
    fn label(&self, key: &str) -> String {
        format!("{}: {key}", self.file)
    }

    fn bad(&self, key: &str, value: &Value, remedy: &str) -> Error {
        Error::user(format!("{} = {}: {remedy}", self.label(key), shorten(&value.to_string())))
    }

    /// Features that change what the model computes and that the engine does not have.
    fn refuse_the_unknown(&self) -> Result<()> {
        let off = [json!(false), json!(0), json!(0.0)];
        let plain: [(&str, &[Value], &str); 6] = [
            ("attention_bias", &off, "biases are not supported; only false is"),
            ("mlp_bias", &off, "biases are not supported; only false is"),
            ("attention_dropout", &off, "dropout is not supported; only 0.0 is"),
            ("hidden_act", &[json!("silu"), json!("swish")], "this activation is not supported; \"silu\" is"),
            ("partial_rotary_factor", &[json!(1.0), json!(1)], "partial rotary embedding is not supported; 1.0 is"),
            ("quantization_config", &[], "quantized weights are not supported; use the original checkpoint"),
        ];
        for (key, allowed, remedy) in plain {
            if let Some(value) = self.source.get(key)
                && !allowed.contains(value)
            {
                return Err(self.bad(key, value, remedy));
            }
        }
        let classes = self.source.get("architectures").and_then(Value::as_array);
        let language_model = |class: &Value| class.as_str().is_some_and(|name| name.ends_with("ForCausalLM"));
        match classes {
            Some(classes) if !classes.iter().any(language_model) => {
                Err(self.bad("architectures", &json!(classes), "must hold \"LlamaForCausalLM\""))
            }
            _ => Ok(()),
        }
    }

    fn architecture(&self) -> Result<String> {
        let known = ["llama", "mistral", "mixtral"];
        match self.source.get("model_type") {
            Some(Value::String(name)) if known.contains(&name.as_str()) => Ok(name.clone()),
            Some(other) => Err(self.bad("model_type", other, "this architecture is not supported; \"llama\" is")),
            None => Err(Error::user(format!("{} is missing: a Llama has \"llama\"", self.label("model_type")))),
        }
    }

    /// A number or a truth as TOML has it.
    fn toml(&self, key: &str, value: &Value) -> Result<toml::Value> {
        let float = || value.as_f64().map(toml::Value::Float);
        let number = value.as_i64().map(toml::Value::Integer).or_else(float);
        let plain = number.or(value.as_bool().map(toml::Value::Boolean));
        plain.ok_or_else(|| self.bad(key, value, "a number (or true, false) is needed"))
    }

    /// `rope_theta` and `rope_scaling` side by side (4.x), or both within `rope_parameters` (5.x).
    fn rope(&self) -> Result<Rope> {
        let old = self.rope_table("rope_scaling")?;
        let new = self.rope_table("rope_parameters")?;
        let theta = |table: Option<&Map<String, Value>>| table.and_then(|table| table.get("rope_theta")).cloned();
        let thetas = [theta(new), theta(old), self.source.get("rope_theta").cloned()];
        let theta = self.agreed("rope_theta", thetas)?.unwrap_or(json!(10_000.0));
        let read = |table: Option<&Map<String, Value>>, name| table.map(|t| self.scaling(t, name)).transpose();
        match (read(old, "rope_scaling")?, read(new, "rope_parameters")?) {
            (Some(old), Some(new)) if old != new => Err(self.bad(
                "rope_scaling",
                &self.source["rope_scaling"],
                "differs from rope_parameters in the same file; take the wrong one out",
            )),
            (_, Some(scaling)) => Ok(Rope { theta, scaling, name: "rope_parameters" }),
            (Some(scaling), None) => Ok(Rope { theta, scaling, name: "rope_scaling" }),
            (None, None) => {
                let scaling = toml::Table::from_iter([("rope_type".to_string(), "default".into())]);
                Ok(Rope { theta, scaling, name: "rope_scaling" })
            }
        }
    }

    /// The object at `key`; an empty one is none.
    fn rope_table(&self, key: &str) -> Result<Option<&Map<String, Value>>> {
        match self.source.get(key) {
            None => Ok(None),
            Some(Value::Object(table)) => Ok(Some(table).filter(|table| !table.is_empty())),
            Some(other) => Err(self.bad(key, other, "an object is needed")),
        }
    }

    /// The one value that all who say something say.
    fn agreed(&self, key: &str, values: [Option<Value>; 3]) -> Result<Option<Value>> {
        let mut said = values.into_iter().flatten().filter(|value| !value.is_null());
        let first = said.next();
        match said.find(|value| value.as_f64() != first.as_ref().and_then(Value::as_f64)) {
            Some(other) => Err(self.bad(key, &other, "is given twice in this file, with different values")),
            None => Ok(first),
        }
    }

    /// The keys of a `[model]` table's `rope_scaling`.
    fn scaling(&self, table: &Map<String, Value>, name: &str) -> Result<toml::Table> {
        let given = |key: &str| table.get(key).filter(|value| !value.is_null());
        let key = |inner: &str| format!("{name}.{inner}");
        if let Some(part) = given("partial_rotary_factor").filter(|part| part.as_f64() != Some(1.0)) {
            let remedy = "partial rotary embedding is not supported; 1.0 is";
            return Err(self.bad(&key("partial_rotary_factor"), part, remedy));
        }
        if let Some((kind, inner)) = table.iter().find(|(_, inner)| inner.is_object()) {
            return Err(self.bad(&key(kind), inner, "rotary embeddings by kind of layer are not supported"));
        }
        let kind = given("rope_type").or(given("type")).cloned().unwrap_or(json!("default"));
        let mut out = toml::Table::new();
        match kind.as_str() {
            Some("default") => {}
            Some("llama3") => {
                for inner in ["factor", "low_freq_factor", "high_freq_factor"] {
                    if let Some(value) = given(inner) {
                        out.insert(inner.into(), self.toml(&key(inner), value)?);
                    }
                }
                // transformers looks for it in these places, in this order.
                let inner = "original_max_position_embeddings";
                let length = self.source.get(inner).or(given(inner)).or(self.source.get(LENGTH.0));
                let length = length.cloned().unwrap_or(json!(LENGTH.1));
                out.insert(inner.into(), self.toml(&key(inner), &length)?);
            }
            _ => {
                let remedy = "this rotary embedding is not supported; \"default\" and \"llama3\" are";
                return Err(self.bad(&key("rope_type"), &kind, remedy));
            }
        }
        out.insert("rope_type".into(), kind.as_str().unwrap_or_default().into());
        Ok(out)
    }
}
