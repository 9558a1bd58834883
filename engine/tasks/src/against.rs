//! Before and after: two evaluations of the same questions, compared question by question.

use engine::error::{Error, Result, counted};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::answered::Answered;

/// The differences between two evaluations, with the p-value of the sign test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Changes {
    /// Questions with the same score.
    pub same: usize,
    /// Questions with a higher score after.
    pub better: usize,
    /// Questions with a lower score after.
    pub worse: usize,
    /// Questions whose answer or score changed, in the order of their places.
    pub changed: Vec<Change>,
    /// The p-value of the exact two-sided sign test: the probability of a split at least as uneven if better and worse
    /// are equally likely.
    pub p_value: f64,
}

/// One question that was answered otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub index: usize,
    pub answer: Json,
    pub before: Json,
    pub after: Json,
    pub score_before: f64,
    pub score_after: f64,
}

/// Compares two evaluations; `name` is the task's, for messages. Answers to other questions are refused.
pub fn compare(name: &str, before: &[Answered], after: &[Answered]) -> Result<Changes> {
    let [before, after] = [before, after].map(|answers| {
        let mut sorted: Vec<&Answered> = answers.iter().collect();
        sorted.sort_by_key(|answer| answer.index);
        sorted
    });
    same_questions(name, &before, &after)?;
    let mut changes = Changes { same: 0, better: 0, worse: 0, changed: Vec::new(), p_value: 1.0 };
    for (old, new) in before.into_iter().zip(after) {
        match new.score.total_cmp(&old.score) {
            std::cmp::Ordering::Equal => changes.same += 1,
            std::cmp::Ordering::Greater => changes.better += 1,
            std::cmp::Ordering::Less => changes.worse += 1,
        }
        if old.prediction != new.prediction || old.score != new.score {
            changes.changed.push(change(old, new));
        }
    }
    changes.p_value = sign_test(changes.better, changes.worse);
    Ok(changes)
}

fn change(old: &Answered, new: &Answered) -> Change {
    Change {
        index: new.index,
        answer: new.answer.clone(),
        before: old.prediction.clone(),
        after: new.prediction.clone(),
        score_before: old.score,
        score_after: new.score,
    }
}

/// Refuses another number of questions, other places, and other right answers.
fn same_questions(name: &str, before: &[&Answered], after: &[&Answered]) -> Result<()> {
    let remedy = "evaluate both with the same task file, data and limit";
    let (old, new) = (before.len(), after.len());
    if old != new {
        let (old, new) = (counted(old, "question"), counted(new, "question"));
        return Err(Error::user(format!("{name}: --against has {old} and this evaluation {new}; {remedy}")));
    }
    match before.iter().zip(after).find(|(old, new)| old.index != new.index || old.answer != new.answer) {
        Some((old, new)) if old.index != new.index => {
            let at = old.index.min(new.index);
            Err(Error::user(format!("{name}: question {at} is in only one of --against and this evaluation; {remedy}")))
        }
        Some((old, new)) => Err(Error::user(format!(
            "{name}: question {} has the answer {} in --against and {} in this evaluation; {remedy}",
            new.index, old.answer, new.answer
        ))),
        None => Ok(()),
    }
}

/// 2 P(X <= min(better, worse)) with X ~ Binomial(better + worse, 1/2), at most 1.
pub fn sign_test(better: usize, worse: usize) -> f64 {
    let (n, least) = (better + worse, better.min(worse));
    // ln of C(n, k) / 2^n, which is too small for a number itself where n is large
    let mut term = -(n as f64) * std::f64::consts::LN_2;
    let mut sum = term.exp();
    for k in 1..=least {
        term += ((n - k + 1) as f64 / k as f64).ln();
        sum += term.exp();
    }
    (2.0 * sum).min(1.0)
}
