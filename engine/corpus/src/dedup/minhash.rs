//! MinHash signatures (Broder, On the resemblance and containment of documents, 1997) and their bands (Leskovec,
//! Rajaraman and Ullman, Mining of Massive Datasets, chapter 3).
//!
//! A signature is, for each of [`PERMUTATIONS`] permutations of the hashes, the least value of a document's grams: two
//! documents have the same one with a probability equal to the Jaccard coefficient J of their sets. `rows` values are a
//! band, and documents that share one of `bands` bands are compared: J finds a pair with 1 - (1 - J^rows)^bands. The
//! threshold decides on the rows ([`Bands::for_threshold`]); at 0.8 there are 21 bands of 6 rows:
//!
//! | J | pairs that are compared |
//! | --- | --- |
//! | 0.4 | 8.3 % |
//! | 0.5 | 28.2 % |
//! | 0.6 | 63.3 % |
//! | 0.7 | 92.8 % |
//! | 0.75 | 98.4 % |
//! | 0.8 | 99.83 % |
//! | 0.85 | 99.995 % |
//! | 0.9 | all but one of 8 million |

use super::grams;

/// Values of a signature. A multiple of [`TILE`].
pub const PERMUTATIONS: usize = 128;

/// The least threshold that the permutations find pairs for.
pub const LEAST_THRESHOLD: f64 = 0.1;

/// Permutations that are computed together: their minima and factors stay in vector registers.
const TILE: usize = 32;

/// Hashes that are collected before they are permuted; they stay in the first-level cache.
const COLLECTED: usize = 1024;

/// The share of pairs exactly at the threshold that may stay unseen, in expectation.
const MISSED: f64 = 0.01;

/// Permutation i is `x * factor[i] + offset[i]` modulo 2^32, a bijection since the factors are odd.
static FACTORS: [u32; PERMUTATIONS] = numbers(0x6d69_6e68_6173_6831, 1);
static OFFSETS: [u32; PERMUTATIONS] = numbers(0x6d69_6e68_6173_6832, 0);

/// Fixed numbers by SplitMix64, with the lowest bit set where `odd` is 1.
const fn numbers(seed: u64, odd: u32) -> [u32; PERMUTATIONS] {
    let mut numbers = [0; PERMUTATIONS];
    let (mut at, mut state) = (0, seed);
    while at < PERMUTATIONS {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        numbers[at] = (mix(state) >> 32) as u32 | odd;
        at += 1;
    }
    numbers
}

/// The finalizer of SplitMix64, a bijection.
const fn mix(x: u64) -> u64 {
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Computes signatures; it is used again for the next document.
pub struct Signer {
    minima: [u32; PERMUTATIONS],
    hashes: Vec<u32>,
    arch: pulp::Arch,
}

impl Signer {
    pub fn new() -> Self {
        let arch = pulp::Arch::new();
        Self { minima: [u32::MAX; PERMUTATIONS], hashes: Vec::with_capacity(COLLECTED), arch }
    }

    /// The signature of the grams of `text`.
    pub fn sign(&mut self, text: &str) -> &[u32; PERMUTATIONS] {
        self.minima = [u32::MAX; PERMUTATIONS];
        grams::each_hash(text, |hash| {
            if self.hashes.len() == COLLECTED {
                self.arch.dispatch(Lower { minima: &mut self.minima, hashes: &self.hashes });
                self.hashes.clear();
            }
            self.hashes.push((hash >> 32) as u32);
        });
        self.arch.dispatch(Lower { minima: &mut self.minima, hashes: &self.hashes });
        self.hashes.clear();
        &self.minima
    }
}

/// Lowers the minima by some hashes.
struct Lower<'a> {
    minima: &'a mut [u32; PERMUTATIONS],
    hashes: &'a [u32],
}

impl pulp::WithSimd for Lower<'_> {
    type Output = ();

    /// The loop over a tile becomes vector instructions of the widest kind that the processor has.
    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        for at in (0..PERMUTATIONS).step_by(TILE) {
            let mut factors = [0; TILE];
            let mut offsets = [0; TILE];
            let mut least = [0; TILE];
            factors.copy_from_slice(&FACTORS[at..at + TILE]);
            offsets.copy_from_slice(&OFFSETS[at..at + TILE]);
            least.copy_from_slice(&self.minima[at..at + TILE]);
            for &hash in self.hashes {
                for i in 0..TILE {
                    least[i] = least[i].min(hash.wrapping_mul(factors[i]).wrapping_add(offsets[i]));
                }
            }
            self.minima[at..at + TILE].copy_from_slice(&least);
        }
    }
}

/// How a signature is cut into bands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bands {
    /// Values of a band.
    pub rows: usize,
    /// As many as the permutations give.
    pub bands: usize,
}

impl Bands {
    /// The bands with the most rows, so with the fewest false candidates, that find at least 99 % of the pairs with a
    /// Jaccard coefficient of `threshold`, from [`LEAST_THRESHOLD`] to 1.
    pub fn for_threshold(threshold: f64) -> Self {
        let all = (1..=PERMUTATIONS).rev().map(|rows| Self { rows, bands: PERMUTATIONS / rows });
        let mut enough = all.filter(|bands| bands.missed(threshold) <= MISSED);
        enough.next().unwrap_or_else(|| panic!("no bands find pairs at {threshold}, least {LEAST_THRESHOLD}"))
    }

    /// The expected share of pairs with a Jaccard coefficient of `jaccard` that share no band.
    pub fn missed(self, jaccard: f64) -> f64 {
        (1.0 - jaccard.powi(self.rows as i32)).powi(self.bands as i32)
    }

    /// A key for each band of a signature. Different bands, or the same band with other values, have the same key with
    /// a chance of about 2^-64, which costs one comparison.
    pub fn keys(self, signature: &[u32; PERMUTATIONS]) -> impl Iterator<Item = u64> {
        let bands = signature.chunks_exact(self.rows).zip(1_u64..);
        bands.map(|(rows, band)| rows.iter().fold(mix(band), |key, &row| mix(key ^ u64::from(row))))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn signature(text: &str) -> [u32; PERMUTATIONS] {
        *Signer::new().sign(text)
    }

    /// `length` different characters from `from` on.
    fn run_of(from: u32, length: u32) -> String {
        (from..from + length).map(|c| char::from_u32(0x4e00 + c).expect("kanji")).collect()
    }

    #[test]
    fn a_signature_has_the_least_value_of_each_permutation() {
        for length in [0, 1, 5, 6, 1027, 1028, 1029, 5000] {
            let text = run_of(0, length);
            let mut expected = [u32::MAX; PERMUTATIONS];
            grams::each_hash(&text, |hash| {
                for (at, least) in expected.iter_mut().enumerate() {
                    let value = u64::from((hash >> 32) as u32) * u64::from(FACTORS[at]) + u64::from(OFFSETS[at]);
                    *least = (*least).min(value as u32);
                }
            });
            assert_eq!(signature(&text), expected, "{length} characters");
        }
    }

    #[test]
    fn a_signer_forgets_the_document_before() {
        let mut signer = Signer::new();
        signer.sign(&run_of(0, 3000));
        assert_eq!(*signer.sign("short"), signature("short"));
    }

    #[test]
    fn the_permutations_differ_and_are_bijections() {
        assert!(FACTORS.iter().all(|factor| factor % 2 == 1));
        assert_eq!(FACTORS.iter().collect::<HashSet<_>>().len(), PERMUTATIONS);
    }

    /// The share of equal values over 50 pairs, 6,400 values, is within 0.03 of J: five standard deviations.
    #[test]
    fn equal_values_estimate_the_jaccard_coefficient() {
        for (shared, own) in [(100_u32, 0_u32), (90, 5), (80, 10), (50, 25), (20, 40), (0, 50)] {
            let jaccard = f64::from(shared) / f64::from(shared + 2 * own);
            let mut equal = 0;
            for pair in 0..50 {
                // Sets of `shared + own` grams of a sequence of different characters, of which they share `shared`.
                let a = signature(&run_of(300 * pair, shared + own + 4));
                let b = signature(&run_of(300 * pair + own, shared + own + 4));
                equal += a.iter().zip(&b).filter(|(a, b)| a == b).count();
            }
            let share = equal as f64 / (50 * PERMUTATIONS) as f64;
            assert!((share - jaccard).abs() < 0.03, "{share} of the values are equal at {jaccard}");
        }
    }

    #[test]
    fn every_threshold_has_bands_that_find_nearly_all_of_its_pairs() {
        for threshold in (10..=100).map(|n| f64::from(n) / 100.0) {
            let bands = Bands::for_threshold(threshold);
            assert!(bands.missed(threshold) <= 0.01 && bands.rows * bands.bands <= PERMUTATIONS, "{bands:?}");
        }
        let table = [(0.5, 3, 42), (0.7, 4, 32), (0.8, 6, 21), (0.9, 10, 12), (1.0, 128, 1)];
        for (threshold, rows, bands) in table {
            assert_eq!(Bands::for_threshold(threshold), Bands { rows, bands }, "{threshold}");
        }
    }

    #[test]
    fn the_table_in_the_head_of_this_file_is_true() {
        let bands = Bands::for_threshold(0.8);
        let table = [(0.4, 0.083), (0.5, 0.282), (0.6, 0.633), (0.7, 0.928), (0.75, 0.984), (0.8, 0.9983)];
        for (jaccard, compared) in table {
            assert!((1.0 - bands.missed(jaccard) - compared).abs() < 6e-4, "{jaccard}: {}", bands.missed(jaccard));
        }
        assert!((bands.missed(0.85) - 5e-5).abs() < 5e-6, "{}", bands.missed(0.85));
        assert!((1.0 / bands.missed(0.9) / 8e6 - 1.0).abs() < 0.1, "{}", 1.0 / bands.missed(0.9));
    }

    #[test]
    fn keys_depend_on_their_band_and_its_values_alone() {
        let bands = Bands { rows: 6, bands: 21 };
        let keys = |signature| bands.keys(signature).collect::<Vec<_>>();
        let (equal, mut other) = ([7; PERMUTATIONS], [7; PERMUTATIONS]);
        assert_eq!(keys(&equal).iter().collect::<HashSet<_>>().len(), 21, "the same values in different bands");
        other[6 * 4 + 5] = 8;
        let differ: Vec<usize> = (0..21).filter(|&band| keys(&equal)[band] != keys(&other)[band]).collect();
        assert_eq!(differ, [4]);
    }
}
