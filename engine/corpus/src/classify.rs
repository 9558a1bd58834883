//! `data classify`: learns which documents are like good ones, scores documents, and keeps the best.
//!
//! The classifier is linear over hashed n-grams of characters, of the kind of fastText (Joulin et al. 2017, "Bag of
//! Tricks for Efficient Text Classification") without its hidden layer: logistic regression. [`train()`] makes the file
//! that [`Classifier::open`] reads, [`score()`] adds a score to each record, and [`keep()`] keeps those with the
//! highest scores.

mod features;
mod keep;
mod model;
mod score;
mod train;

pub use keep::{KeepJob, Kept, keep};
pub use model::Classifier;
pub use score::{ScoreJob, Scored, score};
pub use train::{Step, TrainJob, Trained, train};

#[cfg(test)]
mod tests;
