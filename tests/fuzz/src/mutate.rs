//! Cases by number. The first numbers are the seeds as they are, each later one is a seed with a few edits. A case is
//! a function of the campaign's seed, the target and the number alone.

use crate::case::Case;
use crate::targets::Target;
use crate::trees;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Files do not grow beyond this: large inputs are slow, and rarely reach other code than small ones.
const LONGEST: usize = 1 << 16;
/// The longest piece that is removed or repeated, except for the rare cut of everything that follows.
const PIECE: usize = 64;

/// Words that no seed has to contain: the ends of types of numbers, and what JSON and TOML have in place of a value.
const WORDS: &str = "0 -1 1 2 255 256 65535 2147483647 4294967295 4294967296 9223372036854775807 9223372036854775808 \
    18446744073709551615 18446744073709551616 -9223372036854775808 0.0 -0.0 1e-320 1e308 1e999 nan NaN inf null true \
    \"\" [] {} \\u0000 \\ud800 \u{10ffff}";

/// SplitMix64.
pub struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn pick<'t, T>(&mut self, of: &'t [T]) -> &'t T {
        &of[self.below(of.len())]
    }

    /// A place in `bytes` and the end of a short piece there.
    fn piece(&mut self, bytes: &[u8]) -> std::ops::Range<usize> {
        let start = self.below(bytes.len() + 1);
        let longest = if self.below(16) == 0 { bytes.len() } else { PIECE };
        start..bytes.len().min(start + 1 + self.below(longest.max(1)))
    }
}

/// Makes the cases of a target.
pub struct Cases<'t> {
    target: &'t Target,
    seeds: Vec<Case>,
    /// Words of the seeds, and [`WORDS`].
    words: Vec<Vec<u8>>,
    seed: u64,
}

impl<'t> Cases<'t> {
    pub fn new(target: &'t Target, seeds: Vec<Case>, seed: u64) -> Cases<'t> {
        let files = seeds.iter().flat_map(|case| case.0.values());
        let of_seeds = files.flat_map(|bytes| words(bytes).into_iter().map(|word| bytes[word].to_vec()));
        let all: BTreeSet<Vec<u8>> = of_seeds.chain(WORDS.split(' ').map(|word| word.as_bytes().to_vec())).collect();
        Cases { target, seeds, words: all.into_iter().collect(), seed }
    }

    /// The case of this number.
    pub fn get(&self, number: u64) -> Case {
        if let Some(seed) = self.seeds.get(number as usize) {
            return seed.clone();
        }
        let name = blake3::hash(self.target.name.as_bytes());
        let name = u64::from_le_bytes(name.as_bytes()[..8].try_into().expect("eight bytes"));
        let mut rng = Rng(self.seed ^ name.wrapping_add(number.wrapping_mul(0xd134_2543_de82_ef95)));
        let mut case = rng.pick(&self.seeds).clone();
        let paths: Vec<PathBuf> = case.0.keys().filter(|path| !self.is_fixed(path)).cloned().collect();
        let edits = 1 + rng.next().trailing_zeros().min(7);
        for _ in 0..edits {
            // Mostly the longer one of two, since more can be wrong in it.
            let [one, other] = [0; 2].map(|_| rng.pick(&paths));
            let path = if case.0[one].len() > case.0[other].len() { one } else { other };
            let bytes = case.0.get_mut(path).expect("a file of the case");
            self.edit(&mut rng, bytes);
            bytes.truncate(LONGEST);
        }
        if let Some(mend) = self.target.mend {
            mend(&mut case);
        }
        case
    }

    fn is_fixed(&self, path: &Path) -> bool {
        self.target.fixed.iter().any(|fixed| path == Path::new(fixed))
    }

    fn edit(&self, rng: &mut Rng, bytes: &mut Vec<u8>) {
        if rng.below(4) > 0 && trees::edit(rng, bytes, &self.words) {
            return;
        }
        let words = words(bytes);
        match rng.below(10) {
            0 if !bytes.is_empty() => *at(rng, bytes) ^= 1 << rng.below(8),
            1 if !bytes.is_empty() => *at(rng, bytes) = rng.next() as u8,
            2 | 3 => overwrite(rng, bytes),
            4 => _ = bytes.drain(rng.piece(bytes)),
            5 => {
                let piece = bytes[rng.piece(bytes)].to_vec();
                insert(rng, bytes, &piece);
            }
            6 => {
                let word = rng.pick(&self.words);
                insert(rng, bytes, word);
            }
            7 if rng.below(4) == 0 => bytes.truncate(rng.below(bytes.len() + 1)),
            8 => self.splice(rng, bytes),
            _ if !words.is_empty() => {
                let word = rng.pick(&words).clone();
                bytes.splice(word, rng.pick(&self.words).iter().copied());
            }
            _ => insert(rng, bytes, b"0"),
        }
    }

    /// Replaces the end of a file by the end of a file of a seed.
    fn splice(&self, rng: &mut Rng, bytes: &mut Vec<u8>) {
        let seed = rng.pick(&self.seeds);
        let other: &Vec<u8> = seed.0.values().nth(rng.below(seed.0.len())).expect("a file of the seed");
        bytes.truncate(rng.below(bytes.len() + 1));
        bytes.extend(&other[rng.below(other.len() + 1)..]);
    }
}

/// A byte of a file that is not empty.
fn at<'b>(rng: &mut Rng, bytes: &'b mut [u8]) -> &'b mut u8 {
    let at = rng.below(bytes.len());
    &mut bytes[at]
}

fn insert(rng: &mut Rng, bytes: &mut Vec<u8>, piece: &[u8]) {
    let at = rng.below(bytes.len() + 1);
    bytes.splice(at..at, piece.iter().copied());
}

/// Writes a little-endian integer at which something may end: 0, 1, the largest ones, or a power of two.
fn overwrite(rng: &mut Rng, bytes: &mut [u8]) {
    let power = 1u64 << rng.below(64);
    let value = *rng.pick(&[0, 1, u64::MAX, u64::MAX - 1, i64::MAX as u64, i32::MAX as u64, power, power - 1]);
    let width = *rng.pick(&[2, 4, 8]);
    if bytes.len() >= width {
        let start = rng.below(bytes.len() - width + 1);
        bytes[start..start + width].copy_from_slice(&value.to_le_bytes()[..width]);
    }
}

/// Numbers, keys and names in a text: the stretches of bytes that are no punctuation and no blanks.
fn words(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let is_word = |b: &u8| b.is_ascii_alphanumeric() || b"_.+-".contains(b) || *b >= 0x80;
    let runs = bytes.chunk_by(|a, b| is_word(a) == is_word(b));
    let mut start = 0;
    let ranges = runs.map(|run| {
        start += run.len();
        (start - run.len()..start, is_word(&run[0]))
    });
    ranges.filter(|(range, is_word)| *is_word && range.len() <= PIECE).map(|(range, _)| range).collect()
}
