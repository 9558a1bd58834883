//! A `tokenizer.json` that gives the ids of a SentencePiece model of byte-pair encoding, by the conversion of
//! `transformers`, except that the merges are in the order of the scores ([`merges`]).

use serde_json::{Map, Value, json};
use tokenizers::normalizers::{NormalizerWrapper, Precompiled};

use super::merges;
use super::model::{ESCAPE, Kind, ModelProto, NormalizerSpec, Piece};

/// The `tokenizer.json`; an error says which setting of the model has no counterpart there.
pub fn tokenizer_json(model: &ModelProto) -> Result<Value, String> {
    let text = |piece: &Piece| piece.piece.clone().unwrap_or_default();
    let spec = model.normalizer.clone().unwrap_or_default();
    let unknown = model.pieces.iter().find(|piece| piece.kind() == Kind::Unknown).map(text);
    let is_added = |piece: &Piece| matches!(piece.kind(), Kind::Unknown | Kind::Control | Kind::UserDefined);
    let added = model.pieces.iter().enumerate().filter(|(_, piece)| is_added(piece));
    let vocab: Map<String, Value> =
        model.pieces.iter().enumerate().map(|(id, piece)| (text(piece), id.into())).collect();
    let merges: Vec<Value> = merges::all(&merges::scores(model)).into_iter().map(|(a, b)| json!([a, b])).collect();
    let byte_fallback = model.trainer.as_ref().and_then(|trainer| trainer.byte_fallback) == Some(true);
    let mut decoders =
        vec![replace(&ESCAPE.to_string(), " "), json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })];
    if spec.add_dummy_prefix != Some(false) {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.map(|(id, piece)| added_token(id, piece)).collect::<Vec<_>>(),
        "normalizer": normalizer(&spec)?,
        "pre_tokenizer": null,
        "post_processor": beginning(model),
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": byte_fallback,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": merges,
        },
    }))
}

/// The entry of a piece that is matched as a whole before any merge.
pub fn added_token(id: usize, piece: &Piece) -> Value {
    json!({
        "id": id,
        "content": piece.piece.as_deref().unwrap_or_default().replace(ESCAPE, " "),
        "single_word": false,
        "lstrip": false,
        "rstrip": false,
        "normalized": false,
        "special": piece.kind() != Kind::UserDefined,
    })
}

/// Unicode's NFKC, as SentencePiece 0.2's table has it.
pub fn nfkc() -> [Value; 2] {
    // `tokenizers` has an older Unicode than the table: of what it lacks, the name of the era is the one in use.
    [replace("㋿", "令和"), json!({ "type": "NFKC" })]
}

fn normalizer(spec: &NormalizerSpec) -> Result<Value, String> {
    if spec.escape_whitespaces == Some(false) {
        return Err("its normalizer does not escape spaces, which a tokenizer.json of this form cannot express".into());
    }
    let mut steps = Vec::new();
    match spec.rule() {
        "identity" => {}
        "nfkc" => steps.extend(nfkc()),
        _ => {
            let map = Precompiled::from(spec.charsmap.as_deref().unwrap_or_default()).map_err(|e| e.to_string())?;
            steps.push(serde_json::to_value(NormalizerWrapper::Precompiled(map)).map_err(|e| e.to_string())?);
        }
    }
    if spec.remove_extra_whitespaces != Some(false) {
        for (spaces, content) in [(r"\A +| +\z", ""), (" {2,}", " ")] {
            steps.push(json!({ "type": "Replace", "pattern": { "Regex": spaces }, "content": content }));
        }
    }
    let escape = ESCAPE.to_string();
    if spec.add_dummy_prefix != Some(false) {
        steps.push(json!({ "type": "Prepend", "prepend": escape }));
    }
    steps.push(replace(" ", &escape));
    Ok(json!({ "type": "Sequence", "normalizers": steps }))
}

fn replace(text: &str, content: &str) -> Value {
    json!({ "type": "Replace", "pattern": { "String": text }, "content": content })
}

/// Puts BOS before a text when special tokens are requested, as the tokenizers of Llama and Mistral do.
fn beginning(model: &ModelProto) -> Value {
    let bos = model.trainer.as_ref().and_then(|trainer| trainer.bos_piece.as_deref()).unwrap_or("<s>");
    let is_bos = |piece: &Piece| piece.kind() == Kind::Control && piece.piece.as_deref() == Some(bos);
    let Some(id) = model.pieces.iter().position(is_bos) else { return Value::Null };
    let special = |type_id: u32| json!({ "SpecialToken": { "id": bos, "type_id": type_id } });
    let sequence = |name: &str, type_id: u32| json!({ "Sequence": { "id": name, "type_id": type_id } });
    json!({
        "type": "TemplateProcessing",
        "single": [special(0), sequence("A", 0)],
        "pair": [special(0), sequence("A", 0), special(1), sequence("B", 1)],
        "special_tokens": { bos: { "id": bos, "ids": [id], "tokens": [bos] } },
    })
}
