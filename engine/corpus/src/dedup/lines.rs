//! Lines that stand in an earlier document, or earlier in the same one: the optional third pass.
//!
//! A line ends at `\n`, and a `\r` before it is no part of the line. Lines are compared by 70 bits of their BLAKE3
//! hashes: among a billion different lines, the chance that any two have the same ones is 0.04 %.

use std::iter::Peekable;

use engine::error::Result;

use super::budget::Budget;
use super::parallel;
use super::scratch::Scratch;
use super::sorter::{Sorted, Sorter};
use super::spool::{Spool, Stored};

/// Bits of a line's index: a document has at most 64 MiB.
const INDEX_BITS: u32 = 26;

/// Bits of a line's place: its document and its index.
const PLACE_BITS: u32 = 32 + INDEX_BITS;

/// Which documents are searched, and which of their lines.
pub struct Search<'a> {
    pub spool: &'a Spool<'a>,
    /// The key of the text.
    pub key: &'a str,
    /// The document that stays of each document's cluster.
    pub kept: &'a [u32],
    /// The characters of the shortest line that is compared, at least 1.
    pub least: usize,
    pub workers: usize,
}

/// The lines that are to be removed, in the order of the documents.
pub struct Marks<'a> {
    /// Places.
    sorted: Peekable<Sorted<'a>>,
}

/// A line to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    pub document: u32,
    /// The line's index in the text.
    pub line: u32,
}

impl<'a> Marks<'a> {
    /// No line is removed.
    pub fn none(scratch: &'a Scratch) -> Result<Self> {
        Ok(Self { sorted: Sorter::new(scratch, 0).finish(0)?.peekable() })
    }

    /// Finds the lines in the documents that stay; `progress` gets the number of documents that are done.
    pub fn find(search: &Search, scratch: &'a Scratch, budget: &Budget, mut progress: impl FnMut(u64)) -> Result<Self> {
        let mut lines = Sorter::new(scratch, budget.sorter());
        let mut readers = search.spool.readers(search.workers)?;
        for round in search.spool.rounds() {
            let found = parallel::map(&mut readers, &round, |reader, &block| {
                let stays = |stored: &Stored| search.kept[stored.number as usize] == stored.number;
                let records = |stored: Stored| records(stored.number, &stored.text(search.key), search.least);
                Ok(reader.block(block)?.filter(stays).flat_map(records).collect::<Vec<_>>())
            })?;
            found.into_iter().flatten().try_for_each(|record| lines.push(record))?;
            progress(u64::from(search.spool.numbers(&round).end));
        }
        drop(readers);
        let mut marks = Sorter::new(scratch, budget.merge());
        let mut before = None;
        for record in lines.finish(budget.merge())? {
            let record = record?;
            let hash = record >> PLACE_BITS;
            if before == Some(hash) {
                marks.push(record & ((1 << PLACE_BITS) - 1))?;
            }
            before = Some(hash);
        }
        Ok(Self { sorted: marks.finish(budget.merge())?.peekable() })
    }

    /// Takes the marks of the documents with numbers below `end`.
    pub fn below(&mut self, end: u32) -> Result<Vec<Mark>> {
        let mut marks = Vec::new();
        let is_below = |place: &Result<u128>| place.as_ref().map_or(true, |place| (place >> INDEX_BITS) < end.into());
        while let Some(place) = self.sorted.next_if(is_below) {
            let place = place?;
            let line = (place & ((1 << INDEX_BITS) - 1)) as u32;
            marks.push(Mark { document: (place >> INDEX_BITS) as u32, line });
        }
        Ok(marks)
    }
}

/// A record for each line of a document that is long enough: its hash, the document and its index.
fn records(document: u32, text: &str, least: usize) -> Vec<u128> {
    let lines = (0_u32..).zip(lines(text));
    let long = lines.filter(|(_, line)| line.len() >= least && line.chars().count() >= least);
    let record = |(index, line): (u32, &str)| {
        let hash = blake3::hash(line.as_bytes());
        let hash = u128::from_le_bytes(*hash.as_bytes().first_chunk().expect("32 bytes"));
        let place = u128::from(document) << INDEX_BITS | u128::from(index);
        hash >> PLACE_BITS << PLACE_BITS | place
    };
    long.map(record).collect()
}

/// The lines without their ends.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').map(|line| {
        let line = line.strip_suffix('\n').unwrap_or(line);
        line.strip_suffix('\r').unwrap_or(line)
    })
}

/// The text without the marked lines. It ends in a newline only if it did before.
pub fn without(text: &str, marks: &[Mark]) -> String {
    let mut marks = marks.iter().peekable();
    let mut rest = String::with_capacity(text.len());
    for (index, line) in (0_u32..).zip(text.split_inclusive('\n')) {
        if marks.next_if(|mark| mark.line == index).is_none() {
            rest += line;
        }
    }
    assert!(marks.peek().is_none(), "line {:?} of a text of {} bytes", marks.peek(), text.len());
    if !text.ends_with('\n') && rest.ends_with('\n') {
        rest.pop();
        rest.truncate(rest.strip_suffix('\r').map_or(rest.len(), str::len));
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(text: &str, indices: &[u32]) -> String {
        let marks: Vec<Mark> = indices.iter().map(|&line| Mark { document: 3, line }).collect();
        without(text, &marks)
    }

    #[test]
    fn removed_lines_take_their_ends_with_them() {
        for (text, indices, rest) in [
            ("a\nb\nc", vec![], "a\nb\nc"),
            ("a\nb\nc", vec![1], "a\nc"),
            ("a\nb\nc", vec![0], "b\nc"),
            ("a\nb\nc", vec![2], "a\nb"),
            ("a\nb\nc\n", vec![2], "a\nb\n"),
            ("a\r\nb\r\nc", vec![2], "a\r\nb"),
            ("a\r\nb\r\nc", vec![1], "a\r\nc"),
            ("a\n\nb", vec![2], "a\n"),
            ("a\nb", vec![0, 1], ""),
            ("a", vec![0], ""),
        ] {
            assert_eq!(marked(text, &indices), rest, "{text:?} without {indices:?}");
        }
    }

    #[test]
    fn records_have_the_line_and_its_place() {
        let text = "同じ行\r\n\nshort\n同じ行\n😀😀\n同じ行";
        let all = records(u32::MAX, text, 3);
        let place = |record: &u128| (record & ((1 << PLACE_BITS) - 1)) as u64;
        let indices = [0_u64, 2, 3, 5];
        assert!(all.iter().map(place).eq(indices.iter().map(|index| u64::from(u32::MAX) << INDEX_BITS | index)));
        let hashes: Vec<u128> = all.iter().map(|record| record >> PLACE_BITS).collect();
        assert!(hashes[0] == hashes[2] && hashes[0] == hashes[3] && hashes[0] != hashes[1]);
        assert!(hashes[0] > u128::from(u64::MAX) / 64, "70 bits are used");
        assert_eq!(records(0, text, 5).len(), 1);
        assert_eq!(records(0, "", 1), []);
    }
}
