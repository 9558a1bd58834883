//! Pairwise (all-pairs) testing: chooses a few rows of a table such that every pair of values of any two columns that
//! occurs in the table occurs in a chosen row. Most bugs that depend on a combination of features need two of them,
//! seldom three.

use std::collections::HashSet;

/// (column, its value, another column, its value).
type Pair = (usize, usize, usize, usize);

/// Indices of rows that together cover all pairs, chosen greedily: each next row has the most uncovered pairs; on a tie
/// it is the first such row.
pub fn pairwise<const N: usize>(rows: &[[usize; N]]) -> Vec<usize> {
    let mut open: HashSet<Pair> = rows.iter().flat_map(pairs).collect();
    let mut chosen = Vec::new();
    while !open.is_empty() {
        let n_new = |row: &[usize; N]| pairs(row).filter(|pair| open.contains(pair)).count();
        // `max_by_key` returns the last maximum, which in reverse order is the first row.
        let best = (0..rows.len()).rev().max_by_key(|&i| n_new(&rows[i])).expect("every open pair is in some row");
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
        /// Most combinations may be missing from the table.
        #[test]
        fn every_pair_of_the_table_is_covered(rows in prop::collection::vec(prop::array::uniform5(0usize..4), 0..200)) {
            let chosen = pairwise(&rows);
            let covered: HashSet<Pair> = chosen.iter().flat_map(|&i| pairs(&rows[i])).collect();
            let all: HashSet<Pair> = rows.iter().flat_map(pairs).collect();
            prop_assert_eq!(&covered, &all);
            // Every chosen row adds a pair.
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
        // The pairs of two columns alone need nine rows.
        assert!((9..=13).contains(&chosen.len()), "{} of 81 rows", chosen.len());
    }
}
