//! SentencePiece's own table of NFKC, by which a `.model` normalizes texts.

use sentencepiece::SentencePieceProcessor;

use super::model::{BPE, Kind, ModelProto, NormalizerSpec, Piece, TrainerSpec};

/// The `precompiled_charsmap` that SentencePiece 0.2.1 (Apache-2.0) puts into a model whose `normalization_rule_name`
/// is `nfkc`, compressed by zstd. The library has it in its trainer, which the crate does not expose.
const CHARSMAP: &[u8] = include_bytes!("nfkc.charsmap.zst");

/// The table as a `.model` has it.
pub fn charsmap() -> Vec<u8> {
    zstd::decode_all(CHARSMAP).expect("the compressed table is whole")
}

/// Normalizes texts by the table.
pub struct Nfkc(SentencePieceProcessor);

impl Nfkc {
    pub fn new() -> Self {
        // The library opens no model without a piece of text.
        let pieces = [("<unk>", Kind::Unknown), ("a", Kind::Normal)];
        let pieces =
            pieces.map(|(text, kind)| Piece { piece: Some(text.into()), score: Some(0.0), kind: Some(kind as i32) });
        let normalizer = NormalizerSpec {
            charsmap: Some(charsmap()),
            add_dummy_prefix: Some(false),
            remove_extra_whitespaces: Some(false),
            escape_whitespaces: Some(false),
            ..NormalizerSpec::default()
        };
        let trainer = TrainerSpec { model_type: Some(BPE), ..TrainerSpec::default() };
        let (trainer, normalizer) = (Some(trainer), Some(normalizer));
        let model = ModelProto { pieces: pieces.into(), trainer, normalizer, denormalizer: None };
        let model = prost::Message::encode_to_vec(&model);
        Nfkc(SentencePieceProcessor::from_serialized_proto(&model).expect("the model is complete"))
    }

    pub fn apply(&self, text: &str) -> String {
        // The library returns the same error for an empty text as for a failure.
        match text.is_empty() {
            true => String::new(),
            false => self.0.normalize(text).expect("a text without an error of encoding can be normalized"),
        }
    }
}
