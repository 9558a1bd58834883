//! SentencePiece models, through Google's C++ library.

use sentencepiece::SentencePieceProcessor;

use super::cuts::LineCuts;
use super::model::ModelProto;
use super::{Kind, Special};

pub struct SentencePiece {
    processor: SentencePieceProcessor,
    pieces: Vec<String>,
    line_cuts: Option<LineCuts>,
}

impl SentencePiece {
    pub fn open(bytes: &[u8]) -> Result<Self, String> {
        let model = ModelProto::parse(bytes)?;
        let processor = SentencePieceProcessor::from_serialized_proto(bytes).map_err(|e| e.to_string())?;
        let line_cuts = match model.keeps_newlines_apart() {
            true => LineCuts::of(|text| ids(&processor, text))?,
            false => None,
        };
        let pieces = model.pieces.into_iter().map(|p| p.piece.unwrap_or_default()).collect();
        Ok(Self { processor, pieces, line_cuts })
    }
}

impl Kind for SentencePiece {
    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        ids(&self.processor, text)
    }

    fn encode_rest(&self, text: &str) -> Result<Vec<u32>, String> {
        let cuts = self.line_cuts.as_ref().expect("only a text that was cut has a rest");
        cuts.encode_rest(text, |text| ids(&self.processor, text))
    }

    fn decode(&self, ids: &[u32]) -> Result<String, String> {
        self.processor.decode_piece_ids(ids).map_err(|e| e.to_string())
    }

    fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    fn bos(&self) -> Special {
        self.processor.bos_id().ok_or_else(|| "the model was trained without a BOS piece".into())
    }

    fn eos(&self) -> Special {
        self.processor.eos_id().ok_or_else(|| "the model was trained without an EOS piece".into())
    }

    fn piece(&self, id: u32) -> Option<String> {
        self.pieces.get(id as usize).cloned()
    }

    fn cut(&self, text: &[u8]) -> Option<usize> {
        self.line_cuts.as_ref()?;
        LineCuts::last(text)
    }
}

fn ids(processor: &SentencePieceProcessor, text: &str) -> Result<Vec<u32>, String> {
    // The library returns the same error for an empty text as for a failure.
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let pieces = processor.encode(text).map_err(|e| e.to_string())?;
    Ok(pieces.into_iter().map(|piece| piece.id).collect())
}
