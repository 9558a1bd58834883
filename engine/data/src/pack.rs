//! The sample order of a packed source (`pack = true`): whole units are laid into rows of `seq` positions, so that no
//! document is cut where it fits and attention never crosses from one to another.
//!
//! A unit is a sequence of the `.idx`; one that is longer than a row is cut every `seq` tokens into units of their own.
//! The units of an epoch are shuffled, and each window of [`WINDOW`] of them is laid by best fit: a unit goes into the
//! row of its window with the least room that holds it, else it opens a new row. What is left of a row is padding.
//!
//! Memory: 8 bytes a unit and epoch, and 8 a row.

use std::collections::BTreeSet;
use std::ops::Range;

use super::idx::IndexedFile;
use super::mt19937::RandomState;
use super::order::{Piece, Plan};
use engine::error::{Error, Result};

/// Units that are laid together.
const WINDOW: usize = 4096;
/// The most units of all epochs (32 GiB).
const MOST_UNITS: u64 = 1 << 32;

/// A unit: part `part` of sequence `document`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unit {
    document: u32,
    part: u32,
}

/// The rows of a packed source, epoch after epoch.
#[derive(Debug)]
pub struct PackedOrder {
    /// The units in the order of their rows.
    units: Vec<Unit>,
    /// The index of each row's first unit, and at the end the number of units.
    rows: Vec<u64>,
    seq: u64,
    /// Whether the rows start over after the last.
    cyclic: bool,
    pub plan: PackedPlan,
}

/// The numbers behind a packed order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PackedPlan {
    /// Sequences of the split.
    pub documents: u64,
    /// Sequences that are longer than a row.
    pub cut: u64,
    /// Tokens of an epoch.
    pub tokens: u64,
    pub epochs: u64,
    /// Rows of all epochs.
    pub rows: u64,
    /// Rows of the first epoch.
    pub rows_of_epoch: u64,
}

impl PackedPlan {
    /// The share of the positions of the first epoch that hold no token.
    pub fn padding(&self, seq: u64) -> f64 {
        1.0 - self.tokens as f64 / (self.rows_of_epoch * seq).max(1) as f64
    }
}

impl From<PackedPlan> for Plan {
    fn from(plan: PackedPlan) -> Plan {
        let PackedPlan { documents, tokens, epochs, rows, .. } = plan;
        Plan { documents, tokens, epochs, separate: false, samples: rows }
    }
}

/// Whether and how far the units are shuffled.
#[derive(Debug, Clone, Copy)]
pub enum Shuffle {
    /// Every epoch is shuffled anew, until there are at least `rows` rows (`None`: one epoch).
    Epochs { seed: u32, rows: Option<u64> },
    /// The units keep the order of the file, and the rows start over after the last.
    No,
}

impl PackedOrder {
    pub fn new(file: &IndexedFile, range: Range<u32>, seq: u64, shuffle: Shuffle) -> Result<Self> {
        let lengths = file.lengths()?;
        let length = |document: u32| u64::from(lengths[document as usize]);
        let units: Vec<Unit> = range
            .clone()
            .flat_map(|document| {
                (0..length(document).div_ceil(seq)).map(move |part| Unit { document, part: part as u32 })
            })
            .collect();
        let plan = PackedPlan {
            documents: u64::from(range.end - range.start),
            cut: range.clone().filter(|&document| length(document) > seq).count() as u64,
            tokens: range.map(length).sum(),
            ..PackedPlan::default()
        };
        let mut order = Self { units: Vec::new(), rows: vec![0], seq, cyclic: matches!(shuffle, Shuffle::No), plan };
        order.lay(file, &lengths, units, shuffle)?;
        Ok(order)
    }

    /// Lays epoch after epoch. A source without tokens has no rows.
    fn lay(&mut self, file: &IndexedFile, lengths: &[u32], units: Vec<Unit>, shuffle: Shuffle) -> Result<()> {
        let (mut random, wanted) = match shuffle {
            Shuffle::Epochs { seed, rows } => (Some(RandomState::new(seed)), rows.unwrap_or(0)),
            Shuffle::No => (None, 0),
        };
        while !units.is_empty() && (self.plan.epochs == 0 || self.plan.rows < wanted) {
            if (self.plan.epochs + 1).saturating_mul(units.len() as u64) > MOST_UNITS {
                return Err(Error::user(format!(
                    "{}: its {} tokens would be read more than {} times; use more data, fewer steps or a smaller \
                     weight",
                    file.prefix().display(),
                    self.plan.tokens,
                    self.plan.epochs
                )));
            }
            let mut epoch = units.clone();
            if let Some(random) = &mut random {
                random.shuffle(&mut epoch);
            }
            epoch.chunks(WINDOW).for_each(|window| self.lay_window(lengths, window));
            self.plan.epochs += 1;
            self.plan.rows = self.rows.len() as u64 - 1;
            if self.plan.epochs == 1 {
                self.plan.rows_of_epoch = self.plan.rows;
            }
        }
        Ok(())
    }

    /// Lays the units of a window by best fit into new rows.
    fn lay_window(&mut self, lengths: &[u32], window: &[Unit]) {
        let mut rows: Vec<Vec<Unit>> = Vec::new();
        // (room, row) of all rows; of equal room the oldest row is taken.
        let mut open: BTreeSet<(u64, usize)> = BTreeSet::new();
        for &unit in window {
            let tokens = self.piece(u64::from(lengths[unit.document as usize]), unit).count as u64;
            let (room, row) = match open.range((tokens, 0)..).next() {
                Some(&fit) => {
                    open.remove(&fit);
                    fit
                }
                None => {
                    rows.push(Vec::new());
                    (self.seq, rows.len() - 1)
                }
            };
            rows[row].push(unit);
            open.insert((room - tokens, row));
        }
        for row in rows {
            self.units.extend(row);
            self.rows.push(self.units.len() as u64);
        }
    }

    fn piece(&self, length: u64, unit: Unit) -> Piece {
        let offset = u64::from(unit.part) * self.seq;
        let count = length.saturating_sub(offset).min(self.seq);
        Piece { document: unit.document, offset, count: count as usize }
    }

    /// The units of row `k`, together at most `seq` tokens. An error if `file` has changed since it was indexed.
    pub fn pieces(&self, file: &IndexedFile, k: u64) -> Result<Vec<Piece>> {
        let k = if self.cyclic { k % self.plan.rows } else { k } as usize;
        let units = &self.units[self.rows[k] as usize..self.rows[k + 1] as usize];
        let piece = |&unit: &Unit| Ok(self.piece(file.length(unit.document as usize)?, unit));
        let pieces = units.iter().map(piece).collect::<Result<Vec<Piece>>>()?;
        let tokens: usize = pieces.iter().map(|piece| piece.count).sum();
        match tokens <= self.seq as usize && pieces.iter().all(|piece| piece.count > 0) {
            true => Ok(pieces),
            false => Err(file.changed()),
        }
    }
}

#[cfg(test)]
mod tests;
