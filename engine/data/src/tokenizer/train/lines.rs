//! The lines of a text, and counts of the words in them by all threads.

use std::collections::HashMap;

use rayon::prelude::*;

use super::learn::{self, Counts};
use engine::error::Result;

/// Longer lines are cut, so that a line without an end takes neither the trainer's time nor MeCab's.
pub const LONGEST: usize = 4 << 10;

/// A cut after a newline, else before a character.
pub fn cut(text: &[u8]) -> Option<usize> {
    let newline = || text[..text.len() - 1].iter().rposition(|&b| b == b'\n').map(|at| at + 1);
    let character = || text.iter().rposition(|b| b & 0xc0 != 0x80).filter(|&at| at > 0);
    if text.is_empty() { None } else { newline().or_else(character) }
}

/// The line in parts of up to [`LONGEST`] bytes, which end after a space or a full stop where they can.
pub fn in_parts(mut line: &str, each: &mut dyn FnMut(&str)) {
    while line.len() > LONGEST {
        let most = line.floor_char_boundary(LONGEST);
        let end = line[..most].rfind([' ', '。', '　']).map(|at| line.ceil_char_boundary(at + 1)).unwrap_or(most);
        each(&line[..end]);
        line = &line[end..];
    }
    each(line);
}

/// The words of a line by their lengths; what is left is the last one.
pub fn cut_at<'a>(line: &'a str, lengths: &[usize]) -> impl Iterator<Item = &'a str> {
    let mut rest = line;
    let mut words: Vec<&str> = Vec::with_capacity(lengths.len() + 1);
    for &length in lengths {
        // A segmenter of UTF-8 cuts between characters; if it did not, the rest would be one word.
        let Some((word, after)) = rest.split_at_checked(length) else { break };
        words.push(word);
        rest = after;
    }
    words.push(rest);
    words.into_iter().filter(|word| !word.is_empty())
}

/// How often each word occurs in the lines. `part` gives the words of some lines to its last argument. The result does
/// not depend on the number of threads.
pub fn count(lines: &[String], part: impl Fn(&[String], &mut dyn FnMut(&str)) -> Result<()> + Sync) -> Result<Counts> {
    let share = lines.len().div_ceil(rayon::current_num_threads()).max(1);
    let count_part = |lines: &[String]| {
        let mut counts: Counts = HashMap::new();
        let mut add = |word: &str| match counts.get_mut(word) {
            Some(count) => *count += 1,
            None => _ = counts.insert(word.to_string(), 1),
        };
        part(lines, &mut add).map(|()| counts)
    };
    let parts: Vec<Result<Counts>> = lines.par_chunks(share).map(count_part).collect();
    let mut all = Counts::new();
    for part in parts {
        learn::add(&mut all, part?);
    }
    Ok(all)
}
