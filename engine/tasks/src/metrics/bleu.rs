//! BLEU (Papineni et al. 2002) as sacreBLEU 2 computes it: n-grams up to 4, exponential smoothing, the closest length
//! of several references.

use std::collections::HashMap;

use super::chars::count;
use super::units::split;
use crate::task::Tokens;

const ORDER: usize = 4;

/// The counts that BLEU is computed from; those of a corpus are the sums over its sentences.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counts {
    length: usize,
    reference_length: usize,
    correct: [usize; ORDER],
    total: [usize; ORDER],
}

impl Counts {
    /// The counts of one text and its references.
    pub fn of(text: &str, references: &[String], tokens: Tokens) -> Counts {
        let text = split(text, tokens);
        let references: Vec<Vec<String>> = references.iter().map(|r| split(r, tokens)).collect();
        let distance = |length: usize| (length.abs_diff(text.len()), length);
        let lengths = references.iter().map(Vec::len);
        let mut counts = Counts { length: text.len(), ..Counts::default() };
        counts.reference_length = lengths.min_by_key(|&length| distance(length)).unwrap_or(0);
        for n in 1..=ORDER {
            let mut most: HashMap<&[String], usize> = HashMap::new();
            for (run, times) in references.iter().flat_map(|reference| count(reference, n)) {
                let known = most.entry(run).or_insert(0);
                *known = times.max(*known);
            }
            counts.correct[n - 1] = super::chars::overlap(&count(&text, n), &most);
            counts.total[n - 1] = (text.len() + 1).saturating_sub(n);
        }
        counts
    }

    /// Adds those of another sentence.
    pub fn add(&mut self, other: &Counts) {
        self.length += other.length;
        self.reference_length += other.reference_length;
        for n in 0..ORDER {
            self.correct[n] += other.correct[n];
            self.total[n] += other.total[n];
        }
    }

    /// Corpus BLEU, from 0 to 1.
    pub fn of_corpus(&self) -> f64 {
        self.bleu(ORDER)
    }

    /// Sentence BLEU, from 0 to 1: only orders of which the text has n-grams count (`effective_order`).
    pub fn of_sentence(&self) -> f64 {
        self.bleu(self.total.iter().take_while(|&&total| total > 0).count())
    }

    /// BLEU = bp exp(1/N sum_n ln p_n), where the k-th p_n without a match is 1 / (2^k total).
    fn bleu(&self, order: usize) -> f64 {
        if self.correct.iter().all(|&correct| correct == 0) {
            return 0.0;
        }
        let (mut smooth, mut sum) = (1.0, 0.0);
        for (&correct, &total) in self.correct.iter().zip(&self.total).take(order) {
            if total == 0 {
                return 0.0;
            }
            let matched = if correct > 0 {
                correct as f64
            } else {
                smooth *= 2.0;
                1.0 / smooth
            };
            sum += (matched / total as f64).ln();
        }
        let short = self.length < self.reference_length;
        let penalty = if short { (1.0 - self.reference_length as f64 / self.length as f64).exp() } else { 1.0 };
        penalty * (sum / order as f64).exp()
    }
}
