//! Rectangles of a matrix: the elements of a Hugging Face tensor that a shard of a flat bucket holds. A vector is a
//! matrix of one row.

use std::ops::Range;

/// Rows and columns of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rect {
    pub rows: Range<usize>,
    pub cols: Range<usize>,
}

impl Rect {
    pub fn whole(shape: [usize; 2]) -> Self {
        Rect { rows: 0..shape[0], cols: 0..shape[1] }
    }

    pub fn len(&self) -> usize {
        self.rows.len() * self.cols.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn intersect(&self, other: &Rect) -> Rect {
        let overlap = |a: &Range<usize>, b: &Range<usize>| {
            let start = a.start.max(b.start);
            start..a.end.min(b.end).max(start)
        };
        Rect { rows: overlap(&self.rows, &other.rows), cols: overlap(&self.cols, &other.cols) }
    }

    /// The elements `range` of this rectangle, row-major, as at most three rectangles (the end of a
    /// row, whole rows, the start of a row), each with its offset in `range`.
    pub fn slice(&self, range: Range<usize>) -> Vec<(usize, Rect)> {
        assert!(range.end <= self.len(), "range ends at {}, the rectangle holds {}", range.end, self.len());
        let (width, mut at, mut out) = (self.cols.len(), range.start, Vec::new());
        while at < range.end {
            let (row, col) = (at / width, at % width);
            let whole_rows = (range.end - at) / width;
            let (rows, cols) = match col {
                0 if whole_rows > 0 => (whole_rows, width),
                _ => (1, (width - col).min(range.end - at)),
            };
            let (row, col) = (self.rows.start + row, self.cols.start + col);
            out.push((at - range.start, Rect { rows: row..row + rows, cols: col..col + cols }));
            at += rows * cols;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn slices_tile_the_range(
            r0 in 0usize..4,
            c0 in 0usize..4,
            rows in 1usize..7,
            cols in 1usize..7,
            a in 0usize..50,
            b in 0usize..50,
        ) {
            let rect = Rect { rows: r0..r0 + rows, cols: c0..c0 + cols };
            let (a, b) = (a.min(rect.len()), b.min(rect.len()));
            let (a, b) = (a.min(b), a.max(b));
            let pieces = rect.slice(a..b);
            prop_assert!(pieces.len() <= 3);
            let mut seen = Vec::new();
            for (at, piece) in &pieces {
                prop_assert_eq!(*at, seen.len());
                for r in piece.rows.clone() {
                    for c in piece.cols.clone() {
                        seen.push((r - r0) * cols + (c - c0));
                    }
                }
            }
            prop_assert_eq!(seen, (a..b).collect::<Vec<_>>());
        }
    }
}
