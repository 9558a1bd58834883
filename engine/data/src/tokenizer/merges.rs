//! The merges of a `tokenizer.json` that give what SentencePiece's scores give.
//!
//! SentencePiece joins the two neighbours whose union is the piece of the highest score, the leftmost ones of several.
//! A `tokenizer.json` joins the neighbours whose merge comes first in its list. So the list has every pair of pieces
//! whose union is a piece, by falling score. Among pairs of one score the leftmost must win: where one pair ends with
//! what another begins with, it comes first, and else the pair with the longer left part does, so that a run of spaces
//! grows from its left end, as SentencePiece's does. (Pairs of one score that overlap both ways, `aba` and `bab`, have
//! no such order. Those of runs of spaces come out right; others are vanishingly rare.)

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use super::model::{Kind, ModelProto};

/// Above so many pairs of one score only their lengths decide.
const MOST_TIED: usize = 300;

pub type Merge = (String, String);

/// A merge with the score of its union.
struct Scored {
    merge: Merge,
    score: f32,
    /// It comes from the list of the old tokenizer, whose order stays.
    given: bool,
}

/// The scores of the pieces that merges may join.
pub fn scores(model: &ModelProto) -> HashMap<String, f32> {
    let normal = model.pieces.iter().filter(|piece| piece.kind() == Kind::Normal);
    // Zero is added so that -0 becomes 0, which SentencePiece does not tell apart.
    normal.map(|p| (p.piece.clone().unwrap_or_default(), p.score.unwrap_or_default() + 0.0)).collect()
}

/// All merges of the pieces with these scores, by SentencePiece's rule.
pub fn all(scores: &HashMap<String, f32>) -> Vec<Merge> {
    ordered(fresh(scores, |_| true))
}

/// The merges `given`, and all that have to do with a new piece, at the places that their scores give them. The given
/// ones keep their order, also where their scores do not fall: such a merge stands where those behind it belong.
pub fn extended(given: Vec<Merge>, scores: &HashMap<String, f32>, is_new: impl Fn(&str) -> bool) -> Vec<Merge> {
    let has_new = |merge: &Merge| is_new(&merge.0) || is_new(&merge.1) || is_new(&union(merge));
    let known: HashSet<&Merge> = given.iter().collect();
    let new = fresh(scores, |merge| has_new(merge) && !known.contains(merge));
    let old = given.into_iter().map(|merge| {
        let score = scores.get(&union(&merge)).copied().unwrap_or(f32::NEG_INFINITY);
        Scored { merge, score, given: true }
    });
    let mut old: Vec<Scored> = old.collect();
    for i in (1..old.len()).rev() {
        old[i - 1].score = old[i - 1].score.max(old[i].score);
    }
    let mut all = Vec::with_capacity(old.len() + new.len());
    let mut new = new.into_iter().peekable();
    for old in old {
        while let Some(new) = new.next_if(|new| new.score > old.score) {
            all.push(new);
        }
        all.push(old);
    }
    all.extend(new);
    ordered(all)
}

fn union((left, right): &Merge) -> String {
    [left.as_str(), right].concat()
}

/// Every split of every piece into two pieces that `wanted` accepts, by falling score.
fn fresh(scores: &HashMap<String, f32>, wanted: impl Fn(&Merge) -> bool) -> Vec<Scored> {
    let mut all = Vec::new();
    for (piece, &score) in scores {
        let cuts = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        let known = cuts.filter(|(left, right)| scores.contains_key(*left) && scores.contains_key(*right));
        let merges = known.map(|(left, right)| (left.to_string(), right.to_string())).filter(&wanted);
        all.extend(merges.map(|merge| Scored { merge, score, given: false }));
    }
    all.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| rank(&a.merge).cmp(&rank(&b.merge))));
    all
}

/// The order of pairs of one score that nothing else decides.
fn rank((left, right): &Merge) -> (Reverse<usize>, Reverse<usize>, &str, &str) {
    (Reverse(left.chars().count()), Reverse(right.chars().count()), left, right)
}

/// Puts neighbours of one score in order.
fn ordered(all: Vec<Scored>) -> Vec<Merge> {
    let mut merges = Vec::with_capacity(all.len());
    let mut all = all.into_iter().peekable();
    while let Some(first) = all.next() {
        let mut tied = vec![first];
        while let Some(next) = all.next_if(|next| next.score == tied[0].score) {
            tied.push(next);
        }
        merges.extend(order_tied(tied));
    }
    merges
}

fn order_tied(mut tied: Vec<Scored>) -> Vec<Merge> {
    let given: Vec<usize> = (0..tied.len()).filter(|&i| tied[i].given).collect();
    // The given ones keep their order, so they are sorted among the others by their place in the list.
    if given.is_empty() {
        tied.sort_by(|a, b| rank(&a.merge).cmp(&rank(&b.merge)));
    }
    if tied.len() == 1 || tied.len() > MOST_TIED || given.len() == tied.len() {
        return tied.into_iter().map(|pair| pair.merge).collect();
    }
    let mut left: Vec<Scored> = tied;
    let mut merges = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let next_given = left.iter().position(|pair| pair.given);
        let eligible = |i: usize| !left[i].given || next_given == Some(i);
        // A pair waits for those that may lie to its left.
        let waits = |i: usize| left.iter().enumerate().any(|(j, other)| j != i && other.merge.1 == left[i].merge.0);
        let candidates = || (0..left.len()).filter(|&i| eligible(i));
        let by_rank = |i: &usize| rank(&left[*i].merge);
        let next = candidates().filter(|&i| !waits(i)).min_by(|a, b| by_rank(a).cmp(&by_rank(b)));
        let next = next.or_else(|| candidates().min_by(|a, b| by_rank(a).cmp(&by_rank(b))));
        merges.push(left.remove(next.expect("a pair is left")).merge);
    }
    merges
}
