//! Rounds f64 once to a tensor's dtype, to nearest, ties to even. (Rounding to f32 and then to bf16 rounds twice, and
//! `half`'s conversions from f64 drop the low half of the mantissa first, so that a value just above a tie counts as
//! one.)

use half::{bf16, f16};
use safetensors::tensor::Dtype;

/// The bytes of `values` in a dtype, little-endian.
pub fn to_bytes(values: &[f64], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|&x| bf16::from_f32(to_odd(x)).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&x| f16::from_f32(to_odd(x)).to_le_bytes()).collect(),
        other => panic!("{other} should have been refused"),
    }
}

/// Rounds to f32 such that a second rounding, to a type of at most 22 bits, gives what one rounding of `x` gives: an
/// inexact value becomes its neighbour with an odd last bit (Boldo and Melquiond, "Emulation of FMA and correctly
/// rounded sums: proved algorithms using rounding to odd", 2008).
fn to_odd(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) == x || !near.is_finite() || near.to_bits() & 1 == 1 {
        return near;
    }
    // Bit patterns of one sign grow with the magnitude.
    let away = f64::from(near).abs() < x.abs();
    f32::from_bits(if away { near.to_bits() + 1 } else { near.to_bits() - 1 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The nearest of all values of a type, by exact comparison in f64; of two, the one with an even last bit.
    fn nearest(x: f64, below: f64, above: f64, below_is_even: bool) -> f64 {
        match (x - below).partial_cmp(&(above - x)).unwrap() {
            std::cmp::Ordering::Less => below,
            std::cmp::Ordering::Greater => above,
            std::cmp::Ordering::Equal if below_is_even => below,
            std::cmp::Ordering::Equal => above,
        }
    }

    fn bf16_of(x: f64) -> f64 {
        f64::from(bf16::from_le_bytes(to_bytes(&[x], Dtype::BF16).try_into().unwrap()))
    }

    fn f16_of(x: f64) -> f64 {
        f64::from(f16::from_le_bytes(to_bytes(&[x], Dtype::F16).try_into().unwrap()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// Values around the middle between two neighbours, off by less than f32 can tell.
        #[test]
        fn one_rounding(bits in 0x0001u16..0x7b00, off in -3i32..4, tiny in 0u32..40, negative: bool) {
            let sign = if negative { -1.0 } else { 1.0 };
            let (a, b) = (f64::from(bf16::from_bits(bits)), f64::from(bf16::from_bits(bits + 1)));
            let x = (a + b) / 2.0 * (1.0 + f64::from(off) * 2f64.powi(-(12 + tiny as i32)));
            if a <= x && x <= b {
                prop_assert_eq!(bf16_of(sign * x), sign * nearest(x, a, b, bits % 2 == 0));
            }
            let (a, b) = (f64::from(f16::from_bits(bits)), f64::from(f16::from_bits(bits + 1)));
            let x = (a + b) / 2.0 * (1.0 + f64::from(off) * 2f64.powi(-(12 + tiny as i32)));
            if a <= x && x <= b {
                prop_assert_eq!(f16_of(sign * x), sign * nearest(x, a, b, bits % 2 == 0));
            }
        }
    }

    #[test]
    fn ties_and_ends() {
        assert_eq!(bf16_of(1.0 + 2f64.powi(-8)), 1.0);
        assert_eq!(bf16_of(1.0 + 2f64.powi(-8) + 2f64.powi(-50)), 1.0 + 2f64.powi(-7));
        assert_eq!(bf16_of(0.0), 0.0);
        assert_eq!(bf16_of(1e-60), 0.0);
        assert!(bf16_of(-1e300).is_infinite() && f16_of(1e6).is_infinite());
        assert_eq!(to_bytes(&[1.0 / 3.0], Dtype::F32), (1f32 / 3.0).to_le_bytes());
    }
}
