//! Advice on a step: its largest cost beside its products, and the one key whose change gains most.

use super::replay::RankTimeline;
use super::search::{Candidate, Outcome, SearchSpace, candidates};
use super::step::Step;
use engine::backend::{Elem, Scratch};
use engine::config::{Config, Parallel, Precision, Recompute, chunk_counts};
use engine::error::Result;
use engine::layout::mesh::Mesh;
use engine::time::{OpClass, TimeCategory};

/// The number of changes that are simulated at once.
const BATCH: usize = 4;
/// The closed form is accurate within 8 %. A change that it estimates to be slower than the best simulated one by more
/// than this factor is not simulated.
const BEHIND: f64 = 1.1;
/// The closed form may overstate memory by up to a quarter.
const ROUGHLY: f64 = 1.25;

/// A configuration that differs in one key.
#[derive(Debug, Clone)]
pub struct Change {
    /// The changed configuration, with exact bytes.
    pub to: Candidate,
    /// The share of the step's time that it saves; negative if it is slower.
    pub saves: f64,
}

/// The fastest configuration that fits and differs in one key: tensor, pipeline, virtual stages, micro-batch size,
/// recomputation, sharding of the optimizer, or layers assigned by hand.
pub fn best_change<A: Elem, S: Scratch + Clone + Send + Sync + 'static>(
    config: &Config,
    mesh: &Mesh,
    space: &SearchSpace<S>,
) -> Result<Option<Change>> {
    let mut promising = space.estimated(one_key_away(config, space))?;
    promising.retain(|candidate| candidate.bytes as f64 <= ROUGHLY * space.limit as f64);
    let while_it_may_win = |next: &Candidate, simulated: &[Candidate]| {
        let best = simulated.iter().map(|candidate| candidate.seconds).fold(f64::INFINITY, f64::min);
        if next.seconds <= BEHIND * best { BATCH } else { 0 }
    };
    let mut outcome = Outcome::default();
    space.simulate::<A>(promising, &mut outcome, while_it_may_win, &|| ())?;
    let Some(best) = outcome.simulated.into_iter().next() else { return Ok(None) };
    let saves = 1.0 - best.seconds / space.seconds::<A>(config, mesh)?;
    let bytes = space.bytes::<A>(&best.config, &best.mesh)?;
    Ok(Some(Change { to: Candidate { bytes, ..best }, saves }))
}

/// All valid configurations that differ in one key.
pub(super) fn one_key_away<S>(config: &Config, space: &SearchSpace<S>) -> Vec<Config> {
    let mut all = candidates(config, space.ranks, space.cluster);
    all.retain(|other| config.changes_to(other).len() == 1);
    let parallel = Parallel { distributed_optimizer: true, ..config.parallel.clone() };
    let sharded = Config { parallel, ..config.clone() };
    all.extend((!config.parallel.distributed_optimizer).then_some(sharded));
    all.extend(config.with_layers_by_cost());
    all
}

/// A sentence for the user: the largest cost of a step beside matmul and attention, and how to reduce it.
pub fn bottleneck(config: &Config, mesh: &Mesh, step: &Step) -> String {
    let work = |share: &TimeCategory| matches!(share, TimeCategory::Computes(OpClass::Matmul | OpClass::Attention));
    let others = step.shares.iter().filter(|(share, _)| !work(share));
    let (share, seconds) = others.max_by(|a, b| a.1.total_cmp(b.1)).expect("a step has more than one share");
    let percent = 100.0 * seconds / step.seconds;
    let (name, remedy) = (share.name(), remedy(*share, config, mesh, step));
    format!("beside matmul and attention, the largest part of the step is {name}: {percent:.1} %; {remedy}")
}

fn remedy(share: TimeCategory, config: &Config, mesh: &Mesh, step: &Step) -> String {
    let (p, replicas) = (&config.parallel, mesh.replicas());
    match share {
        TimeCategory::Tensor => {
            format!("a parallel.tensor smaller than {} would send less, if memory allows", p.tensor)
        }
        TimeCategory::Experts => {
            format!("a parallel.expert smaller than {} would send less, if memory allows", p.expert)
        }
        TimeCategory::Bubble => bubble(config, mesh, &step.ranks),
        TimeCategory::Messages if p.virtual_pipeline > 1 => {
            "stages inside a node, or fewer and longer chunks (a smaller parallel.virtual_pipeline), would help".into()
        }
        TimeCategory::Messages => "stages inside a node would help".into(),
        TimeCategory::Data => {
            let less = format!("a larger global batch or fewer than {replicas} replicas would send less");
            match p.gradient_precision {
                Precision::F32 => less + ", as would parallel.gradient_precision = \"bf16\"",
                Precision::Bf16 => less,
            }
        }
        TimeCategory::Computes(OpClass::Optimizer) if replicas > 1 && !p.distributed_optimizer => {
            format!("parallel.distributed_optimizer = true would share it among {replicas} replicas")
        }
        TimeCategory::Computes(OpClass::Optimizer) => "more data-parallel ranks would share it".into(),
        TimeCategory::Software => "it is launch overhead, which is not modelled for this engine".into(),
        TimeCategory::Computes(_) if config.train.recompute != Recompute::None => {
            "train.recompute = \"none\" would leave some of it out, if memory allows".into()
        }
        TimeCategory::Computes(_) => "it is bound by the bandwidth of the device's memory".into(),
    }
}

/// Stages wait while the pipeline fills and drains, (p - 1) / (v m) of their work, and for the busiest stage.
fn bubble(config: &Config, mesh: &Mesh, ranks: &[RankTimeline]) -> String {
    let (p, t) = (&config.parallel, &config.train);
    let n_mbs = t.global_batch_size / (t.micro_batch_size * mesh.replicas());
    let filling = (p.pipeline - 1) as f64 / (p.virtual_pipeline * n_mbs) as f64;
    let work = |rank: &RankTimeline| rank.busy.values().sum::<f64>();
    let (most, all) = (ranks.iter().map(work).fold(0.0, f64::max), ranks.iter().map(work).sum::<f64>());
    let uneven = most * ranks.len() as f64 / all;
    if uneven - 1.0 > filling {
        let remedy = match p.layers {
            Some(_) => "without parallel.layers the layers are balanced by cost",
            None => "another parallel.pipeline or parallel.virtual_pipeline would balance the layers differently",
        };
        return format!(
            "most of it comes from uneven stages, the busiest computing {uneven:.2} times as long as the mean; {remedy}"
        );
    }
    // Interleaving needs micro-batches in multiples of the stages.
    let mut more = chunk_counts(p.pipeline, config.model.num_hidden_layers).filter(|&v| v > p.virtual_pipeline);
    let more = more.any(|chunks| config.with_layout(p.tensor, p.pipeline, chunks).runs_on(mesh.ranks()));
    let chunks = if more { "more chunks a stage (parallel.virtual_pipeline) or " } else { "" };
    let now = if n_mbs == 1 { "one".into() } else { format!("{n_mbs}") };
    format!("{chunks}a larger train.global_batch_size, with more micro-batches a replica than {now}, would shrink it")
}
