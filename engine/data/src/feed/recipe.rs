//! Builds the mixtures of a configuration: how many samples each stage asks of each source, one order for the sum of
//! what its stages ask, and the blend of each stage.

use std::ops::Range;

use rayon::prelude::*;

use super::super::blend::{Blend, normalize};
use super::super::idx::IndexedFile;
use super::super::order::{Plan, SampleOrder, epoch, split_range};
use super::super::pack::{PackedOrder, Shuffle};
use super::mixture::{Draft, Mixture, Part, PartOrder};
use engine::batch::Split;
use engine::config::{Config, Order, Train, TrainSource, TrainStage};
use engine::error::{Error, Result};

/// The fraction by which the samples of a blended source exceed its share, so that the blend never runs out of samples
/// (Megatron's `mid_level_dataset_surplus`).
const SURPLUS: f64 = 0.005;
/// The most samples of a split, whose index is in the memory of every rank.
const MOST: u64 = 1 << 32;

/// The configuration and its open files.
pub struct Recipe<'a> {
    pub config: &'a Config,
    pub files: &'a [IndexedFile],
}

/// The samples that a stage needs from its members.
struct Demand {
    /// Samples that the order of each member must offer for this stage.
    asked: Vec<u64>,
    draft: Draft,
}

impl Recipe<'_> {
    /// The mixture of training. `sources`, of which source i is file i, and the members of each stage are
    /// [`engine::config::Data::train_sources`].
    pub fn train(&self, sources: &[TrainSource], members: &[Vec<usize>], wanted: u64) -> Result<Mixture> {
        let stages = self.config.data.stages();
        let samples = self.samples_of_stages(&stages, wanted);
        let demands = stages.iter().zip(members).zip(samples);
        let demands = demands.map(|((stage, members), samples)| self.demand(stage, members, sources, samples));
        let demands = demands.collect::<Result<Vec<_>>>()?;
        let mut asked = vec![0u64; sources.len()];
        for Demand { asked: of_stage, draft } in &demands {
            for (&part, &samples) in draft.members.iter().zip(of_stage) {
                asked[part] = asked[part].saturating_add(samples);
            }
        }
        let part = |(file, &samples): (usize, &u64)| self.part(Split::Train, file, sources[file].pack, samples);
        let parts = asked.par_iter().enumerate().map(part).collect::<Result<_>>()?;
        let mixture = Mixture::new(parts, demands.into_iter().map(|demand| demand.draft).collect());
        self.check_supply(&mixture)?;
        self.check_epochs(sources, &mixture)?;
        Ok(mixture)
    }

    /// A validation set of one file.
    pub fn valid(&self, set: usize, file: usize, pack: bool, wanted: u64) -> Result<Mixture> {
        Ok(Mixture::of_one(self.part(Split::Valid(set), file, pack, wanted)?, wanted))
    }

    /// The samples of each stage; none where the run ends before it.
    fn samples_of_stages(&self, stages: &[TrainStage<'_>], wanted: u64) -> Vec<Range<u64>> {
        let (steps, batch) = (self.config.train.steps, self.config.train.global_batch_size as u64);
        let mut start = 0;
        let mut of = |stage: &TrainStage<'_>| {
            let end = stage.until_step.map_or(wanted, |until| until.min(steps) * batch);
            std::mem::replace(&mut start, end)..end
        };
        stages.iter().map(&mut of).collect()
    }

    fn demand(
        &self,
        stage: &TrainStage<'_>,
        members: &[usize],
        sources: &[TrainSource],
        samples: Range<u64>,
    ) -> Result<Demand> {
        let (wanted, key) = (samples.end - samples.start, stage.key());
        // Either all sources have a weight or none has.
        let weights: Option<Vec<f64>> = stage.sources.iter().map(|source| source.weight).collect();
        let (asked, shares) = match (self.config.data.order, weights) {
            // A stage that the run does not reach asks for nothing, so that it changes no order.
            _ if wanted == 0 => (vec![0; members.len()], Some(normalize(&vec![1.0; members.len()]))),
            (Order::Megatron, Some(weights)) => {
                let shares = normalize(&weights);
                (shares.iter().map(|share| offered(wanted, *share)).collect(), Some(shares))
            }
            (Order::Megatron, None) if members.len() == 1 => (vec![wanted], None),
            (Order::Megatron, None) => self.exhaustive(&key, members, sources, wanted)?,
            // In this order every source starts over at its end, whatever is asked of it.
            (Order::Sequential, None) if members.len() == 1 => (vec![0], None),
            (Order::Sequential, weights) => {
                let weights = weights.map_or_else(|| self.sizes(members, sources), Ok)?;
                (vec![0; members.len()], Some(normalize(&weights)))
            }
        };
        let blend = shares.map(|shares| Blend::new(shares, wanted));
        Ok(Demand { asked, draft: Draft { samples, members: members.to_vec(), blend } })
    }

    /// Without weights each source is read once, in proportion to its size: it offers all its samples.
    fn exhaustive(
        &self,
        key: &str,
        members: &[usize],
        sources: &[TrainSource],
        wanted: u64,
    ) -> Result<(Vec<u64>, Option<Vec<f64>>)> {
        let sizes = self.sizes(members, sources)?;
        let asked: Vec<u64> = sizes.iter().map(|&size| size as u64).collect();
        let all: u64 = asked.iter().sum();
        if wanted > all {
            return Err(Error::user(format!(
                "{key}: the sources together hold {all} samples of {} tokens but the run takes {wanted}: give each a \
                 weight to have them repeated, or take fewer steps",
                self.config.train.seq_length
            )));
        }
        Ok((asked, Some(normalize(&sizes))))
    }

    /// The samples of an epoch of each member, which are below 2^53.
    fn sizes(&self, members: &[usize], sources: &[TrainSource]) -> Result<Vec<f64>> {
        let size = |&file: &usize| {
            let range = self.range(Split::Train, &self.files[file])?;
            let plan = match sources[file].pack {
                false => epoch(&self.files[file], &range, self.config.train.seq_length as u64)?,
                true => self.packed(file, range, None)?.plan.into(),
            };
            match plan.samples {
                0 => Err(self.too_short(Split::Train, &self.files[file], plan)),
                samples => Ok(samples as f64),
            }
        };
        members.par_iter().map(size).collect()
    }

    /// A source with an order that offers at least `samples` samples.
    fn part(&self, split: Split, file: usize, pack: bool, samples: u64) -> Result<Part> {
        let (seq, seed) = (self.config.train.seq_length as u64, self.config.train.seed);
        let of = &self.files[file];
        let range = self.range(split, of)?;
        let order = match (pack, self.config.data.order) {
            (true, _) => PartOrder::Packed(self.packed(file, range, Some(samples))?),
            (false, Order::Megatron) => PartOrder::Stream(SampleOrder::megatron(of, range, seq, seed, Some(samples))?),
            (false, Order::Sequential) => PartOrder::Stream(SampleOrder::sequential(of, range, seq)?),
        };
        match order.plan().samples {
            0 => Err(self.too_short(split, of, order.plan())),
            _ => Ok(Part { file, order }),
        }
    }

    /// The rows of a packed source, at least `rows` of them; `None`: one epoch.
    fn packed(&self, file: usize, range: Range<u32>, rows: Option<u64>) -> Result<PackedOrder> {
        let (seq, seed) = (self.config.train.seq_length as u64, self.config.train.seed);
        let shuffle = match self.config.data.order {
            Order::Megatron => Shuffle::Epochs { seed, rows },
            Order::Sequential => Shuffle::No,
        };
        PackedOrder::new(&self.files[file], range, seq, shuffle)
    }

    /// The sequences of `file` that belong to this split.
    fn range(&self, split: Split, file: &IndexedFile) -> Result<Range<u32>> {
        let data = &self.config.data;
        let sequences = u32::try_from(file.sequences()).ok().filter(|&n| n <= i32::MAX as u32).ok_or_else(|| {
            Error::user(format!(
                "{}: the file has {} sequences; Megatron's sample order allows {}",
                file.idx().path().display(),
                file.sequences(),
                i32::MAX
            ))
        })?;
        if !data.valid.is_empty() {
            return Ok(0..sequences);
        }
        split_range(sequences as usize, data.split, split.share()).ok_or_else(|| {
            let [a, b, c] = data.split;
            let key = match split {
                Split::Train => "it leaves no documents to train on".to_string(),
                Split::Valid(_) => format!(
                    "with no data.valid and train.eval_interval = {} it must leave a share for validation, as in \
                     \"98,2,0\"",
                    self.config.train.eval_interval
                ),
            };
            Error::user(format!("data.split = \"{a},{b},{c}\": {key}"))
        })
    }

    fn too_short(&self, split: Split, file: &IndexedFile, plan: Plan) -> Error {
        let (split, data) = (split.name(), &self.config.data);
        let [a, b, c] = data.split;
        let (key, remedy) = if data.valid.is_empty() && (plan.documents as usize) < file.sequences() {
            (
                format!("data.split = \"{a},{b},{c}\""),
                format!("give {split} a larger share, or name files in data.valid"),
            )
        } else {
            let train = if data.stage.is_empty() { "train" } else { "stage" };
            let key = if data.valid.is_empty() || split == "train" { train } else { split };
            (format!("data.{key}"), "name a longer file".to_string())
        };
        Error::user(format!(
            "{key}: {}: the {split} split has {} of {} documents, with {} tokens; a sample takes train.seq_length + 1 \
             = {} of them, and a packed row at least one; {remedy}",
            file.prefix().display(),
            plan.documents,
            file.sequences(),
            plan.tokens,
            self.config.train.seq_length + 1
        ))
    }

    /// Checks, as Megatron does, that the stages take no more samples of a source than the source offers.
    fn check_supply(&self, mixture: &Mixture) -> Result<()> {
        if self.config.data.order == Order::Sequential {
            return Ok(());
        }
        for (part, taken) in mixture.parts.iter().zip(mixture.taken()) {
            if taken > part.order.plan().samples {
                return Err(Error::user(format!(
                    "{}: the blend takes {taken} samples but the source offers {}; change train.steps or the weights",
                    self.files[part.file].prefix().display(),
                    part.order.plan().samples
                )));
            }
        }
        Ok(())
    }

    /// No source may be read more often than the user allows, over all stages.
    fn check_epochs(&self, sources: &[TrainSource], mixture: &Mixture) -> Result<()> {
        let seq = self.config.train.seq_length;
        for ((source, part), taken) in sources.iter().zip(&mixture.parts).zip(mixture.taken()) {
            let tokens = part.order.plan().tokens;
            let samples = if source.pack { "packed rows" } else { "samples" };
            let epochs = part.order.epochs(taken, seq);
            let Some(most) = source.max_epochs.filter(|most| epochs > *most) else { continue };
            return Err(Error::user(format!(
                "{}.max_epochs = {most}: {}: the run takes {taken} {samples} of {seq} positions, which are {epochs:.3} \
                 epochs of its {tokens} tokens; lower its weight or train.steps, add text to it, or allow {:.3} epochs",
                source.key,
                source.prefix.display(),
                (1e3 * epochs).ceil() / 1e3
            )));
        }
        Ok(())
    }
}

/// Every source offers half a percent more than its share; Megatron's blend is a few samples longer than the run.
fn offered(wanted: u64, share: f64) -> u64 {
    let target = (wanted as f64 * share).ceil();
    (target * (1.0 + SURPLUS)).ceil() as u64
}

/// The samples of training, and of each validation set, that the run takes; `None` where it never validates.
pub fn wanted(train: &Train) -> Result<(u64, Option<u64>)> {
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
