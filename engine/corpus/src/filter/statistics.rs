//! The statistics of a document that rules may bound: the quality rules of the Swallow Corpus (Okazaki et al. 2024,
//! "Building a Large Japanese Web Corpus for Large Language Models"). Shares of nothing are 0.

use std::cell::OnceCell;

use aho_corasick::AhoCorasick;

use super::grams::{Grams, share};
use super::pieces::{Repeats, Sentences, lines, sentences};

/// A figure of a document.
pub struct Statistic {
    /// As it is called in the rules.
    pub name: &'static str,
    pub of: fn(&Measured) -> f64,
}

/// All statistics, in the order in which their rules are tried: cheap ones first.
pub const STATISTICS: [Statistic; 22] = [
    Statistic { name: "characters", of: |document| document.characters as f64 },
    Statistic { name: "japanese_characters", of: |document| document.kinds().japanese() as f64 },
    Statistic { name: "japanese", of: |document| share(document.kinds().japanese(), document.characters) },
    Statistic { name: "hiragana", of: |document| share(document.kinds().hiragana, document.kinds().japanese()) },
    Statistic { name: "katakana", of: |document| share(document.kinds().katakana, document.kinds().japanese()) },
    Statistic { name: "mean_sentence", of: |document| mean(document.sentences()) },
    Statistic { name: "longest_sentence", of: |document| document.sentences().longest as f64 },
    Statistic {
        name: "ellipses",
        of: |document| share(document.sentences().ellipses, document.sentences().repeats.all),
    },
    Statistic { name: "repeated_lines", of: |document| pieces(document.lines()) },
    Statistic { name: "repeated_line_characters", of: |document| document.covered(document.lines()) },
    Statistic { name: "repeated_sentences", of: |document| pieces(&document.sentences().repeats) },
    Statistic { name: "repeated_sentence_characters", of: |document| document.covered(&document.sentences().repeats) },
    Statistic { name: EXPRESSIONS, of: |document| document.expressions() },
    Statistic { name: "top_2grams", of: |document| document.grams().top(2) },
    Statistic { name: "top_3grams", of: |document| document.grams().top(3) },
    Statistic { name: "top_4grams", of: |document| document.grams().top(4) },
    Statistic { name: "repeated_5grams", of: |document| document.grams().repeated(5) },
    Statistic { name: "repeated_6grams", of: |document| document.grams().repeated(6) },
    Statistic { name: "repeated_7grams", of: |document| document.grams().repeated(7) },
    Statistic { name: "repeated_8grams", of: |document| document.grams().repeated(8) },
    Statistic { name: "repeated_9grams", of: |document| document.grams().repeated(9) },
    Statistic { name: "repeated_10grams", of: |document| document.grams().repeated(10) },
];

/// The statistic that needs a list.
pub const EXPRESSIONS: &str = "expressions";

/// A document and what has been measured of it: each pass over the text is made when the first rule asks for it.
pub struct Measured<'a> {
    text: &'a str,
    /// Code points.
    pub characters: u64,
    expressions: Option<&'a AhoCorasick>,
    kinds: OnceCell<Kinds>,
    lines: OnceCell<Repeats>,
    sentences: OnceCell<Sentences>,
    grams: OnceCell<Grams>,
}

/// Characters by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Kinds {
    hiragana: u64,
    katakana: u64,
    kanji: u64,
    /// Kuten and toten.
    marks: u64,
}

impl<'a> Measured<'a> {
    /// `expressions` are those of the statistic of that name.
    pub fn new(text: &'a str, expressions: Option<&'a AhoCorasick>) -> Self {
        let characters = text.chars().count() as u64;
        let (kinds, lines) = (OnceCell::new(), OnceCell::new());
        Self { text, characters, expressions, kinds, lines, sentences: OnceCell::new(), grams: OnceCell::new() }
    }

    fn kinds(&self) -> &Kinds {
        self.kinds.get_or_init(|| Kinds::of(self.text))
    }

    fn lines(&self) -> &Repeats {
        self.lines.get_or_init(|| lines(self.text))
    }

    fn sentences(&self) -> &Sentences {
        self.sentences.get_or_init(|| sentences(self.text))
    }

    fn grams(&self) -> &Grams {
        self.grams.get_or_init(|| Grams::of(self.text))
    }

    /// The share of the characters in repeated lines or sentences.
    fn covered(&self, repeats: &Repeats) -> f64 {
        share(repeats.repeated_characters, self.characters)
    }

    /// The share of the characters inside expressions, of which the longest counts where several begin.
    fn expressions(&self) -> f64 {
        let matches = self.expressions.into_iter().flat_map(|expressions| expressions.find_iter(self.text));
        share(matches.map(|found| self.text[found.range()].chars().count() as u64).sum(), self.characters)
    }
}

impl Kinds {
    fn of(text: &str) -> Self {
        let mut kinds = Self::default();
        for c in text.chars() {
            match c {
                '\u{3041}'..='\u{3096}' => kinds.hiragana += 1,
                '\u{30a1}'..='\u{30fa}' => kinds.katakana += 1,
                '\u{4e00}'..='\u{9fff}' | '\u{3400}'..='\u{4dbf}' | '\u{f900}'..='\u{faff}' => kinds.kanji += 1,
                '。' | '．' | '！' | '？' | '、' | '，' => kinds.marks += 1,
                _ => {}
            }
        }
        kinds
    }

    fn japanese(&self) -> u64 {
        self.hiragana + self.katakana + self.kanji + self.marks
    }
}

/// Characters of a sentence in the mean.
fn mean(sentences: &Sentences) -> f64 {
    share(sentences.characters, sentences.repeats.all)
}

/// The share of the lines or sentences that repeat another.
fn pieces(repeats: &Repeats) -> f64 {
    share(repeats.repeated, repeats.all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::lists;

    fn value(name: &str, text: &str) -> f64 {
        let statistic = STATISTICS.iter().find(|statistic| statistic.name == name).unwrap();
        (statistic.of)(&Measured::new(text, None))
    }

    #[test]
    fn characters_are_told_by_their_kind() {
        // Hiragana, katakana, kanji with the extensions, marks; neither ー nor half-width katakana nor 々 are one.
        let text = "ぁゖァヺ一鿿㐀豈。．！？、，ーｱ々ab\n𠮟";
        let kinds = Kinds { hiragana: 2, katakana: 2, kanji: 4, marks: 6 };
        assert_eq!(Kinds::of(text), kinds);
        assert_eq!(value("characters", text), 21.0);
        assert_eq!(value("japanese_characters", text), 14.0);
        assert_eq!(value("japanese", text), 14.0 / 21.0);
        assert_eq!(value("hiragana", text), 2.0 / 14.0);
        assert_eq!(value("katakana", text), 2.0 / 14.0);
    }

    /// Each statistic by hand on one text, which has 28 characters.
    #[test]
    fn every_statistic_has_its_own_figure() {
        let text = "はい。はい。続く…\nはい。はい。続く…\n\n\n終わり…。\n";
        for (name, expected) in [
            ("mean_sentence", 23.0 / 7.0),
            ("longest_sentence", 5.0),
            ("ellipses", 2.0 / 7.0),
            ("repeated_lines", 2.0 / 5.0),
            ("repeated_line_characters", 9.0 / 28.0),
            ("repeated_sentences", 4.0 / 7.0),
            ("repeated_sentence_characters", 12.0 / 28.0),
            ("top_2grams", 4.0 / 27.0),
            ("top_3grams", 4.0 / 26.0),
            ("top_4grams", 2.0 / 25.0),
        ] {
            assert_eq!(value(name, text), expected, "{name}");
        }
        let shares: Vec<f64> = (5..=10).map(|n| value(&format!("repeated_{n}grams"), text)).collect();
        // Of the 9 characters that stand twice and the newline after them there are 11 - n repeated n-grams; the text
        // has 29 - n in all.
        let expected: Vec<f64> = (5..=10).map(|n| f64::from(11 - n) / f64::from(29 - n - (11 - n))).collect();
        assert_eq!(shares, expected);
    }

    #[test]
    fn the_statistics_of_nothing_are_zero() {
        for statistic in &STATISTICS {
            assert_eq!((statistic.of)(&Measured::new("", None)), 0.0, "{}", statistic.name);
        }
    }

    #[test]
    fn expressions_are_measured_by_their_characters() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.txt");
        std::fs::write(&path, "悪\n悪い言葉\n").unwrap();
        let expressions = lists::expressions(&[path]).unwrap();
        let measured = Measured::new("悪い言葉と悪い人、悪", Some(&expressions));
        assert_eq!(measured.expressions(), 6.0 / 10.0);
    }

    #[test]
    fn names_are_different() {
        let names: std::collections::BTreeSet<&str> = STATISTICS.iter().map(|statistic| statistic.name).collect();
        assert_eq!(names.len(), STATISTICS.len());
    }
}
