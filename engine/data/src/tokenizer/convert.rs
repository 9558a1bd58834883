//! A SentencePiece model of byte-pair encoding as a Hugging Face `tokenizer.json` that gives the same ids, in the form
//! that Llama 2's has.
//!
//! The library joins any two neighbours whose text is a piece, the piece of the highest score first; a `tokenizer.json`
//! has the pairs instead. So every way to make a piece of two others becomes a merge, in the order of the scores, as in
//! `transformers`' own conversion (`generate_merges`).

use std::cmp::Reverse;
use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::model::{Kind, ModelProto, Piece};
use super::nfkc;

/// The `tokenizer.json`; an error says which setting of the model has no counterpart there.
pub fn tokenizer_json(model: &ModelProto) -> Result<Value, String> {
    let normalizer = normalizer(model)?;
    let of_kind = |kind: Kind| {
        let pieces = model.pieces.iter().enumerate();
        pieces.filter(move |(_, piece)| piece.kind.unwrap_or(Kind::Normal as i32) == kind as i32)
    };
    let text = |piece: &Piece| piece.piece.clone().unwrap_or_default();
    let specials = of_kind(Kind::Unknown).chain(of_kind(Kind::Control));
    let added: Vec<Value> = specials.map(|(id, piece)| added_token(id, &text(piece))).collect();
    let unknown = of_kind(Kind::Unknown).map(|(_, piece)| text(piece)).next().ok_or("it has no unknown piece")?;
    let vocab: Map<String, Value> =
        model.pieces.iter().enumerate().map(|(id, piece)| (text(piece), id.into())).collect();
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": null,
        "post_processor": post_processor(of_kind(Kind::Control).find(|(_, piece)| text(piece) == bos(model))
            .map(|(id, piece)| (id, text(piece)))),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                replace("▁", " "),
                { "type": "ByteFallback" },
                { "type": "Fuse" },
                { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": merges(model),
        },
    }))
}

fn bos(model: &ModelProto) -> String {
    model.trainer.as_ref().and_then(|trainer| trainer.bos_piece.clone()).unwrap_or_else(|| "<s>".into())
}

fn added_token(id: usize, content: &str) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true,
    })
}

/// Puts BOS before a text where special tokens are asked for.
fn post_processor(bos: Option<(usize, String)>) -> Value {
    let Some((id, bos)) = bos else { return Value::Null };
    let special = |type_id: u32| json!({ "SpecialToken": { "id": bos, "type_id": type_id } });
    let sequence = |name: &str, type_id: u32| json!({ "Sequence": { "id": name, "type_id": type_id } });
    json!({
        "type": "TemplateProcessing",
        "single": [special(0), sequence("A", 0)],
        "pair": [special(0), sequence("A", 0), special(1), sequence("B", 1)],
        "special_tokens": { bos.clone(): { "id": bos, "ids": [id], "tokens": [bos] } },
    })
}

fn normalizer(model: &ModelProto) -> Result<Value, String> {
    let spec = model.normalizer.clone().unwrap_or_default();
    if spec.remove_extra_whitespaces != Some(false) || spec.escape_whitespaces == Some(false) {
        return Err("its normalizer changes white space, which a tokenizer.json in this form cannot".into());
    }
    let mut steps = match spec.charsmap.as_deref().unwrap_or_default() {
        [] => Vec::new(),
        // `tokenizers` has an older Unicode than the table: of what it lacks, the name of the era is the one in use.
        charsmap if charsmap == nfkc::charsmap() => vec![replace("㋿", "令和"), json!({ "type": "NFKC" })],
        _ => return Err("its normalizer has a table other than SentencePiece's nfkc".into()),
    };
    if spec.add_dummy_prefix != Some(false) {
        steps.push(json!({ "type": "Prepend", "prepend": "▁" }));
    }
    steps.push(replace(" ", "▁"));
    Ok(json!({ "type": "Sequence", "normalizers": steps }))
}

fn replace(text: &str, content: &str) -> Value {
    json!({ "type": "Replace", "pattern": { "String": text }, "content": content })
}

/// All pairs of pieces whose text is a third one, by falling scores of that; then by the lengths of both.
fn merges(model: &ModelProto) -> Vec<[&str; 2]> {
    let normal = |piece: &&Piece| piece.kind.unwrap_or(Kind::Normal as i32) == Kind::Normal as i32;
    let pieces = || model.pieces.iter().filter(normal).map(|piece| (piece.piece.as_deref().unwrap_or_default(), piece));
    let known: HashSet<&str> = pieces().map(|(text, _)| text).collect();
    let mut merges = Vec::new();
    for (text, piece) in pieces() {
        let score = piece.score.unwrap_or_default();
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if known.contains(left) && known.contains(right) {
                merges.push((score, left, right));
            }
        }
    }
    let length = |text: &str| Reverse(text.chars().count());
    merges.sort_by(|a, b| {
        let lengths = |m: &(f32, &str, &str)| (length(m.1), length(m.2));
        b.0.total_cmp(&a.0).then_with(|| lengths(a).cmp(&lengths(b)))
    });
    merges.into_iter().map(|(_, left, right)| [left, right]).collect()
}
