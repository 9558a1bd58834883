//! Training: logistic regression by AdaGrad (Duchi et al. 2011), one document after the other.
//!
//! Features are computed in parallel and updates are made in one order, so the weights do not depend on the number of
//! workers. Every tenth document of each class is held out: the classifier that is written never saw them, and its
//! accuracy is measured on them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use data::mt19937::RandomState;
use data::text::Inputs;
use engine::error::{Error, Result};
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::features::{BUCKETS, Features, normalise};
use super::model::{Classifier, Origin};
use crate::documents::{Bad, Batch, Skipped, batches};
use crate::ordered;

/// Passes over the documents.
const EPOCHS: u64 = 5;
/// The step of AdaGrad, and what keeps its first steps from a division by zero.
const RATE: f32 = 0.5;
const EPSILON: f32 = 1e-8;
/// Of the order of the documents.
const SEED: u32 = 1;
/// One document in so many is held out.
const HELD_OUT: usize = 10;
/// Documents whose features are in memory at a time, up to about 640 KB each.
const AT_A_TIME: usize = 128;
/// Bytes of documents between reading and normalising.
const IN_FLIGHT: usize = 32 << 20;

/// The documents and settings of a training.
pub struct TrainJob<'a> {
    pub positive: &'a Inputs,
    pub negative: &'a Inputs,
    /// Its name ends in .safetensors.
    pub output: PathBuf,
    pub bad: Bad,
    /// Threads that compute features, at least one.
    pub workers: usize,
}

/// What a training has done.
#[derive(Debug, Clone, PartialEq)]
pub struct Trained {
    /// Documents of each class, those that were held out among them.
    pub positive: u64,
    pub negative: u64,
    /// Documents that the classifier never saw, on which the following two are measured.
    pub held_out: u64,
    /// The share that is on the right side of 0.5.
    pub accuracy: f64,
    /// The probability that a positive document has a higher score than a negative one.
    pub auc: f64,
    pub skipped: Skipped,
}

/// How far a training is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Bytes read so far.
    Reading(u64),
    /// Documents that the classifier has been trained on, and how many there will be.
    Training { done: u64, of: u64 },
}

/// A document as it is kept in memory: normalised, at most 20,000 characters.
struct Sample {
    text: Box<str>,
    positive: bool,
}

/// Trains a classifier and writes it; calls `progress` after every batch. Holds the normalised texts of all documents
/// in memory: of each at most 20,000 characters, which are 60 KB of Japanese.
pub fn train(job: &TrainJob, mut progress: impl FnMut(Step)) -> Result<Trained> {
    if job.output.extension().is_none_or(|e| e != "safetensors") {
        let what = "the classifier's name must end in .safetensors; rename it";
        return Err(Error::user(format!("{}: {what}", job.output.display())));
    }
    job.positive.check()?;
    job.negative.check()?;
    let (mut skipped, read) = (Skipped::default(), Arc::new(AtomicU64::new(0)));
    let (mut samples, mut held_out) = (Vec::new(), Vec::new());
    let mut counts = [0; 2];
    for (count, (inputs, positive)) in counts.iter_mut().zip([(job.positive, true), (job.negative, false)]) {
        let texts = texts(job, inputs, &read, &mut skipped, &mut progress)?;
        *count = texts.len() as u64;
        if texts.len() < HELD_OUT {
            return Err(too_few(inputs, texts.len(), positive));
        }
        for (i, text) in texts.into_iter().enumerate() {
            let class = if i % HELD_OUT == HELD_OUT - 1 { &mut held_out } else { &mut samples };
            class.push(Sample { text, positive });
        }
    }
    let pool = ThreadPoolBuilder::new().num_threads(job.workers).build();
    let pool = pool.map_err(|e| Error::run(format!("no threads to train with: {e}")))?;
    let mut classifier = fit(&pool, &samples, &mut progress);
    let scores = scores(&pool, &classifier, &held_out);
    let [positive, negative] = counts;
    let (accuracy, auc) = (accuracy(&scores), auc(scores));
    classifier.origin = Origin { positive, negative, held_out: held_out.len() as u64, accuracy, auc };
    classifier.write(&job.output)?;
    Ok(Trained { positive, negative, held_out: held_out.len() as u64, accuracy, auc, skipped })
}

fn too_few(inputs: &Inputs, found: usize, positive: bool) -> Error {
    let names: Vec<String> = inputs.paths.iter().map(|path| path.display().to_string()).collect();
    let class = if positive { "positive" } else { "negative" };
    Error::user(format!("{}: {found} {class} documents; at least {HELD_OUT} are needed", names.join(", ")))
}

/// The normalised texts of the inputs in their order.
fn texts(
    job: &TrainJob,
    inputs: &Inputs,
    read: &Arc<AtomicU64>,
    skipped: &mut Skipped,
    progress: &mut impl FnMut(Step),
) -> Result<Vec<Box<str>>> {
    let mut all = Vec::new();
    let normalised = |batch: Batch| {
        let documents = batch.documents(&inputs.key).into_iter();
        Ok(documents.map(|document| Ok(normalise(&document?.text).into_boxed_str())).collect::<Vec<_>>())
    };
    ordered::map(batches(inputs, read.clone()), job.workers, IN_FLIGHT, normalised, |texts| {
        for text in texts {
            match text {
                Ok(text) => all.push(text),
                Err(message) => job.bad.record(message, skipped)?,
            }
        }
        progress(Step::Reading(read.load(Ordering::Relaxed)));
        Ok(())
    })?;
    Ok(all)
}

fn fit(pool: &ThreadPool, samples: &[Sample], progress: &mut impl FnMut(Step)) -> Classifier {
    let mut classifier = Classifier::zero();
    let mut squares = vec![0.0; BUCKETS];
    let mut bias_square = 0.0;
    let mut order: Vec<usize> = (0..samples.len()).collect();
    let mut random = RandomState::new(SEED);
    let (mut done, of) = (0, EPOCHS * samples.len() as u64);
    for _ in 0..EPOCHS {
        random.shuffle(&mut order);
        for some in order.chunks(AT_A_TIME) {
            let features = |&i: &usize| Features::of(&samples[i].text);
            let features: Vec<Features> = pool.install(|| some.par_iter().map(features).collect());
            for (features, &i) in features.iter().zip(some) {
                // dL/dz = p - y of the cross-entropy.
                let target = if samples[i].positive { 1.0 } else { 0.0 };
                let error = (classifier.probability(features) - target) as f32;
                for &(bucket, value) in &features.values {
                    let bucket = bucket as usize;
                    adagrad(&mut classifier.weights[bucket], &mut squares[bucket], error * value);
                }
                adagrad(&mut classifier.bias, &mut bias_square, error);
            }
            done += some.len() as u64;
            progress(Step::Training { done, of });
        }
    }
    classifier
}

/// G += g^2, w -= rate g / sqrt(G)
fn adagrad(weight: &mut f32, square: &mut f32, gradient: f32) {
    *square += gradient * gradient;
    *weight -= RATE * gradient / (square.sqrt() + EPSILON);
}

/// The score and the class of each sample.
fn scores(pool: &ThreadPool, classifier: &Classifier, samples: &[Sample]) -> Vec<(f64, bool)> {
    let score = |sample: &Sample| (classifier.probability(&Features::of(&sample.text)), sample.positive);
    pool.install(|| samples.par_iter().map(score).collect())
}

fn accuracy(scores: &[(f64, bool)]) -> f64 {
    scores.iter().filter(|(score, positive)| (*score > 0.5) == *positive).count() as f64 / scores.len() as f64
}

/// The area under the ROC curve: the share of pairs of a positive and a negative sample in which the positive one has
/// the higher score; an equal score counts half (Mann and Whitney 1947).
fn auc(mut scores: Vec<(f64, bool)>) -> f64 {
    scores.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut below, mut wins, mut positives) = (0.0, 0.0, 0.0);
    for equal in scores.chunk_by(|a, b| a.0 == b.0) {
        let positive = equal.iter().filter(|(_, positive)| *positive).count() as f64;
        let negative = equal.len() as f64 - positive;
        wins += positive * (below + negative / 2.0);
        below += negative;
        positives += positive;
    }
    wins / (positives * below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_is_the_share_of_ordered_pairs() {
        let scores: Vec<(f64, bool)> = (0..200).map(|i| (f64::from(i * 37 % 23) / 23.0, i * 31 % 7 < 3)).collect();
        let of = |class: bool| scores.iter().filter(move |(_, positive)| *positive == class).map(|(score, _)| *score);
        let pairs = of(true).flat_map(|positive| of(false).map(move |negative| (positive, negative)));
        let win = |(positive, negative): (f64, f64)| match positive.total_cmp(&negative) {
            std::cmp::Ordering::Less => 0.0,
            std::cmp::Ordering::Equal => 0.5,
            std::cmp::Ordering::Greater => 1.0,
        };
        let expected = pairs.clone().map(win).sum::<f64>() / pairs.count() as f64;
        assert!((auc(scores.clone()) - expected).abs() < 1e-12);
        assert_eq!(auc(vec![(0.1, false), (0.9, true), (0.2, false)]), 1.0);
        assert_eq!(auc(vec![(0.5, false), (0.5, true)]), 0.5);
    }

    #[test]
    fn accuracy_counts_the_right_side_of_a_half() {
        let scores = [(0.5, false), (0.5, true), (0.9, true), (0.6, false)];
        assert_eq!(accuracy(&scores), 0.5);
    }
}
