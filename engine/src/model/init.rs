//! Random weights. An element is a function of (seed, Hugging Face name, element index) alone, so that every rank of
//! every layout can generate its own shard, and all shards agree with the whole.
//!
//! A counter-based generator gives two normal values per block: Philox 4x32 with 10 rounds (Salmon et al., "Parallel
//! random numbers: as easy as 1, 2, 3", 2011) keyed by a hash of name and seed, then the Box-Muller transform in f64.
//! Norm weights are 1 (0 where they are differences from 1), biases 0.

use crate::config::Model;
use crate::model::param_specs::{Init, TensorSpec};
use crate::model::rect::Rect;
use crate::model::stored::Form;
use rayon::prelude::*;

/// Elements of a task.
const TASK: usize = 1 << 16;

/// Fills `out` with the elements `first ..` of tensor `name`, normal with mean 0 and deviation `std`.
pub fn normal(seed: u32, name: &str, std: f64, first: usize, out: &mut [f32]) {
    Normal::new(seed, name, std).fill(first as u64, out);
}

/// Fills `out` with the initial weights of the rectangle `rect` of a tensor, row-major.
pub fn fill(model: &Model, seed: u32, tensor: &TensorSpec, rect: &Rect, out: &mut [f32]) {
    assert_eq!(out.len(), rect.len(), "{} elements for a rectangle of {}", out.len(), rect.len());
    match tensor.init {
        Init::Normal => {}
        Init::Zeros => return out.fill(0.0),
        Init::Ones => return out.fill(1.0),
    }
    // The values are those of the file's tensor, and the same whatever form a file has.
    let (std, form) = (model.initializer_range, Form::default());
    let done = tensor.read_stored(form, rect, out, |name, rect, out| {
        fill_matrix(&Normal::new(seed, name, std), tensor.in_file(form).shape()[1], rect, out);
        Ok(())
    });
    done.expect("random values are not read");
}

fn fill_matrix(normal: &Normal, width: usize, rect: &Rect, out: &mut [f32]) {
    if rect.cols.len() == width {
        return normal.fill((rect.rows.start * width) as u64, out);
    }
    out.par_chunks_exact_mut(rect.cols.len().max(1)).enumerate().for_each(|(row, out)| {
        normal.fill_task(((rect.rows.start + row) * width + rect.cols.start) as u64, out);
    });
}

/// The normal values of one tensor.
struct Normal {
    key: [u32; 2],
    std: f64,
}

impl Normal {
    fn new(seed: u32, name: &str, std: f64) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(&seed.to_le_bytes()).update(name.as_bytes());
        let hash = hash.finalize();
        let word = |i: usize| u32::from_le_bytes(hash.as_bytes()[i * 4..i * 4 + 4].try_into().expect("4 bytes"));
        Normal { key: [word(0), word(1)], std }
    }

    /// Fills `out` on all threads: no element depends on another.
    fn fill(&self, first: u64, out: &mut [f32]) {
        let parts = out.par_chunks_mut(TASK).enumerate();
        parts.for_each(|(i, out)| self.fill_task(first + (i * TASK) as u64, out));
    }

    fn fill_task(&self, first: u64, out: &mut [f32]) {
        let (odd, rest) = out.split_at_mut((first as usize % 2).min(out.len()));
        if let [value] = odd {
            *value = self.pair(first / 2)[1];
        }
        for (block, values) in (first.div_ceil(2)..).zip(rest.chunks_mut(2)) {
            values.copy_from_slice(&self.pair(block)[..values.len()]);
        }
    }

    /// The elements `2 * block` and `2 * block + 1`.
    fn pair(&self, block: u64) -> [f32; 2] {
        let [a, b, c, d] = philox([block as u32, (block >> 32) as u32, 0, 0], self.key);
        // 53 bits each; the first in (0, 1] for the logarithm, the second in [0, 1).
        let uniform = |hi: u32, lo: u32| (((hi as u64) << 32 | lo as u64) >> 11) as f64 / (1u64 << 53) as f64;
        let radius = self.std * (-2.0 * (1.0 - uniform(a, b)).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * uniform(c, d)).sin_cos();
        [(radius * cos) as f32, (radius * sin) as f32]
    }
}

/// Philox 4x32-10.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [c0, c1, c2, c3] = counter;
        let p0 = c0 as u64 * 0xD251_1F53;
        let p1 = c2 as u64 * 0xCD9E_8D57;
        counter = [(p1 >> 32) as u32 ^ c1 ^ key[0], p1 as u32, (p0 >> 32) as u32 ^ c3 ^ key[1], p0 as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The known answers of Random123's kat_vectors.
    #[test]
    fn philox_gives_the_published_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        let pi = [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344];
        assert_eq!(philox(pi, [0xa4093822, 0x299f31d0]), [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
    }

    #[test]
    fn golden_values() {
        let mut out = [0.0; 4];
        normal(1234, "model.embed_tokens.weight", 0.02, 0, &mut out);
        assert_eq!(out, [-0.00035784033, -0.019406242, -0.009251742, 0.033505946]);
        normal(1234, "model.embed_tokens.weight", 1.0, (1 << 40) + 1, &mut out);
        assert_eq!(out, [-1.5686454, 0.6156736, -0.45331395, 0.26312003]);
    }

    proptest! {
        #[test]
        fn any_slice_agrees_with_the_whole(a in 0usize..60, b in 0usize..60, seed in 0u32..5) {
            let (a, b) = (a.min(b), a.max(b));
            let mut whole = [0.0; 60];
            normal(seed, "lm_head.weight", 0.02, 0, &mut whole);
            let mut part = vec![0.0; b - a];
            normal(seed, "lm_head.weight", 0.02, a, &mut part);
            prop_assert_eq!(&whole[a..b], &part[..]);
        }
    }

    /// The elements start at an odd index and take more than one task.
    #[test]
    fn many_threads_give_what_one_gives() {
        let mut together = vec![0.0; 3 * TASK + 7];
        normal(5, "lm_head.weight", 0.02, 3, &mut together);
        let mut alone = vec![0.0; together.len()];
        Normal::new(5, "lm_head.weight", 0.02).fill_task(3, &mut alone);
        assert!(together == alone);
    }

    #[test]
    fn a_rectangle_agrees_with_the_whole_and_norms_are_one() {
        let model = Model::tiny();
        for tensor in crate::model::param_specs::all_tensors(&model) {
            let [rows, cols] = tensor.shape();
            let mut whole = vec![0.0; rows * cols];
            fill(&model, 7, &tensor, &Rect::whole([rows, cols]), &mut whole);
            let rect = Rect { rows: rows / 3..rows, cols: cols / 4..cols - 1 };
            let mut part = vec![0.0; rect.len()];
            fill(&model, 7, &tensor, &rect, &mut part);
            let expected: Vec<f32> = rect
                .rows
                .clone()
                .flat_map(|r| rect.cols.clone().map(move |c| r * cols + c))
                .map(|i| whole[i])
                .collect();
            assert_eq!(part, expected, "{}", tensor.name);
            assert_eq!(tensor.init == Init::Normal, whole.iter().any(|&w| w != 1.0), "{}", tensor.name);
        }
    }

    #[test]
    fn the_values_are_normal() {
        let n = 1 << 20;
        let mut out = vec![0.0; n];
        normal(0, "model.layers.0.mlp.up_proj.weight", 2.0, 0, &mut out);
        let z: Vec<f64> = out.iter().map(|&x| x as f64 / 2.0).collect();
        let moment = |k: i32| z.iter().map(|x| x.powi(k)).sum::<f64>() / n as f64;
        // Six standard errors: sqrt(var(z^k) / n).
        for (k, expected, var) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            let error: f64 = 6.0 * f64::sqrt(var / n as f64);
            assert!((moment(k) - expected).abs() < error, "moment {k} is {}", moment(k));
        }
        for (beyond, share) in [(1.0, 0.3173105), (2.0, 0.0455003), (3.0, 0.0026998), (4.0, 6.334e-5)] {
            let found = z.iter().filter(|x| x.abs() > beyond).count() as f64 / n as f64;
            assert!((found - share).abs() < 6.0 * f64::sqrt(share / n as f64), "{found} lie beyond {beyond}");
        }
        let neighbours = z.windows(2).map(|w| w[0] * w[1]).sum::<f64>() / n as f64;
        assert!(neighbours.abs() < 6.0 / f64::sqrt(n as f64), "neighbours correlate by {neighbours}");
    }

    #[test]
    fn seed_and_name_both_count() {
        let make = |seed, name: &str| {
            let mut out = [0.0; 8];
            normal(seed, name, 1.0, 0, &mut out);
            out
        };
        assert_ne!(make(1, "a"), make(2, "a"));
        assert_ne!(make(1, "a"), make(1, "b"));
    }
}
