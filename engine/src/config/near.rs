//! The valid values nearest to an invalid one, formatted for a message.

/// The nearest allowed values of 1 ..= `most` below and above `value`; `None` if there are none.
pub fn near(value: usize, most: usize, allowed: impl Fn(usize) -> bool) -> Option<String> {
    let below = (1..value.min(most.saturating_add(1))).rev().find(|&n| allowed(n));
    let above = (value.saturating_add(1)..=most).find(|&n| allowed(n));
    match (below, above) {
        (None, None) => None,
        (Some(one), None) | (None, Some(one)) => Some(format!("the nearest is {one}")),
        (Some(below), Some(above)) => Some(format!("the nearest are {below} and {above}")),
    }
}

/// The multiples of `unit` around `value`, in words.
pub fn near_multiples(value: u64, unit: u64) -> String {
    let below = value - value % unit;
    match below {
        0 => format!("the nearest is {unit}"),
        below => format!("the nearest are {below} and {}", below + unit),
    }
}

/// Sorts the pairs by the number of halvings and doublings between them and `pair`, the fewest first.
pub fn by_distance(pair: (usize, usize), pairs: impl Iterator<Item = (usize, usize)>) -> Vec<(usize, usize)> {
    let octaves = |a: usize, b: usize| (a as f64 / b as f64).log2().abs();
    let far = |&(a, b): &(usize, usize)| octaves(a, pair.0) + octaves(b, pair.1);
    let mut pairs: Vec<_> = pairs.collect();
    pairs.sort_by(|x, y| far(x).total_cmp(&far(y)));
    pairs
}

/// The first two of [`by_distance`].
pub fn near_pairs(pair: (usize, usize), pairs: impl Iterator<Item = (usize, usize)>) -> Vec<(usize, usize)> {
    by_distance(pair, pairs).into_iter().take(2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_are_searched_up_to_the_border() {
        let divides = |n: usize| 12usize.is_multiple_of(n);
        assert_eq!(near(5, 12, divides), Some("the nearest are 4 and 6".to_string()));
        assert_eq!(near(5, 5, divides), Some("the nearest is 4".to_string()));
        assert_eq!(near(usize::MAX, 12, divides), Some("the nearest is 12".to_string()));
        assert_eq!(near(1, 3, |n| n > 2), Some("the nearest is 3".to_string()));
        assert_eq!(near(2, 3, |_| false), None);
        assert_eq!(near_multiples(7, 3), "the nearest are 6 and 9");
        assert_eq!(near_multiples(2, 3), "the nearest is 3");
        assert_eq!(near_pairs((8, 2), [(1, 1), (4, 1), (4, 3)].into_iter()), [(4, 3), (4, 1)]);
    }
}
