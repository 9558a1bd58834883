//! The bytes that a step sends between ranks, counted by dry runs, and the links that they take on given nodes. How
//! ranks are placed on nodes is in `layout/placement.rs`.

use crate::dry_run::{classes, on_all_cores, step_totals};
use engine::backend::{Elem, Scratch};
use engine::config::Config;
use engine::error::Result;
use engine::layout::mesh::{GroupKind, Mesh};
use engine::layout::rank_layout::RankLayout;
use std::collections::BTreeMap;

/// Bytes that a rank sends in a step, by kind of group.
pub type Sent = BTreeMap<GroupKind, u64>;

/// The bytes that each rank of the mesh sends in a step, without the scalars of loss and gradient norm. Collectives are
/// rings: for a tensor of S bytes, each of n ranks sends S (n - 1) / n to the next, and twice that for an all-reduce.
pub fn sent<A: Elem>(
    config: &Config,
    mesh: &Mesh,
    scratch: &(impl Scratch + Clone + Sync + 'static),
) -> Result<Vec<Sent>> {
    let of_class = |ranks: Vec<usize>| {
        let traffic = step_totals::<A>(config, mesh, ranks[0], scratch.clone())?.traffic.into_iter();
        let sent: Sent =
            traffic.filter(|(kind, _)| *kind != GroupKind::World).map(|(kind, all)| (kind, all.bytes)).collect();
        Ok((ranks, sent))
    };
    let mut all = vec![Sent::new(); mesh.ranks()];
    for (ranks, sent) in on_all_cores(classes(mesh), &|| (), of_class)? {
        ranks.into_iter().for_each(|rank| all[rank] = sent.clone());
    }
    Ok(all)
}

/// Bytes of a step by link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Crossing {
    /// Between ranks of one node.
    pub inside: u64,
    /// Between nodes.
    pub network: u64,
}

/// The traffic of all ranks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Links {
    pub by_kind: BTreeMap<GroupKind, Crossing>,
    /// Bytes that each node sends over the network.
    pub by_node: BTreeMap<usize, u64>,
}

impl Links {
    pub fn total(&self) -> Crossing {
        sum(self.by_kind.values())
    }

    /// The traffic in groups of these kinds.
    pub fn of(&self, kinds: &[GroupKind]) -> Crossing {
        sum(kinds.iter().filter_map(|kind| self.by_kind.get(kind)))
    }

    /// The most bytes that a node sends over the network.
    pub fn busiest(&self) -> u64 {
        self.by_node.values().copied().max().unwrap_or_default()
    }
}

fn sum<'a>(crossings: impl Iterator<Item = &'a Crossing>) -> Crossing {
    crossings.fold(Crossing::default(), |a, b| Crossing { inside: a.inside + b.inside, network: a.network + b.network })
}

/// The links that the traffic takes; `nodes` has the node of each rank of the mesh.
pub fn links(config: &Config, mesh: &Mesh, sent: &[Sent], nodes: &[usize]) -> Links {
    let (mut links, kv_replicas) = (Links::default(), RankLayout::new(config, mesh.clone(), 0).kv_replicas);
    for (rank, sent) in sent.iter().enumerate() {
        for (&kind, &bytes) in sent {
            let crossing = links.by_kind.entry(kind).or_default();
            if kind == GroupKind::Experts {
                let members = mesh.members(rank, kind, kv_replicas);
                let others = members.iter().filter(|&&member| member != rank);
                let inside = others.filter(|&&member| nodes[member] == nodes[rank]).count();
                let inside = bytes * inside as u64 / (members.len() as u64 - 1).max(1);
                crossing.inside += inside;
                crossing.network += bytes - inside;
                *links.by_node.entry(nodes[rank]).or_default() += bytes - inside;
            } else if nodes[rank] == nodes[next(mesh, rank, kind, kv_replicas)] {
                crossing.inside += bytes;
            } else {
                crossing.network += bytes;
                *links.by_node.entry(nodes[rank]).or_default() += bytes;
            }
        }
    }
    links
}

/// The rank that `rank` sends to in its group of `kind`.
fn next(mesh: &Mesh, rank: usize, kind: GroupKind, kv_replicas: usize) -> usize {
    let members = mesh.members(rank, kind, kv_replicas);
    let at = members.iter().position(|&member| member == rank).expect("a rank is in its group");
    let step = if kind == GroupKind::Gradients { members.len() - 1 } else { 1 };
    members[(at + step) % members.len()]
}

#[cfg(test)]
pub mod tests;
