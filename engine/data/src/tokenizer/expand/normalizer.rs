//! Normalizers: BASE's stays, NEW's must be the same, and `--nfkc` sets Unicode's NFKC.

use serde_json::{Value, json};

use super::super::model::{ModelProto, NormalizerSpec};
use super::super::nfkc;
use super::{Expand, Source};
use engine::error::Result;

/// SentencePiece's name of Unicode's NFKC.
const NFKC: &str = "nfkc";

const DIFFERS: &str = "its pieces were learned from other text than BASE sees; train it with BASE's normalizer";

/// The changes of the normalizer of a SentencePiece model; `None` if there are none.
pub fn of_models(
    request: &Expand,
    (base, model): (&Source, &ModelProto),
    (new, added): (&Source, &ModelProto),
) -> Result<Option<NormalizerSpec>> {
    let [old, donor] = [model, added].map(|model| model.normalizer.clone().unwrap_or_default());
    let [old_name, donor_name] = [&old, &donor].map(NormalizerSpec::rule);
    let same = old.charsmap.clone().unwrap_or_default() == donor.charsmap.clone().unwrap_or_default();
    match (request.nfkc, same) {
        (false, true) => Ok(None),
        (true, _) if old_name == NFKC => Ok(None),
        (true, _) if [NFKC, "identity"].contains(&donor_name) => {
            let charsmap = donor.charsmap.clone().filter(|_| donor_name == NFKC).unwrap_or_else(nfkc::charsmap);
            let (name, charsmap) = (Some(NFKC.to_string()), Some(charsmap));
            Ok(Some(NormalizerSpec { name, charsmap, ..Default::default() }))
        }
        (true, _) => Err(new.error(format!(
            "its normalizer is {donor_name}; with --nfkc its pieces must come from text that was normalized by NFKC \
             (tokenizer train --nfkc) or not at all"
        ))),
        (false, false) => {
            let remedy = if donor_name == NFKC { ", or give --nfkc" } else { "" };
            let base = base.path().display();
            Err(new.error(format!("its normalizer is {donor_name}, that of {base} is {old_name}; {DIFFERS}{remedy}")))
        }
    }
}

/// Puts the steps of NFKC before the other normalizers of a `tokenizer.json`, in place of an NFC.
pub fn set_nfkc(json: &mut Value, nfkc: impl IntoIterator<Item = Value>) {
    let nfkc: Vec<Value> = nfkc.into_iter().collect();
    let mut steps = match json["normalizer"].take() {
        Value::Null => Vec::new(),
        sequence if sequence["type"] == "Sequence" => sequence["normalizers"].as_array().cloned().unwrap_or_default(),
        one => vec![one],
    };
    steps.retain(|step| step["type"] != "NFC" && !nfkc.contains(step));
    steps.splice(0..0, nfkc);
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
