//! The lines and the sentences of a document, and how many of them repeat another.

use std::collections::HashSet;

/// The marks that end a sentence.
const ENDS: [char; 6] = ['。', '．', '！', '？', '!', '?'];

/// Lines or sentences of a document. One counts as repeated for each occurrence beyond its first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Repeats {
    pub all: u64,
    pub repeated: u64,
    /// Characters of the repeated ones.
    pub repeated_characters: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sentences {
    pub repeats: Repeats,
    /// Characters of all sentences.
    pub characters: u64,
    /// Characters of the longest one.
    pub longest: u64,
    /// Sentences whose last character is `・` or `…`: none of those with an end mark.
    pub ellipses: u64,
}

/// Counts lines, empty ones too. A line ends at `\n`, and a `\r` before it is no part of the line.
pub fn lines(text: &str) -> Repeats {
    let (mut repeats, mut seen) = (Repeats::default(), HashSet::new());
    text.lines().for_each(|line| repeats.add(&mut seen, line, characters));
    repeats
}

/// Counts sentences. A sentence is a piece of a line up to its end mark, which belongs to it; the rest of a line is a
/// sentence too.
pub fn sentences(text: &str) -> Sentences {
    let (mut out, mut seen) = (Sentences::default(), HashSet::new());
    for sentence in text.lines().flat_map(|line| line.split_inclusive(ENDS)) {
        let length = characters(sentence);
        out.repeats.add(&mut seen, sentence, |_| length);
        out.characters += length;
        out.longest = out.longest.max(length);
        out.ellipses += u64::from(sentence.ends_with(['・', '…']));
    }
    out
}

fn characters(text: &str) -> u64 {
    text.chars().count() as u64
}

impl Repeats {
    fn add<'t>(&mut self, seen: &mut HashSet<&'t str>, piece: &'t str, characters: impl Fn(&str) -> u64) {
        self.all += 1;
        if !seen.insert(piece) {
            self.repeated += 1;
            self.repeated_characters += characters(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repeats(all: u64, repeated: u64, repeated_characters: u64) -> Repeats {
        Repeats { all, repeated, repeated_characters }
    }

    #[test]
    fn a_repeated_line_counts_beyond_its_first_occurrence() {
        assert_eq!(lines("一行\n二\n一行\n一行\n"), repeats(4, 2, 4));
        assert_eq!(lines("a\r\na\n\n\n\r\nb"), repeats(6, 3, 1), "empty lines are lines, and \\r is no part of one");
        assert_eq!(lines("a\rb\na\rb"), repeats(2, 1, 3), "a \\r inside is");
        assert_eq!(lines(""), repeats(0, 0, 0));
        assert_eq!(lines("\n"), repeats(1, 0, 0));
    }

    #[test]
    fn sentences_end_at_their_marks_and_at_the_ends_of_lines() {
        let found = sentences("「はい。」と言う\nはい。はい。本当？！ Yes! 𠮟る\r\n\n");
        // 「はい。/ 」と言う / はい。/ はい。/ 本当？/ ！/ ␣Yes! / ␣𠮟る
        let lengths = [4, 4, 3, 3, 3, 1, 5, 3];
        let expected =
            Sentences { repeats: repeats(8, 1, 3), characters: lengths.iter().sum(), longest: 5, ellipses: 0 };
        assert_eq!(found, expected);
        assert_eq!(sentences(""), Sentences::default());
        assert_eq!(sentences("\n\n"), Sentences::default());
    }

    #[test]
    fn an_ellipsis_is_the_last_character() {
        for (text, ellipses) in [
            ("続く…", 1),
            ("続く・・・", 1),
            ("続く…。", 0),
            ("続く…\n・中黒\n", 1),
            ("続く…！！", 0),
            ("続く…」。", 0),
            ("続く… ", 0),
            ("・\n…", 2),
        ] {
            assert_eq!(sentences(text).ellipses, ellipses, "{text}");
        }
    }
}
