//! The metrics: each scores a text against the accepted answers, from 0 to 1.

pub mod bleu;
pub mod chars;
pub mod number;
pub mod rouge;
pub mod units;

use crate::task::Metric;

impl Metric {
    /// The score of one text: that of the answer which it fits best.
    pub fn score(self, text: &str, answers: &[String]) -> f64 {
        let best = |score: &dyn Fn(&str) -> f64| answers.iter().map(|answer| score(answer)).fold(0.0, f64::max);
        match self {
            Metric::ExactMatch => best(&|answer| chars::exact_match(text, answer)),
            Metric::CharF1 => best(&|answer| chars::f1(text, answer)),
            Metric::Rouge2(tokens) => best(&|answer| rouge::rouge2(text, answer, tokens)),
            Metric::Bleu(tokens) => bleu::Counts::of(text, answers, tokens).of_sentence(),
            Metric::LastNumber => best(&|answer| number::same_last_number(text, answer)),
        }
    }
}
