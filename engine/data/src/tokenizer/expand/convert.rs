//! A `tokenizer.json` that gives the ids of a SentencePiece model, by the conversion of `transformers`, except that the
//! merges are in the order of the scores ([`merges`]).

use serde_json::{Map, Value, json};
use tokenizers::normalizers::{NormalizerWrapper, Precompiled};

use super::super::Tokenizer;
use super::super::model::{Kind, ModelProto, NormalizerSpec, Piece};
use super::pieces::ESCAPE;
use super::{merges, model, normalizer};

/// `tokenizer` is the model's, or one with the same special pieces.
pub fn tokenizer_json(proto: &ModelProto, tokenizer: &Tokenizer) -> Result<Value, String> {
    let text = |piece: &Piece| piece.piece.clone().unwrap_or_default();
    let spec = proto.normalizer.clone().unwrap_or_default();
    let prefix = spec.add_dummy_prefix != Some(false);
    let unknown = proto.pieces.iter().find(|piece| piece.kind() == Kind::Unknown).map(text);
    let is_added = |piece: &Piece| matches!(piece.kind(), Kind::Unknown | Kind::Control | Kind::UserDefined);
    let added = (0..).zip(&proto.pieces).filter(|(_, piece)| is_added(piece));
    let vocab: Map<String, Value> =
        (0..).zip(&proto.pieces).map(|(id, piece)| (text(piece), json!(id as u32))).collect();
    let merges: Vec<Value> = merges::all(&model::scores(proto)).into_iter().map(|(a, b)| json!([a, b])).collect();
    let byte_fallback = proto.trainer.as_ref().and_then(|trainer| trainer.byte_fallback) == Some(true);
    let escape = ESCAPE.to_string();
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": escape }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.map(|(id, piece)| added_token(id, piece)).collect::<Vec<_>>(),
        "normalizer": normalizers(&spec)?,
        "pre_tokenizer": null,
        "post_processor": beginning(tokenizer),
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

fn normalizers(spec: &NormalizerSpec) -> Result<Value, String> {
    let mut steps = Vec::new();
    match normalizer::name(spec) {
        "identity" => {}
        "nfkc" => steps.push(json!({ "type": "NFKC" })),
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
    steps.push(json!({ "type": "Replace", "pattern": { "String": " " }, "content": escape }));
    Ok(json!({ "type": "Sequence", "normalizers": steps }))
}

/// Puts BOS before a text, as the tokenizers of Llama and Mistral do where they are asked for special tokens.
fn beginning(tokenizer: &Tokenizer) -> Value {
    let Some((id, bos)) = tokenizer.bos().ok().and_then(|id| Some((id, tokenizer.piece(id)?))) else {
        return Value::Null;
    };
    let special = |type_id| json!({ "SpecialToken": { "id": bos, "type_id": type_id } });
    let sequence = |name, type_id| json!({ "Sequence": { "id": name, "type_id": type_id } });
    let mut tokens = Map::new();
    tokens.insert(bos.clone(), json!({ "id": bos, "ids": [id], "tokens": [bos] }));
    json!({
        "type": "TemplateProcessing",
        "single": [special(0), sequence("A", 0)],
        "pair": [special(0), sequence("A", 0), special(1), sequence("B", 1)],
        "special_tokens": tokens,
    })
}
