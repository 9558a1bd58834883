//! A sample of the text that fits the memory. Each unit of text gets a number drawn from its position, and those with
//! the smallest numbers are kept, as many as fit: so every unit has the same chance, whatever the length of the inputs,
//! which are read once and may be pipes.

use std::collections::BinaryHeap;

use engine::error::Result;

/// How much of the text a sample holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Taken {
    /// Bytes of the sample.
    pub bytes: u64,
    /// Bytes of all text.
    pub of: u64,
}

/// The units that are kept.
pub struct Sample {
    pub units: Vec<String>,
    pub taken: Taken,
}

/// Takes up to `limit` bytes of the units that `read` gives to its argument.
pub fn sample(limit: u64, read: impl FnOnce(&mut dyn FnMut(&str)) -> Result<()>) -> Result<Sample> {
    let mut sampler = Sampler { limit, taken: Taken::default(), seen: 0, below: u64::MAX, kept: BinaryHeap::new() };
    read(&mut |unit| sampler.add(unit))?;
    let mut kept = sampler.kept.into_vec();
    kept.sort_unstable_by_key(|unit| unit.position);
    Ok(Sample { units: kept.into_iter().map(|unit| unit.text).collect(), taken: sampler.taken })
}

struct Sampler {
    limit: u64,
    taken: Taken,
    /// Units seen.
    seen: u64,
    /// Only units with a smaller number are kept.
    below: u64,
    kept: BinaryHeap<Unit>,
}

/// Ordered by its number.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Unit {
    number: u64,
    position: u64,
    text: String,
}

impl Sampler {
    fn add(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let position = self.seen;
        self.seen += 1;
        self.taken.of += text.len() as u64;
        let number = number(position);
        if number >= self.below {
            return;
        }
        self.taken.bytes += text.len() as u64;
        self.kept.push(Unit { number, position, text: text.into() });
        while self.taken.bytes > self.limit {
            let largest = self.kept.pop().expect("a sample above its limit is not empty");
            self.taken.bytes -= largest.text.len() as u64;
            self.below = largest.number;
        }
    }
}

/// A number that looks random: SplitMix64 (Steele, Lea, Flood 2014) of the position.
fn number(position: u64) -> u64 {
    let mut z = (position + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(limit: u64, units: &[String]) -> Sample {
        sample(limit, |add| {
            units.iter().for_each(|unit| add(unit));
            Ok(())
        })
        .unwrap()
    }

    #[test]
    fn all_of_a_text_that_fits_in_its_order() {
        let units: Vec<String> = (0..1000).map(|i| format!("line {i}")).collect();
        let bytes: usize = units.iter().map(String::len).sum();
        let all = of(bytes as u64, &units);
        assert!(all.units == units);
        assert_eq!(all.taken, Taken { bytes: bytes as u64, of: bytes as u64 });
    }

    /// Every part of a longer text has its share, and the limit holds.
    #[test]
    fn equal_shares_of_a_text_that_does_not_fit() {
        let units: Vec<String> = (0..100_000).map(|i| format!("{i:06}{}", "x".repeat(i % 7))).collect();
        let sample = of(100_000, &units);
        let bytes: usize = sample.units.iter().map(String::len).sum();
        assert_eq!(sample.taken.bytes, bytes as u64);
        assert!((99_900..=100_000).contains(&bytes), "{bytes}");
        assert_eq!(sample.taken.of, units.iter().map(|unit| unit.len() as u64).sum::<u64>());
        let mut tenths = [0; 10];
        sample.units.iter().for_each(|unit| tenths[unit[..6].parse::<usize>().unwrap() / 10_000] += 1);
        assert!(tenths.iter().all(|n| (900..1400).contains(n)), "{tenths:?}");
        assert!(of(100_000, &units).units == sample.units, "the same each time");
    }

    #[test]
    fn a_unit_above_the_limit_is_left_out() {
        let sample = of(5, &["longer than that".into(), "it".into()]);
        assert_eq!(sample.units, ["it"]);
    }
}
