//! Values that are not finite: a NaN or an infinity in one weight makes every later loss a NaN. They are looked for in
//! the bytes that pass by for a checksum or a copy, so that nothing is read twice.

use super::StateKind;
use crate::model::rect::Rect;
use std::fmt;

/// Counts the values that are not finite among those that pass by.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Watch {
    seen: usize,
    count: u64,
    /// The first such value, and how many values came before it.
    first: Option<(usize, f32)>,
}

impl Watch {
    /// Looks at the next values.
    pub fn look<T: Copy>(&mut self, values: &[T], widen: impl Fn(T) -> f32) {
        // Without an early end the loop is vectorized.
        let count = values.iter().map(|&value| u64::from(!widen(value).is_finite())).sum::<u64>();
        if count > 0 && self.first.is_none() {
            let found = values.iter().map(|&value| widen(value)).enumerate().find(|(_, value)| !value.is_finite());
            self.first = found.map(|(at, value)| (self.seen + at, value));
        }
        (self.seen, self.count) = (self.seen + values.len(), self.count + count);
    }

    /// Looks at the bytes of the next f32 values.
    pub fn look_at_bytes(&mut self, bytes: &[u8]) {
        self.look(bytes.as_chunks().0, f32::from_le_bytes);
    }

    /// The first value that is not finite, if any, in this rectangle of a tensor, whose elements passed by row after
    /// row.
    pub fn found(self, tensor: &str, rect: &Rect) -> Option<NotFinite> {
        let (at, value) = self.first?;
        let first = [rect.rows.start + at / rect.cols.len(), rect.cols.start + at % rect.cols.len()];
        Some(NotFinite { tensor: tensor.to_string(), kind: StateKind::Master, count: self.count, first, value })
    }
}

/// The values of a tensor's state that are not finite.
#[derive(Debug, Clone, PartialEq)]
pub struct NotFinite {
    pub tensor: String,
    pub kind: StateKind,
    pub count: u64,
    /// Row and column of the first one; a vector is one row.
    pub first: [usize; 2],
    pub value: f32,
}

impl NotFinite {
    /// Both findings about one state of a tensor.
    pub(super) fn and(self, other: NotFinite) -> NotFinite {
        let count = self.count + other.count;
        NotFinite { count, ..if other.first < self.first { other } else { self } }
    }
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NotFinite { tensor, kind, count, first: [row, col], value } = self;
        let kind = if *kind == StateKind::Master { String::new() } else { format!(" ({})", kind.name()) };
        let values = if *count == 1 { "1 value is" } else { &format!("{count} values are") };
        write!(f, "{tensor}{kind}: {values} not finite, the first is {value} in row {row}, column {col}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_is_found_across_parts() {
        let rect = Rect { rows: 4..7, cols: 10..14 };
        let values: [f32; 12] = [0.0, 1.0, f32::MAX, -1.0, 1e-45, 2.0, f32::NEG_INFINITY, 0.0, f32::NAN, 1.0, 1.0, 1.0];
        for part in [1, 5, 12] {
            let (mut watch, mut by_bytes) = (Watch::default(), Watch::default());
            for values in values.chunks(part) {
                watch.look(values, |x| x);
                by_bytes.look_at_bytes(bytemuck::cast_slice(values));
            }
            assert_eq!(watch, by_bytes);
            let found = watch.found("w", &rect).unwrap();
            assert_eq!(found.to_string(), "w: 2 values are not finite, the first is -inf in row 5, column 12");
            let before = NotFinite { count: 1, first: [4, 13], value: f32::NAN, ..found.clone() };
            assert_eq!(
                found.and(before).to_string(),
                "w: 3 values are not finite, the first is NaN in row 4, column 13"
            );
        }
        let mut watch = Watch::default();
        watch.look(&values[..6], |x| x);
        assert_eq!(watch.found("w", &rect), None);
    }
}
