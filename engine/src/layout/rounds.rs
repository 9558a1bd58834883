//! The rows that ranks send each other for the experts that they share. Each rank sorts its choices by expert; a rank
//! computes the rows of its own experts, expert by expert, and those of one expert by the rank that they come from. It
//! has memory for some rows at once: what is more is computed in further rounds, so that no row is dropped.

use std::ops::Range;

/// The choices of all ranks: rows of each rank, experts in columns.
#[derive(Debug, Clone)]
pub struct Counts {
    counts: Vec<u32>,
    ranks: usize,
    experts: usize,
}

/// One round, as one rank sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// The range of this rank's sorted choices that each rank computes.
    pub sent: Vec<Range<usize>>,
    /// The rows that come from each rank, in the order of the ranks.
    pub received: Vec<Range<usize>>,
    /// The received row in each place of the order by expert.
    pub order: Vec<u32>,
    /// The place of each received row.
    pub places: Vec<u32>,
    /// The rows of each expert of this rank.
    pub counts: Vec<u32>,
}

impl Counts {
    /// `counts` has the choices of each of `ranks` ranks, one rank after another.
    pub fn new(counts: Vec<u32>, ranks: usize) -> Counts {
        let experts = counts.len() / ranks;
        assert_eq!((counts.len(), experts % ranks), (ranks * experts, 0), "{experts} experts over {ranks} ranks");
        Counts { counts, ranks, experts }
    }

    /// Even routing, but for the rank `hot`, whose experts get `imbalance` times as many choices as on average; every
    /// rank makes `choices` of them.
    pub fn planned(choices: usize, experts: usize, ranks: usize, hot: usize, imbalance: f64) -> Counts {
        let each = experts / ranks;
        let mine = (choices as f64 / ranks as f64 * imbalance).round().min(choices as f64) as usize;
        let mine = if ranks == 1 { choices } else { mine };
        let spread = |total: usize, of: usize, i: usize| (total * (i + 1) / of - total * i / of) as u32;
        let count = |e: usize| match e / each == hot {
            true => spread(mine, each, e % each),
            false => spread(choices - mine, experts - each, if e / each > hot { e - each } else { e }),
        };
        let row: Vec<u32> = (0..experts).map(count).collect();
        Counts { counts: row.repeat(ranks), ranks, experts }
    }

    pub fn into_vec(self) -> Vec<u32> {
        self.counts
    }

    fn of(&self, rank: usize, expert: usize) -> usize {
        self.counts[rank * self.experts + expert] as usize
    }

    fn experts_of(&self, rank: usize) -> Range<usize> {
        let each = self.experts / self.ranks;
        rank * each..(rank + 1) * each
    }

    /// The rows that `rank` computes.
    fn rows_of(&self, rank: usize) -> usize {
        self.experts_of(rank).map(|e| (0..self.ranks).map(|from| self.of(from, e)).sum::<usize>()).sum()
    }

    /// The number of rounds if a rank computes up to `rows` rows in each; the same on all ranks, and at least 1.
    pub fn rounds(&self, rows: usize) -> usize {
        (0..self.ranks).map(|rank| self.rows_of(rank).div_ceil(rows)).max().unwrap_or(0).max(1)
    }

    /// The number of rows of each (expert of `to`, rank) that `to` computes in the round of its rows `window`.
    fn inside(&self, to: usize, window: &Range<usize>) -> Vec<Vec<usize>> {
        let mut at = 0;
        let mut part = |expert, from| {
            let rows = at..at + self.of(from, expert);
            at = rows.end;
            rows.end.min(window.end).saturating_sub(rows.start.max(window.start))
        };
        self.experts_of(to).map(|expert| (0..self.ranks).map(|from| part(expert, from)).collect()).collect()
    }

    /// Round number `round` of `rank`.
    pub fn round(&self, rank: usize, round: usize, rows: usize) -> Round {
        let window = round * rows..(round + 1) * rows;
        let here = self.inside(rank, &window);
        let from_rank = |from: usize| here.iter().map(move |of| of[from]).sum::<usize>();
        let received = consecutive((0..self.ranks).map(from_rank));
        let mut order = Vec::new();
        let mut next: Vec<usize> = received.iter().map(|rows| rows.start).collect();
        for of in &here {
            for (next, &n) in next.iter_mut().zip(of) {
                order.extend((*next..*next + n).map(|row| row as u32));
                *next += n;
            }
        }
        let mut places = vec![0; order.len()];
        order.iter().enumerate().for_each(|(place, &row)| places[row as usize] = place as u32);
        let counts = here.iter().map(|of| of.iter().sum::<usize>() as u32).collect();
        let sent = (0..self.ranks).map(|to| self.sent(rank, to, &window)).collect();
        Round { sent, received, order, places, counts }
    }

    /// The range of `rank`'s sorted choices that `to` computes in the round of its rows `window`. The window cuts the
    /// rows of `to`, which are sorted by expert as the choices of `rank` are, so that it is one range.
    fn sent(&self, rank: usize, to: usize, window: &Range<usize>) -> Range<usize> {
        let before = self.inside(to, &(0..window.start)).iter().map(|of| of[rank]).sum::<usize>();
        let now = self.inside(to, window).iter().map(|of| of[rank]).sum::<usize>();
        let first = (0..self.experts_of(to).start).map(|e| self.of(rank, e)).sum::<usize>() + before;
        first..first + now
    }
}

/// Ranges of these lengths, one after another.
fn consecutive(lens: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let next = |end: &mut usize, len| {
        let start = *end;
        *end += len;
        Some(start..*end)
    };
    lens.scan(0, next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Over all rounds every choice reaches its expert once, in an order that follows from the counts alone, and
        /// comes back to its place.
        #[test]
        fn every_choice_is_computed_once(
            ranks in 1usize..5,
            each in 1usize..4,
            rows in 1usize..40,
            seed in prop::collection::vec(0u32..9, 4 * 12),
        ) {
            let experts = ranks * each;
            let counts = Counts::new(seed[..ranks * experts].to_vec(), ranks);
            let rounds = counts.rounds(rows);
            // A choice is (rank, expert, number): what a rank has in its sorted order.
            let sorted: Vec<Vec<(usize, usize, usize)>> = (0..ranks).map(|rank| {
                (0..experts).flat_map(|e| (0..counts.of(rank, e)).map(move |i| (rank, e, i))).collect()
            }).collect();
            let mut computed = vec![Vec::new(); ranks];
            for round in 0..rounds {
                let all: Vec<Round> = (0..ranks).map(|rank| counts.round(rank, round, rows)).collect();
                for (to, here) in all.iter().enumerate() {
                    let from_rank = |from: usize| sorted[from][all[from].sent[to].clone()].to_vec();
                    let arrived: Vec<_> = (0..ranks).flat_map(from_rank).collect();
                    let lens: Vec<usize> = (0..ranks).map(|from| all[from].sent[to].len()).collect();
                    prop_assert_eq!(here.received.iter().map(Range::len).collect::<Vec<_>>(), lens);
                    prop_assert!(arrived.len() <= rows);
                    let by_expert: Vec<_> = here.order.iter().map(|&row| arrived[row as usize]).collect();
                    let experts_here: Vec<usize> = counts.experts_of(to).zip(&here.counts)
                        .flat_map(|(e, &n)| std::iter::repeat_n(e, n as usize)).collect();
                    prop_assert_eq!(by_expert.iter().map(|row| row.1).collect::<Vec<_>>(), experts_here);
                    let back: Vec<_> = here.places.iter().map(|&place| by_expert[place as usize]).collect();
                    prop_assert_eq!(back, arrived);
                    computed[to].extend(by_expert);
                }
            }
            for (to, computed) in computed.into_iter().enumerate() {
                let want: Vec<_> = counts.experts_of(to)
                    .flat_map(|e| (0..ranks).map(move |from| (from, e)))
                    .flat_map(|(from, e)| (0..counts.of(from, e)).map(move |i| (from, e, i))).collect();
                prop_assert_eq!(computed, want);
            }
        }

        #[test]
        fn planned_counts_add_up(choices in 1usize..500, ranks in 1usize..5, each in 1usize..5, imbalance in 1.0..3.0) {
            let experts = ranks * each;
            for hot in 0..ranks {
                let counts = Counts::planned(choices, experts, ranks, hot, imbalance);
                for rank in 0..ranks {
                    prop_assert_eq!((0..experts).map(|e| counts.of(rank, e)).sum::<usize>(), choices);
                }
                let expected = (choices as f64 * imbalance).min((choices * ranks) as f64);
                let got = counts.rows_of(hot) as f64;
                prop_assert!(ranks == 1 || (got - expected).abs() <= ranks as f64, "{} {}", got, expected);
            }
        }
    }
}
