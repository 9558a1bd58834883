//! How often a document repeats its n-grams of characters, for all n of 2 to 10 at once, exactly.
//!
//! The characters of a document are numbered, and the next ten characters from each position on are packed into a key.
//! In the sorted keys, equal n-grams stand beside each other for every n, and the length of the common prefix of two
//! neighbours says for which n a run of equal ones ends (the suffix array with its longest common prefixes of Manber
//! and Myers 1993, of ten characters).

/// The longest n-grams that are counted.
const LONGEST: usize = 10;

/// The n-grams of a document by n.
pub struct Grams {
    counts: [Count; LONGEST + 1],
}

/// The n-grams for one n.
#[derive(Clone, Copy, Default)]
struct Count {
    all: u64,
    distinct: u64,
    /// Distinct ones that occur more than once.
    repeated: u64,
    /// Occurrences of the most frequent one.
    most: u64,
}

impl Grams {
    /// Takes 16 bytes of memory a character, or 40 if the text has more than 4,095 different characters.
    pub fn of(text: &str) -> Self {
        let mut alphabet = Alphabet::new();
        let mut ids = Vec::with_capacity(text.len() / 2);
        ids.extend(text.chars().map(|c| alphabet.id(c)));
        let counts = match alphabet.distinct < 1 << DIGIT {
            true => count::<u128>(&ids, alphabet.distinct),
            false => count::<[u32; LONGEST]>(&ids, alphabet.distinct),
        };
        Self { counts }
    }

    /// The share of all n-grams that are the most frequent one; 0 where the text has no n-gram.
    pub fn top(&self, n: usize) -> f64 {
        share(self.counts[n].most, self.counts[n].all)
    }

    /// The share of the distinct n-grams that occur more than once; 0 where the text has no n-gram.
    pub fn repeated(&self, n: usize) -> f64 {
        share(self.counts[n].repeated, self.counts[n].distinct)
    }
}

/// `part / whole`, and 0 for a share of nothing.
pub fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Numbers different characters from 1 on, in the order in which they first occur.
struct Alphabet {
    distinct: u32,
    /// For each 256 characters of Unicode the index of their block; block 0 stays empty.
    index: Vec<u16>,
    blocks: Vec<[u32; 256]>,
}

impl Alphabet {
    fn new() -> Self {
        Self { distinct: 0, index: vec![0; (char::MAX as usize >> 8) + 1], blocks: vec![[0; 256]] }
    }

    fn id(&mut self, c: char) -> u32 {
        let block = &mut self.index[c as usize >> 8];
        if *block == 0 {
            *block = self.blocks.len() as u16;
            self.blocks.push([0; 256]);
        }
        let id = &mut self.blocks[*block as usize][c as usize & 255];
        if *id == 0 {
            self.distinct += 1;
            *id = self.distinct;
        }
        *id
    }
}

/// The next [`LONGEST`] characters from a position on; those behind the end of the text are 0.
trait Key: Ord + Copy {
    /// At the end of the text.
    const END: Self;

    /// The key of the position before this one, where `id` is the character.
    fn before(self, id: u32) -> Self;

    /// Characters of the common prefix.
    fn common(self, other: Self) -> usize;

    /// Characters before the end of the text.
    fn length(self) -> usize;
}

/// Bits of a character in the narrow key, of which it uses 120.
const DIGIT: u32 = 12;
const UNUSED: u32 = u128::BITS - LONGEST as u32 * DIGIT;

impl Key for u128 {
    const END: Self = 0;

    fn before(self, id: u32) -> Self {
        (self >> DIGIT) | (Self::from(id) << ((LONGEST as u32 - 1) * DIGIT))
    }

    fn common(self, other: Self) -> usize {
        (((self ^ other).leading_zeros() - UNUSED) / DIGIT) as usize
    }

    fn length(self) -> usize {
        LONGEST - (self.trailing_zeros() / DIGIT) as usize
    }
}

impl Key for [u32; LONGEST] {
    const END: Self = [0; LONGEST];

    fn before(self, id: u32) -> Self {
        let mut key = [id; LONGEST];
        key[1..].copy_from_slice(&self[..LONGEST - 1]);
        key
    }

    fn common(self, other: Self) -> usize {
        self.iter().zip(other).take_while(|&(&a, b)| a == b).count()
    }

    fn length(self) -> usize {
        self.iter().take_while(|&&id| id != 0).count()
    }
}

/// `ids` are numbers of `different` characters.
fn count<K: Key>(ids: &[u32], different: u32) -> [Count; LONGEST + 1] {
    let mut counts = [Count::default(); LONGEST + 1];
    for (n, count) in counts.iter_mut().enumerate() {
        count.all = (ids.len() + 1).saturating_sub(n) as u64;
    }
    let keys = sorted_keys::<K>(ids, different);
    // Where the run of equal n-grams began, for each n.
    let mut starts = [0; LONGEST + 1];
    for (i, &key) in (1..).zip(&keys) {
        let common = keys.get(i).map_or(0, |&next| key.common(next));
        let length = key.length();
        for n in common + 1..=LONGEST {
            let times = (i - starts[n]) as u64;
            starts[n] = i;
            if n <= length {
                let count = &mut counts[n];
                count.distinct += 1;
                count.repeated += u64::from(times > 1);
                count.most = count.most.max(times);
            }
        }
    }
    counts
}

/// The keys of all positions in their order. They are distributed by their first character before they are sorted,
/// which leaves short pieces to sort.
fn sorted_keys<K: Key>(ids: &[u32], different: u32) -> Vec<K> {
    let mut ends = vec![0; different as usize + 1];
    ids.iter().for_each(|&id| ends[id as usize] += 1);
    let mut end = 0;
    for slot in &mut ends {
        end += *slot;
        *slot = end;
    }
    let (mut keys, mut key) = (vec![K::END; ids.len()], K::END);
    let mut starts = ends.clone();
    for &id in ids.iter().rev() {
        key = key.before(id);
        starts[id as usize] -= 1;
        keys[starts[id as usize]] = key;
    }
    for (&start, &end) in starts.iter().zip(&ends) {
        keys[start..end].sort_unstable();
    }
    keys
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// All figures by counting each n alone.
    fn by_counting(text: &str, n: usize) -> (f64, f64) {
        let characters: Vec<char> = text.chars().collect();
        let mut counts: HashMap<&[char], u64> = HashMap::new();
        characters.windows(n).for_each(|gram| *counts.entry(gram).or_default() += 1);
        let repeated = counts.values().filter(|&&count| count > 1).count() as u64;
        let most = counts.values().copied().max().unwrap_or(0);
        (share(most, counts.values().sum()), share(repeated, counts.len() as u64))
    }

    fn check(text: &str) {
        let grams = Grams::of(text);
        for n in 2..=LONGEST {
            assert_eq!((grams.top(n), grams.repeated(n)), by_counting(text, n), "{n}-grams of {text:?}");
        }
    }

    #[test]
    fn texts_that_repeat_much_or_nothing() {
        for text in
            ["", "あ", "ああ", "abcdefghij", "abcdefghijk", "a\r\nb\r\na\r\nb\r\n", "𠮟る𠮟る", "\0\0\0\0\u{10ffff}"]
        {
            check(text);
        }
        check(&"あ".repeat(500));
        check(&"あいうえおかきくけこ".repeat(30));
    }

    /// Above 4,095 different characters the keys are wide.
    #[test]
    fn an_alphabet_of_any_size_is_counted() {
        for different in [4094, 4095, 4096, 9000] {
            let all: String = (0..different).map(|i| char::from_u32(0x3400 + i).unwrap()).collect();
            let some: String = all.chars().step_by(7).collect();
            check(&[all.as_str(), &some, &all[all.len() - 900..], &some].concat());
        }
    }

    #[test]
    fn the_numbers_of_a_small_example() {
        // Of the 2-grams あい (3), いう, うあ, あい, いあ: 3 of 6; 1 of 4 distinct ones twice or more.
        let grams = Grams::of("あいうあいあい");
        assert_eq!((grams.top(2), grams.repeated(2)), (3.0 / 6.0, 1.0 / 4.0));
        assert_eq!((grams.top(7), grams.repeated(7)), (1.0, 0.0));
        assert_eq!((grams.top(8), grams.repeated(8)), (0.0, 0.0));
    }

    proptest! {
        #[test]
        fn the_figures_are_those_of_counting(text in "[a-cあ𠮟\n]{0,120}") {
            check(&text);
        }
    }
}
