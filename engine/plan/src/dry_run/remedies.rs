//! What would fit where a run does not: changes of its configuration, each rehearsed.

use super::{Held, plan};
use engine::backend::{Elem, Scratch};
use engine::config::{Axis, Config, Parallel, Recompute, Train, can_be};
use engine::error::{Error, Result, counted};
use engine::layout::mesh::Mesh;
use engine::layout::rank_layout::RankLayout;
use std::fmt::{Display, Formatter};

const GIB: f64 = (1u64 << 30) as f64;

/// How many other layouts are named.
const LAYOUTS: usize = 2;

/// A configuration that fits.
#[derive(Debug, Clone, PartialEq)]
pub struct Remedy {
    /// What to write: [`Config::changes_to`].
    pub changes: Vec<String>,
    /// What the rank that needs most takes then.
    pub bytes: usize,
}

impl Display for Remedy {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        write!(f, "{} ({:.2} GiB)", self.changes.join(" with "), self.bytes as f64 / GIB)
    }
}

/// That `needed` bytes of a device are more than `limit`, which is what a run on `mesh` may take, and what fits.
pub fn refusal<A: Elem>(
    config: &Config,
    mesh: &Mesh,
    (needed, limit): (usize, usize),
    scratch: &(impl Scratch + Clone + 'static),
) -> Result<Error> {
    let fit = remedies::<A>(config, mesh, limit, scratch)?;
    let fit: Vec<String> = fit.iter().map(Remedy::to_string).collect();
    let remedy = match fit.is_empty() {
        false => format!("what fits on {}: {}", counted(mesh.ranks(), "rank"), fit.join("; ")),
        true => format!(
            "no smaller micro-batch, recomputation or other layout of {} fits: take more ranks, or devices with more memory",
            counted(mesh.ranks(), "rank")
        ),
    };
    let [needed, limit] = [needed, limit].map(|bytes| bytes as f64 / GIB);
    Ok(Error::user(format!("this run needs {needed:.2} GiB of a device, and {limit:.2} GiB are there; {remedy}")))
}

/// Changes with which no rank takes more than `limit` bytes, on as many ranks: a smaller micro-batch, more that is
/// computed again (or both, where neither is enough), layers shared out by cost, and the layouts that are nearest.
pub fn remedies<A: Elem>(
    config: &Config,
    mesh: &Mesh,
    limit: usize,
    scratch: &(impl Scratch + Clone + 'static),
) -> Result<Vec<Remedy>> {
    let first = |candidates: Vec<Config>, most| -> Result<Vec<Remedy>> {
        let mut found = Vec::new();
        for candidate in candidates {
            if found.len() < most
                && let Some(bytes) = fits::<A>(&candidate, mesh.ranks(), limit, scratch)?
            {
                found.push(Remedy { changes: config.changes_to(&candidate), bytes });
            }
        }
        Ok(found)
    };
    let (batches, again) = (smaller(config), recomputing(config));
    let mut found = [first(batches.clone(), 1)?, first(again.clone(), 1)?].concat();
    if found.is_empty() {
        found = first(again.iter().flat_map(smaller).collect(), 1)?;
    }
    found.extend(first(config.with_layers_by_cost().into_iter().collect(), 1)?);
    found.extend(first(layouts(config, mesh), LAYOUTS)?);
    Ok(found)
}

/// Smaller micro-batches, the largest first.
fn smaller(config: &Config) -> Vec<Config> {
    let sizes = (1..config.train.micro_batch_size).rev();
    let with =
        |micro_batch_size| Config { train: Train { micro_batch_size, ..config.train.clone() }, ..config.clone() };
    sizes.map(with).collect()
}

/// More that is computed again, the least first.
fn recomputing(config: &Config) -> Vec<Config> {
    let more = match config.train.recompute {
        Recompute::None => &[Recompute::Selective, Recompute::Full][..],
        Recompute::Selective => &[Recompute::Full],
        Recompute::Full => &[],
    };
    let with = |&recompute| Config { train: Train { recompute, ..config.train.clone() }, ..config.clone() };
    more.iter().map(with).collect()
}

/// Other sizes of tensor and pipeline on the same ranks, the nearest first.
fn layouts(config: &Config, mesh: &Mesh) -> Vec<Config> {
    let (p, ranks) = (&config.parallel, mesh.ranks() / mesh.size(Axis::Context));
    let octaves = |a: usize, b: usize| (a as f64 / b as f64).log2().abs();
    let far = |t: usize, s: usize| octaves(t, p.tensor) + octaves(s, p.pipeline);
    let divides = |n: &usize| ranks.is_multiple_of(*n);
    let sizes = (1..=config.model.num_attention_heads).filter(divides);
    let pairs = sizes.flat_map(|t| (1..=config.model.num_hidden_layers).filter(divides).map(move |s| (t, s)));
    let mut pairs: Vec<(usize, usize)> = pairs.filter(|&pair| pair != (p.tensor, p.pipeline)).collect();
    pairs.sort_by(|a, b| far(a.0, a.1).total_cmp(&far(b.0, b.1)));
    let with = |(tensor, pipeline)| {
        let virtual_pipeline = if pipeline == 1 { 1 } else { p.virtual_pipeline };
        let layers = p.layers.clone().filter(|layers| layers.len() == pipeline * virtual_pipeline);
        // As where the key is left out.
        let sequence_parallel = tensor > 1 && (p.sequence_parallel || p.tensor == 1);
        let parallel = Parallel { tensor, pipeline, virtual_pipeline, layers, sequence_parallel, ..p.clone() };
        Config { parallel, ..config.clone() }
    };
    pairs.into_iter().map(with).collect()
}

/// What the rank that needs most takes, where that is no more than `limit` and the layout can be.
fn fits<A: Elem>(
    config: &Config,
    ranks: usize,
    limit: usize,
    scratch: &(impl Scratch + Clone + 'static),
) -> Result<Option<usize>> {
    let Some(mesh) = mesh_of(config, ranks) else { return Ok(None) };
    // Of tensor-parallel ranks the first has the largest share, and data-parallel ranks have the same.
    let is_first = |&rank: &usize| mesh.coord(rank, Axis::Tensor) + mesh.coord(rank, Axis::Data) == 0;
    let stages: Vec<usize> = (0..mesh.ranks()).filter(is_first).collect();
    let held = |&rank: &usize| Held::of::<A>(config, &RankLayout::new(config, mesh.clone(), rank), scratch).sum();
    if stages.iter().map(held).max() > Some(limit) {
        return Ok(None);
    }
    let mut most = 0;
    for rank in stages {
        most = most.max(plan::<A>(config, &mesh, rank, scratch.clone())?.usage.reserved);
        if most > limit {
            return Ok(None);
        }
    }
    Ok(Some(most))
}

/// As many ranks in this layout, if they can have it.
fn mesh_of(config: &Config, ranks: usize) -> Option<Mesh> {
    let whole = config.train.global_batch_size.is_multiple_of(config.train.micro_batch_size);
    let can_be = whole && can_be(&config.model, &config.train, &config.parallel);
    can_be.then(|| config.mesh(ranks).ok()).flatten()
}
