//! The features of a text: its n-grams of characters, hashed into buckets (Weinberger et al. 2009, "Feature Hashing for
//! Large Scale Multitask Learning", without signs).
//!
//! The value of a bucket is the square root of its share of all n-grams, so that the vector has the length 1 and a
//! frequent n-gram does not drown the others. Square roots are exact to the last bit on every machine, logarithms are
//! not.

/// The n-grams that are counted.
pub const NGRAMS: [usize; 2] = [1, 4];

/// Buckets of the hash.
pub const BUCKETS: usize = 1 << 20;

/// Characters of a normalised text that are looked at.
pub const CHARACTERS: usize = 20_000;

/// The features of one text.
pub struct Features {
    /// Each bucket once, in their order, with its value.
    pub values: Vec<(u32, f32)>,
}

/// The beginning of a text in which ASCII letters are small and each run of white space is one space, at most
/// [`CHARACTERS`] characters.
pub fn normalise(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(3 * CHARACTERS));
    let (mut after_space, mut length) = (false, 0);
    for c in text.chars() {
        let is_space = c.is_whitespace();
        if is_space && after_space {
            continue;
        }
        if length == CHARACTERS {
            break;
        }
        after_space = is_space;
        length += 1;
        out.push(if is_space { ' ' } else { c.to_ascii_lowercase() });
    }
    out
}

impl Features {
    /// The features of a text that is normalised.
    pub fn of(normalised: &str) -> Self {
        let characters: Vec<char> = normalised.chars().collect();
        let [shortest, longest] = NGRAMS;
        let mut buckets = Vec::with_capacity(characters.len() * (longest + 1 - shortest));
        for start in 0..characters.len() {
            let mut hash = OFFSET;
            for (n, &c) in (1..=longest).zip(&characters[start..]) {
                hash = (hash ^ u64::from(u32::from(c))).wrapping_mul(PRIME);
                if n >= shortest {
                    buckets.push((mixed(hash) % BUCKETS as u64) as u32);
                }
            }
        }
        buckets.sort_unstable();
        let all = buckets.len() as f32;
        let value = |same: &[u32]| (same[0], (same.len() as f32 / all).sqrt());
        Self { values: buckets.chunk_by(|a, b| a == b).map(value).collect() }
    }
}

/// FNV-1a with 64 bits, of code points instead of bytes (Fowler, Noll and Vo).
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;

/// The finaliser of MurmurHash3 (Appleby), after which the low bits depend on all others.
fn mixed(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_normalised() {
        assert_eq!(normalise("ABC\r\n\n　 ｘＸ 𠮟Éa"), "abc ｘＸ 𠮟Éa");
        assert_eq!(normalise(""), "");
        assert_eq!(normalise(" \n"), " ");
        let long = normalise(&"あ  ".repeat(CHARACTERS));
        assert_eq!((long.chars().count(), &long[..8]), (CHARACTERS, "あ あ "));
    }

    #[test]
    fn the_vector_has_the_length_one() {
        for text in ["a", "ab", "あいうえおあいうえお", &"長い文書です。".repeat(900)] {
            let features = Features::of(text);
            let length: f32 = features.values.iter().map(|(_, value)| value * value).sum();
            assert!((length - 1.0).abs() < 1e-4, "{length}");
            assert!(features.values.is_sorted_by(|a, b| a.0 < b.0), "each bucket once");
            assert!(features.values.iter().all(|(bucket, _)| (*bucket as usize) < BUCKETS));
        }
        assert!(Features::of("").values.is_empty());
    }

    #[test]
    fn every_ngram_is_counted() {
        // a ab abc abcd / b bc bcd / c cd / d, and of "aa" a twice and aa.
        assert_eq!(Features::of("abcd").values.len(), 10);
        let mut values: Vec<f32> = Features::of("aa").values.iter().map(|(_, value)| *value).collect();
        values.sort_by(f32::total_cmp);
        assert_eq!(values, [(1.0f32 / 3.0).sqrt(), (2.0f32 / 3.0).sqrt()]);
    }

    /// A stored classifier fits only these buckets.
    #[test]
    fn the_buckets_never_change() {
        let buckets = |text: &str| Features::of(text).values.iter().map(|(bucket, _)| *bucket).collect::<Vec<_>>();
        let expected = [vec![970331], vec![5880], vec![912592], vec![638436, 709328, 970331]];
        assert_eq!(["a", "語", "𠮟", "ab"].map(buckets), expected);
    }
}
