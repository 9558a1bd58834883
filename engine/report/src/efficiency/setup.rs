//! The model, the machine and the settings of a run.

use crate::peak;
use crate::run::Run;
use engine::config::{Axis, BackendKind, Named};
use engine::model::flops;
use serde::Serialize;
use std::collections::BTreeSet;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Setup {
    pub parameters: u64,
    pub layers: usize,
    pub hidden: usize,
    pub vocabulary: usize,
    /// `None` where `machine.json` is missing, as in `precision` and `hosts`.
    pub device: Option<String>,
    pub precision: Option<String>,
    pub ranks: usize,
    /// The name of a rank in the report: `GPU`, or `rank` on a CPU.
    pub worker: &'static str,
    pub hosts: Option<usize>,
    pub tensor: usize,
    pub pipeline: usize,
    pub data: usize,
    pub virtual_pipeline: usize,
    pub micro_batch_size: usize,
    /// Per data-parallel replica and step.
    pub micro_batches: usize,
    pub global_batch_size: usize,
    pub seq_length: usize,
    pub recompute: &'static str,
}

impl Setup {
    pub fn of(run: &Run) -> Setup {
        let (config, mesh, machine) = (&run.config, &run.mesh, run.machine.present());
        let (model, train) = (&config.model, &config.train);
        let data = mesh.replicas();
        let precision = machine.map(|m| m.precision.clone()).or(train.precision.map(|p| p.name().to_string()));
        Setup {
            parameters: flops::parameters(model),
            layers: model.num_hidden_layers,
            hidden: model.hidden_size,
            vocabulary: model.vocab_size,
            device: machine.map(|m| m.device.clone()),
            precision,
            ranks: mesh.ranks(),
            worker: worker(run),
            hosts: machine.map(|m| m.hosts.iter().collect::<BTreeSet<_>>().len()),
            tensor: mesh.size(Axis::Tensor),
            pipeline: mesh.size(Axis::Pipeline),
            data,
            virtual_pipeline: config.parallel.virtual_pipeline,
            micro_batch_size: train.micro_batch_size,
            micro_batches: train.global_batch_size / (train.micro_batch_size * data),
            global_batch_size: train.global_batch_size,
            seq_length: train.seq_length,
            recompute: train.recompute.name(),
        }
    }
}

fn worker(run: &Run) -> &'static str {
    let device = run.machine.present().map_or("", |machine| &machine.device);
    let known = device.contains("NVIDIA") || peak::bf16_tflops(device).is_some();
    match run.config.train.backend {
        Some(BackendKind::Cpu) => "rank",
        Some(BackendKind::Cuda) => "GPU",
        None if known => "GPU",
        None => "rank",
    }
}
