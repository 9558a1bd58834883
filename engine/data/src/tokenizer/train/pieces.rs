//! A vocabulary in SentencePiece's form, like Llama 2's: `<unk>`, `<s>`, `</s>`, the 256 bytes, the merged pieces with
//! falling scores, and the single characters. Spaces are escaped, a text gets one before it, and what no piece spells
//! falls back to bytes.

use std::sync::Arc;

use rayon::prelude::*;

use super::super::super::text::Chunks;
use super::super::convert;
use super::super::model::{BPE, Kind, ModelProto, NormalizerSpec, Piece, TrainerSpec};
use super::super::nfkc::{self, Nfkc};
use super::learn::{Counts, LONGEST_PIECE, Learned, learn};
use super::lines;
use super::mecab::Mecab;
use super::sample::{Sample, sample};
use super::words::{Segments, of_line};
use super::{Normalization, Plan, SPECIALS, Segmenter, Trained, files, no_text};
use engine::error::{Error, Result};

pub fn train(plan: &Plan) -> Result<Trained> {
    let mecab = match plan.segmenter {
        Segmenter::None => None,
        Segmenter::Mecab => Some(Mecab::find()?),
    };
    let Sample { mut units, taken } = read_lines(plan)?;
    if units.is_empty() {
        return Err(no_text(plan));
    }
    if plan.normalization == Normalization::Nfkc {
        let nfkc = Nfkc::new();
        units.par_iter_mut().for_each(|line| *line = nfkc.apply(line));
    }
    let words = count(&units, mecab.as_ref())?;
    drop(units);
    let learned = learn(plan, &words)?;
    drop(words);
    let model = model(plan, learned);
    let [unk, bos, eos] = SPECIALS;
    let json = convert::tokenizer_json(&model).map_err(Error::run)?;
    let files = files::Files::new(&json, [unk, bos, eos]).with_model(&model);
    files.write(plan.output)?;
    Ok(Trained { size: model.pieces.len(), taken, dictionary: mecab.map(|mecab| mecab.dictionary) })
}

/// A sample of the lines of all inputs.
fn read_lines(plan: &Plan) -> Result<Sample> {
    sample(plan.sample_bytes, |add| {
        for chunk in Chunks::new(plan.inputs, &lines::cut, Arc::default()) {
            for part in chunk?.parts(&plan.inputs.key) {
                let text = part.text.map_err(Error::user)?;
                text.lines().for_each(|line| lines::in_parts(line, add));
            }
        }
        Ok(())
    })
}

/// How often each word occurs in the lines.
fn count(lines: &[String], mecab: Option<&Mecab>) -> Result<Counts> {
    let segments = Segments::new();
    match mecab {
        None => lines::count(lines, |lines, add| {
            lines.iter().for_each(|line| of_line(line, add));
            Ok(())
        }),
        Some(mecab) => mecab.count(lines, |line, lengths, add| segments.of_segments(lines::cut_at(line, lengths), add)),
    }
}

/// The pieces in Llama 2's order, and the settings that the library reads.
fn model(plan: &Plan, learned: Learned) -> ModelProto {
    let piece = |piece: String, score: f32, kind: Kind| Piece {
        piece: Some(piece),
        score: Some(score),
        kind: Some(kind as i32),
    };
    let special =
        |(id, name): (usize, &str)| piece(name.to_string(), 0.0, if id == 0 { Kind::Unknown } else { Kind::Control });
    let bytes = (0..=255u8).map(|byte| piece(byte_piece(byte), 0.0, Kind::Byte));
    let characters = learned.characters.into_iter().map(String::from);
    let learned = learned.merged.into_iter().chain(characters).enumerate();
    let learned = learned.map(|(rank, text)| piece(text, -(rank as f32), Kind::Normal));
    let pieces: Vec<Piece> = SPECIALS.into_iter().enumerate().map(special).chain(bytes).chain(learned).collect();
    let trainer = TrainerSpec {
        model_type: Some(BPE),
        vocab_size: Some(pieces.len() as i32),
        character_coverage: Some(plan.character_coverage as f32),
        max_sentencepiece_length: Some(LONGEST_PIECE as i32),
        split_by_unicode_script: Some(plan.segmenter == Segmenter::None),
        split_digits: Some(true),
        allow_whitespace_only_pieces: Some(true),
        byte_fallback: Some(true),
        ..TrainerSpec::default()
    };
    let (name, charsmap) = match plan.normalization {
        Normalization::None => ("identity", Vec::new()),
        Normalization::Nfkc => ("nfkc", nfkc::charsmap()),
    };
    let normalizer = NormalizerSpec {
        name: Some(name.into()),
        charsmap: Some(charsmap),
        add_dummy_prefix: Some(true),
        remove_extra_whitespaces: Some(false),
        escape_whitespaces: Some(true),
    };
    ModelProto { pieces, trainer: Some(trainer), normalizer: Some(normalizer), denormalizer: None }
}

/// The name of the piece of a byte.
fn byte_piece(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}
