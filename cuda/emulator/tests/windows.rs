//! Attention's kernels copy exactly the tiles of which some query of a block sees a part: those wholly before a window,
//! or before a document, cost nothing.

use crate::attention::Sight::{Past, Window, WindowInDocuments};
use crate::attention::{Case, Ops, SM80, case};
use crate::attention_sm90::SM90;
use crate::common::emulators;
use cuda::machine::Target;
use cuda::ops::{HEAD_DIMS, HEAD_DIMS_SM90, Shape};

/// Bytes of the numbers of 64 queries that the backward kernels pass on.
const RECORD: usize = 768;

/// A kernel's tiles. The copy engine of sm_90a counts the rows of a tile that are behind the sequence's end.
#[derive(Clone, Copy)]
struct Tiles {
    queries: usize,
    keys: usize,
    whole: bool,
}

fn tiles(queries: usize, keys: usize, whole: bool) -> Tiles {
    Tiles { queries, keys, whole }
}

/// Rows of a sequence and their starts.
struct Sequence {
    starts: Vec<u32>,
    row_bytes: usize,
}

impl Sequence {
    fn of(case: &Case) -> Sequence {
        Sequence { starts: case.starts()[..case.shape.seq].to_vec(), row_bytes: 2 * case.shape.dim }
    }

    fn seq(&self) -> usize {
        self.starts.len()
    }

    /// Bytes of the tile of so many rows from `first` on.
    fn tile(&self, first: usize, rows: usize, whole: bool) -> usize {
        self.row_bytes * if whole { rows } else { rows.min(self.seq() - first) }
    }

    /// Bytes that the blocks of queries of a head copy: their own rows of so many matrices, and k and v.
    fn over_keys(&self, matrices: usize, t: Tiles) -> usize {
        let block = |first: usize| {
            let end = (first + t.queries).min(self.seq());
            let seen = (self.starts[first] as usize / t.keys..end.div_ceil(t.keys)).map(|tile| tile * t.keys);
            let keys: usize = seen.map(|key| self.tile(key, t.keys, t.whole)).sum();
            matrices * self.tile(first, t.queries, t.whole) + 2 * keys
        };
        (0..self.seq()).step_by(t.queries).map(block).sum()
    }

    /// Bytes that the blocks of keys of a key/value head copy: k and v, and q, do and records of `group` query heads.
    fn over_queries(&self, group: usize, t: Tiles) -> usize {
        let block = |key: usize| {
            let last = (key + t.keys).min(self.seq()) - 1;
            let end = (last..self.seq()).find(|&t| self.starts[t] as usize > last).unwrap_or(self.seq());
            let seen = (key / t.queries * t.queries..end).step_by(t.queries);
            let queries = seen.map(|q| 2 * self.tile(q, t.queries, t.whole) + t.queries.div_ceil(64) * RECORD);
            2 * self.tile(key, t.keys, t.whole) + group * queries.sum::<usize>()
        };
        (0..self.seq()).step_by(t.keys).map(block).sum()
    }

    /// Bytes of the records that blocks of queries copy.
    fn records(&self, queries: usize) -> usize {
        let records = self.seq().div_ceil(128) * 2;
        (0..self.seq()).step_by(queries).map(|first| (queries / 64).min(records - first / 64) * RECORD).sum()
    }
}

/// Bytes of the forward and of the backward pass.
fn expected(case: &Case, target: Target) -> [usize; 2] {
    let Shape { query, kv, dim, sequences, cap, .. } = case.shape;
    let s = Sequence::of(case);
    let [forward, dq, dkv] = match (target, dim, cap) {
        (Target::Sm90a, ..) => [tiles(128, 128, true), tiles(128, 128, true), tiles(64, 128, true)],
        (_, 64, None) => [tiles(128, 128, false), tiles(128, 64, false), tiles(128, 128, false)],
        (_, 64, _) => [tiles(128, 64, false), tiles(128, 64, false), tiles(128, 128, false)],
        (_, 128, None) => [tiles(128, 64, false), tiles(256, 64, false), tiles(64, 128, false)],
        (_, 128, _) => [tiles(128, 32, false), tiles(256, 64, false), tiles(64, 128, false)],
        _ => [tiles(128, 64, false), tiles(128, 32, false), tiles(32, 64, false)],
    };
    let records = if target == Target::Sm80 { s.records(dq.queries) } else { 0 };
    let of_queries = query * (s.over_keys(2, dq) + records);
    [query * s.over_keys(1, forward), of_queries + kv * s.over_queries(query / kv, dkv)].map(|bytes| sequences * bytes)
}

/// Bytes that the kernels copied.
fn copied(case: &Case, ops: &Ops) -> [usize; 2] {
    let [place, ..] = emulators();
    let (o, lse) = case.ours(ops, &place);
    let forward = place.stats().copied as usize;
    case.our_gradients(ops, &place, &o, &lse, 1);
    [forward, place.stats().copied as usize - forward]
}

fn check(ops: &Ops, dims: &[usize]) {
    for &dim in dims {
        for cap in [None, Some(2.0)] {
            let of = |sight| {
                let plain = case(2, 1, dim, 530, 1, sight);
                Case { shape: Shape { cap, ..plain.shape }, ..plain }
            };
            for case in [of(Window(70)), of(WindowInDocuments(100, &[300, 110, 20]))] {
                assert_eq!(copied(&case, ops), expected(&case, ops.target), "{case:?}");
            }
            let fewer = |sight| expected(&of(sight), ops.target);
            assert!(fewer(Window(70)).iter().zip(fewer(Past)).all(|(window, past)| 10 * window < 8 * past));
        }
    }
}

#[test]
fn tiles_outside_are_not_copied() {
    check(&SM80, &[64]);
}

#[test]
fn tiles_outside_are_not_copied_at_any_head_dim_exhaustive() {
    check(&SM80, &HEAD_DIMS);
}

#[test]
fn tiles_outside_are_not_copied_on_sm90() {
    check(&SM90, &HEAD_DIMS_SM90);
}
