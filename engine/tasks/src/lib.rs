//! Evaluation tasks: what is asked of a model, and what its answers are worth.
//!
//! A task file (`task`) names data, templates and a metric. `records` reads the data, `questions` renders records and
//! shots into contexts with continuations or right answers. A model, which is not here, gives log-likelihoods or text;
//! `answered` turns them into a scored answer a question by `metrics`, `summary` sums those up, and `against` compares
//! two evaluations of the same questions.

pub mod against;
mod answered;
mod keys;
pub mod metrics;
mod names;
mod questions;
mod records;
mod summary;
mod task;
mod template;
#[cfg(test)]
mod tests;
mod utf8;

pub use answered::{Answered, read_answers, write_answers};
pub use questions::{Bad, Form, Question, Questions};
pub use summary::{MostFrequent, Summary};
pub use task::{Kind, Metric, Task, Tokens};
