//! The answers of a model, choices or texts, with their scores, as JSON lines.

use std::io::{BufWriter, Write};
use std::path::Path;

use engine::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::metrics::units::trim;
use crate::questions::{Form, Question};
use crate::task::{Kind, Task};
use crate::utf8;

/// The answer to one question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answered {
    /// The question's.
    pub index: usize,
    /// The place of the choice, or the text.
    pub prediction: Json,
    /// The place of the right choice, the right text, or a list of right texts.
    pub answer: Json,
    /// From 0 to 1.
    pub score: f64,
}

impl Task {
    /// The choice of the highest log-likelihood, given in nats for each continuation; the first of equals. With
    /// `choice_norm`, it is divided by the continuation's characters, without the space that joins it to the context.
    pub fn choose(&self, question: &Question, nats: &[f64]) -> Answered {
        assert!(question.fits(self.kind), "question {} has no choices", question.index);
        let Form::Choices { continuations, answer } = &question.form else { unreachable!("it fits") };
        let (given, wanted) = (nats.len(), continuations.len());
        assert_eq!(given, wanted, "log-likelihoods and choices of question {}", question.index);
        let length = |text: &str| match self.kind {
            Kind::ChoiceNorm => text.strip_prefix(' ').unwrap_or(text).chars().count() as f64,
            Kind::Choice | Kind::Generate => 1.0,
        };
        let worth: Vec<f64> = nats.iter().zip(continuations).map(|(nats, text)| nats / length(text)).collect();
        let better = |best: usize, at: usize| if worth[at] > worth[best] || worth[best].is_nan() { at } else { best };
        let best = (1..worth.len()).fold(0, better);
        Answered {
            index: question.index,
            prediction: best.into(),
            answer: (*answer).into(),
            score: f64::from(best == *answer),
        }
    }

    /// The score of a generated text, which ends before the first stop in it.
    pub fn judge(&self, question: &Question, text: &str) -> Answered {
        assert!(question.fits(self.kind), "question {} has choices", question.index);
        let Form::Free { answers } = &question.form else { unreachable!("it fits") };
        let end = self.stop.iter().filter_map(|stop| text.find(stop.as_str())).min().unwrap_or(text.len());
        let text = trim(&text[..end]);
        let answer = match answers.as_slice() {
            [one] => one.as_str().into(),
            several => several.into(),
        };
        Answered { index: question.index, prediction: text.into(), answer, score: self.metric.score(text, answers) }
    }
}

/// Writes a JSON line an answer.
pub fn write_answers(path: &Path, answers: &[Answered]) -> Result<()> {
    let write = || {
        let mut file = BufWriter::new(std::fs::File::create(path)?);
        for answer in answers {
            serde_json::to_writer(&mut file, answer)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    };
    write().map_err(|e| Error::io(path, e))
}

/// Reads what [`write_answers`] wrote.
pub fn read_answers(path: &Path) -> Result<Vec<Answered>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let text = utf8::text(&path.display().to_string(), &bytes)?;
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let answer = |(number, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|e| {
            let name = path.display();
            Error::user(format!("{name}: line {number}: {e}; it must be a file of answers that evaluate wrote"))
        })
    };
    lines.map(answer).collect()
}
