//! How many threads a rank runs: the cores of its affinity mask, shared fairly with the ranks of the same node that
//! have the same mask.

use crate::mpi::{Comm, host};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

/// A rank's share of its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Threads of this rank, at least 1.
    pub threads: usize,
    /// Cores of the node that are in no rank's affinity mask.
    pub idle: usize,
}

/// A collective call: all ranks of `comm` make it together.
pub fn share(comm: &Comm) -> Share {
    let mine = format!("{}\n{}", host(), mask().iter().map(|core| format!("{core} ")).collect::<String>());
    let all = comm.all_gather_bytes(mine.as_bytes());
    let all: Vec<(String, Vec<usize>)> = all.iter().map(|bytes| parse(&String::from_utf8_lossy(bytes))).collect();
    let cores = std::fs::read_to_string("/sys/devices/system/cpu/online").map_or(0, |text| count_online(text.trim()));
    of_rank(&all, comm.rank(), cores)
}

/// `all`: each rank's host and mask; `cores`: the number of cores of this rank's node.
fn of_rank(all: &[(String, Vec<usize>)], rank: usize, cores: usize) -> Share {
    let (host, mask) = &all[rank];
    let same: Vec<usize> = (0..all.len()).filter(|&r| all[r] == all[rank]).collect();
    let place = same.iter().position(|&r| r == rank).expect("a rank has its own mask");
    let threads = mask.len() / same.len() + usize::from(place < mask.len() % same.len());
    let mut used: Vec<usize> = all.iter().filter(|(h, _)| h == host).flat_map(|(_, m)| m.iter().copied()).collect();
    used.sort_unstable();
    used.dedup();
    Share { threads: threads.max(1), idle: cores.saturating_sub(used.len()) }
}

/// The cores that the kernel lets this process run on.
fn mask() -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::count()).filter(|&core| set.is_set(core).unwrap_or(false)).collect()
}

fn parse(text: &str) -> (String, Vec<usize>) {
    let (host, mask) = text.split_once('\n').unwrap_or((text, ""));
    (host.to_string(), mask.split_whitespace().filter_map(|core| core.parse().ok()).collect())
}

/// Cores in the kernel's list format, such as `0-3,8`.
fn count_online(list: &str) -> usize {
    let one = |part: &str| match part.split_once('-') {
        Some((a, b)) => Some(b.parse::<usize>().ok()? + 1 - a.parse::<usize>().ok()?),
        None => part.parse::<usize>().ok().map(|_| 1),
    };
    list.split(',').filter_map(one).sum()
}

/// The processor's name, as its maker gives it.
pub(super) fn model() -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or("CPU".into(), |(_, name)| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks(masks: &[&[usize]]) -> Vec<(String, Vec<usize>)> {
        masks.iter().map(|mask| ("node".to_string(), mask.to_vec())).collect()
    }

    #[test]
    fn ranks_of_one_mask_share_it() {
        let all = ranks(&[&[0, 1, 2], &[0, 1, 2], &[3]]);
        let threads: Vec<usize> = (0..3).map(|rank| of_rank(&all, rank, 4).threads).collect();
        assert_eq!(threads, [2, 1, 1]);
        assert_eq!(of_rank(&all, 0, 4).idle, 0);
    }

    #[test]
    fn a_bound_rank_leaves_cores_idle() {
        assert_eq!(of_rank(&ranks(&[&[0]]), 0, 2), Share { threads: 1, idle: 1 });
    }

    #[test]
    fn more_ranks_than_cores_get_one_thread_each() {
        let all = ranks(&[&[0], &[0], &[0]]);
        assert!((0..3).all(|rank| of_rank(&all, rank, 1) == Share { threads: 1, idle: 0 }));
    }

    #[test]
    fn online_lists() {
        assert_eq!(count_online("0-3,8"), 5);
        assert_eq!(count_online("0"), 1);
    }
}
