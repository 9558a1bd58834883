//! Ranks that compute longer than those that do the same: all others wait for them.

use std::collections::BTreeMap;

/// How much longer.
const MARGIN: f64 = 0.1;
/// In so many samples one after another: a single one may have been disturbed.
const IN_A_ROW: u32 = 3;

/// Whoever was slow of late.
#[derive(Debug, Clone)]
pub struct Stragglers {
    /// Of each rank. The ranks of a stage do the same.
    stages: Vec<usize>,
    /// Of each rank, the samples in a row in which it was slow.
    slow: Vec<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Straggler {
    pub rank: usize,
    /// In which it computes, and the median of the others of its stage.
    pub seconds: f64,
    pub usual: f64,
}

impl Straggler {
    /// By what share it is slower.
    pub fn by(&self) -> f64 {
        self.seconds / self.usual - 1.0
    }
}

impl Stragglers {
    pub fn new(stages: Vec<usize>) -> Self {
        Stragglers { slow: vec![0; stages.len()], stages }
    }

    /// A sample: the seconds in which each rank computed. Whoever has been slow for long enough now, each told of once
    /// until it is no longer.
    pub fn see(&mut self, busy: &[f64]) -> Vec<Straggler> {
        let slow = slow(&self.stages, busy);
        for (rank, times) in self.slow.iter_mut().enumerate() {
            *times = if slow.iter().any(|s| s.rank == rank) { *times + 1 } else { 0 };
        }
        slow.into_iter().filter(|s| self.slow[s.rank] == IN_A_ROW).collect()
    }
}

/// The ranks that were slow in one sample.
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

/// Of the others, `own` being one of `sorted`; the lower one of two in the middle.
fn median_without(sorted: &[f64], own: f64) -> Option<f64> {
    let middle = sorted.len().checked_sub(2)? / 2;
    let at = sorted.partition_point(|x| x.total_cmp(&own).is_lt());
    Some(sorted[if middle < at { middle } else { middle + 1 }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_is_compared_with_those_of_its_stage() {
        let stages = [0, 0, 0, 1, 1];
        let found = slow(&stages, &[1.0, 1.3, 1.05, 2.0, 2.1]);
        assert_eq!(found, [Straggler { rank: 1, seconds: 1.3, usual: 1.0 }]);
        assert!((found[0].by() - 0.3).abs() < 1e-12);
        assert_eq!(slow(&[0; 4], &[5.0, 1.0, 2.0, 3.0])[0].usual, 2.0, "of 1, 2, 3");
        assert_eq!(slow(&[0; 3], &[1.0, 1.0, 1.2])[0].usual, 1.0, "of two alike");
        assert_eq!(slow(&[0, 1], &[1.0, 9.0]), [], "ranks alone on their stages");
        assert_eq!(slow(&[], &[]), []);
    }

    #[test]
    fn it_is_told_of_once_until_it_is_well_again() {
        let mut stragglers = Stragglers::new(vec![0, 0]);
        let mut told = |second: f64| stragglers.see(&[1.0, second]).len();
        let found: Vec<usize> = [2.0, 2.0, 1.0, 2.0, 2.0, 2.0, 2.0, 1.0, 2.0, 2.0, 2.0].map(&mut told).into();
        assert_eq!(found, [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]);
    }
}
