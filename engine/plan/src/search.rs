//! Searches for the fastest layout of a number of ranks: all valid ones are estimated in closed form, the best are
//! simulated.

use super::analytic::{AnalyticCosts, NodeMap};
use super::estimate::estimate;
use super::run::{memory, seconds, short_steps, whole_step};
use super::step::Step;
use crate::dry_run::{on_all_cores, plan, plan_shortly, stages};
use engine::backend::{Elem, Scratch};
use engine::config::{Achieved, Cluster, Config, Named, Parallel, Recompute, Train, chunk_counts, degrees, ranks_used};
use engine::error::Result;
use engine::layout::mesh::Mesh;
use std::collections::{BTreeSet, HashMap};

/// The number of layouts that a search simulates.
pub const SIMULATED: usize = 20;
/// The number of layouts that are simulated at once. A constant, so that the outcome does not depend on the number of
/// cores.
const BATCH: usize = 8;
/// The number of layouts that are simulated among those that differ only in virtual stages.
const ALIKE: usize = 2;
/// A short dry run overstates memory by a few percent: a candidate that exceeds the limit by no more than this factor
/// gets a dry run of whole steps.
const NEARLY: f64 = 1.05;
const MICRO_BATCHES: [usize; 4] = [1, 2, 4, 8];
const RECOMPUTE: [Recompute; 3] = [Recompute::None, Recompute::Selective, Recompute::Full];

/// A valid configuration with its time and memory: by the closed form, and later as simulated.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub config: Config,
    pub mesh: Mesh,
    /// Seconds of a step.
    pub seconds: f64,
    /// Bytes of the rank that needs most; after a search an upper bound by a few percent.
    pub bytes: usize,
}

/// A candidate that was not simulated, or not to the end.
#[derive(Debug, Clone)]
pub struct Rejected {
    pub candidate: Candidate,
    pub reason: Reason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A rank needs more memory than there is.
    TooLarge,
    /// Slower than the simulated ones by the closed form.
    Slower,
}

/// The result of a search; both lists have the fastest first.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    pub simulated: Vec<Candidate>,
    pub rejected: Vec<Rejected>,
}

impl Outcome {
    /// The number of valid layouts.
    pub fn valid(&self) -> usize {
        self.simulated.len() + self.rejected.len()
    }

    pub fn rejected_for(&self, reason: Reason) -> impl Iterator<Item = &Candidate> {
        self.rejected.iter().filter(move |rejected| rejected.reason == reason).map(|rejected| &rejected.candidate)
    }

    fn reject(&mut self, candidate: Candidate, reason: Reason) {
        self.rejected.push(Rejected { candidate, reason });
    }
}

/// The ranks, cluster and memory that layouts are searched for.
pub struct SearchSpace<'a, S> {
    pub ranks: usize,
    pub cluster: &'a Cluster,
    pub achieved: &'a Achieved,
    /// Bytes that a rank may take.
    pub limit: usize,
    pub scratch: &'a S,
}

/// The fastest of all layouts, micro-batch sizes, recomputations, virtual stages and, with experts, ranks that share
/// them. `done` is called for each layout that was simulated and fits.
pub fn search<A: Elem, S: Scratch + Clone + Send + Sync + 'static>(
    config: &Config,
    space: &SearchSpace<S>,
    done: &(dyn Fn() + Sync),
) -> Result<Outcome> {
    let base = config.with_layers_by_cost().unwrap_or_else(|| config.clone());
    let (mut outcome, mut alike, mut promising) = (Outcome::default(), HashMap::new(), Vec::new());
    for candidate in space.estimated(candidates(&base, space.ranks, space.cluster))? {
        if candidate.bytes > space.limit {
            outcome.reject(candidate, Reason::TooLarge);
            continue;
        }
        let n = alike.entry(family(&candidate.config)).or_insert(0);
        *n += 1;
        match *n <= ALIKE {
            true => promising.push(candidate),
            false => outcome.reject(candidate, Reason::Slower),
        }
    }
    let at_once = |_: &Candidate, simulated: &[Candidate]| BATCH.min(SIMULATED - simulated.len());
    space.simulate::<A>(promising, &mut outcome, at_once, done)?;
    Ok(outcome)
}

/// The properties shared by layouts that differ only in their virtual stages.
fn family(config: &Config) -> ([usize; 4], &'static str) {
    let (p, t) = (&config.parallel, &config.train);
    ([p.tensor, p.pipeline, p.expert, t.micro_batch_size], t.recompute.name())
}

/// All valid configurations of `ranks` ranks that differ in layout, micro-batch size and recomputation.
pub(super) fn candidates(config: &Config, ranks: usize, cluster: &Cluster) -> Vec<Config> {
    // The configuration's own size and its neighbours are among them.
    let own = config.train.micro_batch_size;
    let sizes: BTreeSet<usize> = MICRO_BATCHES.into_iter().chain([own, 2 * own, (own / 2).max(1)]).collect();
    let with = |(micro_batch_size, recompute)| Train { micro_batch_size, recompute, ..config.train.clone() };
    let trains: Vec<Train> =
        sizes.iter().flat_map(|&size| RECOMPUTE.map(|recompute| with((size, recompute)))).collect();
    let base = Config { parallel: Parallel { ranks: Some(ranks), ..config.parallel.clone() }, ..config.clone() };
    let layers = config.model.num_hidden_layers;
    let layouts = degrees(ranks, cluster.gpus_per_node, layers)
        .flat_map(|(t, p)| chunk_counts(p, layers).map(move |v| (t, p, v)))
        .map(|(t, p, v)| base.with_layout(t, p, v))
        .flat_map(|layout| sharings(&layout, ranks, cluster).map(move |expert| layout.with_experts_over(expert)));
    let all =
        layouts.flat_map(|layout| trains.iter().map(move |train| Config { train: train.clone(), ..layout.clone() }));
    all.filter(|config| config.runs_on(ranks)).collect()
}

/// The numbers of data-parallel ranks that can share the experts inside a node.
fn sharings(layout: &Config, ranks: usize, cluster: &Cluster) -> impl Iterator<Item = usize> + use<> {
    let (experts, replicas) = (layout.model.experts(), ranks / ranks_used(&layout.parallel));
    let most = (cluster.gpus_per_node / layout.parallel.tensor).max(1);
    (1..=most).filter(move |&n| n == 1 || (experts > 0 && experts.is_multiple_of(n) && replicas.is_multiple_of(n)))
}

impl<S: Scratch + Clone + Send + Sync + 'static> SearchSpace<'_, S> {
    /// The cost model; `act`: bytes of an activation.
    fn costs<'a>(&'a self, config: &'a Config, map: &'a NodeMap, act: usize) -> AnalyticCosts<'a> {
        AnalyticCosts { achieved: self.achieved, software: &self.cluster.software, map, nccl: &config.nccl, act }
    }

    fn map(&self, config: &Config, mesh: &Mesh) -> NodeMap {
        NodeMap::filled(config, mesh, self.cluster.gpus_per_node)
    }

    /// The closed form of each, the fastest first.
    pub(super) fn estimated(&self, configs: Vec<Config>) -> Result<Vec<Candidate>> {
        let mut all = on_all_cores(configs, &|| (), |config| {
            let mesh = config.mesh(self.ranks)?;
            let estimate = estimate(&config, &mesh, self.cluster, self.achieved);
            Ok(Candidate { config, mesh, seconds: estimate.seconds, bytes: estimate.bytes as usize })
        })?;
        all.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        Ok(all)
    }

    /// Simulates the candidates, the fastest first, as many at once as `at_once` allows for the next one and those
    /// simulated so far, until it allows none. `done` is called for each that fits. Sorts the outcome.
    pub(super) fn simulate<A: Elem>(
        &self,
        candidates: Vec<Candidate>,
        outcome: &mut Outcome,
        at_once: impl Fn(&Candidate, &[Candidate]) -> usize,
        done: &(dyn Fn() + Sync),
    ) -> Result<()> {
        let simulated = |candidate| {
            let (candidate, fits) = self.simulated::<A>(candidate)?;
            if fits {
                done();
            }
            Ok((candidate, fits))
        };
        let mut candidates = candidates.into_iter().peekable();
        loop {
            let n = candidates.peek().map_or(0, |next| at_once(next, &outcome.simulated));
            if n == 0 {
                break;
            }
            let batch: Vec<Candidate> = candidates.by_ref().take(n).collect();
            for (candidate, fits) in on_all_cores(batch, &|| (), simulated)? {
                match fits {
                    true => outcome.simulated.push(candidate),
                    false => outcome.reject(candidate, Reason::TooLarge),
                }
            }
        }
        candidates.for_each(|slower| outcome.reject(slower, Reason::Slower));
        outcome.simulated.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        outcome.rejected.sort_by(|a, b| a.candidate.seconds.total_cmp(&b.candidate.seconds));
        Ok(())
    }

    /// The candidate as simulated, and whether it fits. One that does not keeps the estimated seconds and has the bytes
    /// of the first ranks that exceed the limit.
    fn simulated<A: Elem>(&self, candidate: Candidate) -> Result<(Candidate, bool)> {
        let (config, mesh, mut bytes) = (&candidate.config, &candidate.mesh, 0);
        // The first stage holds most micro-batches, the last one the logits: they exceed the limit soonest.
        let ranks = stages(mesh);
        let last = ranks.len() - 1;
        for &rank in [&ranks[..1], &ranks[last.max(1)..], &ranks[1..last.max(1)]].into_iter().flatten() {
            let mut taken = plan_shortly::<A>(config, mesh, rank, self.scratch.clone())?.usage.reserved;
            if taken > self.limit && taken as f64 <= NEARLY * self.limit as f64 {
                taken = plan::<A>(config, mesh, rank, self.scratch.clone())?.usage.reserved;
            }
            bytes = bytes.max(taken);
            if bytes > self.limit {
                return Ok((Candidate { bytes, ..candidate }, false));
            }
        }
        let seconds = self.seconds::<A>(config, mesh)?;
        Ok((Candidate { bytes, seconds, ..candidate }, true))
    }

    /// Seconds of a step, extrapolated where it has many micro-batches.
    pub(super) fn seconds<A: Elem>(&self, config: &Config, mesh: &Mesh) -> Result<f64> {
        let (map, (short, times)) = (self.map(config, mesh), short_steps(config, mesh));
        let costs = self.costs(config, &map, size_of::<A>());
        let step = |config| seconds::<A>(config, mesh, &costs, self.scratch);
        let seconds: Vec<f64> = short.iter().map(step).collect::<Result<_>>()?;
        Ok(seconds[0] + (seconds[seconds.len() - 1] - seconds[0]) * times)
    }

    /// Bytes of the rank that needs most, exactly.
    pub(super) fn bytes<A: Elem>(&self, config: &Config, mesh: &Mesh) -> Result<usize> {
        let stages = memory::<A>(config, mesh, self.scratch, &|| ())?;
        Ok(stages.iter().map(|stage| stage.usage.reserved).max().unwrap_or_default())
    }

    /// Simulates a configuration without changes: its exact memory, and the breakdown of its step time.
    pub fn as_it_is<A: Elem>(&self, config: &Config, mesh: &Mesh) -> Result<(Candidate, Step)> {
        let bytes = self.bytes::<A>(config, mesh)?;
        let map = self.map(config, mesh);
        let step = whole_step::<A>(config, mesh, &self.costs(config, &map, size_of::<A>()), self.scratch)?;
        Ok((Candidate { config: config.clone(), mesh: mesh.clone(), seconds: step.seconds, bytes }, step))
    }
}
