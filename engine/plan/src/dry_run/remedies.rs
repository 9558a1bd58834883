//! Changes that make a run fit that needs too much memory, each checked by a dry run.

use super::{HeldBytes, plan, stages};
use engine::backend::{Elem, Scratch};
use engine::config::{Config, Recompute, Train, by_distance, degrees};
use engine::error::{Error, Result, counted};
use engine::layout::mesh::Mesh;
use engine::layout::rank_layout::RankLayout;
use engine::memory::table::GIB;
use std::fmt::{Display, Formatter};

/// The number of other layouts that a message names.
const LAYOUTS: usize = 2;

/// A configuration that fits.
#[derive(Debug, Clone, PartialEq)]
pub struct Remedy {
    /// [`Config::changes_to`].
    pub changes: Vec<String>,
    /// Bytes of the rank that then needs most.
    pub bytes: usize,
}

impl Display for Remedy {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        write!(f, "{} ({:.2} GiB)", self.changes.join(" with "), self.bytes as f64 / GIB)
    }
}

/// The refusal of a run that needs `needed` bytes of a device where `limit` are available, with the changes that would
/// make it fit.
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
            "no smaller micro-batch, recomputation or other layout on {} fits: use more ranks, or devices with more \
             memory",
            counted(mesh.ranks(), "rank")
        ),
    };
    let [needed, limit] = [needed, limit].map(|bytes| bytes as f64 / GIB);
    Ok(Error::user(format!(
        "this run needs {needed:.2} GiB of device memory a rank, and {limit:.2} GiB are available; {remedy}"
    )))
}

/// Changes after which no rank takes more than `limit` bytes, on the same number of ranks: a smaller micro-batch, more
/// recomputation (or both, where neither is enough), layers balanced by cost, and the nearest layouts.
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
    let recomputing = recomputing(config);
    let mut found = [first(smaller(config), 1)?, first(recomputing.clone(), 1)?].concat();
    if found.is_empty() {
        found = first(recomputing.iter().flat_map(smaller).collect(), 1)?;
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

/// More recomputation, the least first.
fn recomputing(config: &Config) -> Vec<Config> {
    let more = match config.train.recompute {
        Recompute::None => &[Recompute::Selective, Recompute::Full][..],
        Recompute::Selective => &[Recompute::Full],
        Recompute::Full => &[],
    };
    let with = |&recompute| Config { train: Train { recompute, ..config.train.clone() }, ..config.clone() };
    more.iter().map(with).collect()
}

/// Other degrees of tensor and pipeline parallelism on the same ranks, the nearest first.
fn layouts(config: &Config, mesh: &Mesh) -> Vec<Config> {
    let (p, model) = (&config.parallel, &config.model);
    let own = (p.tensor, p.pipeline);
    let others = degrees(mesh.ranks(), model.num_attention_heads, model.num_hidden_layers).filter(|&pair| pair != own);
    let chunks = |pipeline| if pipeline == 1 { 1 } else { p.virtual_pipeline };
    let nearest = by_distance(own, others).into_iter();
    nearest.map(|(tensor, pipeline)| config.with_layout(tensor, pipeline, chunks(pipeline))).collect()
}

/// Bytes of the rank that needs most, if the layout is valid and they are no more than `limit`.
fn fits<A: Elem>(
    config: &Config,
    ranks: usize,
    limit: usize,
    scratch: &(impl Scratch + Clone + 'static),
) -> Result<Option<usize>> {
    if !config.runs_on(ranks) {
        return Ok(None);
    }
    let mesh = config.mesh(ranks)?;
    let stages = stages(&mesh);
    let held = |&rank: &usize| HeldBytes::of::<A>(config, &RankLayout::new(config, mesh.clone(), rank), scratch).sum();
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
