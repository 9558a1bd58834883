//! The source of each sample (`build_blending_indices` of megatron/core/datasets/helpers.cpp): the one that lags
//! farthest behind its share, without randomness. A choice depends on all choices before it, so the counts are stored
//! every [`STRIDE`] samples, and the choices since the last stored counts are recomputed.
//!
//! Memory: 8 bytes per source and `STRIDE` samples.

use std::ops::Range;

const STRIDE: u64 = 1024;

/// A mixture of sources over a fixed number of samples.
#[derive(Debug)]
pub struct Blend {
    /// The normalized weights, which sum to 1.
    shares: Vec<f64>,
    size: u64,
    /// `[size / STRIDE, sources]`: samples taken from each source before sample `STRIDE * i`.
    counts: Vec<u64>,
    /// Samples taken from each source in all.
    totals: Vec<u64>,
}

impl Blend {
    /// `shares` has at least one entry and sums to 1.
    pub fn new(shares: Vec<f64>, size: u64) -> Self {
        let mut counts = Vec::new();
        let mut now = vec![0; shares.len()];
        for i in 0..size {
            if i % STRIDE == 0 {
                counts.extend_from_slice(&now);
            }
            let source = choose(&shares, &now, i);
            now[source] += 1;
        }
        Self { shares, size, counts, totals: now }
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Samples taken from each source in all.
    pub fn totals(&self) -> &[u64] {
        &self.totals
    }

    /// The source of each of these samples, and the sample's number within that source.
    pub fn choices(&self, samples: Range<u64>) -> Vec<(usize, u64)> {
        if samples.is_empty() {
            return Vec::new();
        }
        assert!(samples.end <= self.size, "samples {samples:?} of a blend of {}", self.size);
        let n = self.shares.len();
        let stride = samples.start / STRIDE;
        let mut now = self.counts[stride as usize * n..][..n].to_vec();
        let mut chosen = Vec::with_capacity((samples.end - samples.start) as usize);
        for i in stride * STRIDE..samples.end {
            let source = choose(&self.shares, &now, i);
            if i >= samples.start {
                chosen.push((source, now[source]));
            }
            now[source] += 1;
        }
        chosen
    }
}

/// The source with the largest `share * i - taken`; the first of equals.
fn choose(shares: &[f64], taken: &[u64], i: u64) -> usize {
    let i = (i as f64).max(1.0);
    let mut best = (0, f64::NEG_INFINITY);
    for (source, (&share, &count)) in shares.iter().zip(taken).enumerate() {
        let error = share * i - count as f64;
        if error > best.1 {
            best = (source, error);
        }
    }
    best.0
}

/// Weights as shares that sum to 1. The sum is taken as `numpy.sum` does (in eight lanes from eight elements on), since
/// the last bit of a share can decide a choice.
pub fn normalize(weights: &[f64]) -> Vec<f64> {
    let sum = numpy_sum(weights);
    weights.iter().map(|w| w / sum).collect()
}

fn numpy_sum(x: &[f64]) -> f64 {
    if x.len() < 8 {
        return x.iter().fold(-0.0, |s, v| s + v);
    }
    if x.len() > 128 {
        let half = x.len() / 2 / 8 * 8;
        return numpy_sum(&x[..half]) + numpy_sum(&x[half..]);
    }
    let mut lanes = [0.0; 8];
    lanes.copy_from_slice(&x[..8]);
    let blocks = x[8..].chunks_exact(8);
    let rest = blocks.remainder();
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(lane, v)| *lane += v);
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    rest.iter().fold(((a + b) + (c + d)) + ((e + f) + (g + h)), |s, v| s + v)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blend_is_megatrons() {
        let blend = Blend::new(normalize(&[0.5, 0.3, 0.2]), 12);
        let choices = blend.choices(0..12);
        assert_eq!(choices.iter().map(|c| c.0).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 0, 2, 0, 1, 0, 0, 1]);
        assert_eq!(choices[..4], [(0, 0), (1, 0), (2, 0), (0, 1)]);
        assert_eq!(blend.totals(), [6, 4, 2]);
    }

    #[test]
    fn any_range_is_the_same_as_from_the_start() {
        let blend = Blend::new(normalize(&[3.0, 1.0, 1.7, 0.01]), 5000);
        let all = blend.choices(0..5000);
        for start in [0, 1, 1023, 1024, 1025, 3000, 4999] {
            let end = (start + 1500).min(5000);
            assert_eq!(blend.choices(start..end), all[start as usize..end as usize]);
        }
        assert!(blend.choices(7..7).is_empty());
        assert_eq!(Blend::new(normalize(&[3.0, 1.0, 1.7, 0.01]), 1700).choices(0..1700), all[..1700]);
    }

    #[test]
    fn sums_are_numpys() {
        // numpy.sum(1 / numpy.arange(1, n + 1)) for n in 7, 8, 20, 300, as bits.
        let sum = |n: u32| numpy_sum(&(1..=n).map(|i| 1.0 / f64::from(i)).collect::<Vec<_>>()).to_bits();
        assert_eq!([7, 8, 20, 300].map(sum), SUMS);
    }

    const SUMS: [u64; 4] = [4613021014031215586, 4613302489007926242, 4615283808289661579, 4618759669104940634];
}
