//! The words of a line, which no piece crosses. SentencePiece's trainer has the same rules: a space is written as `▁`
//! and begins a word, a line begins with one, a longer stretch of spaces is a word but for its last one, digits are
//! words of their own, and scripts are apart, with kanji and kana as one script.

use regex_syntax::hir::{Class, ClassUnicode, HirKind};
use tokenizers::pre_tokenizers::unicode_scripts::UnicodeScripts;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

/// SentencePiece's escape for a space.
pub const SPACE: char = '▁';

/// Calls `each` with every word of a line that no segmenter has cut.
pub fn of_line(line: &str, each: &mut dyn FnMut(&str)) {
    let line = escape(line);
    let starts = line.match_indices(SPACE).map(|(at, _)| at).filter(|&at| !line[..at].ends_with(SPACE));
    let ends = starts.clone().skip(1).chain([line.len()]);
    for (start, end) in starts.zip(ends) {
        of_stretch(&line[start..end], &mut by_script, each);
    }
}

/// Cuts the words of a segmenter: symbols at both ends of a word, and digits, are words of their own.
pub struct Segments {
    symbols: ClassUnicode,
}

impl Segments {
    pub fn new() -> Self {
        let parsed = regex_syntax::parse(r"[^\p{L}\p{M}\p{N}]").expect("a valid expression");
        match parsed.into_kind() {
            HirKind::Class(Class::Unicode(symbols)) => Segments { symbols },
            other => panic!("{other:?} is not a class of characters"),
        }
    }

    /// Calls `each` with every word of a line that consists of `segments`, each with the white space before it.
    pub fn of_segments<'a>(&self, segments: impl Iterator<Item = &'a str>, each: &mut dyn FnMut(&str)) {
        for (i, segment) in segments.enumerate() {
            let segment = match i {
                0 => escape(segment),
                _ => segment.replace(' ', "▁"),
            };
            of_stretch(&segment, &mut |word, each| self.split_ends(word, each), each);
        }
    }

    /// The symbols that a word begins with, what is between them and its last ones, and those.
    fn split_ends<'a>(&self, word: &'a str, each: &mut dyn FnMut(&'a str)) {
        let middle = word.trim_start_matches(|c| self.is_symbol(c));
        let (before, rest) = word.split_at(word.len() - middle.len());
        let (middle, after) = rest.split_at(rest.trim_end_matches(|c| self.is_symbol(c)).len());
        [before, middle, after].into_iter().filter(|part| !part.is_empty()).for_each(each);
    }

    fn is_symbol(&self, c: char) -> bool {
        let ranges = self.symbols.ranges();
        let at = ranges.partition_point(|range| range.end() < c);
        ranges.get(at).is_some_and(|range| range.start() <= c)
    }
}

/// The line with its spaces escaped, and one more at its beginning.
fn escape(line: &str) -> String {
    format!("{SPACE}{}", line.replace(' ', "▁"))
}

/// Calls its second argument with the words of its first.
type Split<'s> = dyn for<'a> FnMut(&'a str, &mut dyn FnMut(&'a str)) + 's;

/// Calls `each` with the words of spaces and what follows them. `split` splits that further.
fn of_stretch(text: &str, split: &mut Split<'_>, each: &mut dyn FnMut(&str)) {
    let body = text.trim_start_matches(SPACE);
    let (spaces, _) = text.split_at(text.len() - body.len());
    if body.is_empty() {
        return each(spaces);
    }
    let prefix = if spaces.is_empty() { "" } else { "▁" };
    let more = &spaces[prefix.len()..];
    if !more.is_empty() {
        each(more);
    }
    let mut prefix = prefix;
    split(body, &mut |part| {
        for word in Digits(part) {
            match std::mem::take(&mut prefix) {
                "" => each(word),
                space => each(&format!("{space}{word}")),
            }
        }
    });
}

fn by_script<'a>(text: &'a str, each: &mut dyn FnMut(&'a str)) {
    let mut split = PreTokenizedString::from(text);
    UnicodeScripts::new().pre_tokenize(&mut split).expect("scripts divide every text");
    let words = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
    words.into_iter().for_each(|(_, (start, end), _)| each(&text[start..end]));
}

/// A text in parts, of which each is a digit or has none.
struct Digits<'a>(&'a str);

impl<'a> Iterator for Digits<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let first = self.0.chars().next()?;
        let end = match is_digit(first) {
            true => first.len_utf8(),
            false => self.0.find(is_digit).unwrap_or(self.0.len()),
        };
        let (part, rest) = self.0.split_at(end);
        self.0 = rest;
        Some(part)
    }
}

/// The characters that SentencePiece's `split_digits` takes apart.
fn is_digit(c: char) -> bool {
    c.is_ascii_digit() || ('０'..='９').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Vec<String> {
        let mut words = Vec::new();
        of_line(text, &mut |word| words.push(word.to_string()));
        words
    }

    fn segments(all: &[&str]) -> Vec<String> {
        let mut words = Vec::new();
        Segments::new().of_segments(all.iter().copied(), &mut |word| words.push(word.to_string()));
        words
    }

    #[test]
    fn a_space_begins_a_word() {
        assert_eq!(line("Once upon  a"), ["▁Once", "▁upon", "▁", "▁a"]);
        assert_eq!(line("   x "), ["▁▁▁", "▁x", "▁"]);
        assert_eq!(line(""), ["▁"]);
    }

    #[test]
    fn scripts_and_digits_are_apart() {
        assert_eq!(line("生れた。Yes 1990年"), ["▁生れた", "。", "Yes", "▁1", "9", "9", "0", "年"]);
        assert_eq!(line("(a) ー゛１２"), ["▁(", "a", ")", "▁ー", "゛", "１", "２"]);
    }

    #[test]
    fn words_of_a_segmenter_lose_the_symbols_at_their_ends() {
        assert_eq!(
            segments(&["「東京」", "は", "、", "  ＡＣ／ＤＣ"]),
            ["▁「", "東京", "」", "は", "、", "▁", "▁ＡＣ／ＤＣ"]
        );
        assert_eq!(segments(&["(^_^)", "……", "３月", "が゙々ー", "\t¥"]), ["▁(^_^)", "……", "３", "月", "が゙々ー", "\t¥"]);
    }
}
