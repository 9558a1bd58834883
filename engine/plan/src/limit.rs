//! What limits a step, in words.

use super::cost::Class;
use super::replay::Ran;
use super::step::{Share, Step};
use engine::config::{Axis, Config, Parallel, Precision, Recompute, can_be};
use engine::layout::mesh::Mesh;

/// What costs most beside the products that training consists of, and what sends, waits or computes less of it.
pub fn bottleneck(config: &Config, mesh: &Mesh, step: &Step) -> String {
    let work = |share: &Share| matches!(share, Share::Computes(Class::Matmul | Class::Attention));
    let others = step.shares.iter().filter(|(share, _)| !work(share));
    let (share, seconds) = others.max_by(|a, b| a.1.total_cmp(b.1)).expect("a step has more than one share");
    let percent = 100.0 * seconds / step.seconds;
    let (name, cure) = (share.name(), cure(*share, config, mesh, step));
    format!("beside matmul and attention, most of the step goes into {name}: {percent:.1} %; {cure}")
}

fn cure(share: Share, config: &Config, mesh: &Mesh, step: &Step) -> String {
    let (p, replicas) = (&config.parallel, mesh.size(Axis::Data));
    match share {
        Share::Tensor => format!("a smaller parallel.tensor than {} would send less, where memory allows it", p.tensor),
        Share::Bubble => bubble(config, mesh, &step.ranks),
        Share::Messages if p.virtual_pipeline > 1 => {
            "stages inside a node, or longer chunks (a smaller parallel.virtual_pipeline), would help".into()
        }
        Share::Messages => "stages inside a node would help".into(),
        Share::Data => {
            let less = format!("a larger global batch or fewer than {replicas} replicas would send less");
            match p.gradient_precision {
                Precision::F32 => less + ", as would parallel.gradient_precision = \"bf16\"",
                Precision::Bf16 => less,
            }
        }
        Share::Computes(Class::Optimizer) if replicas > 1 && !p.distributed_optimizer => {
            format!("parallel.distributed_optimizer = true would share it among {replicas} replicas")
        }
        Share::Computes(Class::Optimizer) => "more data-parallel ranks would share it".into(),
        Share::Software => "it is the host's, and this engine has none of it".into(),
        Share::Computes(_) if config.train.recompute != Recompute::None => {
            "train.recompute = \"none\" would leave some of it out, where memory allows it".into()
        }
        Share::Computes(_) => "it is what they read and write, as fast as the device's memory gives it".into(),
    }
}

/// Stages wait while the pipeline fills and drains, (p - 1) / (v m) of their work, and for the busiest of them.
fn bubble(config: &Config, mesh: &Mesh, ranks: &[Ran]) -> String {
    let (p, t) = (&config.parallel, &config.train);
    let n_mbs = t.global_batch_size / (t.micro_batch_size * mesh.size(Axis::Data));
    let filling = (p.pipeline - 1) as f64 / (p.virtual_pipeline * n_mbs) as f64;
    let work = |ran: &Ran| ran.busy.values().sum::<f64>();
    let (most, all) = (ranks.iter().map(work).fold(0.0, f64::max), ranks.iter().map(work).sum::<f64>());
    let uneven = most * ranks.len() as f64 / all;
    if uneven - 1.0 > filling {
        let otherwise = match p.layers {
            Some(_) => "without parallel.layers they are shared out by cost",
            None => {
                "other stages or chunks (parallel.pipeline, parallel.virtual_pipeline) share the layers out otherwise"
            }
        };
        return format!(
            "most of that is that stages are uneven, the busiest computing {uneven:.2} times as long as the mean; {otherwise}"
        );
    }
    let chunks =
        if more_chunks_can_be(config, mesh) { "more chunks a stage (parallel.virtual_pipeline) or " } else { "" };
    let than = if n_mbs == 1 { "one a replica".into() } else { format!("{n_mbs} a replica") };
    format!("{chunks}a larger train.global_batch_size, of more micro-batches than {than}, would shrink it")
}

/// Interleaved stages want micro-batches that they divide.
fn more_chunks_can_be(config: &Config, mesh: &Mesh) -> bool {
    let (p, most) = (&config.parallel, config.model.num_hidden_layers / config.parallel.pipeline);
    (p.virtual_pipeline + 1..=most).any(|virtual_pipeline| {
        let parallel = Parallel { virtual_pipeline, layers: None, ..p.clone() };
        can_be(&config.model, &config.train, &parallel)
            && Config { parallel, ..config.clone() }.mesh(mesh.ranks()).is_ok()
    })
}
