//! The set of character 5-grams by which documents are compared, as 64-bit hashes.
//!
//! Characters are Unicode scalar values of the text as it stands: nothing is normalised, and white space counts. Two
//! different grams have the same hash with a chance of about 2^-64.

/// Characters of a gram.
pub const LENGTH: usize = 5;

/// Bits of a character in a packed gram: scalar values end at 0x10FFFF.
const BITS: usize = 21;

/// The bits of [`LENGTH`] characters.
const MASK: u128 = (1 << (BITS * LENGTH)) - 1;

/// Calls `each` with the hash of every 5-gram of `text`, in order and with repeats. A text of fewer than five
/// characters is one gram, also the empty text.
pub fn each_hash(text: &str, mut each: impl FnMut(u64)) {
    let mut chars = text.chars();
    let (mut window, mut length) = (0, 0);
    for c in chars.by_ref().take(LENGTH) {
        window = window << BITS | c as u128;
        length += 1;
    }
    // The length tells a short text from a gram that begins with NUL.
    let tag = ((LENGTH - length) as u128) << (BITS * LENGTH);
    each(hash(window | tag));
    for c in chars {
        window = (window << BITS | c as u128) & MASK;
        each(hash(window));
    }
}

/// Replaces `set` by the hashes of the grams of `text`, each once, in ascending order.
pub fn set_of(text: &str, set: &mut Vec<u64>) {
    set.clear();
    // Growing by doubling would take up to twice the memory of a long document.
    set.reserve_exact(text.chars().count().max(1));
    each_hash(text, |hash| set.push(hash));
    set.sort_unstable();
    set.dedup();
}

/// Whether the Jaccard coefficient of two sets is at least `threshold`. The sets are ascending and not empty.
pub fn alike(a: &[u64], b: &[u64], threshold: f64) -> bool {
    let reaches = |common: usize| common as f64 / (a.len() + b.len() - common) as f64 >= threshold;
    reaches(a.len().min(b.len())) && reaches(common(a, b))
}

/// The number of elements that are in both sets, without a branch on the data.
fn common(a: &[u64], b: &[u64]) -> usize {
    let (mut i, mut j, mut common) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        let (x, y) = (a[i], b[j]);
        common += usize::from(x == y);
        i += usize::from(x <= y);
        j += usize::from(y <= x);
    }
    common
}

/// Folds the 128-bit product of both halves, as wyhash does, and mixes the result once more. No half becomes zero: the
/// lowest 21 bits of the first constant are no character, and the second one is wider than the upper half.
fn hash(gram: u128) -> u64 {
    let (low, high) = (gram as u64, (gram >> 64) as u64);
    let product = u128::from(low ^ 0x9e37_79b9_7f5f_ffff) * u128::from(high ^ 0xd1b5_4a32_d192_ed03);
    let folded = (product as u64 ^ (product >> 64) as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    folded ^ folded >> 32
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn grams(text: &str) -> HashSet<Vec<char>> {
        let chars: Vec<char> = text.chars().collect();
        match chars.len() < LENGTH {
            true => HashSet::from([chars]),
            false => chars.windows(LENGTH).map(<[char]>::to_vec).collect(),
        }
    }

    fn set(text: &str) -> Vec<u64> {
        let mut set = vec![7];
        set_of(text, &mut set);
        set
    }

    proptest! {
        #[test]
        fn sets_of_hashes_are_as_large_and_as_alike_as_sets_of_grams(a in "[ab𠮷\n]{0,40}", b in "[ab𠮷\n]{0,40}") {
            let (of_a, of_b) = (grams(&a), grams(&b));
            prop_assert_eq!(set(&a).len(), of_a.len());
            let jaccard = of_a.intersection(&of_b).count() as f64 / of_a.union(&of_b).count() as f64;
            for threshold in [0.1, 0.5, 0.8, 1.0, jaccard.max(0.01)] {
                prop_assert_eq!(alike(&set(&a), &set(&b), threshold), jaccard >= threshold);
            }
        }
    }

    #[test]
    fn a_short_text_is_one_gram_of_its_own() {
        let texts = ["", "\0", "\0\0", "\0\0\0\0", "\0\0\0\0\0", "a", "\0a", "a\0", "あ", "𠮷", "\u{10ffff}", "abcde"];
        let all: HashSet<u64> = texts.iter().flat_map(|text| set(text)).collect();
        assert_eq!(all.len(), texts.len());
        assert!(texts.iter().all(|text| set(text).len() == 1));
    }

    #[test]
    fn a_pair_exactly_at_the_threshold_is_alike() {
        let (a, b): (Vec<u64>, Vec<u64>) = ((0..9).collect(), (1..10).collect());
        assert!(alike(&a, &b, 0.8), "8 of 10");
        assert!(!alike(&a, &b, 0.800001));
    }

    #[test]
    fn a_million_grams_have_a_million_hashes_that_are_evenly_spread() {
        let digits = |n: u32| (0..5).map(move |at| char::from_u32(0x4e00 + (n >> (4 * at) & 15)).expect("kanji"));
        let mut hashes = HashSet::new();
        let mut upper = [0_u32; 256];
        for n in 0..1 << 20 {
            let text: String = digits(n).collect();
            each_hash(&text, |hash| {
                upper[(hash >> 56) as usize] += 1;
                hashes.insert(hash);
            });
        }
        assert_eq!(hashes.len(), 1 << 20);
        // 4096 are expected of each; the standard deviation is 64.
        assert!(upper.iter().all(|&n| n.abs_diff(4096) < 6 * 64), "{upper:?}");
    }
}
