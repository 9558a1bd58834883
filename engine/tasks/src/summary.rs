//! The result of a task: its score with the standard error, and the answer that was given most often.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::answered::Answered;
use crate::metrics::bleu::Counts;
use crate::metrics::number::last_number;
use crate::task::{Metric, Task};

/// The result of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub task: String,
    pub kind: String,
    /// Its name, with the tokens: `bleu_13a`.
    pub metric: String,
    pub questions: usize,
    pub skipped: usize,
    /// From 0 to 1: the mean of the questions' scores; of BLEU, the corpus's.
    pub score: f64,
    /// The sample's standard deviation over the root of the number of questions; `None` for BLEU and for one question.
    pub standard_error: Option<f64>,
    /// `None` without questions.
    pub most_frequent: Option<MostFrequent>,
}

/// The answer that was given most often, which shows a model that always says the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MostFrequent {
    /// The place of a choice, a text, or the last number of texts.
    pub prediction: Json,
    /// Its share of the questions, from 0 to 1.
    pub share: f64,
}

impl Task {
    /// Sums up the answers to a task's questions, of which `skipped` records gave none.
    pub fn summary(&self, answers: &[Answered], skipped: usize) -> Summary {
        let scores: Vec<f64> = answers.iter().map(|answer| answer.score).collect();
        let (score, standard_error) = match self.metric {
            Metric::Bleu(_) => (self.corpus_bleu(answers), None),
            _ => (mean(&scores), standard_error(&scores)),
        };
        Summary {
            task: self.name.clone(),
            kind: self.kind.name().to_string(),
            metric: self.metric.name(),
            questions: answers.len(),
            skipped,
            score,
            standard_error,
            most_frequent: self.most_frequent(answers),
        }
    }

    fn corpus_bleu(&self, answers: &[Answered]) -> f64 {
        let Metric::Bleu(tokens) = self.metric else { unreachable!("the caller looked") };
        let mut sum = Counts::default();
        for answered in answers {
            sum.add(&Counts::of(answered.prediction.as_str().unwrap_or(""), &texts(&answered.answer), tokens));
        }
        sum.of_corpus()
    }

    /// The first of those that are given equally often.
    fn most_frequent(&self, answers: &[Answered]) -> Option<MostFrequent> {
        let said = |answered: &Answered| match (self.metric, answered.prediction.as_str()) {
            (Metric::LastNumber, Some(text)) => last_number(text).unwrap_or_default().into(),
            _ => answered.prediction.clone(),
        };
        let mut counts: BTreeMap<String, (usize, usize, Json)> = BTreeMap::new();
        for (at, value) in answers.iter().map(said).enumerate() {
            counts.entry(value.to_string()).or_insert((0, at, value)).0 += 1;
        }
        let (times, _, prediction) = counts.into_values().max_by_key(|(times, at, _)| (*times, usize::MAX - at))?;
        Some(MostFrequent { prediction, share: times as f64 / answers.len() as f64 })
    }
}

/// The right texts of an answer.
fn texts(answer: &Json) -> Vec<String> {
    let text = |value: &Json| value.as_str().map(String::from);
    match answer {
        Json::Array(several) => several.iter().filter_map(text).collect(),
        one => text(one).into_iter().collect(),
    }
}

fn mean(scores: &[f64]) -> f64 {
    if scores.is_empty() { 0.0 } else { scores.iter().sum::<f64>() / scores.len() as f64 }
}

/// sqrt(sum (x - mean)^2 / (n - 1)) / sqrt(n)
fn standard_error(scores: &[f64]) -> Option<f64> {
    let (n, mean) = (scores.len() as f64, mean(scores));
    let squares: f64 = scores.iter().map(|score| (score - mean).powi(2)).sum();
    (scores.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt())
}
