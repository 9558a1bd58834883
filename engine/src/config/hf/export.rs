//! Writes a `config.json`: the fields of the model that a run started from, changed where they no longer hold.

use super::{ORIGINAL_LENGTH, QUANTIZATION, WINDOWS};
use crate::config::family::{Family, OneForm};
use crate::config::model::RopeScaling;
use crate::config::section::{Entry, Read};
use crate::config::{Model, Named, Precision};
use serde_json::{Map, Value, json};

/// The keys of the weights' type, in transformers 4 and 5.
const DTYPES: [&str; 2] = ["torch_dtype", "dtype"];

/// The `config.json` of an export: the fields of `source`, and in their place those of `model` that differ from them. A
/// model without a source has all of its fields written, in the spellings of both transformers 4 and 5. The weights are
/// not quantized.
pub fn config_json(model: &Model, source: Option<Map<String, Value>>, dtype: Precision) -> Value {
    let family = Family::of(model.architecture);
    let theirs = source.as_ref().and_then(|source| family.model(source));
    let untyped = source.as_ref().is_some_and(|source| dtype_of(source).is_none());
    let mut out = source.unwrap_or_default();
    out.shift_remove(QUANTIZATION);
    match theirs {
        Some(theirs) => family.change(&mut out, model, &theirs),
        None => family.write(&mut out, model),
    }
    // A file that names no type is of f32.
    if !(untyped && dtype == Precision::F32) {
        set_dtype(&mut out, dtype);
    }
    Value::Object(out)
}

impl Family {
    /// The model that the fields describe; `None` if they describe none of this family.
    fn model(&self, source: &Map<String, Value>) -> Option<Model> {
        let own = source.get("model_type").and_then(Value::as_str) == Some(self.architecture.name());
        let (table, at) = own.then(|| self.table(String::new(), source).ok()).flatten()?;
        Model::read(&table.into(), "model", &at).ok()
    }

    /// Writes the fields of `model` that differ from those of `theirs`, which `out` describes.
    fn change(&self, out: &mut Map<String, Value>, model: &Model, theirs: &Model) {
        let before = self.fields(theirs);
        let same_layers = model.layers().eq(theirs.layers());
        let holds = |key: &str| same_layers && WINDOWS.contains(&key);
        let pairs = self.fields(model).into_iter().zip(&before);
        let changed: Vec<_> = pairs.filter(|(ours, was)| !holds(ours.0) && !alike(&ours.1, &was.1)).collect();
        // A Llama 3 file may have this field outside of `rope_scaling`, where transformers would prefer it.
        if changed.iter().any(|(ours, _)| ours.0.starts_with("rope_")) {
            out.shift_remove(ORIGINAL_LENGTH);
            out.extend(self.rotary_fields(model).into_iter().map(|(key, value)| (key.to_string(), value)));
        }
        out.extend(changed.into_iter().map(|((key, value), _)| (key.to_string(), value)));
    }

    /// Writes all fields of `model`, and what transformers needs besides.
    fn write(&self, out: &mut Map<String, Value>, model: &Model) {
        out.insert("model_type".into(), json!(model.architecture.name()));
        out.insert("architectures".into(), json!([self.class]));
        let only = |form: OneForm| Some((form.key.to_string(), form.values.first()?.clone()));
        out.extend((self.fixed)().into_iter().filter_map(only));
        out.extend(self.fields(model).into_iter().map(|(key, value)| (key.to_string(), value)));
    }

    /// The fields of `model` that the engine uses, in the spellings of both transformers 4 and 5.
    pub(super) fn fields(&self, model: &Model) -> Vec<(&'static str, Value)> {
        let own = |entry: &Entry<'_>| self.keys().any(|key| key == entry.key);
        let plain = model.entries().into_iter().filter(own);
        let named = |entry: Entry<'_>| {
            let second = self.also.iter().filter(move |(ours, _)| *ours == entry.key).map(|(_, theirs)| *theirs);
            let value = json!(entry.value.write());
            std::iter::once(self.name(entry.key)).chain(second).map(move |name| (name, value.clone()))
        };
        plain.flat_map(named).chain(self.rotary_fields(model)).collect()
    }

    fn rotary_fields(&self, model: &Model) -> Vec<(&'static str, Value)> {
        let Some(theta) = model.rope_theta else { return Vec::new() };
        let pairs = model.rope_scaling.keys_and_values().into_iter();
        let scaling: Map<_, _> = pairs.filter_map(|(key, value)| Some((key.to_string(), json!(value?)))).collect();
        let mut parameters = scaling.clone();
        parameters.insert("rope_theta".into(), json!(theta));
        let plain = model.rope_scaling == RopeScaling::Default;
        vec![
            ("rope_theta", json!(theta)),
            ("rope_scaling", if plain { Value::Null } else { Value::Object(scaling) }),
            ("rope_parameters", Value::Object(parameters)),
        ]
    }
}

/// Whether two values are equal. serde_json may read the last digit of a long number differently from toml.
fn alike(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= 1e-12 * b.abs(),
            _ => a == b,
        },
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| alike(value, other)))
        }
        _ => a == b,
    }
}

/// The name of the weights' type, where the fields have one.
pub fn dtype_of(source: &Map<String, Value>) -> Option<&str> {
    DTYPES.iter().find_map(|key| source.get(*key)?.as_str())
}

/// Names the weights' type, under the keys that are there, or else under those of both spellings.
fn set_dtype(out: &mut Map<String, Value>, dtype: Precision) {
    let name = match dtype {
        Precision::F32 => "float32",
        Precision::Bf16 => "bfloat16",
    };
    let there: Vec<_> = DTYPES.into_iter().filter(|key| out.get(*key).is_some_and(|value| !value.is_null())).collect();
    for key in if there.is_empty() { DTYPES.to_vec() } else { there } {
        out.insert(key.to_string(), json!(name));
    }
}
