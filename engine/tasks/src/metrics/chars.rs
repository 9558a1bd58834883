//! Metrics over characters: exact match, and F1 as JGLUE evaluates JSQuAD (SQuAD's F1 with characters for words).

use std::collections::HashMap;

use super::units::{is_space, trim};

/// 1 if the texts are equal but for white space around them, else 0.
pub fn exact_match(text: &str, answer: &str) -> f64 {
    f64::from(trim(text) == trim(answer))
}

/// F1 of the multisets of characters, white space around the texts left out.
pub fn f1(text: &str, answer: &str) -> f64 {
    let [text, answer]: [Vec<char>; 2] = [text, answer].map(|t| t.trim_matches(is_space).chars().collect());
    let shared = overlap(&count(&text, 1), &count(&answer, 1));
    harmonic_mean(shared, text.len(), answer.len())
}

/// How often each run of `n` units is in `units`.
pub(super) fn count<T: std::hash::Hash + Eq>(units: &[T], n: usize) -> HashMap<&[T], usize> {
    let mut counts = HashMap::new();
    for run in units.windows(n) {
        *counts.entry(run).or_insert(0) += 1;
    }
    counts
}

/// The size of the intersection of two multisets.
pub(super) fn overlap<T: std::hash::Hash + Eq>(a: &HashMap<&[T], usize>, b: &HashMap<&[T], usize>) -> usize {
    a.iter().map(|(run, &n)| n.min(b.get(run).copied().unwrap_or(0))).sum()
}

/// 2 P R / (P + R) with P = `shared` / `predicted`, R = `shared` / `right`.
pub(super) fn harmonic_mean(shared: usize, predicted: usize, right: usize) -> f64 {
    if shared == 0 {
        return 0.0;
    }
    let (precision, recall) = (shared as f64 / predicted as f64, shared as f64 / right as f64);
    2.0 * precision * recall / (precision + recall)
}
