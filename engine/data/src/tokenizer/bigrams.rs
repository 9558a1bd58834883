//! Pairs of characters between which byte-pair encoding over a whole text never merges.
//!
//! A merge makes a piece of the vocabulary. If no piece holds the character `a` followed by `b`, then no merge reaches
//! across a place where `a` is followed by `b`, and the text on each side has the ids that it has alone.

use serde_json::Value;

use super::model::{ESCAPE, Kind, ModelProto};

/// A table of hashed bigrams. Two bigrams with one hash only forgo a cut.
#[derive(Clone)]
pub struct Bigrams {
    bits: Box<[u64]>,
    /// The last characters of added tokens: the text after such a token gets a space of its own.
    ends: String,
}

/// The bits of the table, a power of two: small enough for a cache of 256 KiB, and about 1 % full with the pieces of a
/// Japanese vocabulary.
const BITS: u32 = 20;

impl Bigrams {
    /// The bigrams of the pieces.
    pub fn new<'p>(pieces: impl IntoIterator<Item = &'p str>) -> Self {
        let mut bigrams = Self { bits: vec![0; 1 << (BITS - 6)].into(), ends: String::new() };
        for piece in pieces {
            for (a, b) in piece.chars().zip(piece.chars().skip(1)) {
                let (word, bit) = place(a, b);
                bigrams.bits[word] |= bit;
            }
        }
        bigrams
    }

    /// The bigrams of a SentencePiece model that keeps newlines apart; `None` where its normalizer joins characters.
    pub fn of_model(model: &ModelProto) -> Option<Self> {
        let is_text = |kind: Option<i32>| kind.unwrap_or(Kind::Normal as i32) == Kind::Normal as i32;
        let pieces = model.pieces.iter().filter(|piece| is_text(piece.kind));
        let others = [Kind::Unknown, Kind::Control, Kind::Byte].map(|kind| Some(kind as i32));
        let known = model.pieces.iter().all(|piece| is_text(piece.kind) || others.contains(&piece.kind));
        let plain = model.normalizer.as_ref().is_none_or(|normalizer| normalizer.rule() == "identity");
        (known && plain).then(|| Self::new(pieces.filter_map(|piece| piece.piece.as_deref())))
    }

    /// The bigrams of a `tokenizer.json` that keeps newlines apart; `None` where something else than merges joins
    /// characters.
    pub fn of_json(file: &Value) -> Option<Self> {
        let model = &file["model"];
        let vocab = model["vocab"].as_object()?;
        let all_bytes = (0..=u8::MAX).all(|byte| vocab.contains_key(&format!("<0x{byte:02X}>")));
        let bare = |key: &str| model[key].as_str().unwrap_or_default().is_empty();
        let plain = all_bytes
            && model["byte_fallback"] == true
            && model["ignore_merges"] != true
            && bare("continuing_subword_prefix")
            && bare("end_of_word_suffix")
            && escapes_spaces(&file["normalizer"]);
        let added = file["added_tokens"].as_array().into_iter().flatten().filter_map(|token| token["content"].as_str());
        let added: Vec<&str> = added.collect();
        plain.then(|| {
            let bigrams = Self::new(vocab.keys().map(String::as_str).chain(added.iter().copied()));
            Self { ends: added.iter().filter_map(|token| token.chars().last()).collect(), ..bigrams }
        })
    }

    /// The end of the fragment that begins at the byte `start` of a text.
    pub fn end(&self, text: &str, start: usize) -> usize {
        let mut chars = text[start..].char_indices();
        let Some((_, mut last)) = chars.next() else { return text.len() };
        for (at, next) in chars {
            if self.separate(last, next) {
                return start + at;
            }
            last = next;
        }
        text.len()
    }

    fn separate(&self, a: char, b: char) -> bool {
        let (word, bit) = place(a, b);
        self.bits[word] & bit == 0 && !self.ends.contains(a)
    }
}

/// The word and the bit of a bigram. A space and its escape are one character, whichever the pieces are spelled with.
fn place(a: char, b: char) -> (usize, u64) {
    let [a, b] = [a, b].map(|c| u64::from(u32::from(if c == ' ' { ESCAPE } else { c })));
    // Fibonacci hashing: the upper bits of the product depend on all bits of both.
    let hash = (a << 32 | b).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - BITS);
    ((hash >> 6) as usize, 1 << (hash & 63))
}

/// Whether the normalizer does nothing but put a space before a text and escape spaces.
fn escapes_spaces(normalizer: &Value) -> bool {
    let is_space = |text: &Value| text.as_str().is_some_and(|text| text.chars().eq([ESCAPE]));
    match normalizer["type"].as_str() {
        None => normalizer.is_null(),
        Some("Prepend") => is_space(&normalizer["prepend"]),
        Some("Replace") => normalizer["pattern"]["String"] == " " && is_space(&normalizer["content"]),
        Some("Sequence") => normalizer["normalizers"].as_array().is_some_and(|all| all.iter().all(escapes_spaces)),
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_end_where_no_piece_goes_on() {
        let bigrams = Bigrams::new(["\u{2581}ab", "ああ", "c"]);
        let fragments = |text: &str| {
            let mut ends = vec![0];
            while *ends.last().unwrap() < text.len() {
                ends.push(bigrams.end(text, *ends.last().unwrap()));
            }
            ends.windows(2).map(|w| text[w[0]..w[1]].to_string()).collect::<Vec<_>>()
        };
        assert_eq!(fragments("ab abc\u{2581}a"), ["ab", " ab", "c", "\u{2581}a"]);
        assert_eq!(fragments("ああ猫ああ\n"), ["ああ", "猫", "ああ", "\n"]);
        assert_eq!(fragments(""), [""; 0]);
    }
}
