//! What limits a step, in words, and which key changes that most.

use super::cost::Class;
use super::estimate::estimate;
use super::replay::Ran;
use super::run::on_all_cores;
use super::search::{Found, Room, candidates, of_many, settle};
use super::step::{Share, Step};
use crate::backend::{Elem, Scratch};
use crate::config::{Axis, Config, Recompute};
use crate::error::Result;
use crate::mesh::Mesh;

/// How many changes are simulated: those that the closed form gives the shortest steps.
const TRIED: usize = 8;

/// What costs most beside the products that training consists of, and what sends, waits or computes less of it.
pub fn bottleneck(config: &Config, mesh: &Mesh, step: &Step) -> String {
    let work = |share: &Share| matches!(share, Share::Computes(Class::Matmul | Class::Attention));
    let others = step.shares.iter().filter(|(share, _)| !work(share));
    let (share, seconds) = others.max_by(|a, b| a.1.total_cmp(b.1)).expect("a step has more than one share");
    let percent = 100.0 * seconds / step.seconds;
    let (name, cure) = (share.name(), cure(*share, config, mesh, step));
    format!("beside matmul and attention, {name} takes most: {percent:.1} % of the step; {cure}")
}

fn cure(share: Share, config: &Config, mesh: &Mesh, step: &Step) -> String {
    let replicas = mesh.size(Axis::Data);
    match share {
        Share::Tensor => {
            let tensor = config.parallel.tensor;
            format!("a smaller parallel.tensor than {tensor} would send less, where memory allows it")
        }
        Share::Bubble => bubble(config, replicas, &step.ranks),
        Share::Messages => {
            "stages inside a node, or longer chunks (a smaller parallel.virtual_pipeline), would help".into()
        }
        Share::Data => format!(
            "a larger global batch or fewer than {replicas} replicas would send less, as would gradients in bf16"
        ),
        Share::Computes(Class::Optimizer) => "more data-parallel ranks would share the optimizer's work".into(),
        Share::Software => "it is the host's, and this engine has none of it".into(),
        Share::Computes(_) if config.train.recompute != Recompute::None => {
            "train.recompute = \"none\" would leave some of it out, where memory allows it".into()
        }
        Share::Computes(_) => "it is what they read and write, as fast as the device's memory gives it".into(),
    }
}

/// Stages wait while the pipeline fills and drains, (p - 1) / (v m) of their work, and for the busiest of them.
fn bubble(config: &Config, replicas: usize, ranks: &[Ran]) -> String {
    let (p, t) = (&config.parallel, &config.train);
    let n_mbs = t.global_batch_size / (t.micro_batch_size * replicas);
    let filling = (p.pipeline - 1) as f64 / (p.virtual_pipeline * n_mbs) as f64;
    let work = |ran: &Ran| ran.busy.values().sum::<f64>();
    let (most, all) = (ranks.iter().map(work).fold(0.0, f64::max), ranks.iter().map(work).sum::<f64>());
    let uneven = most * ranks.len() as f64 / all;
    match uneven - 1.0 > filling {
        true => format!(
            "most of it is that stages are uneven, the busiest computing {uneven:.2} times as long as the mean: other \
             stages or chunks (parallel.pipeline, parallel.virtual_pipeline) share the layers out otherwise"
        ),
        false => format!("more chunks, more micro-batches than {n_mbs} or fewer stages than {} shrink it", p.pipeline),
    }
}

/// Another layout, micro-batch or recomputation, and how much shorter its step is.
#[derive(Debug, Clone)]
pub struct Change {
    pub found: Found,
    /// Of the step as it is, a share.
    pub saves: f64,
}

/// Of all layouts that are this one but for one key, and that fit, the one that gains most.
pub fn best_change<A: Elem, S: Scratch + Clone + Send + Sync + 'static>(
    config: &Config,
    mesh: &Mesh,
    room: &Room<S>,
) -> Result<Option<Change>> {
    let mut beside: Vec<(f64, Config, Mesh)> = Vec::new();
    let all = candidates(config, room.ranks, room.cluster).into_iter().filter(|other| keys_changed(config, other) == 1);
    for other in all.map(|other| with_layers_of(config, other)) {
        let mesh = other.mesh(room.ranks)?;
        let told = estimate(&other, &mesh, room.cluster, room.reached);
        if told.bytes <= room.limit as f64 {
            beside.push((told.seconds, other, mesh));
        }
    }
    beside.sort_by(|a, b| a.0.total_cmp(&b.0));
    beside.truncate(TRIED);
    let settled = on_all_cores(beside, |(_, other, mesh)| settle::<A, S>(other, mesh, room));
    let settled = settled.into_iter().collect::<Result<Vec<_>>>()?;
    let best = settled.into_iter().flatten().min_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let Some(found) = best else { return Ok(None) };
    let saves = 1.0 - found.seconds / of_many::<A, S>(config, mesh, room)?;
    Ok((saves > 0.0).then_some(Change { found, saves }))
}

/// Layers shared out by hand stay so, where there are as many chunks.
fn with_layers_of(config: &Config, mut other: Config) -> Config {
    let chunks = |config: &Config| (config.parallel.pipeline, config.parallel.virtual_pipeline);
    if chunks(config) == chunks(&other) {
        other.parallel.layers = config.parallel.layers.clone();
    }
    other
}

/// How many keys another layout of the same run has another value of.
pub(super) fn keys_changed(config: &Config, other: &Config) -> usize {
    let keys = |config: &Config| {
        let (p, t) = (&config.parallel, &config.train);
        [p.tensor, p.pipeline, p.virtual_pipeline, t.micro_batch_size, t.recompute as usize]
    };
    keys(config).iter().zip(keys(other)).filter(|(this, other)| **this != *other).count()
}
