//! SentencePiece models, through Google's C++ library.

use sentencepiece::SentencePieceProcessor;

use super::Kind;
use super::model::ModelProto;

pub struct SentencePiece {
    processor: SentencePieceProcessor,
    pieces: Vec<String>,
    /// The ids of a lone newline, where texts may be cut after one.
    newline: Option<Vec<u32>>,
}

impl SentencePiece {
    pub fn open(bytes: &[u8]) -> Result<Self, String> {
        let model = ModelProto::parse(bytes)?;
        let processor = SentencePieceProcessor::from_serialized_proto(bytes).map_err(|e| e.to_string())?;
        let newline = match model.cuts_at_newlines() {
            true => Some(ids(&processor, "\n")?),
            false => None,
        };
        let pieces = model.pieces.into_iter().map(|p| p.piece.unwrap_or_default()).collect();
        Ok(Self { processor, pieces, newline })
    }
}

impl Kind for SentencePiece {
    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        ids(&self.processor, text)
    }

    /// The library puts a space before every text. A newline in front keeps that space away from the text, and
    /// both are taken off again.
    fn encode_rest(&self, text: &str) -> Result<Vec<u32>, String> {
        let newline = self.newline.as_ref().expect("only what was cut has a rest");
        let mut all = ids(&self.processor, &format!("\n{text}"))?;
        assert!(all.starts_with(newline), "a newline's ids do not depend on what follows");
        all.drain(..newline.len());
        Ok(all)
    }

    fn decode(&self, ids: &[u32]) -> Result<String, String> {
        self.processor.decode_piece_ids(ids).map_err(|e| e.to_string())
    }

    fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    fn bos(&self) -> Option<u32> {
        self.processor.bos_id()
    }

    fn eos(&self) -> Option<u32> {
        self.processor.eos_id()
    }

    fn piece(&self, id: u32) -> Option<String> {
        self.pieces.get(id as usize).cloned()
    }

    fn cut(&self, text: &[u8]) -> Option<usize> {
        self.newline.as_ref()?;
        let before_last = &text[..text.len().saturating_sub(1)];
        before_last.iter().rposition(|&b| b == b'\n').map(|at| at + 1)
    }
}

fn ids(processor: &SentencePieceProcessor, text: &str) -> Result<Vec<u32>, String> {
    // The library says no to an empty text and to one without ids in the same way.
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let pieces = processor.encode(text).map_err(|e| e.to_string())?;
    Ok(pieces.into_iter().map(|piece| piece.id).collect())
}
