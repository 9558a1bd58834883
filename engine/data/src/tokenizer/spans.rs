//! Which bytes of a text each of its tokens holds, and from that which tokens count in the loss.

use std::ops::Range;

/// The ids of a text, and for each the bytes of the text that it stands for. A byte-level token that holds a part of a
/// character has the bytes of the whole character; the space that a tokenizer puts before a text has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spans {
    pub ids: Vec<u32>,
    pub bytes: Vec<Range<usize>>,
}

impl Spans {
    pub fn push(&mut self, id: u32, bytes: Range<usize>) {
        self.ids.push(id);
        self.bytes.push(bytes);
    }

    /// Appends the tokens of a part of the text that begins at the byte `start`.
    pub fn append(&mut self, part: Spans, start: usize) {
        self.ids.extend(part.ids);
        self.bytes.extend(part.bytes.into_iter().map(|bytes| start + bytes.start..start + bytes.end));
    }

    /// For each token 1 where it holds a byte of one of the `stretches`, which ascend and do not overlap, else 0.
    pub fn mask(&self, stretches: &[Range<usize>]) -> Vec<u8> {
        let counts = |bytes: &Range<usize>| {
            let next = stretches.partition_point(|stretch| stretch.end <= bytes.start);
            let overlaps = |stretch: &Range<usize>| stretch.start.max(bytes.start) < stretch.end.min(bytes.end);
            stretches.get(next).is_some_and(overlaps)
        };
        self.bytes.iter().map(|bytes| u8::from(counts(bytes))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_counts_if_it_holds_a_byte_of_a_stretch() {
        let mut spans = Spans::default();
        for bytes in [0..0, 0..3, 3..6, 6..6, 6..9, 6..9, 9..12, 12..20] {
            spans.push(7, bytes);
        }
        assert_eq!(spans.mask(&[4..7, 12..13]), [0, 0, 1, 0, 1, 1, 0, 1]);
        assert_eq!(spans.mask(std::slice::from_ref(&(0..6))), [0, 1, 1, 0, 0, 0, 0, 0]);
        assert_eq!(spans.mask(&[]), [0; 8]);
        assert_eq!(spans.mask(&[5..5, 6..20]), [0, 0, 0, 0, 1, 1, 1, 1]);
    }
}
