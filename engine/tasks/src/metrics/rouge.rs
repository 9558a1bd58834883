//! ROUGE-2: F1 of bigrams, as Python's `rouge_score` computes it without a stemmer.

use super::chars::{count, harmonic_mean, overlap};
use super::units::split;
use crate::task::Tokens;

/// The F-measure of the bigrams of `tokens`.
pub fn rouge2(text: &str, answer: &str, tokens: Tokens) -> f64 {
    let [text, answer] = [text, answer].map(|t| split(t, tokens));
    let shared = overlap(&count(&text, 2), &count(&answer, 2));
    harmonic_mean(shared, text.len().saturating_sub(1), answer.len().saturating_sub(1))
}
