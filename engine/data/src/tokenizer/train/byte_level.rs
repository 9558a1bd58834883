//! A byte-level vocabulary like GPT-2's, in which every text can be spelled. Memory grows with the number of different
//! words of the sample.

use std::sync::Arc;

use rayon::prelude::*;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NFKC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, OffsetReferential, OffsetType, PostProcessorWrapper,
    PreTokenizedString, PreTokenizer, PreTokenizerWrapper, TokenizerImpl,
};

use super::super::super::text::Chunks;
use super::super::cuts::Cuts;
use super::super::nfkc::Nfkc;
use super::files::Files;
use super::learn::{self, Counts};
use super::lines::{cut_at, in_parts};
use super::mecab::Mecab;
use super::sample::{Sample, sample};
use super::{Normalization, Plan, SPECIALS, Segmenter, Trained, no_text};
use engine::error::{Error, Result};

type Untrained = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

pub fn train(plan: &Plan) -> Result<Trained> {
    let mecab = match plan.segmenter {
        Segmenter::None => None,
        Segmenter::Mecab => Some(Mecab::find()?),
    };
    let Sample { units, taken } = texts(plan)?;
    if units.is_empty() {
        return Err(no_text(plan));
    }
    let mut tokenizer = Untrained::new(BPE::default());
    let bytes = ByteLevel::new(false, false, true);
    tokenizer.with_pre_tokenizer(Some(bytes)).with_decoder(Some(ByteLevel::default()));
    if plan.normalization == Normalization::Nfkc {
        tokenizer.with_normalizer(Some(NFKC));
    }
    let specials = SPECIALS.map(|name| AddedToken::from(name, true));
    let mut trainer = BpeTrainer::builder()
        .vocab_size(plan.vocab_size)
        .min_frequency(2)
        .special_tokens(specials.to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    let trained = match &mecab {
        None => tokenizer.train(&mut trainer, units.into_iter()).map(|_| ()),
        Some(mecab) => {
            let (words, mut model) = (words(plan, units, mecab)?, BPE::default());
            trainer.do_train(&words.into_iter().map(|(word, count)| (word.into(), count)).collect(), &mut model).map(
                |_| {
                    tokenizer.with_model(model).add_special_tokens(&specials);
                },
            )
        }
    };
    trained.map_err(|e| Error::run(format!("training the tokenizer: {e}")))?;
    let json = tokenizer.to_string(false).map_err(|e| Error::run(format!("{}: {e}", plan.output.display())))?;
    let json = serde_json::from_str(&json).expect("a tokenizer is written as JSON");
    Files::new(&json, SPECIALS).write(plan.output)?;
    let dictionary = mecab.map(|mecab| mecab.dictionary);
    Ok(Trained { size: tokenizer.get_vocab_size(true), taken, dictionary })
}

/// A sample of the parts of all texts.
fn texts(plan: &Plan) -> Result<Sample> {
    // GPT-2's splitter ends a word at these places.
    let cut = |text: &[u8]| Cuts { after_newline: false, ..Cuts::ALL }.last(text);
    sample(plan.sample_bytes, |add| {
        for chunk in Chunks::new(plan.inputs, &cut, Arc::default()) {
            for part in chunk?.parts(&plan.inputs.key) {
                add(&part.text.map_err(Error::user)?);
            }
        }
        Ok(())
    })
}

/// How often each word of GPT-2's splitter occurs inside MeCab's words, and the newlines between lines, all spelled in
/// the letters of bytes.
fn words(plan: &Plan, texts: Vec<String>, mecab: &Mecab) -> Result<Counts> {
    let nfkc = (plan.normalization == Normalization::Nfkc).then(Nfkc::new);
    let mut lines = Vec::new();
    let mut counts = Counts::new();
    for text in texts {
        text.lines().for_each(|line| in_parts(line, &mut |part| lines.push(part.to_string())));
        for newlines in text.split(|c| c != '\n').filter(|run| !run.is_empty()) {
            *counts.entry(newlines.to_string()).or_default() += 1;
        }
    }
    if let Some(nfkc) = nfkc {
        lines.par_iter_mut().for_each(|line| *line = nfkc.apply(line));
    }
    learn::add(&mut counts, mecab.count(&lines, |line, lengths, add| cut_at(line, lengths).for_each(add))?);
    let bytes = ByteLevel::new(false, false, true);
    let mut spelled = Counts::new();
    for (word, count) in counts {
        let mut split = PreTokenizedString::from(word);
        bytes.pre_tokenize(&mut split).map_err(|e| Error::run(e.to_string()))?;
        for (part, ..) in split.get_splits(OffsetReferential::Normalized, OffsetType::Byte) {
            *spelled.entry(part.to_string()).or_default() += count;
        }
    }
    Ok(spelled)
}
