//! The layouts that parity tries, and the ranks that train each of them: pure functions, the same on every rank.

use crate::config::{self, Config, Recompute};
use crate::error::Result;

/// The settings that may differ between runs that must train alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub tensor: usize,
    pub pipeline: usize,
    pub virtual_pipeline: usize,
    pub data: usize,
    /// Data-parallel ranks that share the experts.
    pub expert: usize,
    pub sequence_parallel: bool,
    pub distributed_optimizer: bool,
    pub recompute: Recompute,
}

impl Layout {
    /// The one-rank run that all others are compared with.
    pub const ONE: Layout = Layout {
        tensor: 1,
        pipeline: 1,
        virtual_pipeline: 1,
        data: 1,
        expert: 1,
        sequence_parallel: false,
        distributed_optimizer: false,
        recompute: Recompute::None,
    };

    /// Every combination on at most `ranks` ranks except [`Layout::ONE`], those with most ranks first, for a model with
    /// so many experts, which may be none. Sequence parallelism is only tried with several tensor-parallel ranks; with
    /// one it makes no difference.
    pub fn all(ranks: usize, experts: usize) -> Vec<Layout> {
        let mut all = Vec::new();
        for (tensor, pipeline, data) in degrees(ranks) {
            for virtual_pipeline in [1, 2] {
                for distributed_optimizer in [true, false] {
                    for recompute in [Recompute::None, Recompute::Selective, Recompute::Full] {
                        let base = Layout { tensor, pipeline, virtual_pipeline, data, ..Layout::ONE };
                        let base = Layout { distributed_optimizer, recompute, ..base };
                        all.extend(base.shared_ways(experts));
                    }
                }
            }
        }
        all.retain(|layout| *layout != Layout::ONE);
        all
    }

    /// This layout with and without sequence parallelism, and with experts on one rank and on several.
    fn shared_ways(self, experts: usize) -> impl Iterator<Item = Layout> {
        let sequence = [true, false].into_iter().filter(move |on| self.tensor > 1 || !on);
        let sharing = [1, 2, 4].into_iter().filter(move |&n| n == 1 || (self.data.is_multiple_of(n) && experts >= n));
        let with = move |expert| sequence.clone().map(move |sequence_parallel| (expert, sequence_parallel));
        sharing.flat_map(with).map(move |(expert, sequence_parallel)| Layout { expert, sequence_parallel, ..self })
    }

    pub fn ranks(&self) -> usize {
        self.tensor * self.pipeline * self.data
    }

    /// One number per axis, for [`super::pairwise`].
    pub fn axes(&self) -> [usize; 8] {
        let (sequence, optimizer) = (self.sequence_parallel.into(), self.distributed_optimizer.into());
        let ranks = [self.tensor, self.pipeline, self.virtual_pipeline, self.data, self.expert];
        let [tensor, pipeline, chunks, data, expert] = ranks;
        [tensor, pipeline, chunks, data, expert, sequence, optimizer, self.recompute as usize]
    }

    /// `base` with this layout and the largest valid micro-batch size up to `base`'s own; an error if no size is valid.
    pub fn config(&self, base: &Config) -> Result<Config> {
        let own = self.checked(base, base.train.micro_batch_size);
        let smaller = (1..base.train.micro_batch_size).rev();
        own.or_else(|why| smaller.flat_map(|size| self.checked(base, size)).next().ok_or(why))
    }

    fn checked(&self, base: &Config, micro_batch_size: usize) -> Result<Config> {
        let config = self.unchecked(base, micro_batch_size).checked()?;
        config.mesh(self.ranks()).map(|_| config)
    }

    fn unchecked(&self, base: &Config, micro_batch_size: usize) -> Config {
        let mut config = base.with_layout(self.tensor, self.pipeline, self.virtual_pipeline);
        config.train.micro_batch_size = micro_batch_size;
        config.train.recompute = self.recompute;
        config.parallel.sequence_parallel = self.sequence_parallel;
        config.parallel.distributed_optimizer = self.distributed_optimizer;
        config.parallel.expert = self.expert;
        (config.parallel.layers, config.parallel.ranks) = (None, None);
        config
    }
}

/// (tensor, pipeline, data) in powers of two up to (8, 4, 4) on at most `ranks` ranks, the largest first.
fn degrees(ranks: usize) -> Vec<(usize, usize, usize)> {
    let sizes = (0..8).map(|log2| 1 << log2).filter(|&size| size <= ranks);
    let of_size = |size| config::degrees(size, 8, 4).map(move |(t, p)| (t, p, size / (t * p))).filter(|d| d.2 <= 4);
    let mut all: Vec<_> = sizes.flat_map(of_size).collect();
    all.reverse();
    all
}

/// Layouts with the same number of ranks, trained at the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shift {
    /// Ranks of each layout, and so of a block.
    pub ranks: usize,
    /// The indices of the layouts that each block of neighbouring ranks trains, one after another.
    pub blocks: Vec<Vec<usize>>,
}

impl Shift {
    /// The block of `rank`, if it is in one.
    pub fn block_of(&self, rank: usize) -> Option<usize> {
        Some(rank / self.ranks).filter(|&block| block < self.blocks.len())
    }
}

/// Assigns layouts with these numbers of ranks to `ranks` ranks: the largest first, as many at once as fit.
pub fn shifts(sizes: &[usize], ranks: usize) -> Vec<Shift> {
    let mut different: Vec<usize> = sizes.to_vec();
    different.sort_unstable_by(|a, b| b.cmp(a));
    different.dedup();
    let shift = |size: usize| {
        assert!((1..=ranks).contains(&size), "a layout of {size} ranks on {ranks}");
        let mut blocks = vec![Vec::new(); ranks / size];
        let those = (0..sizes.len()).filter(|&i| sizes[i] == size);
        let n = blocks.len();
        those.enumerate().for_each(|(turn, i)| blocks[turn % n].push(i));
        Shift { ranks: size, blocks }
    };
    different.into_iter().map(shift).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parity::pairwise;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn every_layout_is_trained_once_and_fairly(
            ranks in 1usize..17, sizes in prop::collection::vec(1usize..17, 0..60),
        ) {
            let sizes: Vec<usize> = sizes.into_iter().map(|size| size.min(ranks)).collect();
            let shifts = shifts(&sizes, ranks);
            let mut seen: Vec<usize> = Vec::new();
            for shift in &shifts {
                prop_assert!(shift.blocks.len() * shift.ranks <= ranks);
                let lengths: Vec<usize> = shift.blocks.iter().map(Vec::len).collect();
                prop_assert!(lengths.iter().max().unwrap() - lengths.iter().min().unwrap() <= 1);
                prop_assert!(shift.blocks.iter().flatten().all(|&i| sizes[i] == shift.ranks));
                seen.extend(shift.blocks.iter().flatten());
            }
            prop_assert!(shifts.is_sorted_by(|a, b| a.ranks > b.ranks));
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..sizes.len()).collect::<Vec<_>>());
            let placed = (0..ranks).filter(|&rank| shifts.iter().all(|shift| shift.block_of(rank).is_some())).count();
            prop_assert!(sizes.is_empty() || placed > 0);
        }
    }

    /// The layout search and the advice use [`Config::runs_on`]; parity shows the reason of a refusal.
    #[test]
    fn a_layout_is_refused_exactly_where_the_rule_says_so() {
        let configs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
        let mut refused = 0;
        for file in ["parity.toml", "parity-tied.toml", "parity-experts.toml"] {
            let base = Config::read(&configs.join(file), &[]).unwrap();
            let all = Layout::all(32, base.model.experts());
            for (layout, size) in all.into_iter().flat_map(|layout| [1, 2, 3].map(|size| (layout, size))) {
                let runs = layout.unchecked(&base, size).runs_on(layout.ranks());
                assert_eq!(runs, layout.checked(&base, size).is_ok(), "{file}, micro-batch {size}: {layout:?}");
                refused += usize::from(!runs);
            }
        }
        assert!(refused > 100, "{refused} layouts are refused");
    }

    #[test]
    fn every_axis_has_all_its_values() {
        let all = Layout::all(8, 6);
        let axis = |i: usize| all.iter().map(|layout| layout.axes()[i]).collect::<BTreeSet<_>>();
        let ranks: [&[usize]; 5] = [&[1, 2, 4, 8], &[1, 2, 4], &[1, 2], &[1, 2, 4], &[1, 2, 4]];
        let want: [&[usize]; 8] = [ranks[0], ranks[1], ranks[2], ranks[3], ranks[4], &[0, 1], &[0, 1], &[0, 1, 2]];
        for (i, want) in want.into_iter().enumerate() {
            assert_eq!(axis(i), want.iter().copied().collect(), "axis {i}");
        }
        let different: BTreeSet<[usize; 8]> = all.iter().map(Layout::axes).collect();
        assert_eq!(different.len(), all.len());
        assert!(!all.contains(&Layout::ONE), "compared with itself");
        assert!(all.iter().all(|layout| layout.ranks() <= 8 && layout.data % layout.expert == 0));
        assert!(Layout::all(8, 0).iter().all(|layout| layout.expert == 1));
        // About 20 layouts cover all pairs.
        let few = pairwise(&all.iter().map(Layout::axes).collect::<Vec<_>>());
        assert!((12..=28).contains(&few.len()), "{} of {}", few.len(), all.len());
    }
}
