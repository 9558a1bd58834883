//! The part of a run that one rank holds: its coordinates in the mesh, its layers, buckets and samples, as a pure
//! function of the configuration, the mesh and the rank.

use crate::config::{Axis, Config};
use crate::layout::buckets::{self, Bucket, Held, Tie};
use crate::layout::mesh::{GroupKind, Mesh};
use crate::layout::split;
use crate::model::param_specs::{self, ExpertShare, Unit};
use crate::schedule::Pipe;
use std::ops::Range;

/// A bucket with fewer elements than this also takes in the next unit, since small messages use the network poorly.
const MIN_BUCKET: usize = 1 << 24;

/// A rank's coordinates in the mesh and what follows from them.
#[derive(Debug, Clone)]
pub struct RankLayout {
    pub mesh: Mesh,
    pub rank: usize,
    /// Index among the tensor-parallel ranks, and their number.
    pub tp: (usize, usize),
    /// Index among the data-parallel ranks, and their number.
    pub dp: (usize, usize),
    /// The experts that this rank holds.
    pub experts: ExpertShare,
    pub stage: usize,
    pub pipe: Pipe,
    /// The units that the stage runs, chunk by chunk.
    pub chunks: Vec<Vec<Unit>>,
    /// The number of tensor-parallel ranks that hold the same key/value head.
    pub kv_replicas: usize,
}

impl RankLayout {
    pub fn new(config: &Config, mesh: Mesh, rank: usize) -> Self {
        let along = |axis| (mesh.coord(rank, axis), mesh.size(axis));
        let (tp, (stage, stages)) = (along(Axis::Tensor), along(Axis::Pipeline));
        let dp = (mesh.replica(rank), mesh.replicas());
        let experts = ExpertShare { rank: mesh.coord(rank, Axis::Expert), ranks: mesh.size(Axis::Expert) };
        let t = &config.train;
        let n_mbs = t.global_batch_size / (t.micro_batch_size * dp.1);
        let pipe = Pipe { stages, chunks: config.parallel.virtual_pipeline, n_mbs };
        let all = split::chunks(&config.model, &layers_of_chunks(config));
        let chunks = all.into_iter().skip(stage).step_by(stages).collect();
        let kv_replicas = tp.1.div_ceil(config.model.num_key_value_heads);
        RankLayout { mesh, rank, tp, dp, experts, stage, pipe, chunks, kv_replicas }
    }

    /// The group of `kind` that this rank is in.
    pub fn members(&self, kind: GroupKind) -> Vec<usize> {
        self.mesh.members(self.rank, kind, self.kv_replicas)
    }

    /// Whether this rank saves its shard of a bucket and counts it in the gradient norm. Where each data-parallel rank
    /// holds all of it (`distributed_optimizer = false`), only the first one does.
    pub fn owns_shard(&self, bucket: &Bucket) -> bool {
        let [all, sharding] = [bucket.reduced_over, bucket.sharded_over()].map(|kind| self.members(kind));
        all == sharding || all[0] == self.rank
    }

    /// The number of elements that this rank saves.
    pub fn saved(&self, config: &Config) -> usize {
        let owned = |bucket: Bucket| {
            let members = self.members(bucket.sharded_over());
            let index = members.iter().position(|&rank| rank == self.rank).expect("a rank is in its group");
            if self.owns_shard(&bucket) { bucket.owned(&bucket.shard(index, members.len())) } else { Vec::new() }
        };
        self.buckets(config).into_iter().flat_map(owned).map(|range| range.len()).sum()
    }

    /// The buckets of all chunks.
    pub fn buckets(&self, config: &Config) -> Vec<Bucket> {
        let ranks = |kind| self.members(buckets::sharded_over(kind)).len();
        let held = self.chunks.iter().map(|units| self.held(config, units));
        held.flat_map(|held| buckets::plan(&held, self.tp, ranks, MIN_BUCKET)).collect()
    }

    /// The tensors that a chunk holds: those of its units, and, on the last stage of a model with tied embeddings, the
    /// embedding's table.
    fn held(&self, config: &Config, units: &[Unit]) -> Vec<Held> {
        let tied = config.model.tie_word_embeddings && self.pipe.stages > 1;
        let held = |unit: Unit, tie| Held {
            unit,
            tensors: param_specs::tensors(&config.model, unit, self.experts),
            tie,
            reduced_over: self.reduced_over(unit),
        };
        let mut all: Vec<Held> = Vec::new();
        for unit in units {
            let tie = if tied && *unit == Unit::Embedding { Tie::First } else { Tie::Free };
            all.extend(param_specs::with_experts(&config.model, *unit).map(|unit| held(unit, tie)));
            if tied && *unit == Unit::Head {
                all.push(held(Unit::Embedding, Tie::Last));
            }
        }
        all
    }

    /// The ranks that hold the same weights.
    fn reduced_over(&self, unit: Unit) -> GroupKind {
        match unit {
            Unit::Experts(_) if self.experts.ranks > 1 => GroupKind::ExpertData,
            _ => GroupKind::Data,
        }
    }

    /// Shape of a message between stages: `[T/tp, D]` under sequence parallelism, else `[T, D]`.
    pub fn message_shape(&self, config: &Config) -> (usize, usize) {
        let rows = config.train.micro_batch_size * config.train.seq_length;
        let ranks = if config.parallel.sequence_parallel { self.tp.1 } else { 1 };
        (rows / ranks, config.model.hidden_size)
    }

    /// The samples of micro-batch `mb` of global batch `batch`, in Megatron-LM's order: micro-batch after micro-batch,
    /// rank after rank.
    pub fn samples(&self, config: &Config, batch: u64, mb: usize) -> Range<u64> {
        let size = config.train.micro_batch_size as u64;
        let start = batch * config.train.global_batch_size as u64 + (mb * self.dp.1 + self.dp.0) as u64 * size;
        start..start + size
    }
}

/// Layers of each chunk in pipeline order: `parallel.layers`, or balanced by cost.
pub fn layers_of_chunks(config: &Config) -> Vec<usize> {
    let p = &config.parallel;
    let costs = split::Costs::of(&config.model, config.train.seq_length);
    let balanced = || split::balanced(config.model.num_hidden_layers, p.pipeline * p.virtual_pipeline, &costs);
    p.layers.clone().unwrap_or_else(balanced)
}
