//! The cost model of a cluster file: the rates that it achieves, and the links between its ranks.

use super::cost;
use super::replay::{CommMode, CostModel};
use engine::backend::{Op, Scope};
use engine::config::{Achieved, Axis, Cluster, Config, Nccl, Overlap, Slowdown, Software};
use engine::dry::{Call, Operation};
use engine::layout::mesh::{GroupKind, Mesh};
use engine::layout::rank_layout::RankLayout;
use engine::model::param_specs::Unit;
use engine::time::CommClass;
use std::collections::HashMap;

/// The node of each rank, and how many ranks of a node share its network links.
#[derive(Debug, Clone)]
pub struct NodeMap {
    /// Pipeline stages.
    pub stages: usize,
    /// The node of each rank of the mesh.
    pub nodes: Vec<usize>,
    /// Ranks of the busiest node whose ring neighbour is on another node, by kind of group.
    flows: HashMap<GroupKind, usize>,
}

/// The kinds of groups whose calls take time.
const KINDS: [GroupKind; 7] = [
    GroupKind::Tensor,
    GroupKind::KvHeads,
    GroupKind::Data,
    GroupKind::Optimizer,
    GroupKind::Activations,
    GroupKind::Gradients,
    GroupKind::Tied,
];

impl NodeMap {
    /// Ranks fill one node after another.
    pub fn filled(config: &Config, mesh: &Mesh, ranks_per_node: usize) -> NodeMap {
        let nodes: Vec<usize> = (0..mesh.ranks()).map(|rank| rank / ranks_per_node).collect();
        let kv_replicas = RankLayout::new(config, mesh.clone(), 0).kv_replicas;
        let flows = |&kind: &GroupKind| {
            let mut leaving: HashMap<usize, usize> = HashMap::new();
            for (rank, node) in nodes.iter().enumerate() {
                let group = mesh.members(rank, kind, kv_replicas);
                let at = group.iter().position(|&member| member == rank).expect("a rank is in its group");
                let next = group[(at + 1) % group.len()];
                *leaving.entry(*node).or_default() += usize::from(nodes[next] != *node);
            }
            (kind, leaving.into_values().max().unwrap_or_default().max(1))
        };
        let flows = KINDS.iter().map(flows).collect();
        NodeMap { stages: mesh.size(Axis::Pipeline), nodes, flows }
    }

    /// Whether the ranks are on one node.
    fn together(&self, ranks: &[usize]) -> bool {
        ranks.iter().all(|&rank| self.nodes[rank] == self.nodes[ranks[0]])
    }
}

/// Costs by the rates of a cluster file.
pub struct AnalyticCosts<'a> {
    pub achieved: &'a Achieved,
    pub software: &'a Software,
    pub map: &'a NodeMap,
    pub nccl: &'a Nccl,
    /// Bytes of an activation.
    pub act: usize,
}

impl<'a> AnalyticCosts<'a> {
    /// `None` where the cluster file has no `[reached]` table.
    pub fn of(cluster: &'a Cluster, config: &'a Config, map: &'a NodeMap, act: usize) -> Option<AnalyticCosts<'a>> {
        let achieved = cluster.achieved.as_ref()?;
        Some(AnalyticCosts { achieved, software: &cluster.software, map, nccl: &config.nccl, act })
    }
}

impl CostModel for AnalyticCosts<'_> {
    fn op(&self, op: Op, sizes: [usize; 3]) -> f64 {
        cost::seconds(op, sizes, self.act, self.achieved, self.software)
    }

    /// Collectives are rings; the rings that leave a node share its network bandwidth.
    fn call(&self, rank: usize, call: &Call) -> f64 {
        let r = self.achieved;
        let flows = self.map.flows.get(&call.kind).copied().unwrap_or(1) as f64;
        let (together, message) = match call.what {
            Operation::Send(peer) | Operation::Receive(peer) => (self.map.together(&[rank, peer]), true),
            _ => (self.map.together(&call.members), false),
        };
        let (gb_s, latency) = match (together, message) {
            (true, _) => (r.ring_gb_s, r.latency_us),
            (false, true) => (r.message_gb_s.min(r.network_gb_s / flows), r.network_latency_us),
            (false, false) => (r.ring_gb_s.min(r.network_gb_s / flows), r.network_latency_us),
        };
        let gb_s = gb_s.min(call.kind.ctas(self.nccl) as f64 * r.cta_gb_s);
        let others = (call.members.len() - 1) as f64 / call.members.len() as f64;
        let moved = match call.what {
            Operation::AllReduce => 2.0 * others,
            Operation::AllGather | Operation::ReduceScatter => others,
            Operation::Send(_) | Operation::Receive(_) | Operation::AllToAll => 1.0,
        };
        call.bytes as f64 * moved / 1e9 / gb_s + latency / 1e6
    }

    fn host(&self, part: Scope) -> f64 {
        let ms = match part {
            Scope::Unit(Unit::Layer(_)) => self.software.layer_ms,
            // The host waits for the neighbouring stages once a micro-batch.
            Scope::Forward { chunk: 0, .. } | Scope::Backward { chunk: 0, .. } if self.map.stages > 1 => {
                self.software.wait_ms
            }
            _ => 0.0,
        };
        // Each part is entered twice, in forward and in backward.
        ms / 2.0 / 1e3
    }

    fn mode(&self, kind: GroupKind) -> CommMode {
        let overlap = match CommClass::of(kind) {
            CommClass::Tensor => Overlap::Tensor,
            CommClass::Pipeline => Overlap::Pipeline,
            CommClass::Data | CommClass::StepEnd => Overlap::Data,
        };
        let slowdown = match self.achieved.slowdown {
            Slowdown::Share(share) => share,
            Slowdown::Multiprocessors(all) => (kind.ctas(self.nccl) as f64 / all as f64).min(1.0),
        };
        match self.software.overlap.contains(&overlap) {
            true => CommMode::Overlapped { slowdown },
            false => CommMode::Blocking,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn configs(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs").join(name)
    }

    fn call(kind: GroupKind, what: Operation, members: &[usize]) -> Call {
        Call { group: 0, kind, members: members.into(), what, bytes: 1_000_000_000, post: 0 }
    }

    /// 7B: TP 2, PP 2, DP 16 on nodes of eight.
    #[test]
    fn calls_go_by_the_links_between_their_ranks() {
        let config = Config::read(&configs("swallow-7b.toml"), &[]).unwrap();
        let cluster = Cluster::load(&configs("clusters/abci-a100-40.toml")).unwrap();
        let mesh = config.mesh(64).unwrap();
        let map = NodeMap::filled(&config, &mesh, 8);
        let costs = AnalyticCosts::of(&cluster, &config, &map, 2).unwrap();
        let r = costs.achieved;
        let seconds = |call: &Call| costs.call(call.members[0], call);
        let near = |found: f64, wanted: f64| assert!((found / wanted - 1.0).abs() < 1e-9, "{found} s, not {wanted}");
        // Half a gigabyte from the other rank of the pair, over NVLink.
        near(seconds(&call(GroupKind::Tensor, Operation::AllGather, &[0, 1])), 0.5 / r.ring_gb_s + r.latency_us / 1e6);
        // A data-parallel ring of 16 ranks, every second GPU: two such rings leave each node.
        let data: Vec<usize> = mesh.members(0, GroupKind::Data, 1);
        assert_eq!(data.len(), 16);
        let flows = 2.0;
        let wanted = 15.0 / 16.0 / (r.network_gb_s / flows).min(r.ring_gb_s) + r.network_latency_us / 1e6;
        near(seconds(&call(GroupKind::Data, Operation::ReduceScatter, &data)), wanted);
        // An all-reduce goes round the ring twice.
        let sum = seconds(&call(GroupKind::Data, Operation::AllReduce, &data)) - r.network_latency_us / 1e6;
        near(sum, 2.0 * (wanted - r.network_latency_us / 1e6));
        // The next stage is on another node, and all eight GPUs of a node send at once.
        let peer = mesh.members(0, GroupKind::Activations, 1)[1];
        let message = 1.0 / r.message_gb_s.min(r.network_gb_s / 8.0) + r.network_latency_us / 1e6;
        near(seconds(&call(GroupKind::Activations, Operation::Send(peer), &[0, peer])), message);
        // Few thread blocks move fewer bytes a second.
        let few = Nccl { tensor_ctas: 2, ..config.nccl.clone() };
        let costs = AnalyticCosts { nccl: &few, ..costs };
        let pair = call(GroupKind::Tensor, Operation::AllGather, &[0, 1]);
        near(costs.call(0, &pair), 0.5 / (2.0 * r.cta_gb_s) + r.latency_us / 1e6);
    }

    #[test]
    fn communication_overlaps_where_the_software_says_so() {
        let config = Config::read(&configs("swallow-7b.toml"), &[]).unwrap();
        let mesh = config.mesh(64).unwrap();
        let map = NodeMap::filled(&config, &mesh, 8);
        let mode = |cluster: &str, kind| {
            let cluster = Cluster::load(&configs(cluster)).unwrap();
            AnalyticCosts::of(&cluster, &config, &map, 2).unwrap().mode(kind)
        };
        assert_eq!(mode("clusters/abci-a100-40-2023.toml", GroupKind::Tensor), CommMode::Blocking);
        // NCCL's thread blocks take 16 and 8 of the 108 multiprocessors.
        let slowed = |ctas: f64| CommMode::Overlapped { slowdown: ctas / 108.0 };
        assert_eq!(mode("clusters/abci-a100-40.toml", GroupKind::Tensor), slowed(16.0));
        assert_eq!(mode("clusters/abci-a100-40.toml", GroupKind::Data), slowed(8.0));
        let constant = CommMode::Overlapped { slowdown: 0.05 };
        assert_eq!(mode("clusters/abci-a100-40-2024.toml", GroupKind::Tensor), constant);
    }
}
