//! Reads a Hugging Face checkpoint's `config.json`, in the spellings of transformers 4 and 5, as a `[model]` table, and
//! writes it. The fields follow from the declaration of [`Model`]; the names and
//! defaults that differ are in the family's file ([`super::family`]). Features that the engine lacks are refused by
//! name. This module does not read weights.

mod export;
#[cfg(test)]
mod tests;

pub use export::{config_json, dtype_of};

use super::family::{Family, OneForm};
use super::model::RopeType;
use super::names::Named;
use super::origins::{Origins, join, shorten};
use super::section::{Fixed, Read};
use super::{Architecture, Model};
use crate::error::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::Path;
use toml::Value as Toml;

const LENGTH: &str = "max_position_embeddings";
const ORIGINAL_LENGTH: &str = "original_max_position_embeddings";

/// Keys of `[model]` that have another form in the file, or none.
const OTHER_FORM: [&str; 6] = ["hf", "architecture", "rope_theta", "rope_scaling", BALANCE, "router_z_loss_coef"];

/// The coefficient of the loss that balances experts, and the field without which transformers does not add that loss.
const BALANCE: &str = "router_aux_loss_coef";
const BALANCES: &str = "output_router_logits";

/// The field of quantized weights.
const QUANTIZATION: &str = "quantization_config";

/// Keys whose null is not the default of a field that is left out: no window or soft-cap, and as many heads as queries
/// have.
const NULL_IS_A_VALUE: [&str; 4] =
    ["sliding_window", "num_key_value_heads", "attn_logit_softcapping", "final_logit_softcapping"];

/// Keys of `[model]` that say which layers have a window; different values may describe the same layers.
const WINDOWS: [&str; 4] = ["sliding_window", "use_sliding_window", "max_window_layers", "layer_types"];

/// Rates of dropout and of noise, which change how a model is trained and not what it computes.
const DROPOUTS: [&str; 7] = [
    "attention_dropout",
    "hidden_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "dropout",
    "router_jitter_noise",
];

/// Fields that other models have and that change what they compute: where one is set, the engine would compute
/// something else.
const OTHER_MATHS: [&str; 28] = [
    "alibi",
    "attention_chunk_size",
    "attention_multiplier",
    "attn_logit_softcapping",
    "clip_qkv",
    "embedding_multiplier",
    "embedding_scale",
    "final_logit_softcapping",
    "first_k_dense_replace",
    "hidden_size_per_layer_input",
    "kv_lora_rank",
    "logit_scale",
    "logits_scaling",
    "mtp_num_layers",
    "n_routed_experts",
    "n_shared_experts",
    "no_rope_layer_interval",
    "no_rope_layers",
    "num_experts",
    "num_local_experts",
    "parallel_residual",
    "query_pre_attn_scalar",
    "residual_multiplier",
    "rope_local_base_freq",
    "rotary_pct",
    "use_parallel_residual",
    "use_qk_norm",
    "qk_layernorm",
];

/// Fields of every family that the engine has in one form only.
fn fixed(family: &Family) -> Vec<OneForm> {
    let off = || [json!(false), json!(0), json!(0.0)];
    let biases = ["attention_bias", "mlp_bias"].into_iter().filter(|key| !family.has(key));
    let biases = biases.map(|key| OneForm::new(key, off(), "this family has no such key; only false is supported"));
    (family.fixed)().into_iter().chain(biases).collect()
}

impl Family {
    /// The keys of `[model]` that the file has in the same form.
    fn keys(&self) -> impl Iterator<Item = &'static str> {
        Model::KEYS.iter().copied().filter(|key| !OTHER_FORM.contains(key) && self.has(key))
    }

    /// The name in the file of a key of `[model]`.
    fn name<'k>(&self, key: &'k str) -> &'k str {
        self.names.iter().find(|(ours, _)| *ours == key).map_or(key, |(_, theirs)| theirs)
    }

    /// `source`, the contents of `file`, as a `[model]` table, and the origin of each of its keys.
    fn table(&self, file: String, source: &Map<String, Value>) -> Result<(toml::Table, Origins)> {
        // A null counts as an absent field.
        let present: Map<_, _> = source.clone().into_iter().filter(|(_, value)| !value.is_null()).collect();
        let reader = Reader { file: file.clone(), source: &present };
        reader.refuse_the_unknown(self)?;
        let mut at = Origins::new(file);
        let mut table = toml::Table::from_iter([("architecture".to_string(), self.architecture.name().into())]);
        at.put("model.architecture", reader.label("model_type"));
        for key in self.keys() {
            let name = self.name(key);
            at.put(&join("model", key), reader.label(name));
            let is_null = NULL_IS_A_VALUE.contains(&key) && source.contains_key(name);
            let default = self.defaults.iter().find(|(known, _)| *known == key).filter(|_| !is_null);
            let second = self.also.iter().find_map(|&(ours, theirs)| (ours == key).then_some(theirs));
            let second = second.and_then(|name| Some((name, present.get(name)?)));
            if let Some((name, value)) = second {
                table.insert(name.into(), reader.toml(name, value)?);
                at.put(&join("model", name), reader.label(name));
            }
            if let Some(value) = present.get(name) {
                table.insert(key.into(), reader.toml(name, value)?);
            } else if second.is_some() {
                continue;
            } else if let Some((_, value)) = default {
                table.insert(key.into(), value.clone());
            }
        }
        let balances = present.get(BALANCES) == Some(&json!(true));
        if let Some(value) = present.get(BALANCE).filter(|_| balances && self.has(BALANCE)) {
            table.insert(BALANCE.into(), reader.toml(BALANCE, value)?);
            at.put(&join("model", BALANCE), reader.label(BALANCE));
        }
        if self.learned_positions {
            return Ok((table, at));
        }
        let rope = reader.rope(&table[LENGTH], self)?;
        at.put("model.rope_theta", reader.label("rope_theta"));
        at.put("model.rope_scaling", reader.label(rope.name));
        for key in RopeType::NAMES.iter().flat_map(|(_, kind)| kind.keys()).chain([&"rope_type"]) {
            at.put(&format!("model.rope_scaling.{key}"), reader.label(&join(rope.name, key)));
        }
        table.insert("rope_theta".into(), reader.toml("rope_theta", &rope.theta)?);
        table.insert("rope_scaling".into(), rope.scaling.into());
        Ok((table, at))
    }
}

/// Reads the model's shape from the checkpoint in `dir`.
pub fn read_model(dir: &Path) -> Result<Model> {
    let (mut table, at) = model_table(dir)?;
    table.insert("hf".into(), dir.display().to_string().into());
    Model::read(&table.into(), "model", &at)
}

/// All fields of `dir/config.json`, unchanged.
pub fn read_source(dir: &Path) -> Result<Map<String, Value>> {
    let path = dir.join("config.json");
    let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::user(format!("{}: not a JSON object: {e}", path.display())))
}

/// `dir/config.json` as a `[model]` table, and the origin of each of its keys.
pub fn model_table(dir: &Path) -> Result<(toml::Table, Origins)> {
    let source = read_source(dir)?;
    let file = file(dir);
    let mut at = Origins::new(file.clone());
    at.put("model_type", format!("{file}: model_type"));
    let Some(kind) = source.get("model_type").filter(|kind| !kind.is_null()) else {
        return Err(at.missing("model_type", "a Llama has \"llama\""));
    };
    let kind = Toml::deserialize(kind).map_err(|_| at.bad("model_type", kind, "must be a text"))?;
    Family::of(Architecture::read(&kind, "model_type", &at)?).table(file, &source)
}

/// A remark on the dropouts of the checkpoint in `dir`, which the engine trains without.
pub fn note(dir: &Path) -> Option<String> {
    let source = read_source(dir).ok()?;
    let drops = |key: &&&str| source.get(**key).and_then(Value::as_f64).is_some_and(|rate| rate != 0.0);
    let keys: Vec<_> = DROPOUTS.iter().filter(drops).map(|key| format!("{key} = {}", source[*key])).collect();
    let text = format!("{}: {}: dropout is not applied", file(dir), keys.join(", "));
    (!keys.is_empty()).then_some(text)
}

/// Whether the fields say that the weights are quantized.
pub fn is_quantized(source: &Map<String, Value>) -> bool {
    source.get(QUANTIZATION).is_some_and(|value| !value.is_null())
}

/// Checks that `model` can start from the checkpoint in `dir`. An error names the first field that differs. Fields that
/// only change the computation may differ if the model was itself read from a checkpoint (`hf = "DIR"`): then they were
/// overridden on purpose.
pub fn must_fit(model: &Model, dir: &Path) -> Result<()> {
    let theirs = read_model(dir)?;
    let least = if model.hf.is_some() { Fixed::InWeights } else { Fixed::InModel };
    let same_layers = model.layers().eq(theirs.layers());
    let fixed = model.entries().into_iter().zip(theirs.entries());
    let fixed = fixed.filter(|(ours, _)| ours.fixed >= least && !(same_layers && WINDOWS.contains(&ours.key)));
    for (ours, theirs) in fixed {
        let (key, values) = (ours.key, [ours, theirs].map(|entry| entry.value.write()));
        if !alike(&values) {
            let [ours, theirs] = values.map(|value| value.map_or("none".to_string(), |value| value.to_string()));
            let (file, dir) = (file(dir), dir.display());
            let remedy = match &model.hf {
                Some(_) => "leave the key out, or load another checkpoint".to_string(),
                None => format!("write hf = \"{dir}\" in [model], or load another checkpoint"),
            };
            let what = format!("{file}, which train.load names, has {theirs}; {remedy}");
            return Err(Error::user(format!("model.{key} = {ours}: {what}")));
        }
    }
    Ok(())
}

/// Whether two values are equal. serde_json may read the last digit of a long number differently from toml.
fn alike(values: &[Option<Toml>; 2]) -> bool {
    match values {
        [Some(Toml::Float(a)), Some(Toml::Float(b))] => (a - b).abs() <= 1e-12 * b.abs(),
        [a, b] => a == b,
    }
}

/// The name of `dir`'s file in messages.
fn file(dir: &Path) -> String {
    dir.join("config.json").display().to_string()
}

/// The fields of the rotary embedding, however they are spelled.
struct Rope {
    theta: Value,
    scaling: toml::Table,
    /// The field that holds the scaling.
    name: &'static str,
}

struct Reader<'a> {
    file: String,
    /// The fields of the file, without nulls.
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
    fn refuse_the_unknown(&self, family: &Family) -> Result<()> {
        let refused = [
            OneForm::new("partial_rotary_factor", [json!(1.0), json!(1)], PARTIAL_ROTARY),
            OneForm::new("is_causal", [json!(true)], "attention to later positions is not supported; only true is"),
        ];
        self.refuse_other_quantization(family)?;
        for form in fixed(family).into_iter().chain(refused) {
            if let Some(value) = self.source.get(form.key)
                && !form.values.contains(value)
            {
                return Err(self.bad(form.key, value, form.remedy));
            }
        }
        let has = |key: &str| family.has.contains(&key) || family.also.iter().any(|(_, other)| *other == key);
        let keys = OTHER_MATHS.iter().filter(|key| !has(key));
        for key in keys {
            let off = |value: &&Value| !matches!(value, Value::Bool(false));
            if let Some(value) = self.source.get(*key).filter(off) {
                let kind = family.architecture.name();
                return Err(self.bad(
                    key,
                    value,
                    &format!("a {kind} here has no such feature; remove it if it has no effect"),
                ));
            }
        }
        let classes = self.source.get("architectures").and_then(Value::as_array);
        let language_model =
            |class: &Value| class.as_str().is_some_and(|name| name == family.class || name.ends_with("ForCausalLM"));
        match classes {
            Some(classes) if !classes.iter().any(language_model) => {
                Err(self.bad("architectures", &json!(classes), &format!("must hold {:?}", family.class)))
            }
            _ => Ok(()),
        }
    }

    /// Quantized weights are read where the family names their method.
    fn refuse_other_quantization(&self, family: &Family) -> Result<()> {
        let Some(value) = self.source.get(QUANTIZATION) else { return Ok(()) };
        let method = value.get("quant_method").unwrap_or(&Value::Null);
        match family.tensors.quantization {
            None => {
                Err(self.bad(QUANTIZATION, value, "quantized weights are not supported; use the original checkpoint"))
            }
            Some(ours) if method == ours => Ok(()),
            Some(ours) => {
                let remedy =
                    format!("of a {} only {ours:?} is read; use the original checkpoint", family.architecture.name());
                Err(self.bad(&join(QUANTIZATION, "quant_method"), method, &remedy))
            }
        }
    }

    /// Converts a value to TOML.
    fn toml(&self, key: &str, value: &Value) -> Result<Toml> {
        Toml::deserialize(value).map_err(|e| self.bad(key, value, &format!("cannot be used: {e}")))
    }

    /// Reads the rotary embedding from `rope_theta` and `rope_scaling` (4.x), or from `rope_parameters`, which holds
    /// both (5.x).
    fn rope(&self, length: &Toml, family: &Family) -> Result<Rope> {
        let old = self.rope_table("rope_scaling")?;
        let new = self.rope_table("rope_parameters")?;
        let theta = |table: Option<&Map<String, Value>>| table.and_then(|table| table.get("rope_theta")).cloned();
        let thetas = [theta(new), theta(old), self.source.get("rope_theta").cloned()];
        let default = family.defaults.iter().find(|(key, _)| *key == "rope_theta");
        let default = default.and_then(|(_, theta)| theta.as_float()).unwrap_or(10_000.0);
        let theta = self.agreed("rope_theta", thetas)?.unwrap_or(json!(default));
        let read = |table: Option<&Map<String, Value>>, name| table.map(|t| self.scaling(t, name, length)).transpose();
        match (read(old, "rope_scaling")?, read(new, "rope_parameters")?) {
            (Some(old), Some(new)) if old != new => Err(self.bad(
                "rope_scaling",
                &self.source["rope_scaling"],
                "differs from rope_parameters in the same file; remove the wrong one",
            )),
            (_, Some(scaling)) => Ok(Rope { theta, scaling, name: "rope_parameters" }),
            (Some(scaling), None) => Ok(Rope { theta, scaling, name: "rope_scaling" }),
            (None, None) => {
                let (name, of_family) = ("rope_scaling", family.default_rope.unwrap_or("{}"));
                let table = serde_json::from_str(of_family).expect("a family's text is a JSON object");
                Ok(Rope { theta, scaling: self.scaling(&table, name, length)?, name })
            }
        }
    }

    /// The object at `key`; an empty object counts as absent.
    fn rope_table(&self, key: &str) -> Result<Option<&Map<String, Value>>> {
        match self.source.get(key) {
            None => Ok(None),
            Some(Value::Object(table)) => {
                self.alike_for_all_kinds(key, table).map(|t| Some(t).filter(|t| !t.is_empty()))
            }
            Some(other) => Err(self.bad(key, other, "must be an object")),
        }
    }

    /// A table that has one inside for each kind of layer: that one, if it is the same for all kinds. In no family here
    /// do they differ.
    fn alike_for_all_kinds<'t>(&self, key: &str, table: &'t Map<String, Value>) -> Result<&'t Map<String, Value>> {
        let kinds = || table.iter().filter_map(|(kind, inner)| Some((kind, inner.as_object()?)));
        let Some((_, first)) = kinds().next() else { return Ok(table) };
        match kinds().find(|(_, other)| *other != first) {
            None if table.len() == kinds().count() => Ok(first),
            None => {
                Err(self.bad(key, &self.source[key], "mixes kinds of layers with keys of its own; keep one of the two"))
            }
            Some((kind, other)) => {
                let what = "rotary embeddings that differ by kind of layer are not supported: no family here has them";
                Err(self.bad(&join(key, kind), &Value::Object(other.clone()), what))
            }
        }
    }

    /// The common value of all present entries; an error if they differ.
    fn agreed(&self, key: &str, values: [Option<Value>; 3]) -> Result<Option<Value>> {
        let mut said = values.into_iter().flatten().filter(|value| !value.is_null());
        let first = said.next();
        match said.find(|value| value.as_f64() != first.as_ref().and_then(Value::as_f64)) {
            Some(other) => Err(self.bad(key, &other, "is given twice in this file, with different values")),
            None => Ok(first),
        }
    }

    /// The keys of a `[model]` table's `rope_scaling`; `length` is the default of the original context length.
    fn scaling(&self, table: &Map<String, Value>, name: &str, length: &Toml) -> Result<toml::Table> {
        let given = |key: &str| table.get(key).filter(|value| !value.is_null());
        let key = |inner: &str| format!("{name}.{inner}");
        if let Some(part) = given("partial_rotary_factor").filter(|part| part.as_f64() != Some(1.0)) {
            return Err(self.bad(&key("partial_rotary_factor"), part, PARTIAL_ROTARY));
        }
        let kind = given("rope_type").or(given("type")).cloned().unwrap_or(json!(RopeType::Default.name()));
        let Some((_, known)) = RopeType::NAMES.iter().find(|(name, _)| kind.as_str() == Some(name)) else {
            let names: Vec<_> = RopeType::NAMES.iter().map(|(name, _)| format!("{name:?}")).collect();
            let remedy = format!("this rotary embedding is not supported; {} are", names.join(", "));
            return Err(self.bad(&key("rope_type"), &kind, &remedy));
        };
        let mut out = toml::Table::from_iter([("rope_type".to_string(), known.name().into())]);
        for &inner in known.keys() {
            // transformers looks for the length in these places, in this order.
            let outside = self.source.get(inner).filter(|_| inner == ORIGINAL_LENGTH);
            // transformers takes YaRN's defaults for zeros.
            let unset = |value: &&Value| inner.starts_with("beta_") && value.as_f64() == Some(0.0);
            if let Some(value) = outside.or(given(inner)).filter(|value| !unset(value)) {
                out.insert(inner.into(), self.toml(&key(inner), value)?);
            } else if inner == ORIGINAL_LENGTH {
                out.insert(inner.into(), length.clone());
            }
        }
        if *known == RopeType::Yarn && !out.contains_key("factor") {
            let [length, original] = [length, &out[ORIGINAL_LENGTH]].map(|n| n.as_integer().unwrap_or_default() as f64);
            out.insert("factor".into(), (length / original).into());
        }
        Ok(out)
    }
}

const PARTIAL_ROTARY: &str = "partial rotary embedding is not supported; 1.0 is";
