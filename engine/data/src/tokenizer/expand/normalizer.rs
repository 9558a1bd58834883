//! Normalizers: BASE's stays, NEW's must be the same, and `--nfkc` sets Unicode's NFKC.

use serde_json::{Value, json};

use super::super::model::{ModelProto, NormalizerSpec};
use super::{Expand, Source};
use engine::error::Result;

/// SentencePiece's name of Unicode's NFKC.
const NFKC: &str = "nfkc";

const DIFFERS: &str = "its pieces were learned from other text than BASE sees; train it with BASE's normalizer";

/// What changes in the normalizer of a SentencePiece model, if anything does.
pub fn of_models(
    request: &Expand,
    (base, model): (&Source, &ModelProto),
    (new, added): (&Source, &ModelProto),
) -> Result<Option<NormalizerSpec>> {
    let [old, donor] = [model, added].map(|model| model.normalizer.clone().unwrap_or_default());
    let [old_name, donor_name] = [&old, &donor].map(name);
    let same = old.charsmap.clone().unwrap_or_default() == donor.charsmap.clone().unwrap_or_default();
    match (request.nfkc, same) {
        (false, true) => Ok(None),
        (true, _) if old_name == NFKC => Ok(None),
        (true, _) if donor_name == NFKC => {
            let (name, charsmap) = (Some(NFKC.to_string()), donor.charsmap);
            Ok(Some(NormalizerSpec { name, charsmap, ..Default::default() }))
        }
        (true, _) => Err(new.error(format!(
            "--nfkc takes the normalizer of --add, but that is {donor_name}; train it with NFKC \
             (--normalization_rule_name=nfkc of spm_train)"
        ))),
        (false, false) => {
            let remedy = if donor_name == NFKC { ", or give --nfkc" } else { "" };
            let base = base.path().display();
            Err(new.error(format!("its normalizer is {donor_name}, that of {base} is {old_name}; {DIFFERS}{remedy}")))
        }
    }
}

/// The name of a normalizer, `identity` for one that changes nothing.
pub fn name(spec: &NormalizerSpec) -> &str {
    match spec.charsmap.as_deref() {
        None | Some([]) => "identity",
        Some(_) => spec.name.as_deref().filter(|name| !name.is_empty()).unwrap_or("a custom one"),
    }
}

/// Puts NFKC before the other normalizers of a `tokenizer.json`, in place of an NFC.
pub fn set_nfkc(json: &mut Value) {
    let nfkc = json!({ "type": "NFKC" });
    let mut steps = match json["normalizer"].take() {
        Value::Null => Vec::new(),
        sequence if sequence["type"] == "Sequence" => sequence["normalizers"].as_array().cloned().unwrap_or_default(),
        one => vec![one],
    };
    steps.retain(|step| step["type"] != "NFC" && step["type"] != "NFKC");
    steps.insert(0, nfkc);
    json["normalizer"] = match steps.len() {
        1 => steps.remove(0),
        _ => json!({ "type": "Sequence", "normalizers": steps }),
    };
}

/// Refuses a byte-level NEW whose normalizer differs from BASE's. NFC is no difference: nearly all text has that form.
pub fn check_json(request: &Expand, (base, json): (&Source, &Value), (new, added): (&Source, &Value)) -> Result<()> {
    let plain = |json: &Value| match json["normalizer"]["type"].as_str() {
        Some("NFC") => Value::Null,
        Some("Sequence") if json["normalizer"]["normalizers"] == json!([]) => Value::Null,
        _ => json["normalizer"].clone(),
    };
    let nfkc = |json: &Value| json["normalizer"]["type"] == "NFKC";
    let [old, donor] = [json, added].map(plain);
    if old == donor || (request.nfkc && (donor.is_null() || nfkc(added))) {
        return Ok(());
    }
    let remedy = if nfkc(added) { ", or give --nfkc" } else { "" };
    let base = base.path().display();
    Err(new.error(format!("its normalizer is {donor}, that of {base} is {old}; {DIFFERS}{remedy}")))
}
