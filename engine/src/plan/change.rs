//! What changing one key would gain: the runs beside this one, simulated.

use super::estimate::estimate;
use super::run::on_all_cores;
use super::search::{Found, Room, candidates, memory, of_many, settle};
use crate::backend::{Elem, Scratch};
use crate::config::{Config, Parallel};
use crate::error::Result;
use crate::mesh::Mesh;

/// How many changes are simulated: those to which the closed form gives the shortest steps.
const TRIED: usize = 12;
/// What the closed form puts further behind the first than this is not tried; it is right within 8 %.
const BEHIND: f64 = 1.15;
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
    let settled = on_all_cores(promising(config, room)?, |(config, mesh)| {
        let (bytes, seconds) = settle::<A, S>(&config, &mesh, room)?;
        Ok(seconds.map(|seconds| Found { config, mesh, seconds, bytes }))
    });
    let settled = settled.into_iter().collect::<Result<Vec<_>>>()?;
    let best = settled.into_iter().flatten().min_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let Some(best) = best else { return Ok(None) };
    let found = Found { bytes: memory::<A, S>(&best.config, &best.mesh, room.scratch)?, ..best };
    let saves = 1.0 - found.seconds / of_many::<A, S>(config, mesh, room)?;
    Ok(Some(Change { found, saves }))
}

/// What may fit and may be among the fastest.
fn promising<S>(config: &Config, room: &Room<S>) -> Result<Vec<(Config, Mesh)>> {
    let mut beside = Vec::new();
    for other in beside_it(config, room) {
        let mesh = other.mesh(room.ranks)?;
        let told = estimate(&other, &mesh, room.cluster, room.reached);
        if told.bytes <= ABOUT * room.limit as f64 {
            beside.push((told.seconds, other, mesh));
        }
    }
    beside.sort_by(|a, b| a.0.total_cmp(&b.0));
    let least = beside.first().map_or(0.0, |first| first.0);
    let near = beside.into_iter().take_while(|(seconds, ..)| *seconds <= BEHIND * least);
    Ok(near.take(TRIED).map(|(_, other, mesh)| (other, mesh)).collect())
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
