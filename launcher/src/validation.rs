//! Validation: the loss of every validation set, and of all of them together.

use data::feed::Feed;
use engine::backend::Backend;
use engine::batch::Samples;
use engine::error::Result;
use engine::mpi::Comm;
use engine::train::trainer::{Counted, Trainer, Validated};
use report::records::metrics::SetRecord;
use std::collections::BTreeMap;

use crate::task_scores::Scores;

/// What followed a step: a validation, scored tasks, both or neither.
#[derive(Default)]
pub struct Evaluated {
    pub validation: Option<Validation>,
    /// Empty where no tasks were scored.
    pub tasks: Scores,
}

/// The results of a validation.
pub struct Validation {
    /// The mean over the counted targets of all sets.
    pub loss: f64,
    /// By the name of the set.
    pub sets: BTreeMap<String, SetRecord>,
}

/// Evaluates every set of `feed`, whose samples `samples` has. Collective.
pub fn validate<B: Backend>(
    trainer: &mut Trainer<B>,
    feed: &Feed,
    samples: &dyn Samples,
    comm: &Comm,
) -> Result<Validation> {
    let names = feed.valid_names();
    let mut sums = Vec::new();
    for set in 0..names.len() {
        sums.push(trainer.validate(samples, set)?);
    }
    let counted = over_ranks(comm, sums.iter().map(|sum| sum.counted).collect());
    let record = |(sum, counted): (&Validated, &Counted)| {
        let bits = counted.bytes.map(|bytes| sum.nats / std::f64::consts::LN_2 / bytes as f64);
        SetRecord {
            loss: sum.nats / counted.tokens as f64,
            bits_per_byte: bits.filter(|bits| bits.is_finite()),
            loss_tokens: counted.tokens,
        }
    };
    let records = sums.iter().zip(&counted).map(record);
    let nats: f64 = sums.iter().map(|sum| sum.nats).sum();
    let tokens: u64 = counted.iter().map(|counted| counted.tokens).sum();
    Ok(Validation { loss: nats / tokens as f64, sets: names.into_iter().map(String::from).zip(records).collect() })
}

/// The sums over all ranks, set by set.
fn over_ranks(comm: &Comm, mine: Vec<Counted>) -> Vec<Counted> {
    let text = serde_json::to_vec(&mine.iter().map(|c| (c.tokens, c.bytes)).collect::<Vec<_>>());
    let mut sums = vec![Counted::default(); mine.len()];
    for rank in comm.all_gather_bytes(&text.expect("numbers are JSON")) {
        let theirs: Vec<(u64, Option<u64>)> = serde_json::from_slice(&rank).expect("a rank wrote it with this program");
        sums.iter_mut().zip(theirs).for_each(|(sum, (tokens, bytes))| sum.add(Counted { tokens, bytes }));
    }
    sums
}
