//! What a host does whose ranks make no progress: a pure function of the ranks' copies.

use engine::flight::{Cause, Seen, Verdict};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A rank as its host has written it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RankCopy {
    /// When it was written, in nanoseconds since 1970.
    pub written: u64,
    /// Whether its host counts the run as hanging. Otherwise another host has asked for the copy.
    pub hangs: bool,
    pub seen: Seen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// This host reports, and ends the run.
    Report,
    /// The host of this rank, a lower one, reports.
    LeaveTo(usize),
    /// The rank that the others wait for made progress so long ago, which is not yet a hang.
    GoOn(Duration),
}

/// The decision of the host whose lowest rank is `lowest`. All hosts that count the run as hanging come to the same
/// verdict; the one with the lowest rank reports it.
pub fn decide(lowest: usize, verdict: &Verdict, copies: &[RankCopy], limit: Duration) -> Decision {
    let busy = match verdict.cause {
        Cause::Busy(busy) => copies.iter().find(|copy| copy.seen.snapshot.rank == busy),
        _ => None,
    };
    if let Some(idle) = busy.map(|copy| Duration::from_secs_f64(copy.seen.idle)).filter(|idle| *idle < limit) {
        return Decision::GoOn(idle);
    }
    let hanging = copies.iter().filter(|copy| copy.hangs).map(|copy| copy.seen.snapshot.rank);
    match hanging.min() {
        Some(first) if first < lowest => Decision::LeaveTo(first),
        _ => Decision::Report,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::flight::{Condition, Recorder};

    fn copy(rank: usize, hangs: bool, idle: f64) -> RankCopy {
        let recorder = Recorder::default();
        recorder.is_rank(rank);
        let seen = Seen { snapshot: recorder.snapshot(), condition: Condition::Runs, idle };
        RankCopy { written: 0, hangs, seen }
    }

    #[test]
    fn the_hanging_host_with_the_lowest_rank_reports() {
        let limit = Duration::from_secs(10);
        let verdict = |cause| Verdict { cause, missing: None, waiting: vec![] };
        let stopped = verdict(Cause::Stopped(5));
        // Host 0 has the ranks 0 and 1, and so on; host 0 was only asked.
        let copies = [copy(0, false, 3.0), copy(1, false, 3.0), copy(2, true, 11.0), copy(4, true, 11.0)];
        assert_eq!(decide(2, &stopped, &copies, limit), Decision::Report);
        assert_eq!(decide(4, &stopped, &copies, limit), Decision::LeaveTo(2));
        // A rank that makes progress is waited for, whichever host asks.
        let busy = verdict(Cause::Busy(0));
        assert_eq!(decide(2, &busy, &copies, limit), Decision::GoOn(Duration::from_secs(3)));
        assert_eq!(decide(4, &busy, &copies, limit), Decision::GoOn(Duration::from_secs(3)));
        assert_eq!(decide(2, &verdict(Cause::Busy(2)), &copies, limit), Decision::Report);
    }
}
