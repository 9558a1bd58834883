//! The data of a run: opens the sources of a [`Config`], builds their sample order, and makes micro-batches.
//!
//! Every rank builds the same order from the same numbers; no index is cached on disk or shared. Sample numbers count
//! over the whole run, whatever the layout, so a resume needs one integer.

use std::ops::Range;
use std::path::PathBuf;

use rayon::prelude::*;

use super::blend::{Blend, normalize};
use super::idx::IndexedFile;
use super::order::{Piece, Plan, SampleOrder, split_range};
use super::partial::with_suffix;
pub use engine::batch::Split;
use engine::batch::{MicroBatch, Samples};
use engine::config::{Config, Order, Source, Train};
use engine::error::{Error, Result};

/// The fraction by which the samples of a blended source exceed its share, so that the blend never runs out of samples
/// (Megatron's `mid_level_dataset_surplus`).
const SURPLUS: f64 = 0.005;
/// The most samples of a split, whose index is in the memory of every rank.
const MOST: u64 = 1 << 32;

/// All samples of a run.
pub struct Feed {
    pub(super) train: Mixture,
    /// `None` where the run never validates.
    pub(super) valid: Option<Mixture>,
    pub(super) files: Vec<IndexedFile>,
    pub(super) data: engine::config::Data,
    pub(super) seq: usize,
}

/// The samples of one split.
pub(super) struct Mixture {
    pub(super) parts: Vec<Part>,
    /// `None` for a single source that gives all samples.
    pub(super) blend: Option<Blend>,
    /// Samples that the run takes.
    pub(super) wanted: u64,
}

pub(super) struct Part {
    /// An index into [`Feed::files`].
    pub(super) file: usize,
    pub(super) order: SampleOrder,
}

/// One source of a split, as [`Feed::sources`] shows it before a run.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceReport {
    pub split: Split,
    pub prefix: PathBuf,
    /// The order of the split's part of the source.
    pub plan: Plan,
    /// Samples that the run takes from it.
    pub samples: u64,
    /// The number of times that the run reads each of the source's tokens.
    pub epochs: f64,
    /// The source's share of the split's samples, 0 to 1.
    pub share: f64,
}

/// The inputs from which a [`Mixture`] is built.
struct Recipe<'a> {
    config: &'a Config,
    files: &'a [IndexedFile],
    /// Indices into [`Feed::files`], one for each of `sources`.
    indices: Vec<usize>,
    sources: &'a [Source],
    split: Split,
    wanted: u64,
}

impl Samples for Feed {
    /// An error where a file is damaged, or is written to while the run reads it.
    fn micro_batch(&self, split: Split, samples: Range<u64>) -> Result<MicroBatch> {
        let mut batch = MicroBatch { seq: self.seq, ..MicroBatch::default() };
        for part_and_pieces in self.pieces(split, samples) {
            let (part, pieces) = part_and_pieces?;
            let file = &self.files[part.file];
            let mut ids = Vec::with_capacity(self.seq + 1);
            let mut weights = Vec::with_capacity(self.seq + 1);
            for &Piece { document, offset, count } in &pieces {
                file.read(document as usize, offset, count, &mut ids)?;
                file.read_weights(document as usize, offset, count, &mut weights)?;
            }
            batch.ids.extend_from_slice(&ids[..self.seq]);
            batch.targets.extend_from_slice(&ids[1..]);
            batch.weights.extend_from_slice(&weights[1..]);
            batch.positions.extend(0..self.seq as u32);
            batch.starts.extend(if self.data.mask_document_boundaries {
                document_starts(&pieces, self.seq)
            } else {
                vec![0; self.seq]
            });
        }
        Ok(batch)
    }
}

impl Feed {
    /// Opens and indexes all sources. Errors name the key and the file.
    pub fn open(config: &Config) -> Result<Self> {
        let (train, data) = (&config.train, &config.data);
        if data.train.is_empty() {
            return Err(Error::user("data.train is empty: name at least one { prefix = \"...\" }"));
        }
        let (wanted_train, wanted_valid) = wanted(train)?;
        let open = |key: &str, sources: &[Source]| {
            let opened = sources.par_iter().enumerate().map(|(i, s)| open_source(&format!("{key}[{i}].prefix"), s));
            opened.collect::<Result<Vec<_>>>()
        };
        let mut files = open("data.train", &data.train)?;
        files.extend(open("data.valid", &data.valid)?);
        let recipe = |split, wanted| Recipe::new(config, &files, split, wanted);
        let train_mixture = recipe(Split::Train, wanted_train).build()?;
        let valid = wanted_valid.map(|wanted| recipe(Split::Valid, wanted).build()).transpose()?;
        Ok(Self { train: train_mixture, valid, files, data: data.clone(), seq: train.seq_length })
    }

    /// The samples of a split that the run takes.
    pub fn samples(&self, split: Split) -> u64 {
        self.mixture(split).wanted
    }

    /// The locations of the tokens of these samples: for each sample, the index of its source in the split, and the
    /// pieces.
    pub fn places(&self, split: Split, samples: Range<u64>) -> Result<Vec<(usize, Vec<Piece>)>> {
        let mixture = self.mixture(split);
        let number = |part: &Part| mixture.parts.iter().position(|p| std::ptr::eq(p, part)).expect("its own part");
        self.pieces(split, samples).map(|place| place.map(|(part, pieces)| (number(part), pieces))).collect()
    }

    fn pieces(&self, split: Split, samples: Range<u64>) -> impl Iterator<Item = Result<(&Part, Vec<Piece>)>> {
        let mixture = self.mixture(split);
        let choices = mixture.choices(samples);
        choices.into_iter().map(|(part, sample)| {
            let part = &mixture.parts[part];
            Ok((part, part.order.pieces(&self.files[part.file], sample)?))
        })
    }

    fn mixture(&self, split: Split) -> &Mixture {
        match split {
            Split::Train => &self.train,
            Split::Valid => self.valid.as_ref().expect("a run with eval_interval = 0 reads no validation sample"),
        }
    }

    /// Tokens, epochs and share of every source, train first.
    pub fn sources(&self) -> Vec<SourceReport> {
        let valid = self.valid.iter().map(|m| (Split::Valid, m));
        let mixtures = std::iter::once((Split::Train, &self.train)).chain(valid);
        mixtures.flat_map(|(split, mixture)| self.reports(split, mixture)).collect()
    }

    fn reports(&self, split: Split, mixture: &Mixture) -> Vec<SourceReport> {
        let taken = |i: usize| mixture.blend.as_ref().map_or(mixture.wanted, |b| b.totals()[i]);
        let all: u64 = (0..mixture.parts.len()).map(taken).sum();
        let report = |(i, part): (usize, &Part)| {
            let (plan, samples) = (part.order.plan, taken(i));
            SourceReport {
                split,
                prefix: self.files[part.file].prefix().to_path_buf(),
                plan,
                samples,
                epochs: samples as f64 * self.seq as f64 / plan.tokens as f64,
                share: samples as f64 / all as f64,
            }
        };
        mixture.parts.iter().enumerate().map(report).collect()
    }
}

impl Mixture {
    /// The index of each sample's part, and the sample's number in the order of that part.
    fn choices(&self, samples: Range<u64>) -> Vec<(usize, u64)> {
        assert!(samples.end <= self.wanted, "samples {samples:?} of a run that takes {}", self.wanted);
        match &self.blend {
            Some(blend) => blend.choices(samples),
            None => samples.map(|sample| (0, sample)).collect(),
        }
    }
}

impl<'a> Recipe<'a> {
    fn new(config: &'a Config, files: &'a [IndexedFile], split: Split, wanted: u64) -> Self {
        let data = &config.data;
        let own = split == Split::Valid && !data.valid.is_empty();
        let (sources, first) = if own { (&data.valid, data.train.len()) } else { (&data.train, 0) };
        let indices = (first..first + sources.len()).collect();
        Self { config, files, indices, sources, split, wanted }
    }

    fn build(&self) -> Result<Mixture> {
        let weights = self.weights()?;
        match (self.config.data.order, weights) {
            (Order::Megatron, Some(weights)) => self.megatron_blend(normalize(&weights)),
            (Order::Megatron, None) if self.sources.len() == 1 => self.single(),
            (Order::Megatron, None) => self.exhaustive(),
            (Order::Sequential, weights) => self.sequential(weights),
        }
    }

    /// The weights, if the user gave them: either all sources have one or none has.
    fn weights(&self) -> Result<Option<Vec<f64>>> {
        let given: Vec<f64> = self.sources.iter().filter_map(|s| s.weight).collect();
        if !given.is_empty() && given.len() < self.sources.len() {
            let name = self.split.name();
            return Err(Error::user(format!("data.{name}: some sources have a weight and some none; give one to all")));
        }
        if let Some(wrong) = given.iter().find(|w| !(w.is_finite() && **w > 0.0)) {
            return Err(Error::user(format!("data.{}: weight = {wrong} must be above 0", self.split.name())));
        }
        Ok((!given.is_empty()).then_some(given))
    }

    /// Every source offers half a percent more than its share; Megatron's blend is a few samples longer than the run.
    fn megatron_blend(&self, shares: Vec<f64>) -> Result<Mixture> {
        let target = |share: f64| (self.wanted as f64 * share).ceil();
        let parts = self.parts(|i| Some((target(shares[i]) * (1.0 + SURPLUS)).ceil() as u64))?;
        let mixture = Mixture { parts, blend: Some(Blend::new(shares, self.wanted)), wanted: self.wanted };
        self.check_supply(mixture)
    }

    fn single(&self) -> Result<Mixture> {
        Ok(Mixture { parts: self.parts(|_| Some(self.wanted))?, blend: None, wanted: self.wanted })
    }

    /// Without weights each source is read once, in proportion to its size.
    fn exhaustive(&self) -> Result<Mixture> {
        let parts = self.parts(|_| None)?;
        let sizes: Vec<f64> = parts.iter().map(|p| p.order.plan.samples as f64).collect();
        let all: u64 = parts.iter().map(|p| p.order.plan.samples).sum();
        if self.wanted > all {
            return Err(Error::user(format!(
                "data.{}: the sources together hold {all} samples of {} tokens but the run takes {}: give each a \
                 weight to have them repeated, or take fewer steps",
                self.split.name(),
                self.config.train.seq_length,
                self.wanted
            )));
        }
        let blend = Some(Blend::new(normalize(&sizes), self.wanted));
        self.check_supply(Mixture { parts, blend, wanted: self.wanted })
    }

    /// Blends by weight, or by size where there is none. Every source starts over at its end.
    fn sequential(&self, weights: Option<Vec<f64>>) -> Result<Mixture> {
        let parts = self.parts(|_| None)?;
        let blended = weights.is_some() || parts.len() > 1;
        let sizes = || parts.iter().map(|p| p.order.plan.samples as f64).collect();
        let weights = weights.unwrap_or_else(sizes);
        let blend = blended.then(|| Blend::new(normalize(&weights), self.wanted));
        Ok(Mixture { parts, blend, wanted: self.wanted })
    }

    /// Builds the order of every source. `samples` gives the number of samples that Megatron's order of a source must
    /// offer; `None` is one epoch.
    fn parts(&self, samples: impl Fn(usize) -> Option<u64> + Sync) -> Result<Vec<Part>> {
        let part = |i: usize| {
            let file = &self.files[self.indices[i]];
            let range = self.range(file)?;
            let (seq, seed) = (self.config.train.seq_length as u64, self.config.train.seed);
            let order = match self.config.data.order {
                Order::Megatron => SampleOrder::megatron(file, range, seq, seed, samples(i))?,
                Order::Sequential => SampleOrder::sequential(file, range, seq)?,
            };
            if order.plan.samples == 0 {
                return Err(self.too_short(file, order.plan));
            }
            Ok(Part { file: self.indices[i], order })
        };
        (0..self.sources.len()).into_par_iter().map(part).collect()
    }

    /// The sequences of `file` that belong to this split.
    fn range(&self, file: &IndexedFile) -> Result<Range<u32>> {
        let data = &self.config.data;
        let sequences = u32::try_from(file.sequences()).ok().filter(|&n| n <= i32::MAX as u32).ok_or_else(|| {
            Error::user(format!(
                "{}: the file has {} sequences; Megatron's sample order allows {}",
                file.idx_path().display(),
                file.sequences(),
                i32::MAX
            ))
        })?;
        if !data.valid.is_empty() {
            return Ok(0..sequences);
        }
        split_range(sequences as usize, data.split, self.split as usize).ok_or_else(|| {
            let [a, b, c] = data.split;
            let key = match self.split {
                Split::Train => "it leaves no documents to train on".to_string(),
                Split::Valid => format!(
                    "with no data.valid and train.eval_interval = {} it must leave a share for validation, as in \
                     \"98,2,0\"",
                    self.config.train.eval_interval
                ),
            };
            Error::user(format!("data.split = \"{a},{b},{c}\": {key}"))
        })
    }

    fn too_short(&self, file: &IndexedFile, plan: Plan) -> Error {
        let (split, data) = (self.split.name(), &self.config.data);
        let [a, b, c] = data.split;
        let (key, remedy) = if data.valid.is_empty() && (plan.documents as usize) < file.sequences() {
            (
                format!("data.split = \"{a},{b},{c}\""),
                format!("give {split} a larger share, or name files in data.valid"),
            )
        } else {
            let key = if data.valid.is_empty() { "train" } else { split };
            (format!("data.{key}"), "name a longer file".to_string())
        };
        Error::user(format!(
            "{key}: {}: the {split} split has {} of {} documents, with {} tokens; a sample takes train.seq_length + 1 \
             = {}; {remedy}",
            file.prefix().display(),
            plan.documents,
            file.sequences(),
            plan.tokens,
            self.config.train.seq_length + 1
        ))
    }

    /// Checks, as Megatron does, that the blend takes no more samples of a source than the source offers.
    fn check_supply(&self, mixture: Mixture) -> Result<Mixture> {
        let totals = mixture.blend.as_ref().map_or(&[][..], |b| b.totals());
        for (part, &taken) in mixture.parts.iter().zip(totals) {
            if taken > part.order.plan.samples {
                return Err(Error::user(format!(
                    "{}: the blend takes {taken} samples but the source offers {}; change train.steps or the weights",
                    self.files[part.file].prefix().display(),
                    part.order.plan.samples
                )));
            }
        }
        Ok(mixture)
    }
}

/// The samples of train and of valid that the run takes; `None` where it never validates.
fn wanted(train: &Train) -> Result<(u64, Option<u64>)> {
    let (steps, batch) = (train.steps, train.global_batch_size as u64);
    let refuse = |keys: &str| {
        Err(Error::user(format!(
            "{keys}, train.global_batch_size = {batch}: a run takes at most {MOST} samples of a split"
        )))
    };
    let of_train = steps.saturating_mul(batch);
    if of_train > MOST {
        return refuse(&format!("train.steps = {steps}"));
    }
    let rounds = steps.checked_div(train.eval_interval).map(|rounds| rounds + 1);
    let of_valid = rounds.map(|rounds| rounds.saturating_mul(train.eval_steps).saturating_mul(batch));
    if of_valid.is_some_and(|samples| samples > MOST) {
        let (interval, each) = (train.eval_interval, train.eval_steps);
        return refuse(&format!("train.steps = {steps}, train.eval_interval = {interval}, train.eval_steps = {each}"));
    }
    Ok((of_train, of_valid))
}

/// Opens the source at `key`. A source that one node lacks may be there on the others.
fn open_source(key: &str, source: &Source) -> Result<IndexedFile> {
    let is_there = ["idx", "bin"].iter().all(|ending| with_suffix(&source.prefix, ending).exists());
    let remedy = if is_there { "" } else { "; every node must have both files of a source under this path" };
    IndexedFile::open(&source.prefix).map_err(|e| e.map(|what| format!("{key}: {what}{remedy}")))
}

/// For every position of a sample, the position at which its document starts.
fn document_starts(pieces: &[Piece], seq: usize) -> Vec<u32> {
    let mut starts = Vec::with_capacity(seq + 1);
    for piece in pieces {
        let start = starts.len() as u32;
        starts.resize(starts.len() + piece.count, start);
    }
    starts.truncate(seq);
    starts
}

#[cfg(test)]
mod tests;
