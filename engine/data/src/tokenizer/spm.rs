//! SentencePiece models, through Google's C++ library.

use std::collections::HashMap;
use std::path::Path;

use sentencepiece::{PieceWithId, SentencePieceProcessor};

use super::bigrams::Bigrams;
use super::config::TokenizerConfig;
use super::controls::Controls;
use super::cuts::LineCuts;
use super::fragments::{Ends, Fragments};
use super::model::{Kind as PieceKind, ModelProto};
use super::{ControlTokens, Kind, Spans, Special};

pub struct SentencePiece {
    processor: SentencePieceProcessor,
    pieces: Vec<String>,
    by_piece: HashMap<String, u32>,
    control_ids: Vec<u32>,
    /// For each id whether it stands for one byte.
    is_byte: Vec<bool>,
    line_cuts: Option<LineCuts>,
    /// Not where control pieces are read: the text after one begins anew.
    fragments: Option<Fragments>,
    /// Where control pieces in a text are to be read.
    controls: Option<Controls>,
}

impl SentencePiece {
    pub fn open(path: &Path, bytes: &[u8], controls: ControlTokens) -> Result<Self, String> {
        let model = ModelProto::parse(bytes)?;
        let processor = SentencePieceProcessor::from_serialized_proto(bytes).map_err(|e| e.to_string())?;
        let controls = match controls {
            ControlTokens::AsInPython | ControlTokens::Text => None,
            ControlTokens::Parsed | ControlTokens::Chat => {
                let config = TokenizerConfig::beside(path)?;
                if controls == ControlTokens::Chat {
                    check_added_tokens(&config, &model)?;
                }
                Some(Controls::new(&model, bytes, config.dummy_space())?)
            }
        };
        let line_cuts = match model.keeps_newlines_apart() {
            true => LineCuts::of(|text| ids(&processor, text))?,
            false => None,
        };
        let bigrams = line_cuts.as_ref().filter(|_| controls.is_none()).and_then(|_| Bigrams::of_model(&model));
        let fragments = bigrams.map(|bigrams| Fragments::new(Ends::Bigrams(bigrams)));
        let is_kind = |kind: PieceKind| move |p: &super::model::Piece| p.kind == Some(kind as i32);
        let is_byte = model.pieces.iter().map(is_kind(PieceKind::Byte)).collect();
        let is_control = is_kind(PieceKind::Control);
        let control_ids = (0..).zip(&model.pieces).filter(|(_, p)| is_control(p)).map(|(id, _)| id).collect();
        let pieces: Vec<String> = model.pieces.into_iter().map(|p| p.piece.unwrap_or_default()).collect();
        let by_piece = pieces.iter().cloned().zip(0..).collect();
        Ok(Self { processor, pieces, by_piece, control_ids, is_byte, line_cuts, fragments, controls })
    }

    /// The library's spans. Of the bytes of a character that is no piece, only the last has the character's span; here
    /// all of them have it.
    fn spans(&self, processor: &SentencePieceProcessor, text: &str) -> Result<Spans, String> {
        let mut spans = Spans::default();
        for piece in encode(processor, text)? {
            spans.push(piece.id, piece.span.0 as usize..piece.span.1 as usize);
        }
        for i in (1..spans.ids.len()).rev() {
            let is_byte = |i: usize| self.is_byte[spans.ids[i] as usize];
            if is_byte(i - 1) && is_byte(i) && spans.bytes[i - 1].is_empty() {
                spans.bytes[i - 1] = spans.bytes[i].clone();
            }
        }
        Ok(spans)
    }
}

/// Refuses tokens that `transformers` would add to those of the model.
fn check_added_tokens(config: &TokenizerConfig, model: &ModelProto) -> Result<(), String> {
    for (id, token) in config.added_tokens()? {
        let token = super::config::spelling(token).unwrap_or_default();
        if model.pieces.get(id as usize).and_then(|p| p.piece.as_deref()) != Some(token) {
            return Err(format!(
                "tokenizer_config.json beside it adds the token {token:?} with the id {id}, which the model does not \
                 have; give the tokenizer.json that transformers saves (save_pretrained)"
            ));
        }
    }
    Ok(())
}

impl Kind for SentencePiece {
    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        match self.controls {
            None => ids(&self.processor, text),
            Some(_) => Ok(self.encode_spans(text)?.ids),
        }
    }

    fn encode_rest(&self, text: &str) -> Result<Vec<u32>, String> {
        let cuts = self.line_cuts.as_ref().expect("only a text that was cut has a rest");
        let of_rest = |text: &str| cuts.encode_rest(text, |text| ids(&self.processor, text));
        let Some(controls) = &self.controls else { return of_rest(text) };
        let mut all = Vec::new();
        for (bytes, control) in controls.split(text) {
            let part = &text[bytes.clone()];
            match control {
                Some(id) => all.push(id),
                None if bytes.start == 0 => all.extend(of_rest(part)?),
                None => all.extend(ids(controls.rest.as_ref().unwrap_or(&self.processor), part)?),
            }
        }
        Ok(all)
    }

    fn encode_spans(&self, text: &str) -> Result<Spans, String> {
        let Some(controls) = &self.controls else { return self.spans(&self.processor, text) };
        let mut all = Spans::default();
        for (bytes, control) in controls.split(text) {
            let processor = if bytes.start == 0 { &controls.first } else { &controls.rest };
            match control {
                Some(id) => all.push(id, bytes),
                None => {
                    let part = self.spans(processor.as_ref().unwrap_or(&self.processor), &text[bytes.clone()])?;
                    all.append(part, bytes.start);
                }
            }
        }
        Ok(all)
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

    fn id(&self, piece: &str) -> Option<u32> {
        self.by_piece.get(piece).copied()
    }

    fn controls(&self) -> &[u32] {
        &self.control_ids
    }

    fn cut(&self, text: &[u8]) -> Option<usize> {
        self.line_cuts.as_ref()?;
        LineCuts::last(text)
    }

    fn fragments(&self) -> Option<&Fragments> {
        self.fragments.as_ref()
    }
}

fn encode(processor: &SentencePieceProcessor, text: &str) -> Result<Vec<PieceWithId>, String> {
    // The library returns the same error for an empty text as for a failure.
    if text.is_empty() {
        return Ok(Vec::new());
    }
    processor.encode(text).map_err(|e| e.to_string())
}

fn ids(processor: &SentencePieceProcessor, text: &str) -> Result<Vec<u32>, String> {
    Ok(encode(processor, text)?.into_iter().map(|piece| piece.id).collect())
}
