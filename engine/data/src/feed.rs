//! The data of a run: opens the sources of a [`Config`], builds their sample order, and makes micro-batches.
//!
//! Every rank builds the same order from the same numbers; no index is cached on disk or shared. Sample numbers count
//! over the whole run, whatever the layout, so a resume needs one integer. [`recipe`] builds the [`mixture`] of each
//! split; [`sources`] is what a user may see of them.

pub(super) mod mixture;
mod recipe;
mod rows;
mod sources;

use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;

use super::data_file::{DataFile, allow_open};
use super::identity::{Description, describe};
use super::idx::IndexedFile;
use super::order::Piece;
use super::partial::with_suffix;
use super::tokenizer::PieceBytes;
use super::watch::Watched;
pub use engine::batch::Split;
use engine::batch::{MicroBatch, Samples};
use engine::config::{Config, Spike, TrainSource, ValidSet};
use engine::error::Result;
use mixture::{Choice, Mixture, Part, PartOrder};
use recipe::{Recipe, wanted};
use rows::{Boundaries, Tokens, append_packed, append_stream};
pub use sources::{Packing, SourceReport};

/// All samples of a run.
pub struct Feed {
    pub(super) train: Mixture,
    /// Empty where the run never validates.
    pub(super) valid: Vec<Validation>,
    /// The files of `sources`, and then those of `data.valid`.
    pub(super) files: Vec<IndexedFile>,
    /// The sources of training.
    pub(super) sources: Vec<TrainSource>,
    pub(super) data: engine::config::Data,
    /// Identity and state of each of `files` when the feed was opened.
    pub(super) described: Vec<Description>,
    pub(super) watched: Vec<Watched>,
    /// Ranges of training samples whose targets do not count.
    spike: Spike,
    vocab_size: usize,
    pub(super) seq: usize,
    /// Samples of a step.
    pub(super) batch: u64,
}

/// A validation set.
pub(super) struct Validation {
    pub set: ValidSet,
    pub mixture: Mixture,
    /// The bytes that each id stands for, where its tokenizer is known.
    pub bytes: Option<PieceBytes>,
}

impl Samples for Feed {
    /// An error where a file is damaged, is written to while the run reads it, or has an id outside the vocabulary.
    fn micro_batch(&self, split: Split, samples: Range<u64>) -> Result<MicroBatch> {
        let mut batch = MicroBatch { seq: self.seq, ..MicroBatch::default() };
        let boundaries = match self.data.mask_document_boundaries {
            true => Boundaries::Masked,
            false => Boundaries::Open,
        };
        for (sample, (part, pieces)) in samples.clone().zip(self.pieces(split, samples)?) {
            let tokens = Tokens { file: &self.files[part.file], vocab_size: self.vocab_size };
            match &part.order {
                PartOrder::Stream(_) => append_stream(&mut batch, tokens, &pieces, boundaries)?,
                PartOrder::Packed(_) => append_packed(&mut batch, tokens, &pieces)?,
            }
            if self.skips(split, sample) {
                let first = batch.weights.len() - self.seq;
                batch.weights[first..].fill(0.0);
            }
        }
        Ok(batch)
    }

    fn text_bytes(&self, split: Split, batch: &MicroBatch) -> Option<u64> {
        match split {
            Split::Train => None,
            Split::Valid(set) => self.valid[set].bytes.as_ref()?.of_counted(batch),
        }
    }
}

impl Feed {
    /// Opens and indexes all sources. Errors name the key and the file.
    pub fn open(config: &Config) -> Result<Self> {
        let (train, data) = (&config.train, &config.data);
        let (wanted_train, wanted_valid) = wanted(train)?;
        let ((sources, members), sets) = (data.train_sources(), data.valid_sets());
        let mut keys: Vec<(&str, &Path)> = sources.iter().map(|s| (s.key.as_str(), s.prefix.as_path())).collect();
        let own = !data.valid.is_empty();
        keys.extend(sets.iter().filter(|_| own).map(|set| (set.key.as_str(), set.prefix.as_path())));
        allow_open(3 * keys.len() as u64);
        let files: Vec<IndexedFile> =
            keys.par_iter().map(|(key, prefix)| open_source(key, prefix)).collect::<Result<_>>()?;
        let recipe = Recipe { config, files: &files };
        let train_mixture = recipe.train(&sources, &members, wanted_train)?;
        // The file of each set: its own, or that of the training source whose held-out part it is.
        let file = |i: usize, set: &ValidSet| match own {
            true => sources.len() + i,
            false => sources.iter().position(|source| source.key == set.key).expect("a set is of a source"),
        };
        let valid = |wanted: u64| {
            let set = |(i, set): (usize, ValidSet)| {
                Ok(Validation { mixture: recipe.valid(i, file(i, &set), set.pack, wanted)?, set, bytes: None })
            };
            sets.into_par_iter().enumerate().map(set).collect::<Result<Vec<_>>>()
        };
        let valid = wanted_valid.map_or(Ok(Vec::new()), valid)?;
        let described = files.par_iter().map(describe).collect::<Result<_>>()?;
        let all: Vec<&DataFile> = files.iter().flat_map(IndexedFile::files).collect();
        Ok(Self {
            train: train_mixture,
            valid,
            described,
            watched: all.into_par_iter().map(Watched::new).collect::<Result<_>>()?,
            files,
            sources,
            data: data.clone(),
            spike: config.spike.clone(),
            vocab_size: config.model.vocab_size,
            seq: train.seq_length,
            batch: train.global_batch_size as u64,
        })
    }

    /// Whether the targets of a sample have weight 0, by `spike.skip`.
    pub fn skips(&self, split: Split, sample: u64) -> bool {
        split == Split::Train && self.spike.skips(sample)
    }

    /// The samples of a split that the run takes.
    pub fn samples(&self, split: Split) -> u64 {
        self.mixture(split).wanted()
    }

    /// The names of the validation sets; none where the run never validates.
    pub fn valid_names(&self) -> Vec<&str> {
        self.valid.iter().map(|valid| valid.set.name.as_str()).collect()
    }

    /// The locations of the tokens of these samples: for each sample, the source that [`Feed::sources`] lists at this
    /// index among those of the split, and the pieces.
    pub fn places(&self, split: Split, samples: Range<u64>) -> Result<Vec<(usize, Vec<Piece>)>> {
        let mixture = self.mixture(split);
        let before = |stage: usize| mixture.stages[..stage].iter().map(|stage| stage.members.len()).sum::<usize>();
        let choices = mixture.choices(samples.clone());
        let pieces = self.pieces(split, samples)?;
        Ok(choices.iter().zip(pieces).map(|(c, (_, pieces))| (before(c.stage) + c.member, pieces)).collect())
    }

    /// The source of each of these samples, and where its tokens lie.
    fn pieces(&self, split: Split, samples: Range<u64>) -> Result<Vec<(&Part, Vec<Piece>)>> {
        let mixture = self.mixture(split);
        let place = |choice: Choice| {
            let part = mixture.part(choice);
            Ok((part, part.order.pieces(&self.files[part.file], choice.sample)?))
        };
        mixture.choices(samples).into_iter().map(place).collect()
    }

    fn mixture(&self, split: Split) -> &Mixture {
        match split {
            Split::Train => &self.train,
            Split::Valid(set) => {
                &self.valid.get(set).expect("a run with eval_interval = 0 reads no validation sample").mixture
            }
        }
    }
}

/// Opens the source of the entry `key`. A source that one node lacks may be there on the others.
fn open_source(key: &str, prefix: &Path) -> Result<IndexedFile> {
    let is_there = ["idx", "bin"].iter().all(|ending| with_suffix(prefix, ending).exists());
    let remedy = if is_there { "" } else { "; every node must have both files of a source under this path" };
    IndexedFile::open(prefix).map_err(|e| e.map(|what| format!("{key}.prefix: {what}{remedy}")))
}

#[cfg(test)]
mod tests;
