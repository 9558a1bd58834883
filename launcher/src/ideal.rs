//! The ideal time of a step: the time of its computation alone, by the rates in the cluster file of `report.cluster`.
//! `sol` in the metrics is the ideal time divided by the step's time.

use engine::backend::Elem;
use engine::config::{Cluster, Config, Precision};
use engine::cpu::{CpuScratch, Float};
use engine::error::{Error, Result};
use engine::layout::mesh::Mesh;
use half::bf16;
use plan::run::whole_step;
use plan::{AnalyticCosts, NodeMap};
use std::path::PathBuf;

pub struct Ideal {
    pub seconds: f64,
    /// The cluster file and the device that it describes.
    path: PathBuf,
    device: String,
}

/// The cluster of `report.cluster`, which has rates; `None` without that key.
pub fn cluster(config: &Config) -> Result<Option<Cluster>> {
    let Some(path) = &config.report.cluster else { return Ok(None) };
    let cluster = Cluster::load_as(path, "report.cluster =")?;
    if cluster.achieved.is_none() {
        let remedy = "it has no [reached] table, from which step times are computed; add it or leave the key out";
        return Err(Error::user(format!("report.cluster = {}: {remedy}", path.display())));
    }
    Ok(Some(cluster))
}

impl Ideal {
    /// `None` without `report.cluster`.
    pub fn of(config: &Config, mesh: &Mesh, precision: Precision) -> Result<Option<Ideal>> {
        let (Some(cluster), Some(path)) = (cluster(config)?, &config.report.cluster) else { return Ok(None) };
        let seconds = match precision {
            Precision::F32 => seconds::<f32>(config, mesh, &cluster)?,
            Precision::Bf16 => seconds::<bf16>(config, mesh, &cluster)?,
        };
        Ok(Some(Ideal { seconds, path: path.clone(), device: cluster.device }))
    }

    /// A warning where the run is on another device than the file describes.
    pub fn warning(&self, device: &str) -> Option<String> {
        (device != self.device).then(|| {
            let (path, other) = (self.path.display(), &self.device);
            format!(
                "report.cluster = {path} describes \"{other}\", and this run is on \"{device}\": sol compares the two"
            )
        })
    }
}

fn seconds<A: Elem + Float>(config: &Config, mesh: &Mesh, cluster: &Cluster) -> Result<f64> {
    let map = NodeMap::filled(config, mesh, cluster.gpus_per_node);
    let costs = AnalyticCosts::of(cluster, config, &map, size_of::<A>()).expect("the cluster has rates");
    // Scratch takes memory, which does not matter here, and no time.
    Ok(whole_step::<A>(config, mesh, &costs, &CpuScratch::<A>::new(1))?.ideal())
}
