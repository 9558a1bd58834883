//! Where a run is to take place: the nodes of a cluster file, or this machine as its benches timed it.

use crate::gpu::reserve;
use engine::config::{Cluster, Config, Precision};
use engine::error::{Error, Result};
use engine::layout::mesh::Mesh;
use plan::Figures;
use report::peak;
use std::path::Path;

pub const GIB: f64 = (1u64 << 30) as f64;

/// What there is to say of it.
pub struct Site {
    pub name: String,
    pub device: String,
    /// What a rank is: `GPU`, or `rank` where ranks are cores.
    pub unit: &'static str,
    /// Of a node.
    pub units: usize,
    /// Bytes that a rank may take, and what becomes of the rest of its part.
    pub room: usize,
    pub rest: String,
    /// Bf16 TFLOPS of a rank at the most, where that is known.
    pub peak_tflops: Option<f64>,
    pub software: String,
}

impl Site {
    pub fn of_cluster(cluster: &Cluster, mesh: &Mesh) -> Site {
        Site {
            name: cluster.name.clone(),
            device: cluster.device.clone(),
            unit: "GPU",
            units: cluster.gpus_per_node,
            room: room(cluster, mesh),
            rest: format!("CUDA and NCCL having their part of {:.2}", cluster.memory_gib),
            peak_tflops: Some(cluster.peak_tflops),
            software: cluster.software.name.clone(),
        }
    }

    pub fn of_machine(figures: &Figures, config: &Config, mesh: &Mesh) -> Site {
        let here = figures.ranks.min(mesh.ranks());
        Site {
            name: figures.host.clone(),
            device: figures.device.clone(),
            unit: "rank",
            units: figures.ranks,
            room: (figures.memory_gib / here as f64 * GIB) as usize,
            rest: format!("its part of the {:.2} of the machine", figures.memory_gib),
            peak_tflops: config.report.peak_tflops.or_else(|| peak::bf16_tflops(&figures.device)),
            software: "swallow-engine".into(),
        }
    }
}

/// Bytes of a GPU that a run may take; the rest is for CUDA and NCCL.
pub fn room(cluster: &Cluster, mesh: &Mesh) -> usize {
    ((cluster.memory_gib * GIB) as usize).saturating_sub(reserve(mesh.ranks()))
}

/// Figures tell of the runs that are like those that were timed.
pub fn must_be_like(figures: &Figures, config: &Config, mesh: &Mesh, path: &Path) -> Result<()> {
    let precision = match config.train.precision.unwrap_or(Precision::F32) {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    };
    let told = path.display();
    if precision != figures.precision {
        let timed = &figures.precision;
        return Err(Error::user(format!(
            "--calibrate {told}: it was timed in {timed}, and this run computes in {precision} (train.precision)"
        )));
    }
    if mesh.ranks() > figures.ranks {
        let (ranks, timed) = (mesh.ranks(), figures.ranks);
        return Err(Error::user(format!(
            "--calibrate {told}: {timed} ranks were timed at once, and this run has {ranks}: time as many with benches/figures.sh"
        )));
    }
    Ok(())
}
