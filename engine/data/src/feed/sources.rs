//! The sources of a feed as a user sees them before a run: tokens, epochs, shares.

use std::path::PathBuf;

use super::super::order::Plan;
use super::mixture::{Mixture, PartOrder, Stage};
use super::{Feed, Split};
use engine::error::Result;

/// One source of a split, or of one of its stages.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceReport {
    pub split: Split,
    /// The index of its stage; `None` where the split has one stage, or where this is the sum over all stages.
    pub stage: Option<usize>,
    /// The key of its entry in the configuration.
    pub key: String,
    pub name: String,
    pub prefix: PathBuf,
    /// The order of the split's part of the source.
    pub plan: Plan,
    /// `None` where the source is not packed.
    pub packing: Option<Packing>,
    /// Samples that the stage takes from it.
    pub samples: u64,
    /// The number of times that the stage reads each of the source's tokens.
    pub epochs: f64,
    /// The source's share of the stage's samples, 0 to 1.
    pub share: f64,
}

/// The effect of packing on a source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Packing {
    /// The share of the positions of its rows that hold no token.
    pub padding: f64,
    /// Documents that are longer than a row and were cut.
    pub cut: u64,
}

impl Feed {
    /// The share of the tokens of a source's file that do not count in the loss, by its mask; `None` where it has none.
    /// Reads the whole mask.
    pub fn masked(&self, source: &SourceReport) -> Result<Option<f64>> {
        let file = self.files.iter().find(|file| file.prefix() == source.prefix).expect("a source of the feed");
        let Some(mask) = file.mask() else { return Ok(None) };
        let tokens = file.tokens()?.max(1);
        Ok(Some(1.0 - mask.check(0, 1)? as f64 / tokens as f64))
    }

    /// Tokens, epochs and share of every source in every stage, train first, and then those of each validation set.
    pub fn sources(&self) -> Vec<SourceReport> {
        let stages = self.train.stages.iter().enumerate();
        let train = stages.flat_map(|(i, stage)| self.reports(i, stage));
        let valid = self.valid.iter().enumerate().map(|(i, valid)| {
            let (key, name) = (valid.set.key.clone(), valid.set.name.clone());
            let wanted = valid.mixture.wanted();
            self.report(Split::Valid(i), &valid.mixture, 0, (key, name), (wanted, wanted))
        });
        train.chain(valid).collect()
    }

    /// The samples that all stages together take from each training source.
    pub fn totals(&self) -> Vec<SourceReport> {
        let all = self.train.wanted();
        let taken = self.train.taken().into_iter().zip(&self.sources).enumerate();
        let total = |(part, (taken, source)): (usize, (u64, &engine::config::TrainSource))| {
            let names = (source.key.clone(), source.name.clone());
            self.report(Split::Train, &self.train, part, names, (taken, all))
        };
        taken.map(total).collect()
    }

    /// The steps of each stage of training, as the first and the one after the last; the first step is 1.
    pub fn steps_of_stages(&self) -> Vec<std::ops::Range<u64>> {
        let steps = |stage: &Stage| stage.samples.start / self.batch + 1..stage.samples.end / self.batch + 1;
        self.train.stages.iter().map(steps).collect()
    }

    fn reports(&self, number: usize, stage: &Stage) -> Vec<SourceReport> {
        let key = self.data.stages()[number].key();
        let all: u64 = stage.samples.end - stage.samples.start;
        let of = stage.members.iter().zip(stage.taken()).enumerate();
        let report = |(i, (&part, taken)): (usize, (&usize, u64))| {
            let names = (format!("{key}[{i}]"), self.sources[part].name.clone());
            let report = self.report(Split::Train, &self.train, part, names, (taken, all));
            SourceReport { stage: (self.train.stages.len() > 1).then_some(number), ..report }
        };
        of.map(report).collect()
    }

    fn report(
        &self,
        split: Split,
        mixture: &Mixture,
        part: usize,
        (key, name): (String, String),
        (samples, of): (u64, u64),
    ) -> SourceReport {
        let part = &mixture.parts[part];
        let (plan, file) = (part.order.plan(), &self.files[part.file]);
        SourceReport {
            split,
            stage: None,
            key,
            name,
            prefix: file.prefix().to_path_buf(),
            plan,
            packing: match &part.order {
                PartOrder::Stream(_) => None,
                PartOrder::Packed(order) => {
                    Some(Packing { padding: order.plan.padding(self.seq as u64), cut: order.plan.cut })
                }
            },
            samples,
            epochs: part.order.epochs(samples, self.seq),
            share: if of == 0 { 0.0 } else { samples as f64 / of as f64 },
        }
    }
}
