//! Costs on paper: a cluster's figures, and where its ranks sit.

use super::cost;
use super::replay::{Costs, Manner};
use engine::backend::Scope;
use engine::config::{Axis, Cluster, Config, Overlap, Reached, Software};
use engine::dry::{Call, What};
use engine::layout::mesh::{GroupKind, Mesh};
use engine::layout::rank_layout::RankLayout;
use engine::model::param_specs::Unit;
use engine::time::CommClass;
use std::collections::HashMap;

/// Where ranks sit: their nodes, and how many of a node talk to other nodes at once.
#[derive(Debug, Clone)]
pub struct Seats {
    /// Of the pipeline.
    pub stages: usize,
    /// Of each rank of the mesh.
    pub nodes: Vec<usize>,
    /// By kind of group, of the fullest node.
    flows: HashMap<GroupKind, usize>,
}

/// Kinds of groups whose calls take time.
const KINDS: [GroupKind; 7] = [
    GroupKind::Tensor,
    GroupKind::KvHeads,
    GroupKind::Data,
    GroupKind::Optimizer,
    GroupKind::Activations,
    GroupKind::Gradients,
    GroupKind::Tied,
];

impl Seats {
    /// Node after node is filled.
    pub fn filled(config: &Config, mesh: &Mesh, ranks_per_node: usize) -> Seats {
        let nodes = (0..mesh.ranks()).map(|rank| rank / ranks_per_node).collect();
        let rank_layout = RankLayout::new(config, mesh.clone(), 0);
        let stages = mesh.size(Axis::Pipeline);
        Seats::new(nodes, stages, &KINDS, |rank, kind| mesh.members(rank, kind, rank_layout.kv_copies()))
    }

    /// `members`: the group of a kind that a rank is in.
    pub fn new(
        nodes: Vec<usize>,
        stages: usize,
        kinds: &[GroupKind],
        members: impl Fn(usize, GroupKind) -> Vec<usize>,
    ) -> Seats {
        let flows = |&kind: &GroupKind| {
            let mut leaving: HashMap<usize, usize> = HashMap::new();
            for (rank, node) in nodes.iter().enumerate() {
                let group = members(rank, kind);
                let at = group.iter().position(|&member| member == rank).expect("a rank is in its group");
                let next = group[(at + 1) % group.len()];
                *leaving.entry(*node).or_default() += usize::from(nodes[next] != *node);
            }
            (kind, leaving.into_values().max().unwrap_or_default().max(1))
        };
        let flows = kinds.iter().map(flows).collect();
        Seats { stages, nodes, flows }
    }

    /// Whether ranks sit on one node.
    fn together(&self, ranks: &[usize]) -> bool {
        ranks.iter().all(|&rank| self.nodes[rank] == self.nodes[ranks[0]])
    }
}

/// What things cost on a cluster.
pub struct Paper<'a> {
    pub reached: &'a Reached,
    pub software: &'a Software,
    pub seats: &'a Seats,
    /// Bytes of an activation.
    pub act: usize,
}

impl<'a> Paper<'a> {
    /// `None` where the cluster's file does not say what is reached.
    pub fn of(cluster: &'a Cluster, seats: &'a Seats, act: usize) -> Option<Paper<'a>> {
        let reached = cluster.reached.as_ref()?;
        Some(Paper { reached, software: &cluster.software, seats, act })
    }
}

impl Costs for Paper<'_> {
    fn op(&self, name: &'static str, sizes: [usize; 3]) -> f64 {
        cost::seconds(name, sizes, self.act, self.reached, self.software)
    }

    /// Collectives are rings; of those that go through the network all of a node share it.
    fn call(&self, rank: usize, call: &Call) -> f64 {
        let r = self.reached;
        let flows = self.seats.flows.get(&call.kind).copied().unwrap_or(1) as f64;
        let (together, message) = match call.what {
            What::Send(peer) | What::Receive(peer) => (self.seats.together(&[rank, peer]), true),
            _ => (self.seats.together(&call.members), false),
        };
        let (gb_s, latency) = match (together, message) {
            (true, _) => (r.ring_gb_s, r.latency_us),
            (false, true) => (r.message_gb_s.min(r.network_gb_s / flows), r.network_latency_us),
            (false, false) => (r.ring_gb_s.min(r.network_gb_s / flows), r.network_latency_us),
        };
        let others = (call.members.len() - 1) as f64 / call.members.len() as f64;
        let moved = match call.what {
            What::AllReduce => 2.0 * others,
            What::AllGather | What::ReduceScatter => others,
            What::Send(_) | What::Receive(_) => 1.0,
        };
        call.bytes as f64 * moved / 1e9 / gb_s + latency / 1e6
    }

    fn part(&self, part: Scope) -> f64 {
        let ms = match part {
            Scope::Unit(Unit::Layer(_)) => self.software.layer_ms,
            // With the stages beside it, once a micro-batch.
            Scope::Forward { chunk: 0, .. } | Scope::Backward { chunk: 0, .. } if self.seats.stages > 1 => {
                self.software.wait_ms
            }
            _ => 0.0,
        };
        // Each is entered twice, forward and backward.
        ms / 2.0 / 1e3
    }

    fn manner(&self, kind: GroupKind) -> Manner {
        let overlap = match CommClass::of(kind) {
            CommClass::Tensor => Overlap::Tensor,
            CommClass::Pipeline => Overlap::Pipeline,
            CommClass::Data | CommClass::StepEnd => Overlap::Data,
        };
        match self.software.overlap.contains(&overlap) {
            true => Manner::Beside { slowdown: self.reached.slowdown },
            false => Manner::Alone,
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

    fn call(kind: GroupKind, what: What, members: &[usize]) -> Call {
        Call { group: 0, kind, members: members.into(), what, bytes: 1_000_000_000, post: 0 }
    }

    /// 7B: TP 2, PP 2, DP 16 on nodes of eight.
    #[test]
    fn calls_go_by_the_links_between_their_ranks() {
        let config = Config::read(&configs("swallow-7b.toml"), &[]).unwrap();
        let cluster = Cluster::load(&configs("clusters/abci-a100-40.toml")).unwrap();
        let mesh = config.mesh(64).unwrap();
        let seats = Seats::filled(&config, &mesh, 8);
        let paper = Paper::of(&cluster, &seats, 2).unwrap();
        let r = paper.reached;
        let seconds = |call: &Call| paper.call(call.members[0], call);
        let near = |found: f64, wanted: f64| assert!((found / wanted - 1.0).abs() < 1e-9, "{found} s, not {wanted}");
        // Half of a gigabyte from the one other rank of the pair, by NVLink.
        near(seconds(&call(GroupKind::Tensor, What::AllGather, &[0, 1])), 0.5 / r.ring_gb_s + r.latency_us / 1e6);
        // A data-parallel ring of 16 ranks, every second GPU: of each node the groups of two tensor ranks leave it.
        let data: Vec<usize> = mesh.members(0, GroupKind::Data, 1);
        assert_eq!(data.len(), 16);
        let flows = 2.0;
        let wanted = 15.0 / 16.0 / (r.network_gb_s / flows).min(r.ring_gb_s) + r.network_latency_us / 1e6;
        near(seconds(&call(GroupKind::Data, What::ReduceScatter, &data)), wanted);
        // Twice the way for everybody to have the sum.
        let sum = seconds(&call(GroupKind::Data, What::AllReduce, &data)) - r.network_latency_us / 1e6;
        near(sum, 2.0 * (wanted - r.network_latency_us / 1e6));
        // Stages are on other nodes, and all eight GPUs of one send at once.
        let peer = mesh.members(0, GroupKind::Activations, 1)[1];
        let message = 1.0 / r.message_gb_s.min(r.network_gb_s / 8.0) + r.network_latency_us / 1e6;
        near(seconds(&call(GroupKind::Activations, What::Send(peer), &[0, peer])), message);
    }

    #[test]
    fn what_a_program_hides_goes_on_beside() {
        let config = Config::read(&configs("swallow-7b.toml"), &[]).unwrap();
        let mesh = config.mesh(64).unwrap();
        let seats = Seats::filled(&config, &mesh, 8);
        let manner = |cluster: &str, kind| {
            let cluster = Cluster::load(&configs(cluster)).unwrap();
            Paper::of(&cluster, &seats, 2).unwrap().manner(kind)
        };
        assert_eq!(manner("clusters/abci-a100-40-2023.toml", GroupKind::Tensor), Manner::Alone);
        assert!(matches!(manner("clusters/abci-a100-40.toml", GroupKind::Tensor), Manner::Beside { .. }));
        assert!(matches!(manner("clusters/abci-a100-40.toml", GroupKind::Data), Manner::Beside { .. }));
    }
}
