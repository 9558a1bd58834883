//! What changing one key would gain: the runs beside this one, simulated.

use super::estimate::estimate;
use super::run::on_all_cores;
use super::search::{Found, Room, candidates, memory, of_many, settle};
use engine::backend::{Elem, Scratch};
use engine::config::{Config, Parallel};
use engine::error::Result;
use engine::layout::mesh::Mesh;

/// How many are tried at once.
const TURN: usize = 4;
/// What the closed form, which is right within 8 %, puts further behind the best that was simulated than this is not tried.
const BEHIND: f64 = 1.1;
/// By the closed form memory is about what it is.
const ABOUT: f64 = 1.25;

/// A run that differs in one key.
#[derive(Debug, Clone)]
pub struct Change {
    /// Its bytes are exact.
    pub found: Found,
    /// How much shorter its step is, a share of the step as it is; below 0 it is longer.
    pub saves: f64,
}

/// Of all runs that are this one but for one key, and that fit, the one whose step is the shortest. The keys: tensor, pipeline,
/// virtual stages, micro-batch, recomputation, a shared optimizer, layers by hand.
pub fn best_change<A: Elem, S: Scratch + Clone + Send + Sync + 'static>(
    config: &Config,
    mesh: &Mesh,
    room: &Room<S>,
) -> Result<Option<Change>> {
    let (mut rest, mut best) = (promising(config, room)?.into_iter().peekable(), None::<Found>);
    let may_win = |told: f64, best: &Option<Found>| best.as_ref().is_none_or(|best| told <= BEHIND * best.seconds);
    // In turns of one length, so that the outcome does not depend on the number of cores.
    while rest.peek().is_some_and(|(told, ..)| may_win(*told, &best)) {
        let settled = on_all_cores(rest.by_ref().take(TURN).collect(), |(_, config, mesh)| {
            let (bytes, seconds) = settle::<A, S>(&config, &mesh, room)?;
            Ok(seconds.map(|seconds| Found { config, mesh, seconds, bytes }))
        });
        let settled = settled.into_iter().collect::<Result<Vec<_>>>()?;
        best = settled.into_iter().flatten().chain(best).min_by(|a, b| a.seconds.total_cmp(&b.seconds));
    }
    let Some(best) = best else { return Ok(None) };
    let found = Found { bytes: memory::<A, S>(&best.config, &best.mesh, room.scratch)?, ..best };
    let saves = 1.0 - found.seconds / of_many::<A, S>(config, mesh, room)?;
    Ok(Some(Change { found, saves }))
}

/// What may fit, with its seconds by the closed form: the fastest first.
fn promising<S>(config: &Config, room: &Room<S>) -> Result<Vec<(f64, Config, Mesh)>> {
    let mut beside = Vec::new();
    for other in beside_it(config, room) {
        let mesh = other.mesh(room.ranks)?;
        let told = estimate(&other, &mesh, room.cluster, room.reached);
        if told.bytes <= ABOUT * room.limit as f64 {
            beside.push((told.seconds, other, mesh));
        }
    }
    beside.sort_by(|a, b| a.0.total_cmp(&b.0));
    Ok(beside)
}

/// All runs that differ from this one in one key.
pub(super) fn beside_it<S>(config: &Config, room: &Room<S>) -> Vec<Config> {
    let with_own_layers = |mut other: Config| {
        let chunks = |config: &Config| (config.parallel.pipeline, config.parallel.virtual_pipeline);
        if chunks(config) == chunks(&other) {
            other.parallel.layers = config.parallel.layers.clone();
        }
        other
    };
    let mut all: Vec<Config> = candidates(config, room.ranks, room.cluster).into_iter().map(with_own_layers).collect();
    all.retain(|other| config.changes_to(other).len() == 1);
    let parallel = Parallel { distributed_optimizer: true, ..config.parallel.clone() };
    let shared = Config { parallel, ..config.clone() };
    all.extend((!config.parallel.distributed_optimizer).then_some(shared));
    all.extend(config.with_layers_by_cost());
    all
}
