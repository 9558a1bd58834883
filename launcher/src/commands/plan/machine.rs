//! The machine that a plan is for: the nodes of a cluster file, or the profiled host.

use crate::gpu::reserve;
use engine::config::{Cluster, Config, Precision, Slowdown};
use engine::error::{Error, Result};
use engine::layout::mesh::{GroupKind, Mesh};
use engine::layout::rank_layout::RankLayout;
use engine::memory::table::GIB;
use plan::{DeviceRates, Profile};
use report::peak;
use std::path::Path;

pub struct Machine {
    pub name: String,
    pub device: String,
    /// `GPU`, or `rank` where ranks are cores.
    pub unit: &'static str,
    /// Units of a node.
    pub units: usize,
    /// Bytes that a rank may take, and how they are derived, in words.
    pub room: usize,
    pub room_note: String,
    /// Peak bf16 TFLOPS of a rank, if known.
    pub peak_tflops: Option<f64>,
    pub software: String,
}

impl Machine {
    pub fn of_cluster(cluster: &Cluster, mesh: &Mesh) -> Machine {
        Machine {
            name: cluster.name.clone(),
            device: cluster.device.clone(),
            unit: "GPU",
            units: cluster.gpus_per_node,
            room: room(cluster, mesh),
            room_note: format!("of {:.2} GiB a GPU the rest is reserved for CUDA and NCCL", cluster.memory_gib),
            peak_tflops: Some(cluster.peak_tflops),
            software: cluster.software.name.clone(),
        }
    }

    pub fn of_profile(profile: &Profile, config: &Config, mesh: &Mesh) -> Machine {
        let here = profile.ranks.min(mesh.ranks());
        Machine {
            name: profile.host.clone(),
            device: profile.device.clone(),
            unit: "rank",
            units: profile.ranks,
            room: (profile.memory_gib / here as f64 * GIB) as usize,
            room_note: format!("an equal share of the host's {:.2} GiB", profile.memory_gib),
            peak_tflops: config.report.peak_tflops.or_else(|| peak::bf16_tflops(&profile.device)),
            software: "swallow-engine".into(),
        }
    }
}

/// Bytes of a GPU that a run may take; the rest is reserved for CUDA and NCCL.
pub fn room(cluster: &Cluster, mesh: &Mesh) -> usize {
    ((cluster.memory_gib * GIB) as usize).saturating_sub(reserve(mesh.ranks()))
}

/// Refuses thread blocks of NCCL that a run on these GPUs would refuse.
pub fn must_leave_processors(cluster: &Cluster, config: &Config, mesh: &Mesh) -> Result<()> {
    let Some(Slowdown::Multiprocessors(processors)) = cluster.achieved.as_ref().map(|rates| rates.slowdown) else {
        return Ok(());
    };
    let lanes = mesh.lanes(RankLayout::new(config, mesh.clone(), 0).kv_replicas);
    let fits = GroupKind::must_leave_processors(&lanes, &config.nccl, processors);
    fits.map_err(|why| Error::user(format!("{}: {why}", cluster.name)))
}

/// The device of measured rates by itself. It has no links, so it runs one rank.
pub fn alone(rates: &DeviceRates, path: &Path, mesh: &Mesh) -> Result<Cluster> {
    let (file, device, ranks) = (path.display(), &rates.device, mesh.ranks());
    if ranks > 1 {
        return Err(Error::user(format!(
            "--calibrate {file}: it has the rates of one device and of no links, and this run has {ranks} ranks; give \
             --cluster FILE too"
        )));
    }
    let peak = peak::bf16_tflops(device).ok_or_else(|| {
        Error::user(format!("--calibrate {file}: the peak of \"{device}\" is not known; give --cluster FILE too"))
    })?;
    rates.alone(peak, path)
}

/// Refuses flags that the profile of a CPU does not go with: it has the ops of one layout on one machine.
pub fn must_stand_alone(path: &Path, with_cluster: bool, with_search: bool) -> Result<()> {
    let flag = match (with_cluster, with_search) {
        (true, _) => "--cluster",
        (_, true) => "--search",
        _ => return Ok(()),
    };
    let what = "it is the profile of a CPU, which has one layout and one machine";
    Err(Error::user(format!("--calibrate {}: {what}; leave {flag} out", path.display())))
}

/// Refuses a profile of another precision, or of fewer ranks than the run has.
pub fn must_cover(profile: &Profile, config: &Config, mesh: &Mesh, path: &Path) -> Result<()> {
    let precision = match config.train.precision.unwrap_or(Precision::F32) {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    };
    let file = path.display();
    if precision != profile.precision {
        let measured = &profile.precision;
        return Err(Error::user(format!(
            "--calibrate {file}: it was measured in {measured}, and this run computes in {precision} (train.precision)"
        )));
    }
    if mesh.ranks() > profile.ranks {
        let (ranks, measured) = (mesh.ranks(), profile.ranks);
        return Err(Error::user(format!(
            "--calibrate {file}: it was measured with {measured} ranks at once, and this run has {ranks}: measure as \
             many with benches/figures.sh"
        )));
    }
    Ok(())
}
