//! Which process runs on which node, according to MPI: processes that can share memory form a node.

use crate::layout::placement::RankSlot;
use crate::mpi::{Comm, host};

/// The node and local rank of every process of `comm`, by rank, on every process. Collective.
pub fn slots(comm: &Comm) -> Vec<RankSlot> {
    let node = comm.split_node();
    let first = node.broadcast_bytes(comm.rank().to_string().into_bytes());
    let mine = format!("{} {} {}", String::from_utf8_lossy(&first), node.rank(), host());
    let all = comm.all_gather_bytes(mine.as_bytes());
    numbered(all.iter().map(|bytes| parse(&String::from_utf8_lossy(bytes))).collect())
}

/// (first process of the node, local rank on it, host)
fn parse(text: &str) -> (usize, usize, String) {
    let mut words = text.splitn(3, ' ');
    let mut number = || words.next().and_then(|word| word.parse().ok()).expect("`slots` wrote it");
    let (first, local) = (number(), number());
    (first, local, words.next().unwrap_or_default().to_string())
}

/// Numbers the nodes by their first process: two nodes with the same name stay two.
fn numbered(all: Vec<(usize, usize, String)>) -> Vec<RankSlot> {
    let mut firsts: Vec<usize> = all.iter().map(|&(first, ..)| first).collect();
    firsts.sort_unstable();
    firsts.dedup();
    let number = |first| firsts.binary_search(&first).expect("every first process is in the list");
    all.into_iter().map(|(first, local, host)| RankSlot { host, node: number(first), local }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_numbered_by_their_first_process() {
        let all = ["0 0 a", "1 0 b c", "0 1 a", "3 0 a", "1 1 b c"].map(parse).to_vec();
        let slots = numbered(all);
        assert_eq!(slots.iter().map(|slot| slot.node).collect::<Vec<_>>(), [0, 1, 0, 2, 1]);
        assert_eq!(slots.iter().map(|slot| slot.local).collect::<Vec<_>>(), [0, 0, 1, 0, 1]);
        assert_eq!(slots[4], RankSlot { host: "b c".into(), node: 1, local: 1 });
    }
}
