//! The parts of numpy's legacy `RandomState` that a shuffle needs: the Mersenne Twister MT19937 seeded by
//! `init_genrand`, masked rejection, and the Fisher-Yates loop from the end. It is exact to the bit, so that the sample
//! order is Megatron's.

const N: usize = 624;
const M: usize = 397;

/// `numpy.random.RandomState(seed)`.
pub struct RandomState {
    key: [u32; N],
    position: usize,
}

impl RandomState {
    pub fn new(seed: u32) -> Self {
        let mut key = [seed; N];
        for i in 1..N {
            let before = key[i - 1];
            key[i] = 1_812_433_253u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Self { key, position: N }
    }

    /// `RandomState.shuffle` of a one-dimensional array.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.interval(i as u64) as usize;
            items.swap(i, j);
        }
    }

    /// Uniform in `0 ..= max`: draws as many bits as `max` has until they are not above it.
    fn interval(&mut self, max: u64) -> u64 {
        if max == 0 {
            return 0;
        }
        let mask = u64::MAX >> max.leading_zeros();
        loop {
            let draw = if max > u64::from(u32::MAX) { self.next_u64() } else { u64::from(self.next_u32()) };
            if draw & mask <= max {
                return draw & mask;
            }
        }
    }

    fn next_u64(&mut self) -> u64 {
        let high = u64::from(self.next_u32());
        high << 32 | u64::from(self.next_u32())
    }

    fn next_u32(&mut self) -> u32 {
        if self.position == N {
            self.twist();
        }
        let mut y = self.key[self.position];
        self.position += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..N {
            let y = (self.key[i] & 0x8000_0000) | (self.key[(i + 1) % N] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.key[i] = self.key[(i + M) % N] ^ (y >> 1) ^ odd;
        }
        self.position = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_shuffles_are_numpys() {
        let mut state = RandomState::new(1234);
        let mut ten: Vec<u32> = (0..10).collect();
        state.shuffle(&mut ten);
        assert_eq!(ten, [7, 2, 9, 1, 0, 8, 4, 5, 6, 3]);
        let mut seven: Vec<u32> = (0..7).collect();
        state.shuffle(&mut seven);
        assert_eq!(seven, [6, 4, 0, 5, 3, 2, 1]);
    }

    #[test]
    fn a_long_shuffle_is_numpys() {
        let mut items: Vec<u32> = (0..1_000_003).collect();
        RandomState::new(1234).shuffle(&mut items);
        assert_eq!(items[..8], [496447, 773290, 115235, 660779, 817909, 87617, 739467, 783133]);
        // Weighted by position, so that two swapped elements would show.
        let sum =
            items.iter().enumerate().fold(0u64, |s, (i, &x)| s.wrapping_mul(31).wrapping_add(i as u64 ^ u64::from(x)));
        assert_eq!(sum, LONG_SHUFFLE);
    }

    /// The value of numpy 2.4.6: `s = (s * 31 + (i ^ x)) mod 2^64` over the shuffled array.
    const LONG_SHUFFLE: u64 = 11958003795639398776;

    #[test]
    fn wide_draws_are_numpys() {
        // numpy: RandomState(1234).tomaxint() is the 64-bit draw shifted right by one.
        let mut state = RandomState::new(1234);
        let draws: Vec<u64> = (0..3).map(|_| state.next_u64() >> 1).collect();
        assert_eq!(draws, WIDE_DRAWS);
    }

    const WIDE_DRAWS: [u64; 3] = [1766455142220263785, 5737940601130642970, 4037325772734181050];
}
