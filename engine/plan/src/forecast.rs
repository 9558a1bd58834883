//! The forecast of a run: memory of each stage, the time of a step, and the length of the whole run.

use super::analytic::{AnalyticCosts, NodeMap};
use super::replay::CostModel;
use super::run::{memory, simulate, two_steps};
use super::step::Step;
use crate::dry_run::{DryRun, stages};
use engine::backend::{Elem, Scratch};
use engine::config::{Cluster, Config};
use engine::error::{Error, Result};
use engine::layout::mesh::Mesh;
use engine::model::flops::Formula;
use std::collections::BTreeSet;

#[derive(Debug, Clone)]
pub struct Forecast {
    /// The first rank of each stage, which has the largest share of what tensor-parallel ranks divide.
    pub memory: Vec<DryRun>,
    /// `None` where the cluster file has no achieved rates.
    pub step: Option<Step>,
}

impl Forecast {
    /// The forecast of `config` on `mesh` of a cluster, with the memory rules of the backend that will run. `done` is
    /// called after each of the [`Forecast::dry_runs`].
    pub fn of<A: Elem>(
        config: &Config,
        mesh: &Mesh,
        cluster: &Cluster,
        scratch: &(impl Scratch + Clone + Sync + 'static),
        done: &(dyn Fn() + Sync),
    ) -> Result<Forecast> {
        let map = NodeMap::filled(config, mesh, cluster.gpus_per_node);
        let costs = AnalyticCosts::of(cluster, config, &map, size_of::<A>());
        Self::by::<A>(config, mesh, costs.as_ref().map(|costs| costs as &dyn CostModel), scratch, done)
    }

    /// Like [`Self::of`], with the times of a cost model.
    pub fn by<A: Elem>(
        config: &Config,
        mesh: &Mesh,
        costs: Option<&dyn CostModel>,
        scratch: &(impl Scratch + Clone + Sync + 'static),
        done: &(dyn Fn() + Sync),
    ) -> Result<Forecast> {
        let memory = memory::<A>(config, mesh, scratch, done)?;
        let Some(costs) = costs else { return Ok(Forecast { memory, step: None }) };
        let stages = two_steps::<A>(config, mesh, scratch, done)?;
        let unknown: BTreeSet<String> = stages.iter().flat_map(|stage| costs.unknown(&stage.log)).collect();
        if !unknown.is_empty() {
            let unknown = Vec::from_iter(unknown).join(", ");
            return Err(Error::user(format!(
                "no measurement for {unknown}: measure this run's layout as well, with benches/figures.sh"
            )));
        }
        Ok(Forecast { memory, step: Some(simulate(&stages, costs)) })
    }

    /// The number of dry runs of a forecast: one of each stage for its memory, and one for its time.
    pub fn dry_runs(mesh: &Mesh, with_time: bool) -> usize {
        stages(mesh).len() * (1 + usize::from(with_time))
    }

    /// Bytes of the rank that needs most.
    pub fn bytes(&self) -> usize {
        self.memory.iter().map(|rank| rank.usage.reserved).max().unwrap_or_default()
    }
}

/// The speed of a run by the seconds of its step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    pub tokens_per_s_per_rank: f64,
    /// Days of the whole run.
    pub days: f64,
    pub rank_hours: f64,
}

impl Speed {
    pub fn of(config: &Config, mesh: &Mesh, seconds: f64) -> Speed {
        let (t, ranks) = (&config.train, mesh.ranks() as f64);
        let tokens = (t.global_batch_size * t.seq_length) as f64;
        let hours = seconds * t.steps as f64 / 3600.0;
        Speed { tokens_per_s_per_rank: tokens / seconds / ranks, days: hours / 24.0, rank_hours: hours * ranks }
    }

    /// TFLOPS of a rank.
    pub fn tflops(&self, config: &Config, by: Formula) -> f64 {
        let t = &config.train;
        self.tokens_per_s_per_rank * by.per_token(&config.model, t.seq_length, t.recompute) / 1e12
    }
}
