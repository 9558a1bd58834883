//! Forward of a whole model for positions whose predecessors were computed before: their keys and values are cached.

use super::Stage;
use crate::backend::{Act, CachedAttention, Tensor};
use crate::config::AttentionKind;
use crate::layers::attention::Pattern;
use crate::layers::{block, embedding, head};

/// The keys and values of sequences, of all layers.
pub struct Cache<B: CachedAttention> {
    /// By layer, `[S C, 2G d]`: C positions of each of S sequences.
    layers: Vec<Act<B>>,
    /// C.
    positions: usize,
}

/// A token and its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The number of its sequence in the cache.
    pub sequence: usize,
    pub position: usize,
    pub id: u32,
}

impl<B: CachedAttention> Stage<B> {
    /// Memory for `sequences` sequences of up to `positions` tokens.
    pub fn cache(&self, b: &B, sequences: usize, positions: usize) -> Cache<B> {
        assert!(positions <= self.shared.positions, "{positions} positions, in tables of {}", self.shared.positions);
        let layer = |l| {
            let heads = self.shared.heads(l, 1);
            b.alloc(sequences * positions, 2 * heads.kv * heads.dim)
        };
        Cache { layers: (0..self.shared.model.num_hidden_layers).map(layer).collect(), positions }
    }

    /// Adds tokens to the cache, those of a sequence in order and next to each other, and returns the logits of the
    /// rows `wanted`, `[wanted, V]`, before any soft-cap. Of a chunk that holds the whole model.
    pub fn extend(&mut self, b: &B, cache: &mut Cache<B>, rows: &[Row], wanted: &[u32]) -> Act<B> {
        let capacity = cache.positions;
        assert!(
            rows.iter().all(|row| row.position < capacity),
            "rows beyond a cache of {capacity} positions: {rows:?}"
        );
        let column = |of: &dyn Fn(&Row) -> usize| -> Tensor<B, u32> {
            b.upload(&rows.iter().map(|row| of(row) as u32).collect::<Vec<_>>(), rows.len(), 1)
        };
        let (ids, positions) = (column(&|row| row.id as usize), column(&|row| row.position));
        let place = |row: &Row, position: usize| row.sequence * capacity + position;
        let places = column(&|row| place(row, row.position));
        let first = |kind: AttentionKind| column(&|row| place(row, kind.first(row.position as u32) as usize));
        let cx = self.shared.context(b);
        let tokens = embedding::Tokens { ids: &ids, positions: &positions };
        let mut x = embedding::forward(&cx, &self.params.embedding(), &tokens);
        for (l, cache) in cache.layers.iter_mut().enumerate() {
            let first = first(self.shared.model.layer(l).attention);
            let pattern =
                Pattern { heads: self.shared.heads(l, 1), rotary: self.shared.rotary(&positions), starts: &first };
            x = block::cached(&cx, &pattern, &self.params.layer(l), x, &places, cache);
        }
        let x = b.embed(&b.upload(wanted, wanted.len(), 1), &x, 0);
        head::whole_logits(&cx, &self.params.head(), &x)
    }
}
