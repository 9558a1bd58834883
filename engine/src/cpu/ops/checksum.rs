//! Checksums of elements.

use crate::backend::{CHECKSUM_PARTS, Elem, mixed};
use crate::cpu::workers::Workers;

/// The parts of the checksum of x, each over consecutive elements; see [`crate::backend::Backend::checksum`].
pub fn checksum<T: Elem>(workers: &Workers, x: &[T], parts: &mut [u32]) {
    let each = x.len().div_ceil(CHECKSUM_PARTS).max(1);
    parts.fill(0);
    workers.each(x.chunks(each).zip(parts).enumerate(), |(i, (x, part))| *part = sum(x, i * each));
}

/// The sum over elements of which the first is in `place`.
fn sum<T: Elem>(x: &[T], place: usize) -> u32 {
    let add = |sum: u32, (i, bits): (usize, u32)| sum.wrapping_add(mixed(bits, place + i));
    match size_of::<T>() {
        2 => bytemuck::cast_slice::<T, u16>(x).iter().map(|&bits| u32::from(bits)).enumerate().fold(0, add),
        _ => bytemuck::cast_slice::<T, u32>(x).iter().copied().enumerate().fold(0, add),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    fn checksum_of<T: Elem>(threads: usize, x: &[T]) -> u32 {
        let mut parts = vec![7; CHECKSUM_PARTS];
        checksum(&Workers::new(threads), x, &mut parts);
        parts.into_iter().fold(0, u32::wrapping_add)
    }

    #[test]
    fn one_changed_bit_and_two_exchanged_elements_change_the_checksum() {
        let x: Vec<bf16> = (0..3000).map(|i| bf16::from_f32(i as f32 - 1500.0)).collect();
        let right = checksum_of(2, &x);
        assert_eq!(right, checksum_of(1, &x));
        for (i, bit) in [(0, 0), (2999, 15), (1234, 7)] {
            let mut other = x.clone();
            other[i] = bf16::from_bits(x[i].to_bits() ^ 1 << bit);
            assert_ne!(checksum_of(2, &other), right, "element {i}, bit {bit}");
        }
        let mut other = x.clone();
        other.swap(17, 2345);
        assert_ne!(checksum_of(2, &other), right);
        // The signs of two elements: differences that cancel in a plain sum of bits.
        let mut other = x.clone();
        [10, 11].iter().for_each(|&i| other[i] = -x[i]);
        assert_ne!(checksum_of(2, &other), right);
    }

    #[test]
    fn lengths_around_the_number_of_parts() {
        for n in [0, 1, 511, 512, 513, 1025] {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let right = x.iter().enumerate().fold(0u32, |sum, (i, x)| sum.wrapping_add(mixed(x.to_bits(), i)));
            assert_eq!(checksum_of(2, &x), right, "{n} elements");
        }
    }
}
