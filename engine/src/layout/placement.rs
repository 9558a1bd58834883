//! Rank placement: which process takes which rank of the mesh, whatever the order in which `mpirun` started them.
//! Tensor-parallel groups stay inside a node where they fit, then data-parallel ones, and pipeline stages are on
//! different nodes, in the order of the mesh's axes.

use crate::config::Axis;
use crate::layout::mesh::Mesh;

/// The place where a process runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankSlot {
    pub host: String,
    /// Nodes are numbered in the order of their first process in MPI's order.
    pub node: usize,
    /// Index among the processes of the node, which is the number of its GPU.
    pub local: usize,
}

/// The process (rank of MPI's world) that takes each rank of the mesh, given the node of each process.
///
/// Nodes are filled one after another, so that neighbours in the mesh are on one node. Processes that do not fill a
/// tensor-parallel group on their node come last, so that they split no other group. Process 0, which reads and writes
/// for all, keeps rank 0.
pub fn reorder_ranks(nodes: &[usize], mesh: &Mesh) -> Vec<usize> {
    assert_eq!(nodes.len(), mesh.ranks(), "processes, and ranks of the mesh");
    let block = block(mesh);
    let (mut whole, mut rest) = (Vec::new(), Vec::new());
    for processes in by_node(nodes) {
        let filled = processes.len() / block * block;
        whole.extend_from_slice(&processes[..filled]);
        rest.extend_from_slice(&processes[filled..]);
    }
    // Process 0 comes first, even if its node has no whole group.
    if rest.first() == Some(&0) {
        let others = rest.split_off(block);
        return [rest, whole, others].concat();
    }
    whole.extend(rest);
    whole
}

/// The number of consecutive ranks that make whole tensor-parallel groups.
fn block(mesh: &Mesh) -> usize {
    let group = mesh.group(0, &[Axis::Tensor]);
    group.get(1).map_or(1, |next| next * group.len())
}

/// The processes of each node, with the nodes in the order of their first process.
fn by_node(nodes: &[usize]) -> Vec<Vec<usize>> {
    let mut out: Vec<Vec<usize>> = Vec::new();
    for (process, node) in nodes.iter().enumerate() {
        match out.iter_mut().find(|processes| nodes[processes[0]] == *node) {
            Some(processes) => processes.push(process),
            None => out.push(vec![process]),
        }
    }
    out
}

/// The node of each rank under the naive mapping, `mpirun --map-by node` without reordering: ranks go to the nodes
/// round robin, full nodes being skipped. Each node has as many ranks as in `nodes`.
pub fn round_robin(nodes: &[usize]) -> Vec<usize> {
    let mut free: Vec<Vec<usize>> = by_node(nodes);
    let mut out = Vec::with_capacity(nodes.len());
    while out.len() < nodes.len() {
        out.extend(free.iter_mut().filter_map(Vec::pop).map(|process| nodes[process]));
    }
    out
}

/// The tensor-parallel groups on more than one node, as ranks of the mesh; `nodes` has the node of each rank.
pub fn split_tensor_groups(mesh: &Mesh, nodes: &[usize]) -> Vec<Vec<usize>> {
    split_groups(mesh, nodes, Axis::Tensor)
}

/// The groups along an axis that are on more than one node.
fn split_groups(mesh: &Mesh, nodes: &[usize], axis: Axis) -> Vec<Vec<usize>> {
    let first = (0..mesh.ranks()).filter(|&rank| mesh.coord(rank, axis) == 0);
    let groups = first.map(|rank| mesh.group(rank, &[axis]));
    groups.filter(|group| group.iter().any(|&rank| nodes[rank] != nodes[group[0]])).collect()
}

/// The N of `mpirun --map-by ppr:N:node` with which no tensor-parallel group is split; `None` if a node cannot hold a
/// whole group. `room`: processes that a node can hold.
pub fn ranks_a_node(mesh: &Mesh, room: usize) -> Option<usize> {
    let block = block(mesh);
    let fitting = room.min(mesh.ranks()) / block * block;
    (fitting > 0).then_some(fitting)
}

/// The largest number of processes on a node.
pub fn fullest(nodes: &[usize]) -> usize {
    by_node(nodes).iter().map(Vec::len).max().unwrap_or_default()
}

/// A warning with a remedy if tensor-parallel groups span nodes, or else groups of ranks that share experts; the
/// arguments are those of the functions above.
pub fn split_warning(mesh: &Mesh, nodes: &[usize], room: usize) -> Option<String> {
    split_tensor_warning(mesh, nodes, room).or_else(|| split_expert_warning(mesh, nodes))
}

fn split_expert_warning(mesh: &Mesh, nodes: &[usize]) -> Option<String> {
    let (split, expert) = (split_groups(mesh, nodes, Axis::Expert), mesh.size(Axis::Expert));
    let first = split.first()?;
    Some(format!(
        "{} of {} groups of ranks that share experts span nodes (first ranks {} on nodes {}), so the rows of every \
         layer with experts cross the network; lower parallel.expert ({expert}), or put ep behind tp in parallel.order",
        split.len(),
        mesh.ranks() / expert,
        spans(first.iter().copied()),
        spans(first.iter().map(|&rank| nodes[rank])),
    ))
}

fn split_tensor_warning(mesh: &Mesh, nodes: &[usize], room: usize) -> Option<String> {
    let split = split_tensor_groups(mesh, nodes);
    let first = split.first()?;
    let tensor = mesh.size(Axis::Tensor);
    let remedy = match ranks_a_node(mesh, room) {
        Some(ranks) => format!("`mpirun --map-by ppr:{ranks}:node` starts whole groups on each node"),
        None if tensor <= room => "put tp first in parallel.order".to_string(),
        None => format!("a node has room for {room}; lower parallel.tensor ({tensor})"),
    };
    Some(format!(
        "{} of {} tensor-parallel groups span nodes (first ranks {} on nodes {}), so every layer's activations cross \
         the network; {remedy}",
        split.len(),
        mesh.ranks() / tensor,
        spans(first.iter().copied()),
        spans(first.iter().map(|&rank| nodes[rank])),
    ))
}

/// These numbers, in any order, as text such as `0-3, 8`.
pub fn spans(numbers: impl Iterator<Item = usize>) -> String {
    let mut numbers: Vec<usize> = numbers.collect();
    numbers.sort_unstable();
    numbers.dedup();
    let runs = numbers.chunk_by(|a, b| a + 1 == *b);
    let text = runs.map(|run| match run {
        [one] => one.to_string(),
        run => format!("{}-{}", run[0], run[run.len() - 1]),
    });
    text.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Parallel;
    use proptest::prelude::*;

    fn mesh(ranks: usize, tensor: usize, pipeline: usize) -> Mesh {
        Mesh::new(ranks, &Parallel { tensor, pipeline, ..Parallel::default() }).unwrap()
    }

    /// The node of each rank of the mesh.
    fn placed(nodes: &[usize], mesh: &Mesh) -> Vec<usize> {
        reorder_ranks(nodes, mesh).iter().map(|&process| nodes[process]).collect()
    }

    /// The node of each process, with `counts` processes on the nodes, in the order `shuffle`; nodes are numbered by
    /// first appearance.
    fn started(counts: &[usize], shuffle: &[prop::sample::Index]) -> Vec<usize> {
        let mut nodes: Vec<usize> = counts.iter().enumerate().flat_map(|(n, &count)| vec![n; count]).collect();
        for i in (1..nodes.len()).rev() {
            nodes.swap(i, shuffle[i].index(i + 1));
        }
        named(&nodes)
    }

    fn named(nodes: &[usize]) -> Vec<usize> {
        let mut seen = Vec::new();
        let name = |node: &usize| {
            seen.iter().position(|n| n == node).unwrap_or_else(|| {
                seen.push(*node);
                seen.len() - 1
            })
        };
        nodes.iter().map(name).collect()
    }

    fn shuffles() -> impl Strategy<Value = Vec<prop::sample::Index>> {
        prop::collection::vec(any::<prop::sample::Index>(), 64)
    }

    proptest! {
        /// For any counts, the result is a permutation that begins with process 0 and splits no more groups than it
        /// must.
        #[test]
        fn as_many_groups_are_whole_as_nodes_have_room_for(
            mut counts in prop::collection::vec(1usize..9, 1..6), tensor in 1usize..5, shuffle in shuffles(),
        ) {
            let ranks = counts.iter().sum::<usize>().next_multiple_of(tensor);
            counts[0] += ranks - counts.iter().sum::<usize>();
            let (nodes, mesh) = (started(&counts, &shuffle), mesh(ranks, tensor, 1));
            let order = reorder_ranks(&nodes, &mesh);
            prop_assert_eq!(order[0], 0);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..ranks).collect::<Vec<_>>());
            let whole: usize = counts.iter().map(|count| count / tensor).sum();
            let split = split_tensor_groups(&mesh, &placed(&nodes, &mesh));
            prop_assert_eq!(split.len(), ranks / tensor - whole);
        }

        /// If all nodes have the same size, the order in which the processes were started changes only the nodes'
        /// numbers.
        #[test]
        fn the_start_order_does_not_matter(
            nodes in 1usize..5, groups in 1usize..4, tensor in 1usize..5, shuffle in shuffles(),
        ) {
            let counts = vec![groups * tensor; nodes];
            let mesh = mesh(nodes * groups * tensor, tensor, nodes);
            let at = placed(&started(&counts, &shuffle), &mesh);
            let node_after_node: Vec<usize> = (0..nodes).flat_map(|node| vec![node; groups * tensor]).collect();
            prop_assert_eq!(&at, &node_after_node);
            prop_assert!(split_tensor_groups(&mesh, &at).is_empty());
        }
    }

    #[test]
    fn the_naive_mapping_is_round_robin() {
        assert_eq!(round_robin(&[0, 0, 0, 1, 2, 2]), [0, 1, 2, 0, 2, 0]);
        let mesh = mesh(4, 2, 1);
        assert_eq!(split_tensor_groups(&mesh, &round_robin(&[0, 0, 1, 1])), [vec![0, 1], vec![2, 3]]);
    }

    #[test]
    fn a_split_group_is_reported_with_its_remedy() {
        let mesh = mesh(6, 2, 1);
        let nodes = placed(&[0, 0, 0, 1, 1, 1], &mesh);
        assert_eq!(fullest(&nodes), 3);
        let warning = split_warning(&mesh, &nodes, 3).unwrap();
        assert!(
            warning.starts_with("1 of 3 tensor-parallel groups span nodes (first ranks 4-5 on nodes 0-1)"),
            "{warning}"
        );
        assert!(warning.ends_with("`mpirun --map-by ppr:2:node` starts whole groups on each node"), "{warning}");
        assert_eq!(split_warning(&mesh, &[0, 0, 0, 0, 1, 1], 4), None);
        let mesh = Mesh::new(8, &Parallel { expert: 4, ..Parallel::default() }).unwrap();
        assert_eq!(split_warning(&mesh, &[0, 0, 0, 0, 1, 1, 1, 1], 4), None);
        let warning = split_warning(&mesh, &[0, 0, 0, 0, 1, 1, 2, 2], 4).unwrap();
        assert!(
            warning.starts_with("1 of 2 groups of ranks that share experts span nodes (first ranks 4-7 on nodes 1-2)")
        );
    }

    #[test]
    fn spans_are_runs() {
        assert_eq!(spans([8, 3, 1, 2, 3].into_iter()), "1-3, 8");
    }

    #[test]
    fn ranks_of_mpirun_are_whole_groups() {
        assert_eq!(ranks_a_node(&mesh(16, 4, 1), 8), Some(8));
        assert_eq!(ranks_a_node(&mesh(16, 4, 1), 7), Some(4));
        assert_eq!(ranks_a_node(&mesh(16, 16, 1), 8), None);
        assert_eq!(ranks_a_node(&mesh(4, 2, 1), 8), Some(4));
    }

    #[test]
    fn an_order_with_data_inside_keeps_groups_together_where_they_fit() {
        let order = [Axis::Data, Axis::Tensor, Axis::Context, Axis::Expert, Axis::Pipeline];
        let p = Parallel { tensor: 2, pipeline: 2, order, ..Parallel::default() };
        let mesh = Mesh::new(8, &p).unwrap();
        let at = placed(&[0, 1, 0, 1, 0, 1, 0, 1], &mesh);
        assert_eq!(at, [0, 0, 0, 0, 1, 1, 1, 1]);
        assert!(split_tensor_groups(&mesh, &at).is_empty());
    }

    #[test]
    fn the_remedy_for_an_order_that_splits_small_groups_is_another_order() {
        let order = [Axis::Data, Axis::Tensor, Axis::Context, Axis::Expert, Axis::Pipeline];
        let mesh = Mesh::new(32, &Parallel { tensor: 2, order, ..Parallel::default() }).unwrap();
        let nodes: Vec<usize> = (0..32).map(|rank| rank / 8).collect();
        let warning = split_warning(&mesh, &nodes, 8).unwrap();
        assert!(warning.ends_with("put tp first in parallel.order"), "{warning}");
    }
}
