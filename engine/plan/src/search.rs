//! Which layout of a number of ranks is the fastest: all that can be are estimated, the best are rehearsed and run.

use super::estimate::{Estimate, estimate};
use super::paper::{Paper, Seats};
use super::run::{on_all_cores, run, seconds, stages, two_steps};
use super::step::Step;
use crate::dry_run::{DryRun, plan, plan_shortly};
use engine::backend::{Elem, Scratch};
use engine::config::{Axis, Cluster, Config, Named, Parallel, Reached, Recompute, Train, can_be};
use engine::error::Result;
use engine::layout::mesh::Mesh;
use std::collections::{BTreeSet, HashMap};

/// How many are simulated.
pub const SETTLED: usize = 20;
/// How many are tried at once.
const TURN: usize = 8;
/// Of layouts that differ in their virtual stages alone, so many are simulated.
const ALIKE: usize = 2;
/// A short rehearsal tells a few percent too much: what is this much too large by it is rehearsed whole.
const NEARLY: f64 = 1.05;
const MICRO_BATCHES: [usize; 4] = [1, 2, 4, 8];
const RECOMPUTE: [Recompute; 3] = [Recompute::None, Recompute::Selective, Recompute::Full];

/// A layout that was simulated.
#[derive(Debug, Clone)]
pub struct Found {
    pub config: Config,
    pub mesh: Mesh,
    pub seconds: f64,
    /// Bytes of the rank that takes most: no more than so many, a few percent fewer.
    pub bytes: usize,
}

/// A layout that was not.
#[derive(Debug, Clone)]
pub struct Left {
    pub config: Config,
    pub mesh: Mesh,
    /// By the closed form.
    pub seconds: f64,
    /// By the closed form, or as far as its rehearsal went.
    pub bytes: usize,
    pub why: Why,
}

/// Why a layout was not simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// A rank takes more memory than there is.
    TooLarge,
    /// The closed form puts it behind those that were.
    Behind,
}

/// What came of a search: all layouts that the model, the batch and the ranks allow, the fastest first.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    pub found: Vec<Found>,
    pub left: Vec<Left>,
}

impl Outcome {
    pub fn possible(&self) -> usize {
        self.found.len() + self.left.len()
    }

    /// Those that were left out for this reason.
    pub fn left_for(&self, why: Why) -> impl Iterator<Item = &Left> {
        self.left.iter().filter(move |left| left.why == why)
    }

    fn leave(&mut self, (config, mesh, Estimate { seconds, bytes }): Candidate, why: Why) {
        self.left.push(Left { config, mesh, seconds, bytes: bytes as usize, why });
    }
}

type Candidate = (Config, Mesh, Estimate);

/// Where a search takes place.
pub struct Room<'a, S> {
    pub ranks: usize,
    pub cluster: &'a Cluster,
    pub reached: &'a Reached,
    /// Bytes that a rank may take.
    pub limit: usize,
    pub scratch: &'a S,
}

impl<S> Room<'_, S> {
    /// What things cost here; `act`: bytes of an activation.
    fn paper<'a>(&'a self, seats: &'a Seats, act: usize) -> Paper<'a> {
        Paper { reached: self.reached, software: &self.cluster.software, seats, act }
    }
}

/// The fastest of all layouts, micro-batches, recomputations and virtual stages; `one` is told of each that was tried.
pub fn search<A: Elem, S: Scratch + Clone + Send + Sync + 'static>(
    config: &Config,
    room: &Room<S>,
    one: &(dyn Fn() + Sync),
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut promising = promising(config, room, &mut outcome)?.into_iter().peekable();
    // In turns of one length, so that the outcome does not depend on the number of cores.
    while outcome.found.len() < SETTLED && promising.peek().is_some() {
        let turn: Vec<Candidate> = promising.by_ref().take(TURN).collect();
        let settled = on_all_cores(turn, |candidate| {
            let settled = settle::<A, S>(&candidate.0, &candidate.1, room);
            one();
            (candidate, settled)
        });
        for ((config, mesh, estimate), settled) in settled {
            match settled? {
                (bytes, Some(seconds)) => outcome.found.push(Found { config, mesh, seconds, bytes }),
                (bytes, None) => {
                    outcome.leave((config, mesh, Estimate { bytes: bytes as f64, ..estimate }), Why::TooLarge)
                }
            }
        }
    }
    promising.for_each(|behind| outcome.leave(behind, Why::Behind));
    outcome.found.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    outcome.left.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    Ok(outcome)
}

/// What fits by the closed form, the fastest first, and of each family the first few.
fn promising<S: Sync>(config: &Config, room: &Room<S>, outcome: &mut Outcome) -> Result<Vec<Candidate>> {
    let estimated = on_all_cores(candidates(config, room.ranks, room.cluster), |candidate| {
        let mesh = candidate.mesh(room.ranks)?;
        let estimate = estimate(&candidate, &mesh, room.cluster, room.reached);
        Ok((candidate, mesh, estimate))
    });
    let mut all: Vec<Candidate> = estimated.into_iter().collect::<Result<_>>()?;
    all.sort_by(|a, b| a.2.seconds.total_cmp(&b.2.seconds));
    let (mut alike, mut promising) = (HashMap::new(), Vec::new());
    for candidate in all {
        if candidate.2.bytes > room.limit as f64 {
            outcome.leave(candidate, Why::TooLarge);
            continue;
        }
        let among = alike.entry(family(&candidate.0)).or_insert(0);
        *among += 1;
        match *among <= ALIKE {
            true => promising.push(candidate),
            false => outcome.leave(candidate, Why::Behind),
        }
    }
    Ok(promising)
}

/// What layouts have in common that differ in their virtual stages alone.
fn family(config: &Config) -> (usize, usize, usize, &'static str) {
    let (p, t) = (&config.parallel, &config.train);
    (p.tensor, p.pipeline, t.micro_batch_size, t.recompute.name())
}

/// All that could be.
pub(super) fn candidates(config: &Config, ranks: usize, cluster: &Cluster) -> Vec<Config> {
    let layers = config.model.num_hidden_layers;
    let tensors = (1..=cluster.gpus_per_node.min(ranks)).filter(|tensor| ranks.is_multiple_of(*tensor));
    let layouts = tensors.flat_map(|tensor| {
        let pipelines = (1..=layers).filter(move |pipeline| (ranks / tensor).is_multiple_of(*pipeline));
        pipelines.flat_map(move |pipeline| {
            let most = if pipeline == 1 { 1 } else { layers / pipeline };
            (1..=most).map(move |chunks| (tensor, pipeline, chunks))
        })
    });
    // The configuration's own, too, so that what it is now is among all that could be, and those beside it.
    let own = config.train.micro_batch_size;
    let sizes: BTreeSet<usize> = MICRO_BATCHES.into_iter().chain([own, 2 * own, (own / 2).max(1)]).collect();
    let rest = sizes.iter().flat_map(|size| RECOMPUTE.map(|recompute| (*size, recompute)));
    let rest: Vec<(usize, Recompute)> = rest.collect();
    let with = |((tensor, pipeline, virtual_pipeline), (micro_batch_size, recompute))| {
        let own = config.parallel.clone();
        // As where the key is left out.
        let rows = own.sequence_parallel || own.tensor == 1;
        let (layers, sequence_parallel, ranks) = (None, tensor > 1 && rows, Some(ranks));
        let parallel = Parallel { tensor, pipeline, virtual_pipeline, layers, sequence_parallel, ranks, ..own };
        let train = Train { micro_batch_size, recompute, ..config.train.clone() };
        Config { parallel, train, ..config.clone() }
    };
    let all = layouts.flat_map(|layout| rest.iter().map(move |rest| (layout, *rest)));
    all.map(with).filter(|config| can_be_of(config, ranks)).collect()
}

fn can_be_of(config: &Config, ranks: usize) -> bool {
    config.train.global_batch_size.is_multiple_of(config.train.micro_batch_size)
        && can_be(&config.model, &config.train, &config.parallel)
        && config.mesh(ranks).is_ok()
}

/// Bytes of the rank that takes most, and the seconds of a step; none where it does not fit, and then of the first ranks
/// that say so.
pub(super) fn settle<A: Elem, S: Scratch + Clone + Send + 'static>(
    config: &Config,
    mesh: &Mesh,
    room: &Room<S>,
) -> Result<(usize, Option<f64>)> {
    // The first stage holds most micro-batches, the last one the logits: they say no soonest.
    let (ranks, mut bytes) = (stages(mesh), 0);
    let last = ranks.len() - 1;
    for &rank in [&ranks[..1], &ranks[last.max(1)..], &ranks[1..last.max(1)]].into_iter().flatten() {
        let mut taken = plan_shortly::<A>(config, mesh, rank, room.scratch.clone())?.usage.reserved;
        if taken > room.limit && taken as f64 <= NEARLY * room.limit as f64 {
            taken = plan::<A>(config, mesh, rank, room.scratch.clone())?.usage.reserved;
        }
        bytes = bytes.max(taken);
        if bytes > room.limit {
            return Ok((bytes, None));
        }
    }
    Ok((bytes, Some(of_many::<A, S>(config, mesh, room)?)))
}

/// The configuration as it is, and where its step's time goes. Its memory is told to the byte, as `plan` without a search does.
pub fn as_it_is<A: Elem, S: Scratch + Clone + Send + Sync + 'static>(
    config: &Config,
    mesh: &Mesh,
    room: &Room<S>,
) -> Result<(Found, Step)> {
    let bytes = memory::<A, S>(config, mesh, room.scratch)?;
    let seats = Seats::filled(config, mesh, room.cluster.gpus_per_node);
    let (paper, (lengths, more)) = (room.paper(&seats, size_of::<A>()), lengths(config, mesh));
    let step = |config: &Config| {
        let one = |rank| two_steps::<A>(config, mesh, rank, room.scratch.clone());
        let rehearsed: Vec<DryRun> = on_all_cores(stages(mesh), one).into_iter().collect::<Result<_>>()?;
        Ok(run(&rehearsed, &paper))
    };
    let steps: Vec<Step> = lengths.iter().map(step).collect::<Result<_>>()?;
    let step = steps[0].longer(&steps[steps.len() - 1], more);
    Ok((Found { config: config.clone(), mesh: mesh.clone(), seconds: step.seconds, bytes }, step))
}

/// Bytes of the rank that takes most, exactly.
pub(super) fn memory<A: Elem, S: Scratch + Clone + Send + Sync + 'static>(
    config: &Config,
    mesh: &Mesh,
    scratch: &S,
) -> Result<usize> {
    let one = |rank| plan::<A>(config, mesh, rank, scratch.clone());
    let memory: Vec<DryRun> = on_all_cores(stages(mesh), one).into_iter().collect::<Result<_>>()?;
    Ok(memory.iter().map(|stage| stage.usage.reserved).max().unwrap_or_default())
}

/// Seconds of a step, however many micro-batches it has.
pub(super) fn of_many<A: Elem, S: Scratch + Clone + Send + 'static>(
    config: &Config,
    mesh: &Mesh,
    room: &Room<S>,
) -> Result<f64> {
    let seats = Seats::filled(config, mesh, room.cluster.gpus_per_node);
    let (paper, (lengths, more)) = (room.paper(&seats, size_of::<A>()), lengths(config, mesh));
    let of = |config| seconds::<A>(config, mesh, &paper, room.scratch.clone());
    let seconds: Vec<f64> = lengths.iter().map(of).collect::<Result<_>>()?;
    Ok(seconds[0] + (seconds[seconds.len() - 1] - seconds[0]) * more)
}

/// A step whose micro-batches are many is told by two shorter ones: it is as much longer than the first as the second is, so
/// many times. From as many micro-batches on as there are stages, each costs the same.
fn lengths(config: &Config, mesh: &Mesh) -> (Vec<Config>, f64) {
    let together = config.train.micro_batch_size * mesh.size(Axis::Data);
    let (stages, n_mbs) = (mesh.size(Axis::Pipeline), config.train.global_batch_size / together);
    if n_mbs <= 2 * stages {
        return (vec![config.clone()], 0.0);
    }
    let of = |n_mbs: usize| {
        let train = Train { global_batch_size: n_mbs * together, ..config.train.clone() };
        Config { train, ..config.clone() }
    };
    (vec![of(stages), of(2 * stages)], (n_mbs - stages) as f64 / stages as f64)
}
