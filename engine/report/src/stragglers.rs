//! Stragglers: ranks that compute longer than the others of their stage, which do the same work and wait for them.

use std::collections::BTreeMap;

/// A straggler computes longer than the others by more than this share.
const MARGIN: f64 = 0.1;
/// A warning needs this many slow samples in a row, since a single one may have been disturbed.
const IN_A_ROW: u32 = 3;
/// Seconds of computing below which the scheduling of the operating system makes larger differences than a slow rank.
const TOO_SHORT: f64 = 0.05;
/// A warning is repeated when a rank lags by this many times the share of its last warning.
const WORSE: f64 = 2.0;

/// Watches the samples of a run as they come.
#[derive(Debug, Clone)]
pub struct Stragglers {
    /// Pipeline stage of each rank.
    stages: Vec<usize>,
    /// The number of latest samples in a row in which each rank was slow.
    slow: Vec<u32>,
    /// The share by which each rank lagged when it was last reported; 0: never.
    reported: Vec<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Straggler {
    pub rank: usize,
    /// Its busy time and the median of the others of its stage.
    pub seconds: f64,
    pub usual: f64,
}

impl Straggler {
    /// The extra time that it computes, as a share of the usual time.
    pub fn by(&self) -> f64 {
        self.seconds / self.usual - 1.0
    }

    /// Whether the step was long enough to tell from a single sample.
    pub fn is_telling(&self) -> bool {
        self.usual >= TOO_SHORT
    }
}

impl Stragglers {
    pub fn new(stages: Vec<usize>) -> Self {
        Stragglers { slow: vec![0; stages.len()], reported: vec![0.0; stages.len()], stages }
    }

    /// Takes a sample, the busy seconds of each rank, and returns the ranks that have now been slow for long enough.
    /// Each is returned once, and again when it lags by twice as much.
    pub fn see(&mut self, busy: &[f64]) -> Vec<Straggler> {
        let mut slow = slow(&self.stages, busy);
        slow.retain(Straggler::is_telling);
        for (rank, times) in self.slow.iter_mut().enumerate() {
            *times = if slow.iter().any(|s| s.rank == rank) { *times + 1 } else { 0 };
        }
        slow.retain(|s| self.slow[s.rank] >= IN_A_ROW && s.by() >= WORSE * self.reported[s.rank]);
        slow.iter().for_each(|s| self.reported[s.rank] = s.by());
        slow
    }
}

/// The stragglers of one sample.
pub fn slow(stages: &[usize], busy: &[f64]) -> Vec<Straggler> {
    let mut sorted: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    stages.iter().zip(busy).for_each(|(&stage, &seconds)| sorted.entry(stage).or_default().push(seconds));
    sorted.values_mut().for_each(|seconds| seconds.sort_by(f64::total_cmp));
    let one = |rank: usize| {
        let seconds = busy[rank];
        let usual = median_without(&sorted[&stages[rank]], seconds)?;
        (seconds > (1.0 + MARGIN) * usual).then_some(Straggler { rank, seconds, usual })
    };
    (0..busy.len()).filter_map(one).collect()
}

/// The median of `sorted` without one `own`; the lower of two in the middle.
fn median_without(sorted: &[f64], own: f64) -> Option<f64> {
    let middle = sorted.len().checked_sub(2)? / 2;
    let at = sorted.partition_point(|x| x.total_cmp(&own).is_lt());
    Some(sorted[if middle < at { middle } else { middle + 1 }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_is_compared_with_the_others_of_its_stage() {
        let stages = [0, 0, 0, 1, 1];
        let found = slow(&stages, &[1.0, 1.3, 1.05, 2.0, 2.1]);
        assert_eq!(found, [Straggler { rank: 1, seconds: 1.3, usual: 1.0 }]);
        assert!((found[0].by() - 0.3).abs() < 1e-12);
        assert_eq!(slow(&[0; 4], &[5.0, 1.0, 2.0, 3.0])[0].usual, 2.0, "the median of 1, 2 and 3");
        assert_eq!(slow(&[0; 3], &[1.0, 1.0, 1.2])[0].usual, 1.0, "both others are equal");
        assert_eq!(slow(&[0, 1], &[1.0, 9.0]), [], "each rank is alone in its stage");
        assert_eq!(slow(&[], &[]), []);
    }

    #[test]
    fn a_straggler_is_reported_once_and_again_when_it_is_twice_as_slow() {
        let mut stragglers = Stragglers::new(vec![0, 0]);
        let mut reported = |second: f64| stragglers.see(&[1.0, second]).len();
        let found: Vec<usize> = [1.5, 1.5, 1.0, 1.5, 1.5, 1.5, 1.5, 1.0, 1.9, 1.9, 1.9].map(&mut reported).into();
        assert_eq!(found, [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
        assert_eq!([2.1, 2.1, 3.3, 3.3].map(&mut reported), [1, 0, 1, 0]);
    }

    #[test]
    fn steps_too_short_to_tell_are_ignored() {
        let mut stragglers = Stragglers::new(vec![0, 0]);
        assert!((0..9).all(|_| stragglers.see(&[0.04, 0.4]).is_empty()));
    }
}
