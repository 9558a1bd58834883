//! How texts are split into tokens: characters, `rouge_score`'s words, and WMT's 13a as sacreBLEU has it.
//! White space is Python's, since the metrics are.

use crate::task::Tokens;

/// Whether Python's `str.split` and `str.strip` take `c` for white space.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `text` without white space around it.
pub fn trim(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// The tokens of a text.
pub fn split(text: &str, tokens: Tokens) -> Vec<String> {
    match tokens {
        Tokens::Char => text.chars().filter(|&c| !is_space(c)).map(String::from).collect(),
        Tokens::Word => words(text),
        Tokens::V13a => v13a(text),
    }
}

fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit()));
    words.filter(|word| !word.is_empty()).map(String::from).collect()
}

/// The regular expressions of sacreBLEU's `tokenizer_re.py`, one after the other.
fn v13a(text: &str) -> Vec<String> {
    let text = text.trim_end_matches(is_space);
    let text = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    let text = text.replace("&quot;", "\"").replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">");
    let digit = |c: char| c.is_ascii_digit();
    let point = |c: char| c == '.' || c == ',';
    let text = split_off_symbols(&format!(" {text} "));
    let text = split_pairs(&text, |c| !digit(c), point, |a, b| [a, ' ', b, ' ']);
    let text = split_pairs(&text, point, |c| !digit(c), |a, b| [' ', a, ' ', b]);
    let text = split_pairs(&text, digit, |c| c == '-', |a, b| [a, ' ', b, ' ']);
    text.split(is_space).filter(|token| !token.is_empty()).map(String::from).collect()
}

/// `([\{-\~\[-\` -\&\(-\+\:-\@\/])` -> ` \1 `
fn split_off_symbols(text: &str) -> String {
    let mut out = String::with_capacity(2 * text.len());
    for c in text.chars() {
        match c {
            '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/' => out.extend([' ', c, ' ']),
            _ => out.push(c),
        }
    }
    out
}

/// Replaces pairs of characters that fit, from the left, none of which overlap.
fn split_pairs(
    text: &str,
    first: impl Fn(char) -> bool,
    second: impl Fn(char) -> bool,
    replacement: impl Fn(char, char) -> [char; 4],
) -> String {
    let mut out = String::with_capacity(2 * text.len());
    let mut rest = text.chars().peekable();
    while let Some(a) = rest.next() {
        match rest.next_if(|&b| first(a) && second(b)) {
            Some(b) => out.extend(replacement(a, b)),
            None => out.push(a),
        }
    }
    out
}
