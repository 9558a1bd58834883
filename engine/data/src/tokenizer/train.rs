//! `tokenizer train`: learns a vocabulary by byte-pair encoding, through `tokenizers`' trainer, from a sample of the
//! text: byte-level like GPT-2's ([`byte_level`]), or in SentencePiece's form ([`pieces`]). Either can be bound to the
//! words of MeCab ([`mecab`]).

mod byte_level;
mod files;
mod learn;
mod lines;
mod mecab;
mod pieces;
mod sample;
mod words;

use std::path::Path;

use super::super::text::Inputs;
use engine::error::{Error, Result};
pub use sample::Taken;

/// The most pieces: the trainer allocates all of them at once.
const MOST: usize = 1 << 24;
/// The most bytes of a sample: the trainer counts pairs in 32 bits.
const LARGEST_SAMPLE: u64 = (1 << 31) - 1;
/// Ids 0, 1 and 2.
const SPECIALS: [&str; 3] = ["<unk>", "<s>", "</s>"];

/// The form of a vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelType {
    /// GPT-2's: pieces are bytes, and a text is split into words by an expression.
    ByteBpe,
    /// SentencePiece's: pieces are characters, with bytes for those that are not in the vocabulary.
    Bpe,
}

/// The bounds of a piece besides the rules of its [`ModelType`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segmenter {
    None,
    /// The words of the program `mecab`.
    Mecab,
}

/// Whether texts are normalized, in training and by the tokenizer that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Normalization {
    None,
    Nfkc,
}

/// The inputs, settings and output of a training.
#[derive(Debug)]
pub struct Plan<'a> {
    pub inputs: &'a Inputs,
    pub model_type: ModelType,
    pub segmenter: Segmenter,
    pub normalization: Normalization,
    pub vocab_size: usize,
    /// Bytes of text to train on. Where the inputs have more, lines (or parts of a text, for [`ModelType::ByteBpe`])
    /// are drawn from all of them with equal chances, the same ones in each run.
    pub sample_bytes: u64,
    /// The share of the text's characters that are pieces of their own, the most frequent ones, for
    /// [`ModelType::Bpe`].
    pub character_coverage: f64,
    /// A `tokenizer.json`, or a folder that does not exist yet or is empty.
    pub output: &'a Path,
}

/// The result of a training.
#[derive(Debug, PartialEq)]
pub struct Trained {
    /// The pieces of the vocabulary, fewer than asked for where there is too little text.
    pub size: usize,
    pub taken: Taken,
    /// MeCab's dictionary, where it was used.
    pub dictionary: Option<String>,
}

/// Trains and writes. Nothing is written before the training is done, and the output appears whole.
pub fn train(plan: &Plan) -> Result<Trained> {
    let size = plan.vocab_size;
    let least = 256 + SPECIALS.len();
    if !(least..=MOST).contains(&size) {
        return Err(Error::user(format!(
            "--vocab-size {size}: must be at least {least} (256 bytes and {SPECIALS:?}) and at most {MOST}"
        )));
    }
    if !(1..=LARGEST_SAMPLE).contains(&plan.sample_bytes) {
        let bytes = plan.sample_bytes;
        return Err(Error::user(format!("--sample-bytes {bytes}: must lie in 1 ..= {LARGEST_SAMPLE}")));
    }
    let coverage = plan.character_coverage;
    if !(coverage > 0.0 && coverage <= 1.0) {
        return Err(Error::user(format!("--character-coverage {coverage}: must be more than 0 and at most 1")));
    }
    files::must_be_free(plan.output)?;
    plan.inputs.check()?;
    match plan.model_type {
        ModelType::ByteBpe => byte_level::train(plan),
        ModelType::Bpe if files::is_json(plan.output) => Err(Error::user(format!(
            "--output {}: a vocabulary of --model-type bpe has several files, such as tokenizer.model; name a folder",
            plan.output.display()
        ))),
        ModelType::Bpe => pieces::train(plan),
    }
}

/// The error for inputs without a character.
fn no_text(plan: &Plan) -> Error {
    Error::user(format!("--input {}: there is no text to train on", plan.inputs.paths[0].display()))
}

#[cfg(test)]
mod tests;
