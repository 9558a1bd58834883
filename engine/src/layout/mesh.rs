//! The device mesh: ranks as points of a grid with tensor, context, expert, data and pipeline axes, the fastest-varying
//! axis first. A group is the ranks that differ along one axis only.

use crate::config::{Axis, Config, Nccl, Parallel, degrees, near_multiples, near_pairs, ranks_used, samples};
use crate::error::{Error, Result, counted};
use serde::{Deserialize, Serialize};

/// The grid of all ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mesh {
    /// Axes and sizes, fastest-varying first.
    axes: [(Axis, usize); 5],
    /// Whether the data-parallel ranks shard the optimizer state; otherwise each of them has all of it.
    sharded_optimizer: bool,
}

/// The purpose of a group of ranks. Each kind has communicators of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum GroupKind {
    /// Tensor-parallel ranks.
    Tensor,
    /// Tensor-parallel ranks that hold the same key/value head, where there are more ranks than heads.
    KvHeads,
    /// Data-parallel ranks: same weights, other samples.
    Data,
    /// The ranks over which the optimizer state of the same weights is sharded.
    Optimizer,
    /// Data-parallel ranks that together hold all experts of a layer.
    Experts,
    /// Data-parallel ranks that hold the same experts.
    ExpertData,
    /// The ranks over which the optimizer state of the same experts is sharded.
    ExpertOptimizer,
    /// Pipeline stages, for activations of the forward pass.
    Activations,
    /// Pipeline stages, for gradients of the backward pass.
    Gradients,
    /// The first and the last stage, which both hold a tied embedding.
    Tied,
    /// All ranks.
    World,
}

impl Mesh {
    /// `[tensor, pipeline, data]`, as it is written to the files of a run.
    pub fn layout(&self) -> [usize; 3] {
        [self.size(Axis::Tensor), self.size(Axis::Pipeline), self.replicas()]
    }
}

/// Multiprocessors that NCCL's calls must leave free. On H100 and H200 the thread blocks of NCCL and of cuBLASLt may
/// come in clusters of four, which need four free multiprocessors in one of at most eight groups (GPCs): if 25 are
/// free, one group has four.
const FREE_PROCESSORS: usize = 25;

impl GroupKind {
    pub const ALL: [GroupKind; 11] = [
        GroupKind::Tensor,
        GroupKind::KvHeads,
        GroupKind::Data,
        GroupKind::Optimizer,
        GroupKind::Experts,
        GroupKind::ExpertData,
        GroupKind::ExpertOptimizer,
        GroupKind::Activations,
        GroupKind::Gradients,
        GroupKind::Tied,
        GroupKind::World,
    ];

    /// The kind whose stream this kind's calls use: kinds with few calls share one stream, since a device has few
    /// queues.
    pub fn lane(self) -> GroupKind {
        match self {
            GroupKind::KvHeads | GroupKind::Tied | GroupKind::World => GroupKind::World,
            GroupKind::ExpertData => GroupKind::Data,
            GroupKind::ExpertOptimizer => GroupKind::Optimizer,
            kind => kind,
        }
    }

    /// The thread blocks of NCCL, and so multiprocessors, that a call of this kind takes.
    pub fn ctas(self, nccl: &Nccl) -> usize {
        match self {
            GroupKind::Tensor | GroupKind::Experts => nccl.tensor_ctas,
            GroupKind::Data | GroupKind::Optimizer | GroupKind::ExpertData | GroupKind::ExpertOptimizer => {
                nccl.data_ctas
            }
            GroupKind::Activations | GroupKind::Gradients => nccl.pipeline_ctas,
            GroupKind::KvHeads | GroupKind::Tied | GroupKind::World => nccl.pipeline_ctas,
        }
    }

    /// Whether one call of each of these lanes leaves multiprocessors to the kernels that it may wait for; the error
    /// says what they take.
    pub fn must_leave_processors(
        lanes: &[GroupKind],
        nccl: &Nccl,
        processors: usize,
    ) -> std::result::Result<(), String> {
        let taken: usize = lanes.iter().map(|lane| lane.ctas(nccl)).sum();
        if lanes.is_empty() || taken + FREE_PROCESSORS <= processors {
            return Ok(());
        }
        let each = lanes.iter().map(|lane| format!("{} {}", lane.name(), lane.ctas(nccl))).collect::<Vec<_>>();
        Err(format!(
            "NCCL's calls may take {taken} of the GPU's {processors} multiprocessors at once ({}), and \
             {FREE_PROCESSORS} must stay free for the work that they wait for: lower the keys of [nccl]",
            each.join(", ")
        ))
    }

    /// The name in messages and files.
    pub fn name(self) -> &'static str {
        match self {
            GroupKind::Tensor => "tensor",
            GroupKind::KvHeads => "key/value heads",
            GroupKind::Data => "data",
            GroupKind::Optimizer => "optimizer",
            GroupKind::Experts => "experts",
            GroupKind::ExpertData => "data of experts",
            GroupKind::ExpertOptimizer => "optimizer of experts",
            GroupKind::Activations => "activations",
            GroupKind::Gradients => "gradients",
            GroupKind::Tied => "tied embeddings",
            GroupKind::World => "world",
        }
    }
}

impl Mesh {
    /// `None` unless `ranks` is a multiple of the ranks that the other axes use, and the data-parallel ranks one of
    /// the expert-parallel ones. Expert parallelism divides the data-parallel ranks and takes none of its own: the axis
    /// `Expert` runs over the ranks that share the experts, `Data` over those that hold the same ones.
    pub fn new(ranks: usize, p: &Parallel) -> Option<Mesh> {
        let used = ranks_used(p);
        if ranks == 0 || !ranks.is_multiple_of(used * p.expert) {
            return None;
        }
        let size = |axis| match axis {
            Axis::Tensor => p.tensor,
            Axis::Context => p.context,
            Axis::Expert => p.expert,
            Axis::Data => ranks / (used * p.expert),
            Axis::Pipeline => p.pipeline,
        };
        let axes = p.order.map(|axis| (axis, size(axis)));
        Some(Mesh { axes, sharded_optimizer: p.distributed_optimizer })
    }

    pub fn ranks(&self) -> usize {
        self.axes.iter().map(|&(_, size)| size).product()
    }

    pub fn size(&self, axis: Axis) -> usize {
        self.place(axis).1
    }

    /// Position of `rank` along `axis`.
    pub fn coord(&self, rank: usize, axis: Axis) -> usize {
        let (stride, size) = self.place(axis);
        rank / stride % size
    }

    /// The number of data-parallel ranks: of replicas of all weights but the experts'.
    pub fn replicas(&self) -> usize {
        self.size(Axis::Expert) * self.size(Axis::Data)
    }

    /// The replica that `rank` is a part of.
    pub fn replica(&self, rank: usize) -> usize {
        self.coord(rank, Axis::Expert) + self.size(Axis::Expert) * self.coord(rank, Axis::Data)
    }

    /// The data-parallel ranks that `rank` is one of, replica after replica.
    pub fn replicas_of(&self, rank: usize) -> Vec<usize> {
        self.group(rank, &[Axis::Expert, Axis::Data])
    }

    /// The position of every rank along `axis`.
    pub fn coords(&self, axis: Axis) -> Vec<usize> {
        (0..self.ranks()).map(|rank| self.coord(rank, axis)).collect()
    }

    /// The ranks that differ from `rank` along these axes only, the first axis varying fastest.
    pub fn group(&self, rank: usize, axes: &[Axis]) -> Vec<usize> {
        let mut ranks = vec![rank];
        for &axis in axes {
            let (stride, size) = self.place(axis);
            let offset = self.coord(rank, axis) * stride;
            ranks = (0..size).flat_map(|i| ranks.iter().map(move |rank| rank - offset + i * stride)).collect();
        }
        ranks
    }

    /// The lanes of all kinds of groups with several ranks.
    pub fn lanes(&self, kv_replicas: usize) -> Vec<GroupKind> {
        let several = |kind: &GroupKind| self.members(0, *kind, kv_replicas).len() > 1;
        let mut lanes: Vec<GroupKind> = vec![];
        for lane in GroupKind::ALL.into_iter().filter(several).map(GroupKind::lane) {
            if !lanes.contains(&lane) {
                lanes.push(lane);
            }
        }
        lanes
    }

    /// The group of `kind` that `rank` is in. `kv_replicas`: the number of tensor-parallel ranks that
    /// hold the same key/value head.
    pub fn members(&self, rank: usize, kind: GroupKind, kv_replicas: usize) -> Vec<usize> {
        let stages = self.group(rank, &[Axis::Pipeline]);
        match kind {
            GroupKind::Tensor => self.group(rank, &[Axis::Tensor]),
            GroupKind::KvHeads => {
                let first = self.coord(rank, Axis::Tensor) / kv_replicas * kv_replicas;
                self.group(rank, &[Axis::Tensor])[first..first + kv_replicas].to_vec()
            }
            GroupKind::Optimizer | GroupKind::ExpertOptimizer if !self.sharded_optimizer => vec![rank],
            GroupKind::Data | GroupKind::Optimizer => self.replicas_of(rank),
            GroupKind::Experts => self.group(rank, &[Axis::Expert]),
            GroupKind::ExpertData | GroupKind::ExpertOptimizer => self.group(rank, &[Axis::Data]),
            GroupKind::Activations | GroupKind::Gradients => stages,
            GroupKind::Tied => match self.coord(rank, Axis::Pipeline) {
                stage if stage == 0 || stage + 1 == stages.len() => {
                    let mut ends = vec![stages[0], stages[stages.len() - 1]];
                    ends.dedup();
                    ends
                }
                _ => vec![rank],
            },
            GroupKind::World => (0..self.ranks()).collect(),
        }
    }

    /// (stride, size) of an axis.
    fn place(&self, axis: Axis) -> (usize, usize) {
        let mut stride = 1;
        for &(a, size) in &self.axes {
            if a == axis {
                return (stride, size);
            }
            stride *= size;
        }
        unreachable!("an order names each axis once")
    }
}

impl Config {
    /// The mesh of `ranks` ranks, at most [`crate::config::MOST_RANKS`]. Each must have the same whole number of
    /// micro-batches a step; with interleaving, this number must be a multiple of the stages.
    pub fn mesh(&self, ranks: usize) -> Result<Mesh> {
        self.mesh_as_asked(ranks, &format!("mpirun -n {ranks}"))
    }

    /// Like [`Config::mesh`], but `asked` says in a message how the user gave the number of ranks.
    pub fn mesh_as_asked(&self, ranks: usize, asked: &str) -> Result<Mesh> {
        let p = &self.parallel;
        let mesh = Mesh::new(ranks, p).ok_or_else(|| self.wrong_ranks(ranks, asked))?;
        let (batch, dp) = (self.train.global_batch_size, mesh.replicas());
        match batch.is_multiple_of(samples(&self.train, p, dp)) {
            true => Ok(mesh),
            false => Err(self.wrong_batch(dp)),
        }
    }

    fn wrong_ranks(&self, ranks: usize, asked: &str) -> Error {
        let p = &self.parallel;
        let mut remedy = format!("the nearest that fit: {}", self.fitting_ranks(ranks));
        let layouts = self.fitting_layouts(ranks);
        if !layouts.is_empty() {
            let layouts: Vec<String> = layouts.iter().map(|(t, p)| format!("tensor {t} x pipeline {p}")).collect();
            let here = counted(ranks, "rank");
            remedy += &format!("; on {here} the nearest that fit: {}", layouts.join(" or "));
        }
        Error::user(format!(
            "{asked}: parallel.tensor {} x pipeline {} x context {}{} needs a multiple of {} ranks; {remedy}",
            p.tensor,
            p.pipeline,
            p.context,
            if p.expert > 1 { format!(" x expert {}", p.expert) } else { String::new() },
            ranks_used(p) * p.expert
        ))
    }

    fn wrong_batch(&self, dp: usize) -> Error {
        let (p, micro, batch) = (&self.parallel, self.train.micro_batch_size, self.train.global_batch_size);
        let (stages, remedy) = match p.virtual_pipeline {
            1 => (String::new(), ""),
            _ => (format!(" x pipeline ({}, interleaved)", p.pipeline), ", or with parallel.virtual_pipeline = 1"),
        };
        // Without interleaving the batch must still be shared evenly.
        let remedy = if batch.is_multiple_of(micro * dp) { remedy } else { "" };
        let fitting = self.fitting_ranks(dp * ranks_used(p));
        let fitting = if fitting == "1" { counted(1, "rank") } else { format!("{fitting} ranks") };
        Error::user(format!(
            "train.global_batch_size = {batch}: must be a multiple of micro_batch_size ({micro}) x data-parallel ranks \
             ({dp}){stages}; {}, or keep it and run on {fitting}{remedy}",
            near_multiples(batch as u64, samples(&self.train, p, dp) as u64),
        ))
    }

    /// The nearest numbers of ranks below and above `ranks` that this layout runs on, in words.
    fn fitting_ranks(&self, ranks: usize) -> String {
        let (used, batch) = (ranks_used(&self.parallel), self.train.global_batch_size);
        let shares = |dp: usize| dp.is_multiple_of(self.parallel.expert);
        let fits = |&dp: &usize| shares(dp) && batch.is_multiple_of(samples(&self.train, &self.parallel, dp));
        let below = (1..ranks.div_ceil(used).min(batch + 1)).rev().find(fits);
        let above = (ranks / used + 1..=batch).find(fits);
        let ranks: Vec<String> = below.into_iter().chain(above).map(|dp| (dp * used).to_string()).collect();
        ranks.join(" or ")
    }

    /// The degrees (tensor, pipeline) nearest to the configured ones that run on `ranks` ranks, all else being equal.
    fn fitting_layouts(&self, ranks: usize) -> Vec<(usize, usize)> {
        let (p, model) = (&self.parallel, &self.model);
        let fits = |&(tensor, pipeline): &(usize, usize)| {
            let other = self.with_layout(tensor, pipeline, p.virtual_pipeline);
            other.parallel.layers == p.layers && other.runs_on(ranks)
        };
        let layouts = degrees(ranks, model.num_attention_heads, model.num_hidden_layers).filter(fits);
        near_pairs((p.tensor, p.pipeline), layouts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AXES: [Axis; 5] = [Axis::Tensor, Axis::Context, Axis::Expert, Axis::Data, Axis::Pipeline];

    #[test]
    fn one_call_of_each_lane_leaves_processors_free() {
        let p = Parallel { tensor: 2, pipeline: 2, ..Parallel::default() };
        let lanes = Mesh::new(8, &p).unwrap().lanes(1);
        assert_eq!(lanes.len(), 6, "tensor, data, optimizer, activations, gradients, world: {lanes:?}");
        assert!(Mesh::new(1, &Parallel::default()).unwrap().lanes(1).is_empty());
        // 16 + 2 x 8 + 3 x 4.
        let fits = |processors| GroupKind::must_leave_processors(&lanes, &Nccl::default(), processors);
        assert_eq!((fits(44 + 25), GroupKind::must_leave_processors(&[], &Nccl::default(), 2)), (Ok(()), Ok(())));
        let message = fits(44 + 24).unwrap_err();
        assert!(message.contains("44 of the GPU's 68") && message.contains("tensor 16, data 8"), "{message}");
    }

    proptest! {
        #[test]
        fn groups_partition_the_ranks(
            tensor in 1usize..5, context in 1usize..3, pipeline in 1usize..5, data in 1usize..5, turn in 0usize..5,
        ) {
            let mut order = AXES;
            order.rotate_left(turn);
            let p = Parallel { tensor, pipeline, context, order, ..Parallel::default() };
            let mesh = Mesh::new(tensor * context * pipeline * data, &p).unwrap();
            prop_assert_eq!(mesh.size(Axis::Data), data);
            for axis in AXES {
                for rank in 0..mesh.ranks() {
                    let group = mesh.group(rank, &[axis]);
                    prop_assert_eq!(group[mesh.coord(rank, axis)], rank);
                    for &other in &group {
                        prop_assert_eq!(&mesh.group(other, &[axis]), &group);
                        for a in AXES.into_iter().filter(|&a| a != axis) {
                            prop_assert_eq!(mesh.coord(other, a), mesh.coord(rank, a));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn megatron_order_puts_tensor_ranks_side_by_side() {
        let p = Parallel { tensor: 2, pipeline: 2, order: AXES, ..Parallel::default() };
        let mesh = Mesh::new(16, &p).unwrap();
        assert_eq!(mesh.group(5, &[Axis::Tensor]), [4, 5]);
        assert_eq!(mesh.group(5, &[Axis::Data]), [1, 3, 5, 7]);
        assert_eq!(mesh.group(5, &[Axis::Pipeline]), [5, 13]);
        assert_eq!(mesh.group(5, &[Axis::Tensor, Axis::Pipeline]), [4, 5, 12, 13]);
        assert_eq!(mesh.group(5, &[Axis::Pipeline, Axis::Tensor]), [4, 12, 5, 13]);
        assert_eq!(Mesh::new(6, &p), None);
    }
}
