//! A few rows that stand for many: every pair of values of any two columns that is in the table is in one of
//! the rows chosen. Most mistakes of a composition need two features at once, seldom three.

use std::collections::HashSet;

/// Two columns and their values.
type Pair = (usize, usize, usize, usize);

/// Indices of rows that have all pairs together, greedily chosen: each has the most that are not covered yet,
/// the first such row where several do.
pub fn pairwise<const N: usize>(rows: &[[usize; N]]) -> Vec<usize> {
    let mut open: HashSet<Pair> = rows.iter().flat_map(pairs).collect();
    let mut chosen = Vec::new();
    while !open.is_empty() {
        let news = |row: &[usize; N]| pairs(row).filter(|pair| open.contains(pair)).count();
        // The last of the greatest is the first in reverse.
        let best = (0..rows.len()).rev().max_by_key(|&i| news(&rows[i])).expect("a pair is of some row");
        pairs(&rows[best]).for_each(|pair| {
            open.remove(&pair);
        });
        chosen.push(best);
    }
    chosen
}

fn pairs<const N: usize>(row: &[usize; N]) -> impl Iterator<Item = Pair> {
    (0..N).flat_map(move |a| (a + 1..N).map(move |b| (a, row[a], b, row[b])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Also where most of the combinations are not in the table.
        #[test]
        fn every_pair_of_the_table_is_covered(rows in prop::collection::vec(prop::array::uniform5(0usize..4), 0..200)) {
            let chosen = pairwise(&rows);
            let covered: HashSet<Pair> = chosen.iter().flat_map(|&i| pairs(&rows[i])).collect();
            let all: HashSet<Pair> = rows.iter().flat_map(pairs).collect();
            prop_assert_eq!(&covered, &all);
            // No row is chosen in vain.
            for skip in 1..chosen.len() {
                let before: HashSet<Pair> = chosen[..skip].iter().flat_map(|&i| pairs(&rows[i])).collect();
                prop_assert!(pairs(&rows[chosen[skip]]).any(|pair| !before.contains(&pair)));
            }
        }
    }

    #[test]
    fn the_whole_product_needs_few() {
        let rows: Vec<[usize; 4]> = (0..81).map(|i| [i / 27, i / 9 % 3, i / 3 % 3, i % 3]).collect();
        let chosen = pairwise(&rows);
        // Nine at the least: all pairs of two columns.
        assert!((9..=13).contains(&chosen.len()), "{} of 81 rows", chosen.len());
    }
}
