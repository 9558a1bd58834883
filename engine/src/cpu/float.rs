//! The element types of the CPU's activations: f32 or bf16. Ops compute in f32 and round once, when they store.

use super::tiles::Tile;
use crate::backend::Elem;
use half::bf16;

/// An element of the activations.
pub trait Float: Elem + Copy {
    /// Whether storing rounds: false for f32.
    const ROUNDS: bool;
    fn load(self) -> f32;
    /// To nearest, ties to even.
    fn store(x: f32) -> Self;
    /// The elements themselves if they are f32 already, so that nothing is converted.
    fn as_f32(x: &[Self]) -> Option<&[f32]>;
    /// Like [`Float::as_f32`], but for a tile to write to.
    fn as_f32_tile<'a, 'b>(x: &'a mut Tile<'b, Self>) -> Option<&'a mut Tile<'b, f32>>;
}

impl Float for f32 {
    const ROUNDS: bool = false;
    #[inline(always)]
    fn load(self) -> f32 {
        self
    }
    #[inline(always)]
    fn store(x: f32) -> f32 {
        x
    }
    fn as_f32(x: &[f32]) -> Option<&[f32]> {
        Some(x)
    }
    fn as_f32_tile<'a, 'b>(x: &'a mut Tile<'b, f32>) -> Option<&'a mut Tile<'b, f32>> {
        Some(x)
    }
}

// `half`'s conversions are not used: these have no branch, so that loops around them vectorize.
impl Float for bf16 {
    const ROUNDS: bool = true;
    #[inline(always)]
    fn load(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
    #[inline(always)]
    fn store(x: f32) -> bf16 {
        let bits = x.to_bits();
        let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        // Rounding could carry a NaN's payload over into infinity, so a NaN is truncated and made quiet instead.
        let nan = (bits >> 16) | 0x40;
        bf16::from_bits(if x.is_nan() { nan } else { nearest } as u16)
    }
    fn as_f32(_: &[bf16]) -> Option<&[f32]> {
        None
    }
    fn as_f32_tile<'a, 'b>(_: &'a mut Tile<'b, bf16>) -> Option<&'a mut Tile<'b, f32>> {
        None
    }
}

/// x rounded to the activations' precision, as f32.
#[inline(always)]
pub fn rounded<A: Float>(x: f32) -> f32 {
    A::store(x).load()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_agrees_with_half_on_every_upper_half_and_around_ties() {
        for high in 0..=u16::MAX {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits((high as u32) << 16 | low);
                let (ours, halfs) = (<bf16 as Float>::store(x), bf16::from_f32(x));
                assert!(ours == halfs || ours.is_nan() && halfs.is_nan(), "{x:e}: {ours:?} and {halfs:?}");
            }
            let x = bf16::from_bits(high);
            assert!(x.load() == x.to_f32() || x.is_nan());
        }
    }
}
