//! What is found, beside what the comparison of all pairs finds.

use std::collections::{HashMap, HashSet};

use super::super::reading::{self, Corpus};
use super::super::union_find::UnionFind;
use super::super::{Bands, Budget, Comparison, Scratch, components};
use super::{Case, Job, planted};

/// For each document the first one of its cluster, as the engine finds it.
fn found(texts: &[String], threshold: f64) -> Vec<u32> {
    let case = Case::of_texts(texts);
    let job = Job { threshold, ..case.job() };
    let (scratch, budget) = (Scratch::new(&job.scratch), Budget { bytes: 16 << 20 });
    let bands = Bands::for_threshold(threshold);
    let Corpus { spool, keys, .. } = reading::read(&job, bands, &scratch, &budget, |_| {}).unwrap();
    let comparison = Comparison { spool: &spool, key: "text", threshold, workers: job.workers };
    components(&comparison, keys.finish(1 << 20).unwrap(), |_| {}).unwrap().into_firsts()
}

/// The 5-grams of each text, numbered, each once and in ascending order.
fn sets(texts: &[String]) -> Vec<Vec<u32>> {
    let mut numbers: HashMap<Vec<char>, u32> = HashMap::new();
    let set = |text: &String| {
        let chars: Vec<char> = text.chars().collect();
        let mut set: Vec<u32> = Vec::new();
        for gram in chars.windows(5) {
            let next = numbers.len() as u32;
            set.push(*numbers.entry(gram.to_vec()).or_insert(next));
        }
        set.sort_unstable();
        set.dedup();
        set
    };
    texts.iter().map(set).collect()
}

fn jaccard(a: &[u32], b: &[u32]) -> f64 {
    let b: HashSet<&u32> = b.iter().collect();
    let common = a.iter().filter(|gram| b.contains(gram)).count();
    common as f64 / (a.len() + b.len() - common) as f64
}

/// All pairs at or above the threshold. Of such a pair, at most the share `1 - threshold` of the grams of one document
/// is not in the other one, so any larger part of its grams has a common one. It is enough to look at the documents
/// that have a gram of the part with the largest numbers, which are mostly rare grams.
fn pairs(sets: &[Vec<u32>], threshold: f64) -> Vec<(u32, u32)> {
    let mut documents: HashMap<u32, Vec<u32>> = HashMap::new();
    let mut pairs = Vec::new();
    for (at, set) in (0_u32..).zip(sets) {
        let mut candidates: HashSet<u32> = HashSet::new();
        let part = (set.len() as f64 * (1.0 - threshold)) as usize + 1;
        for gram in set.iter().rev().take(part) {
            candidates.extend(documents.get(gram).into_iter().flatten());
        }
        for gram in set {
            documents.entry(*gram).or_default().push(at);
        }
        let alike = |&other: &u32| jaccard(set, &sets[other as usize]) >= threshold;
        pairs.extend(candidates.into_iter().filter(alike).map(|other| (other, at)));
    }
    pairs.sort_unstable();
    pairs
}

/// Asserts that whatever is in one cluster is connected by pairs at or above the threshold; returns the number of such
/// pairs, and how many of them are in one cluster.
fn compared(texts: &[String], threshold: f64) -> (usize, usize) {
    let found = found(texts, threshold);
    let pairs = pairs(&sets(texts), threshold);
    let mut truth = UnionFind::new(texts.len() as u32);
    pairs.iter().for_each(|&(a, b)| truth.union(a, b));
    for (document, &first) in (0..).zip(&found) {
        assert_eq!(truth.find(document), truth.find(first), "{document} and {first} are not connected at {threshold}");
    }
    let together = pairs.iter().filter(|&&(a, b)| found[a as usize] == found[b as usize]).count();
    (pairs.len(), together)
}

#[test]
fn clusters_have_nearly_all_pairs_of_brute_force_and_no_others() {
    for (seed, threshold) in [(1, 0.8), (2, 0.8), (3, 0.5), (4, 0.65), (5, 0.95), (6, 1.0)] {
        let texts = planted::documents(seed, 600, 300);
        let (pairs, together) = compared(&texts, threshold);
        assert!(pairs > 15, "{pairs} pairs");
        assert!(together as f64 >= 0.99 * pairs as f64, "{together} of {pairs} pairs at {threshold}");
    }
}

#[test]
fn five_thousand_documents_are_clustered_as_by_brute_force() {
    let texts = planted::documents(7, 5000, 400);
    let (pairs, together) = compared(&texts, 0.8);
    assert!(pairs > 1000, "{pairs} pairs");
    assert!(together as f64 >= 0.99 * pairs as f64, "{together} of {pairs} pairs");
}
