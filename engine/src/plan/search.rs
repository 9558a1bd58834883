//! Which layout of a number of ranks is the fastest: all that can be are estimated, the best are rehearsed and run.

use super::estimate::{Estimate, estimate};
use super::paper::{Paper, Seats};
use super::run::{on_all_cores, run, seconds, stages, two_steps};
use super::step::Step;
use crate::backend::{Elem, Scratch};
use crate::config::{Axis, Cluster, Config, Named, Parallel, Reached, Recompute, Train, can_be};
use crate::error::Result;
use crate::mesh::Mesh;
use crate::rehearsal::{Rehearsal, plan, plan_shortly};
use std::collections::{BTreeSet, HashMap};

/// How many are simulated.
pub const SETTLED: usize = 20;
/// How many are tried at once.
const TURN: usize = 8;
/// Of layouts that differ in their virtual stages alone, so many are simulated.
const ALIKE: usize = 2;
const MICRO_BATCHES: [usize; 4] = [1, 2, 4, 8];
const RECOMPUTE: [Recompute; 3] = [Recompute::None, Recompute::Selective, Recompute::Full];

/// A layout that was simulated.
#[derive(Debug, Clone)]
pub struct Found {
    pub config: Config,
    pub mesh: Mesh,
    pub seconds: f64,
    /// Bytes of the rank that takes most.
    pub bytes: usize,
}

/// What came of a search.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The fastest first.
    pub found: Vec<Found>,
    /// Layouts that the model, the batch and the ranks allow.
    pub possible: usize,
    /// Of them those that need more memory than there is, by the estimate or by their rehearsal.
    pub too_large: usize,
    /// Those that the estimate puts behind the ones that were simulated.
    pub behind: usize,
    /// Of those that are too large the one that would be the fastest by the estimate, with the bytes that it gives a rank.
    pub missed: Option<(Config, f64)>,
}

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

/// The fastest of all layouts, micro-batches, recomputations and virtual stages; `one` is told of each that was simulated.
pub fn search<A: Elem, S: Scratch + Clone + Send + Sync + 'static>(
    config: &Config,
    room: &Room<S>,
    one: &(dyn Fn() + Sync),
) -> Result<Outcome> {
    let estimated = on_all_cores(candidates(config, room.ranks, room.cluster), |candidate| {
        let mesh = candidate.mesh(room.ranks)?;
        let estimate = estimate(&candidate, &mesh, room.cluster, room.reached);
        Ok((candidate, mesh, estimate))
    });
    let mut all: Vec<(Config, Mesh, Estimate)> = estimated.into_iter().collect::<Result<_>>()?;
    let possible = all.len();
    let large = all.iter().filter(|(_, _, estimate)| estimate.bytes > room.limit as f64);
    let missed = large.min_by(|a, b| a.2.seconds.total_cmp(&b.2.seconds)).map(|(c, _, e)| (c.clone(), e.bytes));
    all.retain(|(_, _, estimate)| estimate.bytes <= room.limit as f64);
    let mut too_large = possible - all.len();
    all.sort_by(|a, b| a.2.seconds.total_cmp(&b.2.seconds));
    let (mut found, mut alike) = (Vec::new(), HashMap::new());
    let mut rest = all.into_iter().filter(|(config, ..)| {
        let among = alike.entry(family(config)).or_insert(0);
        *among += 1;
        *among <= ALIKE
    });
    // In turns of one length, so that the outcome does not depend on the number of cores.
    while found.len() < SETTLED {
        let turn: Vec<_> = rest.by_ref().take(TURN).collect();
        if turn.is_empty() {
            break;
        }
        let tried = turn.len();
        let settled = on_all_cores(turn, |(config, mesh, _)| {
            let found = settle::<A, S>(config, mesh, room);
            one();
            found
        });
        let before = found.len();
        found.extend(settled.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten());
        too_large += tried - (found.len() - before);
    }
    let behind = possible - too_large - found.len();
    found.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    Ok(Outcome { found, possible, too_large, behind, missed })
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
    // The configuration's own, too, so that what it is now is among all that could be.
    let sizes: BTreeSet<usize> = MICRO_BATCHES.into_iter().chain([config.train.micro_batch_size]).collect();
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

/// Rehearses and runs one; `None` where it does not fit.
pub(super) fn settle<A: Elem, S: Scratch + Clone + Send + 'static>(
    config: Config,
    mesh: Mesh,
    room: &Room<S>,
) -> Result<Option<Found>> {
    // The first stage holds most micro-batches, the last one the logits: they say no soonest.
    let (ranks, mut bytes) = (stages(&mesh), 0);
    let last = ranks.len() - 1;
    for &rank in [&ranks[..1], &ranks[last.max(1)..], &ranks[1..last.max(1)]].into_iter().flatten() {
        bytes = bytes.max(plan_shortly::<A>(&config, &mesh, rank, room.scratch.clone())?.usage.reserved);
        if bytes > room.limit {
            return Ok(None);
        }
    }
    let seconds = of_many::<A, S>(&config, &mesh, room)?;
    Ok(Some(Found { config, mesh, seconds, bytes }))
}

/// The configuration as it is, and where its step's time goes. Its memory is told to the byte, as `plan` without a search does.
pub fn as_it_is<A: Elem, S: Scratch + Clone + Send + Sync + 'static>(
    config: &Config,
    mesh: &Mesh,
    room: &Room<S>,
) -> Result<(Found, Step)> {
    let one = |rank| plan::<A>(config, mesh, rank, room.scratch.clone());
    let memory: Vec<Rehearsal> = on_all_cores(stages(mesh), one).into_iter().collect::<Result<_>>()?;
    let bytes = memory.iter().map(|stage| stage.usage.reserved).max().unwrap_or_default();
    let seats = Seats::filled(config, mesh, room.cluster.gpus_per_node);
    let (paper, (lengths, more)) = (room.paper(&seats, size_of::<A>()), lengths(config, mesh));
    let step = |config: &Config| {
        let one = |rank| two_steps::<A>(config, mesh, rank, room.scratch.clone());
        let rehearsed: Vec<Rehearsal> = on_all_cores(stages(mesh), one).into_iter().collect::<Result<_>>()?;
        Ok(run(&rehearsed, &paper))
    };
    let steps: Vec<Step> = lengths.iter().map(step).collect::<Result<_>>()?;
    let step = steps[0].longer(&steps[steps.len() - 1], more);
    Ok((Found { config: config.clone(), mesh: mesh.clone(), seconds: step.seconds, bytes }, step))
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
