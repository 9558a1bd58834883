//! The expansion of a SentencePiece model: its `tokenizer.model` with pieces appended, and the `tokenizer.json` that
//! gives the same ids.

use std::collections::HashSet;

use prost::Message;
use prost::encoding::{DecodeContext, decode_key, skip_field};
use serde_json::{Value, json};

use super::super::model::{BPE, Kind, ModelProto, NormalizerSpec, Piece};
use super::super::{convert, merges};
use super::{Expand, Expanded, File, Source, files, json, normalizer, pieces};
use engine::error::{Error, Result};

/// The field of a model with texts and the pieces that they must give.
const SELF_TEST: u32 = 4;

pub fn expand(
    request: &Expand,
    (base, model): (&Source, &ModelProto),
    (new, added): (&Source, &ModelProto),
) -> Result<(Vec<File>, Expanded)> {
    check_type(base, model)?;
    check_type(new, added)?;
    files::check_added(base, model.pieces.len())?;
    let normalizer = normalizer::of_models(request, (base, model), (new, added))?;
    let (chosen, expanded) = pieces::choose((base, model), (new, added), request.multiple_of)?;
    let bytes = append(&base.bytes, &chosen, normalizer.clone()).map_err(|e| base.error(e))?;
    let whole = ModelProto::parse(&bytes).map_err(|e| base.error(e))?;
    let mut files = vec![("tokenizer.model".to_string(), bytes)];
    let json = match base.beside("tokenizer.json") {
        None => convert::tokenizer_json(&whole).map_err(|e| base.error(e))?,
        Some(path) => {
            let refuse = |what: String| Error::user(format!("{}: {what}", path.display()));
            let mut json = json::read(&path)?;
            extend(&mut json, &whole, model.pieces.len()).map_err(refuse)?;
            if normalizer.is_some() {
                normalizer::set_nfkc(&mut json, convert::nfkc());
            }
            json
        }
    };
    files.push(("tokenizer.json".into(), json::bytes(&json)));
    if normalizer.is_some() {
        files.extend(files::with_own_normalizer(base)?);
    }
    Ok((files, expanded))
}

fn check_type(source: &Source, model: &ModelProto) -> Result<()> {
    if model.model_type() != BPE {
        return Err(source.error(
            "its type is not byte-pair encoding; only models of that type are expanded (--model_type=bpe of spm_train)",
        ));
    }
    let suffix = model.trainer.as_ref().and_then(|trainer| trainer.treat_whitespace_as_suffix);
    let escapes = model.normalizer.as_ref().and_then(|normalizer| normalizer.escape_whitespaces);
    match (suffix, escapes) {
        (Some(true), _) => Err(source.error("treat_whitespace_as_suffix is not supported; train it without")),
        (_, Some(false)) => Err(source.error("escape_whitespaces = false is not supported; train it without")),
        _ => Ok(()),
    }
}

/// The model's bytes with pieces appended, and with the fields of `normalizer` that are set. A protobuf message may
/// come in parts: repeated fields grow, and later values replace earlier ones. So all other fields stay,
/// also those that this program does not read.
pub fn append(
    base: &[u8],
    pieces: &[Piece],
    normalizer: Option<NormalizerSpec>,
) -> std::result::Result<Vec<u8>, String> {
    let mut bytes = without_self_test(base)?;
    let more = ModelProto { pieces: pieces.to_vec(), normalizer, ..Default::default() };
    bytes.extend(more.encode_to_vec());
    Ok(bytes)
}

/// The model's bytes without its self-test, which a changed model may fail. Nothing else is touched.
pub fn without_self_test(model: &[u8]) -> std::result::Result<Vec<u8>, String> {
    let (mut rest, mut kept) = (model, Vec::with_capacity(model.len()));
    while !rest.is_empty() {
        let from = rest;
        let (tag, wire_type) = decode_key(&mut rest).map_err(|e| e.to_string())?;
        skip_field(wire_type, tag, &mut rest, DecodeContext::default()).map_err(|e| e.to_string())?;
        if tag != SELF_TEST {
            kept.extend(&from[..from.len() - rest.len()]);
        }
    }
    Ok(kept)
}

/// Adds the pieces of `model` from `old` on to the `tokenizer.json` that was converted from its first `old` pieces.
fn extend(json: &mut Value, model: &ModelProto, old: usize) -> std::result::Result<(), String> {
    let other = "it does not belong to the tokenizer.model beside it";
    if json["model"]["type"] != "BPE" {
        return Err(format!("{other}: its type is {}, not \"BPE\"; move it away", json["model"]["type"]));
    }
    let text = |piece: &Piece| piece.piece.clone().unwrap_or_default();
    let vocab = json["model"]["vocab"].as_object_mut().ok_or("it has no vocabulary")?;
    let differs = (0..).zip(&model.pieces[..old]).find(|(id, piece)| vocab.get(&text(piece)) != Some(&json!(id)));
    if let Some((id, piece)) = differs {
        return Err(format!("{other}: it does not have {:?} under the id {id}; move it away", text(piece)));
    }
    if vocab.len() != old {
        return Err(format!("{other}: it has {} pieces, not {old}; move it away", vocab.len()));
    }
    for (id, piece) in (old..).zip(&model.pieces[old..]) {
        vocab.insert(text(piece), json!(id));
    }
    let new: HashSet<String> = model.pieces[old..].iter().map(text).collect();
    let merges = merges::extended(json::merges(json)?, &merges::scores(model), |piece| new.contains(piece));
    json::set_merges(json, merges);
    let user_defined = (old..).zip(&model.pieces[old..]).filter(|(_, piece)| piece.kind() == Kind::UserDefined);
    let user_defined: Vec<Value> = user_defined.map(|(id, piece)| convert::added_token(id, piece)).collect();
    match json["added_tokens"].as_array_mut() {
        Some(tokens) => tokens.extend(user_defined),
        None => json["added_tokens"] = user_defined.into(),
    }
    Ok(())
}
