//! One sample as the rows of a micro-batch.

use super::super::idx::IndexedFile;
use super::super::order::Piece;
use engine::batch::MicroBatch;
use engine::error::{Error, Result};

/// A file whose ids are read for a model with this vocabulary.
#[derive(Clone, Copy)]
pub struct Tokens<'a> {
    pub file: &'a IndexedFile,
    pub vocab_size: usize,
}

impl Tokens<'_> {
    /// Appends the ids of a piece, which must be below the vocabulary's size: an embedding has no row for others, and
    /// all ids were checked at the start of the run.
    fn read(&self, piece: Piece, ids: &mut Vec<u32>) -> Result<()> {
        let (first, Piece { document, offset, count }) = (ids.len(), piece);
        self.file.read(document as usize, offset, count, ids)?;
        let most = ids[first..].iter().fold(0, |most, &id| id.max(most));
        if (most as usize) < self.vocab_size {
            return Ok(());
        }
        let at = ids[first..].iter().position(|&id| id == most).expect("the largest id is one of them");
        Err(Error::user(format!(
            "{}: document {document} has the id {most} at token {}, but model.vocab_size = {}: the file was made with \
             another tokenizer, or another program has written to it since its ids were checked (see `swallow-engine \
             data check {}`); restore it, then start the run again: it continues from the last checkpoint",
            self.file.bin().path().display(),
            offset + at as u64,
            self.vocab_size,
            self.file.prefix().display()
        )))
    }
}

/// Whether a row attends to earlier documents of its sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boundaries {
    Open,
    Masked,
}

/// Appends a sample of a stream, `seq + 1` tokens: each predicts the next one, across documents too, and positions
/// count through the sample.
pub fn append_stream(batch: &mut MicroBatch, tokens: Tokens, pieces: &[Piece], boundaries: Boundaries) -> Result<()> {
    let seq = batch.seq;
    let (mut ids, mut weights) = (Vec::with_capacity(seq + 1), Vec::with_capacity(seq + 1));
    for &piece in pieces {
        tokens.read(piece, &mut ids)?;
        tokens.file.read_weights(piece.document as usize, piece.offset, piece.count, &mut weights)?;
    }
    batch.ids.extend_from_slice(&ids[..seq]);
    batch.targets.extend_from_slice(&ids[1..]);
    batch.weights.extend_from_slice(&weights[1..]);
    batch.positions.extend(0..seq as u32);
    batch.starts.extend(match boundaries {
        Boundaries::Masked => document_starts(pieces, seq),
        Boundaries::Open => vec![0; seq],
    });
    Ok(())
}

/// Appends a row of packed units, at most `seq` tokens. A unit attends to itself alone, its positions count from 0, and
/// its last token predicts nothing. What is left of the row is padding: id 0 with weight 0.
pub fn append_packed(batch: &mut MicroBatch, tokens: Tokens, units: &[Piece]) -> Result<()> {
    let (seq, first) = (batch.seq, batch.ids.len());
    for &unit in units {
        let Piece { document, offset, count } = unit;
        let start = (batch.ids.len() - first) as u32;
        let at = batch.ids.len();
        tokens.read(unit, &mut batch.ids)?;
        batch.targets.extend_from_slice(&batch.ids[at + 1..]);
        batch.targets.push(0);
        tokens.file.read_weights(document as usize, offset + 1, count - 1, &mut batch.weights)?;
        batch.weights.push(0.0);
        batch.positions.extend(0..count as u32);
        batch.starts.resize(batch.starts.len() + count, start);
    }
    let start = (batch.ids.len() - first) as u32;
    let end = first + seq;
    batch.positions.extend(0..seq as u32 - start);
    batch.ids.resize(end, 0);
    batch.targets.resize(end, 0);
    batch.weights.resize(end, 0.0);
    batch.starts.resize(end, start);
    Ok(())
}

/// For every position of a sample, the position at which its document starts.
fn document_starts(pieces: &[Piece], seq: usize) -> Vec<u32> {
    let mut starts = Vec::with_capacity(seq + 1);
    for piece in pieces {
        let start = starts.len() as u32;
        starts.resize(starts.len() + piece.count, start);
    }
    starts.truncate(seq);
    starts
}
