//! Counts of words to pieces: which characters are pieces, and which merges follow, by `tokenizers`' trainer.

use std::collections::{BTreeMap, HashMap};

use tokenizers::models::bpe::{BPE, BpeTrainer};

use super::words::SPACE;
use super::{Plan, SPECIALS};
use engine::error::{Error, Result, counted};

/// How often each word occurs.
pub type Counts = HashMap<String, u64>;

/// Characters of a piece, as in SentencePiece.
pub const LONGEST_PIECE: usize = 16;
/// Pieces that are there before anything is learned.
pub const RESERVED: usize = SPECIALS.len() + 256;

/// The pieces that were learned.
pub struct Learned {
    /// In the order in which they were merged.
    pub merged: Vec<String>,
    /// The most frequent first.
    pub characters: Vec<char>,
}

/// Adds the counts of a part of the text.
pub fn add(all: &mut Counts, part: Counts) {
    for (word, count) in part {
        *all.entry(word).or_default() += count;
    }
}

/// Learns up to `plan.vocab_size` pieces, the reserved ones among them.
pub fn learn(plan: &Plan, words: &Counts) -> Result<Learned> {
    let characters = characters(words, plan.character_coverage);
    let (size, least) = (plan.vocab_size, RESERVED + characters.len());
    if size < least {
        return Err(Error::user(format!(
            "--vocab-size {size}: must be at least {least}: 256 bytes, {SPECIALS:?}, and {} that make up {} % of the \
             text; raise it, or lower --character-coverage",
            counted(characters.len(), "character"),
            100.0 * plan.character_coverage
        )));
    }
    // The trainer leaves out characters that it does not know, and so would join their neighbours.
    let known = |word: &str| word.chars().all(|c| characters.contains_key(&c));
    let stretches = |word: &str| -> Vec<String> {
        let parts = word.split(|c| !characters.contains_key(&c)).filter(|part| !part.is_empty());
        parts.map(String::from).collect()
    };
    let mut spelled = Counts::new();
    for (word, &count) in words {
        match known(word) {
            true => *spelled.entry(word.clone()).or_default() += count,
            false => stretches(word).into_iter().for_each(|part| *spelled.entry(part).or_default() += count),
        }
    }
    let alphabet = characters.keys().copied().collect();
    let trainer = BpeTrainer::builder()
        .vocab_size(size - RESERVED)
        .min_frequency(2)
        .initial_alphabet(alphabet)
        // Its limit is exclusive.
        .max_token_length(Some(LONGEST_PIECE + 1))
        .show_progress(false)
        .build();
    let mut model = BPE::default();
    let spelled = spelled.into_iter().map(|(word, count)| (word.into(), count)).collect();
    trainer.do_train(&spelled, &mut model).map_err(|e| Error::run(format!("training the tokenizer: {e}")))?;
    Ok(Learned { merged: merged(&model, characters.len()), characters: by_frequency(characters) })
}

/// The merged pieces in order; the ids below `characters` are those of the alphabet. A piece that is spelled like a
/// reserved one is left out: no model may have two of a name.
fn merged(model: &BPE, characters: usize) -> Vec<String> {
    let mut pieces: Vec<(u32, String)> = model.get_vocab().into_iter().map(|(piece, id)| (id, piece)).collect();
    pieces.sort_unstable();
    let merged = pieces.into_iter().skip(characters).map(|(_, piece)| piece);
    merged.filter(|piece| !is_reserved(piece)).collect()
}

fn is_reserved(piece: &str) -> bool {
    let byte = || piece.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    SPECIALS.contains(&piece) || byte().is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok())
}

/// The most frequent characters that together make up this share of the text, with their counts. The escaped space is
/// always among them, and NUL, which no piece can hold, never.
fn characters(words: &Counts, coverage: f64) -> BTreeMap<char, u64> {
    let mut counts: BTreeMap<char, u64> = BTreeMap::new();
    for (word, count) in words {
        word.chars().for_each(|c| *counts.entry(c).or_default() += count);
    }
    counts.remove(&'\0');
    let all: u64 = counts.values().sum();
    let space = *counts.entry(SPACE).or_default();
    let (mut kept, mut covered) = (BTreeMap::from([(SPACE, space)]), space);
    for c in by_frequency(counts.clone()).into_iter().filter(|&c| c != SPACE) {
        // The comparison is SentencePiece's.
        if covered as f64 / all as f64 >= coverage {
            break;
        }
        covered += counts[&c];
        kept.insert(c, counts[&c]);
    }
    kept
}

/// The most frequent first; equally frequent ones by their code points.
fn by_frequency(counts: BTreeMap<char, u64>) -> Vec<char> {
    let mut counts: Vec<(char, u64)> = counts.into_iter().collect();
    counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    counts.into_iter().map(|(c, _)| c).collect()
}
