//! Numbers that a seed determines (SplitMix64), so that each fault can be repeated.

use std::ops::Range;

pub struct Draw(u64);

impl Draw {
    /// The numbers of the fault `number` of `kind`: they do not depend on which other faults there are.
    pub fn new(seed: u64, kind: &str, number: usize) -> Draw {
        let mut draw = Draw(seed);
        kind.bytes().map(u64::from).chain([number as u64]).for_each(|part| draw.0 = draw.next() ^ part);
        draw
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    pub fn index(&mut self, length: usize) -> usize {
        self.within(0..length as u64) as usize
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.index(of.len())]
    }

    /// From 0 to 1.
    pub fn share(&mut self) -> f64 {
        self.within(0..1 << 20) as f64 / f64::from(1 << 20)
    }
}
