//! Places where a text may be cut so that its parts, encoded one by one, give the ids of the whole text.
//!
//! A `tokenizer.json` splits a text into words by regular expressions. A cut between a character of one class and one
//! of another is safe if no word can hold both side by side, and if the words on each side are found without looking at
//! the other side. [`can_hold`] derives the first from the expression. The second holds for expressions without
//! look-around; the only one accepted is `\s+(?!\S)`, with which the expressions of GPT-2 and its successors end.

use std::ops::RangeInclusive;

use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, Hir, HirKind};
use serde::Deserialize;
use serde_json::Value;

/// The ends of the expressions of GPT-2 and its successors, which match white space.
const ANY_SPACE: &str = r"\s+(?!\S)|\s+";
const LINES_FIRST: &str = r"\s*[\r\n]+|\s+(?!\S)|\s+";

/// The expression of `ByteLevel` where `use_regex` is true.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The places where a text may be cut. A visible character is one that is not white space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cuts {
    /// Between a visible character and a space.
    pub before_space: bool,
    /// Between a visible character and a newline.
    pub before_newline: bool,
    /// Between a newline and a visible character other than `/`, which GPT-4o's expression may join to a newline.
    pub after_newline: bool,
    /// Between a letter of [`LETTERS`] and a mark of [`MARKS`].
    pub before_mark: bool,
}

/// Letters and marks between which words of English and Japanese end; the apostrophe is none of them.
const LETTERS: [RangeInclusive<char>; 5] = ['A'..='Z', 'a'..='z', 'ぁ'..='ゖ', 'ァ'..='ヺ', '一'..='鿿'];
const MARKS: [char; 16] = [',', '.', ';', ':', '!', '?', ')', '"', '、', '。', '，', '！', '？', '）', '」', '』'];

/// Whether a mark of [`MARKS`] begins with a byte.
const MARKS_BEGIN: [bool; 256] = {
    let (mut begin, mut i) = ([false; 256], 0);
    while i < MARKS.len() {
        begin[MARKS[i].encode_utf8(&mut [0; 4]).as_bytes()[0] as usize] = true;
        i += 1;
    }
    begin
};

/// The parts of a `tokenizer.json` that decide the cuts, and what the library can read.
#[derive(Deserialize)]
pub struct Rules {
    #[serde(default)]
    pub normalizer: Value,
    #[serde(default)]
    pub pre_tokenizer: Value,
    #[serde(default)]
    pub decoder: Value,
    #[serde(default)]
    pub added_tokens: Vec<AddedToken>,
    pub model: ModelRules,
}

#[derive(Deserialize)]
pub struct AddedToken {
    pub content: String,
    #[serde(default)]
    pub special: bool,
    #[serde(default)]
    pub single_word: bool,
    #[serde(default)]
    pub lstrip: bool,
    #[serde(default)]
    pub rstrip: bool,
}

#[derive(Deserialize)]
pub struct ModelRules {
    #[serde(rename = "type", default)]
    pub kind: Option<String>,
    #[serde(default)]
    pub dropout: Value,
    #[serde(default)]
    pub byte_fallback: Option<bool>,
    #[serde(default)]
    pub continuing_subword_prefix: Option<String>,
    /// The token of unknown characters, by its name or, in a Unigram model, its id.
    #[serde(default)]
    pub unk_token: Option<String>,
    #[serde(default)]
    pub unk_id: Option<u32>,
}

impl Cuts {
    pub const ALL: Cuts = Cuts { before_space: true, before_newline: true, after_newline: true, before_mark: true };

    /// The cuts of a tokenizer that splits texts into words and encodes each word by itself.
    pub fn of(rules: &Rules) -> Cuts {
        let bpe = rules.model.kind.as_deref() == Some("BPE") && rules.model.dropout.is_null();
        if !bpe || !is_canonical(&rules.normalizer) {
            return Cuts::default();
        }
        let mut splitters = Splitters { cuts: Cuts::ALL, splits_at_space: false };
        let known = splitters.add(&rules.pre_tokenizer);
        if known.is_none() || !splitters.splits_at_space {
            return Cuts::default();
        }
        rules.added_tokens.iter().fold(splitters.cuts, Cuts::without_those_in)
    }

    /// The last place where `text` may be cut, if there is one. A cut needs a character after it, so the end of `text`
    /// is never one.
    pub fn last(self, text: &[u8]) -> Option<usize> {
        (1..text.len()).rev().find(|&at| self.allow(text, at))
    }

    /// The first place after the byte `start` where `text` may be cut, else its end.
    pub fn next(self, text: &[u8], start: usize) -> usize {
        (start + 1..text.len()).find(|&at| self.allow(text, at)).unwrap_or(text.len())
    }

    fn allow(self, text: &[u8], at: usize) -> bool {
        match (text[at - 1], text[at]) {
            (_, b' ') if self.before_space => last_char(&text[..at]).is_some_and(is_visible),
            (_, b'\n') if self.before_newline => last_char(&text[..at]).is_some_and(is_visible),
            (b'\n', _) if self.after_newline => first_char(&text[at..]).is_some_and(|c| is_visible(c) && c != '/'),
            (_, first) if self.before_mark && MARKS_BEGIN[first as usize] => {
                let mark = first_char(&text[at..]).filter(|c| MARKS.contains(c));
                mark.and(last_char(&text[..at])).is_some_and(is_letter)
            }
            _ => false,
        }
    }

    /// Added tokens are looked for before the text is split into words.
    fn without_those_in(self, token: &AddedToken) -> Cuts {
        let content = &token.content;
        let pairs = || content.chars().zip(content.chars().skip(1));
        let holds = |white: char| pairs().any(|(a, b)| is_visible(a) && b == white);
        // Such a token depends on its neighbours, which a cut would remove.
        let looks = token.single_word && content.trim() != content;
        Cuts {
            before_mark: self.before_mark
                && !token.single_word
                && !pairs().any(|(a, b)| is_letter(a) && MARKS.contains(&b)),
            before_space: self.before_space && !token.rstrip && !looks && !holds(' '),
            before_newline: self.before_newline && !token.rstrip && !looks && !holds('\n'),
            after_newline: self.after_newline
                && !token.lstrip
                && !token.single_word
                && !pairs().any(|(a, b)| a == '\n' && is_visible(b)),
        }
    }
}

/// The cuts that all splitters so far allow.
struct Splitters {
    cuts: Cuts,
    /// One of the splitters makes every white space a word or the beginning of one.
    splits_at_space: bool,
}

impl Splitters {
    /// Adds one pre-tokenizer; `None` if it is of an unknown kind.
    fn add(&mut self, splitter: &Value) -> Option<()> {
        match splitter["type"].as_str()? {
            "Sequence" => splitter["pretokenizers"].as_array()?.iter().try_for_each(|part| self.add(part)),
            "ByteLevel" => {
                if splitter["add_prefix_space"].as_bool() != Some(false) {
                    // The splitter puts a space before a text that begins without one.
                    self.cuts = Cuts { before_space: self.cuts.before_space, ..Cuts::default() };
                }
                match splitter["use_regex"].as_bool() {
                    Some(false) => Some(()),
                    _ => self.add_expression(GPT2),
                }
            }
            "Split" => {
                matches!(splitter["behavior"].as_str()?, "Isolated" | "Removed").then_some(())?;
                match (splitter["pattern"]["Regex"].as_str(), splitter["pattern"]["String"].as_str()) {
                    (Some(expression), _) => self.add_expression(expression),
                    (None, Some(text)) => self.add_expression(&regex_syntax::escape(text)),
                    (None, None) => None,
                }
            }
            // These split between two characters by their classes alone, and never join white space with others.
            "Digits" => Some(()),
            "Punctuation" => {
                let behavior = splitter["behavior"].as_str();
                matches!(behavior, None | Some("Isolated" | "Removed" | "Contiguous")).then_some(())
            }
            _ => None,
        }
    }

    fn add_expression(&mut self, expression: &str) -> Option<()> {
        let strip = |tail: &str| match expression.strip_suffix(tail)? {
            "" => Some(""),
            head => head.strip_suffix('|'),
        };
        // At the end of a part `\s+(?!\S)` matches all white space; inside a text it leaves the last for the next word.
        // After a newline that makes a difference, unless an earlier alternative matches line ends.
        let (head, lines_first) = match (strip(LINES_FIRST), strip(ANY_SPACE)) {
            (Some(head), _) => (head, true),
            (None, Some(head)) => (head, false),
            (None, None) => (expression, true),
        };
        self.splits_at_space |= head.len() < expression.len();
        let hir = regex_syntax::parse(head).ok()?;
        let (visible, space, newline) = (visible(), only(' '), only('\n'));
        self.cuts.before_space &= !can_hold(&hir, &visible, &space)?;
        self.cuts.before_newline &= !can_hold(&hir, &visible, &newline)?;
        self.cuts.before_mark &= !can_hold(&hir, &letters(), &marks())?;
        let mut no_slash = visible;
        no_slash.difference(&only('/'));
        self.cuts.after_newline &= lines_first && !can_hold(&hir, &newline, &no_slash)?;
        Some(())
    }
}

/// Normalizers by which the parts of a text, cut beside white space, become the parts of the normalized text.
fn is_canonical(normalizer: &Value) -> bool {
    match normalizer["type"].as_str() {
        None => normalizer.is_null(),
        Some("NFC") => true,
        Some("Sequence") => normalizer["normalizers"].as_array().is_some_and(|all| all.iter().all(is_canonical)),
        Some(_) => false,
    }
}

/// The positions in which the matches of an expression can have characters of the classes `left` and `right`.
#[derive(Clone, Copy)]
struct Matches {
    /// A match may begin with a character of the class `right`.
    right_first: bool,
    /// A match may end with a character of the class `left`.
    left_last: bool,
    /// A match may be empty.
    empty: bool,
    /// A match may hold a character of `left` followed by one of `right`.
    pair: bool,
}

/// Whether a match may hold a character of `left` followed by one of `right`; `None` where the expression looks
/// around or matches nothing.
fn can_hold(hir: &Hir, left: &ClassUnicode, right: &ClassUnicode) -> Option<bool> {
    let all = matches(hir, left, right)?;
    (!all.empty || matches!(hir.kind(), HirKind::Empty)).then_some(all.pair)
}

fn matches(hir: &Hir, left: &ClassUnicode, right: &ClassUnicode) -> Option<Matches> {
    const EMPTY: Matches = Matches { right_first: false, left_last: false, empty: true, pair: false };
    let of_class = |class: &ClassUnicode| {
        let meets = |other: &ClassUnicode| {
            let mut both = class.clone();
            both.intersect(other);
            !both.ranges().is_empty()
        };
        Matches { right_first: meets(right), left_last: meets(left), empty: false, pair: false }
    };
    let join = |a: Matches, b: Matches| Matches {
        right_first: a.right_first || (a.empty && b.right_first),
        left_last: b.left_last || (b.empty && a.left_last),
        empty: a.empty && b.empty,
        pair: a.pair || b.pair || (a.left_last && b.right_first),
    };
    let either = |a: Matches, b: Matches| Matches {
        right_first: a.right_first || b.right_first,
        left_last: a.left_last || b.left_last,
        empty: a.empty || b.empty,
        pair: a.pair || b.pair,
    };
    Some(match hir.kind() {
        HirKind::Empty => EMPTY,
        HirKind::Literal(literal) => {
            std::str::from_utf8(&literal.0).ok()?.chars().map(|c| of_class(&only(c))).fold(EMPTY, join)
        }
        HirKind::Class(Class::Unicode(class)) => of_class(class),
        HirKind::Class(Class::Bytes(_)) | HirKind::Look(_) => return None,
        HirKind::Repetition(repetition) => {
            let one = matches(&repetition.sub, left, right)?;
            let many = if repetition.max == Some(1) { one } else { join(one, one) };
            Matches { empty: one.empty || repetition.min == 0, ..many }
        }
        HirKind::Capture(capture) => matches(&capture.sub, left, right)?,
        HirKind::Concat(parts) => {
            parts.iter().try_fold(EMPTY, |all, part| Some(join(all, matches(part, left, right)?)))?
        }
        HirKind::Alternation(parts) => {
            let none = Matches { empty: false, ..EMPTY };
            parts.iter().try_fold(none, |all, part| Some(either(all, matches(part, left, right)?)))?
        }
    })
}

fn only(c: char) -> ClassUnicode {
    ClassUnicode::new([ClassUnicodeRange::new(c, c)])
}

fn visible() -> ClassUnicode {
    match regex_syntax::parse(r"\S").expect("a class").kind() {
        HirKind::Class(Class::Unicode(class)) => class.clone(),
        other => unreachable!("a class is parsed as {other:?}"),
    }
}

fn letters() -> ClassUnicode {
    ClassUnicode::new(LETTERS.map(|range| ClassUnicodeRange::new(*range.start(), *range.end())))
}

fn marks() -> ClassUnicode {
    ClassUnicode::new(MARKS.map(|c| ClassUnicodeRange::new(c, c)))
}

fn is_letter(c: char) -> bool {
    LETTERS.iter().any(|range| range.contains(&c))
}

fn is_visible(c: char) -> bool {
    !c.is_whitespace()
}

/// The last character of a text; `None` if it is incomplete.
fn last_char(text: &[u8]) -> Option<char> {
    let start = (text.len().saturating_sub(4)..text.len()).rev().find(|&at| text[at] & 0xc0 != 0x80)?;
    std::str::from_utf8(&text[start..]).ok()?.chars().next()
}

fn first_char(text: &[u8]) -> Option<char> {
    let head = &text[..text.len().min(4)];
    let valid = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(e) => std::str::from_utf8(&head[..e.valid_up_to()]).expect("valid up to there"),
    };
    valid.chars().next()
}

/// Cuts after newlines, for tokenizers that do not split texts into words but keep every newline apart from its
/// neighbours. They put a space before every text; to keep it away from a further part, a newline is encoded in front
/// of the part and its ids are dropped.
pub struct LineCuts {
    /// The ids of a lone newline.
    newline: Vec<u32>,
}

impl LineCuts {
    /// `None` where a sample shows that the ids depend on the cut after all.
    pub fn of(encode: impl Fn(&str) -> Result<Vec<u32>, String>) -> Result<Option<Self>, String> {
        let cuts = LineCuts { newline: encode("\n")? };
        let (first, rest) = (" a b\n", "\n b, \u{3042}\n ");
        let whole = encode(&[first, rest].concat())?;
        let parts = encode(first)?.into_iter().chain(cuts.encode_rest(rest, encode).unwrap_or_default());
        Ok(whole.into_iter().eq(parts).then_some(cuts))
    }

    pub fn last(text: &[u8]) -> Option<usize> {
        let before_last = &text[..text.len().saturating_sub(1)];
        before_last.iter().rposition(|&b| b == b'\n').map(|at| at + 1)
    }

    /// The ids of the text after a newline.
    pub fn encode_rest(
        &self,
        rest: &str,
        encode: impl Fn(&str) -> Result<Vec<u32>, String>,
    ) -> Result<Vec<u32>, String> {
        let mut ids = encode(&format!("\n{rest}"))?;
        if !ids.starts_with(&self.newline) {
            return Err("the ids of a newline depend on the text after it, so this long text cannot be cut".into());
        }
        ids.drain(..self.newline.len());
        Ok(ids)
    }
}
