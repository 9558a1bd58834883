//! A mixture in stages: which source each sample comes from, and which of the source's samples it is.
//!
//! The blend starts anew at each stage; a source goes on where the stages before left it.

use std::ops::Range;

use super::super::blend::Blend;
use super::super::idx::IndexedFile;
use super::super::order::{Piece, Plan, SampleOrder};
use super::super::pack::PackedOrder;
use engine::error::Result;

/// The samples of training, or those of one validation set, which has one stage.
pub struct Mixture {
    /// One for each source.
    pub parts: Vec<Part>,
    pub stages: Vec<Stage>,
}

pub struct Part {
    /// An index into [`super::Feed::files`].
    pub file: usize,
    pub order: PartOrder,
}

/// The order of a source's samples.
pub enum PartOrder {
    /// Samples are stretches of the documents laid end to end.
    Stream(SampleOrder),
    /// Samples are rows of whole documents.
    Packed(PackedOrder),
}

impl PartOrder {
    /// The tokens of sample `k`: of a stream `seq + 1`, of which the last is only a target; of a packed source at most
    /// `seq`, in units that do not see each other.
    pub fn pieces(&self, file: &IndexedFile, k: u64) -> Result<Vec<Piece>> {
        match self {
            PartOrder::Stream(order) => order.pieces(file, k),
            PartOrder::Packed(order) => order.pieces(file, k),
        }
    }

    pub fn plan(&self) -> Plan {
        match self {
            PartOrder::Stream(order) => order.plan,
            PartOrder::Packed(order) => order.plan.into(),
        }
    }

    /// How often `samples` samples of `seq` positions read each token.
    pub fn epochs(&self, samples: u64, seq: usize) -> f64 {
        match self {
            PartOrder::Stream(order) => samples as f64 * seq as f64 / order.plan.tokens as f64,
            PartOrder::Packed(order) => samples as f64 / order.plan.rows_of_epoch as f64,
        }
    }
}

/// A stage of a mixture.
pub struct Stage {
    /// Its samples, by their numbers in the whole mixture.
    pub samples: Range<u64>,
    /// Indices into [`Mixture::parts`], each once.
    pub members: Vec<usize>,
    /// `None` for a single source that gives all samples.
    blend: Option<Blend>,
    /// Samples of each member that the stages before take.
    before: Vec<u64>,
}

/// The origin of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    pub stage: usize,
    /// An index into [`Stage::members`].
    pub member: usize,
    /// The sample's number in the order of that member.
    pub sample: u64,
}

/// A stage before the samples of its members are known.
pub struct Draft {
    pub samples: Range<u64>,
    pub members: Vec<usize>,
    pub blend: Option<Blend>,
}

impl Mixture {
    pub fn new(parts: Vec<Part>, drafts: Vec<Draft>) -> Self {
        let mut taken = vec![0; parts.len()];
        let stage = |Draft { samples, members, blend }| {
            let before = members.iter().map(|&part: &usize| taken[part]).collect();
            let stage = Stage { samples, members, blend, before };
            for (&part, samples) in stage.members.iter().zip(stage.taken()) {
                taken[part] += samples;
            }
            stage
        };
        let stages = drafts.into_iter().map(stage).collect();
        Self { parts, stages }
    }

    /// A mixture of one source that gives the first `wanted` samples of its order.
    pub fn of_one(part: Part, wanted: u64) -> Self {
        Self::new(vec![part], vec![Draft { samples: 0..wanted, members: vec![0], blend: None }])
    }

    /// Samples of all stages.
    pub fn wanted(&self) -> u64 {
        self.stages.last().map_or(0, |stage| stage.samples.end)
    }

    /// Samples that all stages take of each part.
    pub fn taken(&self) -> Vec<u64> {
        let mut taken = vec![0; self.parts.len()];
        for stage in &self.stages {
            stage.members.iter().zip(stage.taken()).for_each(|(&part, samples)| taken[part] += samples);
        }
        taken
    }

    /// The origins of these samples.
    pub fn choices(&self, samples: Range<u64>) -> Vec<Choice> {
        assert!(samples.end <= self.wanted(), "samples {samples:?} of a run that takes {}", self.wanted());
        let of_stage = |(i, stage): (usize, &Stage)| {
            let (start, end) = (samples.start.max(stage.samples.start), samples.end.min(stage.samples.end));
            let choices = if start < end { stage.choices(start..end) } else { Vec::new() };
            choices.into_iter().map(move |(member, sample)| Choice { stage: i, member, sample })
        };
        self.stages.iter().enumerate().flat_map(of_stage).collect()
    }

    pub fn part(&self, choice: Choice) -> &Part {
        &self.parts[self.stages[choice.stage].members[choice.member]]
    }
}

impl Stage {
    /// Samples that the stage takes of each member.
    pub fn taken(&self) -> Vec<u64> {
        let all = self.samples.end - self.samples.start;
        match &self.blend {
            Some(blend) => blend.totals().to_vec(),
            None => self.members.iter().map(|_| all).collect(),
        }
    }

    /// The member of each of these samples of the mixture, and the sample's number in that member's order.
    fn choices(&self, samples: Range<u64>) -> Vec<(usize, u64)> {
        let first = self.samples.start;
        let within = samples.start - first..samples.end - first;
        let mut choices = match &self.blend {
            Some(blend) => blend.choices(within),
            None => within.map(|sample| (0, sample)).collect(),
        };
        choices.iter_mut().for_each(|(member, sample)| *sample += self.before[*member]);
        choices
    }
}
