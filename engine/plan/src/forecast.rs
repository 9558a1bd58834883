//! What a run would take, all together: memory of each stage, the time of a step, and what limits it.

use super::paper::{Paper, Seats};
use super::replay::Costs;
use super::run::{on_all_cores, run, stages, two_steps};
use super::step::Step;
use crate::dry_run::{DryRun, plan};
use engine::backend::{Elem, Scratch};
use engine::config::{Cluster, Config};
use engine::error::{Error, Result};
use engine::layout::mesh::Mesh;
use engine::model::flops::Formula;
use std::collections::BTreeSet;

/// A run that has not begun.
#[derive(Debug, Clone)]
pub struct Forecast {
    /// Of the first rank of each stage, which has the largest share of what tensor-parallel ranks divide.
    pub memory: Vec<DryRun>,
    /// `None` where nobody knows what the cluster reaches.
    pub step: Option<Step>,
}

impl Forecast {
    /// Of `config` on `mesh`, with the memory rules of the backend that would run; `one` is told of each of
    /// [`Forecast::rehearsals`].
    pub fn of<A: Elem>(
        config: &Config,
        mesh: &Mesh,
        cluster: &Cluster,
        scratch: impl Scratch + Clone + Send + Sync + 'static,
        one: &(dyn Fn() + Sync),
    ) -> Result<Forecast> {
        let seats = Seats::filled(config, mesh, cluster.gpus_per_node);
        let paper = Paper::of(cluster, &seats, size_of::<A>());
        Self::by::<A>(config, mesh, paper.as_ref().map(|paper| paper as &dyn Costs), scratch, one)
    }

    /// As `of`, by what things cost, if that is known.
    pub fn by<A: Elem>(
        config: &Config,
        mesh: &Mesh,
        costs: Option<&dyn Costs>,
        scratch: impl Scratch + Clone + Send + Sync + 'static,
        one: &(dyn Fn() + Sync),
    ) -> Result<Forecast> {
        let told = |rehearsal| {
            one();
            rehearsal
        };
        let memory = on_all_cores(stages(mesh), |rank| told(plan::<A>(config, mesh, rank, scratch.clone())));
        let memory = memory.into_iter().collect::<Result<_>>()?;
        let Some(costs) = costs else { return Ok(Forecast { memory, step: None }) };
        let rehearsed = on_all_cores(stages(mesh), |rank| told(two_steps::<A>(config, mesh, rank, scratch.clone())));
        let rehearsed: Vec<DryRun> = rehearsed.into_iter().collect::<Result<_>>()?;
        let unknown: BTreeSet<String> = rehearsed.iter().flat_map(|of| costs.unknown(&of.log)).collect();
        if !unknown.is_empty() {
            let unknown = Vec::from_iter(unknown).join(", ");
            return Err(Error::user(format!(
                "nobody has timed {unknown}: time this run's layout, too (benches/figures.sh)"
            )));
        }
        Ok(Forecast { memory, step: Some(run(&rehearsed, costs)) })
    }

    /// How often a stage is rehearsed: for its memory, and for its time where that can be told.
    pub fn rehearsals(mesh: &Mesh, costs_are_known: bool) -> usize {
        stages(mesh).len() * (1 + usize::from(costs_are_known))
    }

    /// Bytes that the rank takes which takes most.
    pub fn bytes(&self) -> usize {
        self.memory.iter().map(|rank| rank.usage.reserved).max().unwrap_or_default()
    }
}

/// How fast a step of so many seconds is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    pub tokens_per_s_per_rank: f64,
    /// Of the whole run.
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
