//! The bytes of text that each id stands for, read from a tokenizer's file: losses by byte compare models with
//! different tokenizers, as losses by token do not.
//!
//! The escaped space `▁` is one byte, a byte piece is one, and a control token or the unknown piece stands for none.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::identity::Vocabulary;
use super::is_json;
use super::model::{Kind, ModelProto};
use engine::batch::MicroBatch;

/// SentencePiece's escape of a space.
const SPACE: char = '▁';

/// The bytes of each id; `None` for an id that the tokenizer does not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PieceBytes(Vec<Option<u32>>);

#[derive(Deserialize)]
struct Json {
    #[serde(default)]
    added_tokens: Vec<Added>,
    model: Model,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Vocabulary,
    unk_token: Option<String>,
    unk_id: Option<usize>,
    byte_fallback: Option<bool>,
}

impl PieceBytes {
    /// Reads the file of a tokenizer. The error does not name the file.
    pub fn of(file: &[u8]) -> Result<Self, String> {
        if is_json(file) { Self::of_json(file) } else { Self::of_model(file) }
    }

    /// The bytes of the counted targets; `None` if the tokenizer lacks one of them.
    pub fn of_counted(&self, batch: &MicroBatch) -> Option<u64> {
        let counted = batch.targets.iter().zip(&batch.weights).filter(|&(_, &weight)| weight > 0.0);
        counted.map(|(&id, _)| self.0.get(id as usize).copied().flatten().map(u64::from)).sum()
    }

    fn of_model(file: &[u8]) -> Result<Self, String> {
        let model = ModelProto::parse(file)?;
        let bytes = model.pieces.iter().map(|piece| {
            let text = piece.piece.as_deref().unwrap_or_default();
            Some(match Kind::try_from(piece.kind.unwrap_or(1)) {
                Ok(Kind::Control | Kind::Unknown) => 0,
                Ok(Kind::Byte) => 1,
                _ => unescaped(text),
            })
        });
        Ok(Self(bytes.collect()))
    }

    fn of_json(file: &[u8]) -> Result<Self, String> {
        let Json { added_tokens, model, pre_tokenizer, decoder } =
            serde_json::from_slice(file).map_err(|e| e.to_string())?;
        let pieces: HashMap<u32, &str> = match &model.vocab {
            Vocabulary::Ids(ids) => ids.iter().map(|(piece, &id)| (id, piece.as_str())).collect(),
            Vocabulary::Scores(pieces) => (0..).zip(pieces.iter().map(|piece| piece.0.as_str())).collect(),
        };
        let is_byte_level = [&pre_tokenizer, &decoder].into_iter().any(has_byte_level);
        let fallback = model.byte_fallback == Some(true);
        let of_piece = |id: u32, piece: &str| match piece {
            _ if model.unk_token.as_deref() == Some(piece) || model.unk_id == Some(id as usize) => 0,
            // Each character stands for a byte.
            _ if is_byte_level => piece.chars().count() as u32,
            _ if fallback && is_byte(piece) => 1,
            _ => unescaped(piece),
        };
        if !is_byte_level && matches!(model.kind.as_deref(), Some("WordPiece" | "WordLevel")) {
            return Err("its pieces do not say which spaces they stand for".into());
        }
        let added = |token: &Added| (token.id, if token.special { 0 } else { token.content.len() as u32 });
        let mut bytes: HashMap<u32, u32> = pieces.iter().map(|(&id, piece)| (id, of_piece(id, piece))).collect();
        bytes.extend(added_tokens.iter().map(added));
        // Ids may have gaps, but no file can make the table longer than its pieces allow by much.
        let most = bytes.keys().max().map_or(0, |&id| id as usize + 1);
        if most > file.len() {
            return Err(format!("the id {} in a file of {} bytes", most - 1, file.len()));
        }
        Ok(Self((0..most as u32).map(|id| bytes.get(&id).copied()).collect()))
    }
}

/// The bytes of a piece, in which a space is escaped.
fn unescaped(piece: &str) -> u32 {
    piece.chars().map(|c| if c == SPACE { 1 } else { c.len_utf8() as u32 }).sum()
}

/// Whether a piece is spelled as byte fallback spells a byte: `<0x0A>`.
fn is_byte(piece: &str) -> bool {
    let digits = piece.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// Whether a pre-tokenizer or decoder is byte-level, or a sequence with one that is.
fn has_byte_level(part: &Value) -> bool {
    let parts = ["pretokenizers", "decoders"].iter().filter_map(|key| part[key].as_array()).flatten();
    part["type"] == "ByteLevel" || parts.into_iter().any(has_byte_level)
}

#[cfg(test)]
mod tests {
    use super::super::Tokenizer;
    use super::*;

    fn golden(name: &str) -> std::path::PathBuf {
        crate::checkout().join("tests/golden/tokenizers").join(name)
    }

    fn table(name: &str) -> PieceBytes {
        PieceBytes::of(&std::fs::read(golden(name)).unwrap()).unwrap()
    }

    fn bytes(table: &PieceBytes, ids: Vec<u32>) -> Option<u64> {
        table.of_counted(&MicroBatch { weights: vec![1.0; ids.len()], targets: ids, ..MicroBatch::default() })
    }

    /// The bytes of a text's pieces sum to those of the text, and one for SentencePiece's space before it.
    #[test]
    fn the_pieces_of_a_text_are_its_bytes() {
        for (name, dummy) in [("tokenizer.model", 1), ("tokenizer.json", 0)] {
            let (tokenizer, table) = (Tokenizer::open(&golden(name)).unwrap(), table(name));
            // This model takes several spaces as one.
            let spaced = if dummy == 0 { "def make(case):\n    return 1" } else { "def make(case):\n return 1" };
            for text in ["Once upon a time", spaced, "猫がいた。\u{1f408} café", "a\tb c"] {
                let ids = tokenizer.encode(text).unwrap();
                assert_eq!(bytes(&table, ids), Some((text.len() + dummy) as u64), "{name}: {text:?}");
            }
            let control: Vec<u32> = [tokenizer.bos(), tokenizer.eos()].into_iter().flatten().collect();
            assert_eq!((control.len(), bytes(&table, control)), (2, Some(0)), "{name}");
            assert_eq!(bytes(&table, vec![tokenizer.vocab_size() as u32]), None, "{name}");
        }
    }

    #[test]
    fn only_counted_targets_are_summed() {
        let batch = MicroBatch { targets: vec![0, 1, 2, 9], weights: vec![1.0, 0.0, 1.0, 0.0], ..Default::default() };
        assert_eq!(PieceBytes(vec![Some(3), Some(5), Some(7)]).of_counted(&batch), Some(10));
        assert_eq!(PieceBytes(vec![Some(3), Some(5), None]).of_counted(&batch), None);
    }

    /// A file as converted from a SentencePiece model, with an added token that is text.
    #[test]
    fn a_converted_file_escapes_spaces_and_bytes() {
        let file = serde_json::json!({
            "added_tokens": [{"id": 0, "content": "<unk>", "special": true}, {"id": 6, "content": "<br>"}],
            "model": {"type": "BPE", "byte_fallback": true, "unk_token": "<unk>", "merges": [],
                "vocab": {"<unk>": 0, "<0x0A>": 1, "▁": 2, "▁▁の": 3, "<0x0A": 4}},
            "pre_tokenizer": null,
            "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        });
        let table = PieceBytes::of(file.to_string().as_bytes()).unwrap();
        assert_eq!(table.0, [Some(0), Some(1), Some(1), Some(5), Some(5), None, Some(4)]);
        let words = serde_json::json!({"model": {"type": "WordPiece", "vocab": {"a": 0}}});
        assert!(PieceBytes::of(words.to_string().as_bytes()).is_err());
    }
}
