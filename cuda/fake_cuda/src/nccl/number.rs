//! The numbers that collectives carry, and how those of several ranks become one: always in the order of ranks.

use half::bf16;
use std::ffi::c_int;

/// As `ncclDataType_t` counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    Uint8 = 1,
    Int32 = 2,
    Uint32 = 3,
    Int64 = 4,
    Uint64 = 5,
    Float32 = 7,
    Float64 = 8,
    Bfloat16 = 9,
}

/// As `ncclRedOp_t` counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduce {
    Sum = 0,
    Prod = 1,
    Max = 2,
    Min = 3,
}

impl Number {
    const ALL: [Number; 8] = [
        Number::Uint8,
        Number::Int32,
        Number::Uint32,
        Number::Int64,
        Number::Uint64,
        Number::Float32,
        Number::Float64,
        Number::Bfloat16,
    ];

    pub fn of(code: c_int) -> Option<Number> {
        Number::ALL.into_iter().find(|number| *number as c_int == code)
    }

    pub fn bytes(self) -> usize {
        match self {
            Number::Uint8 => 1,
            Number::Bfloat16 => 2,
            Number::Int32 | Number::Uint32 | Number::Float32 => 4,
            Number::Int64 | Number::Uint64 | Number::Float64 => 8,
        }
    }
}

impl Reduce {
    const ALL: [Reduce; 4] = [Reduce::Sum, Reduce::Prod, Reduce::Max, Reduce::Min];

    pub fn of(code: c_int) -> Option<Reduce> {
        Reduce::ALL.into_iter().find(|reduce| *reduce as c_int == code)
    }
}

/// How two numbers of a type become one, in the order of [`Reduce`].
type Ways<W> = [fn(W, W) -> W; 4];

macro_rules! whole {
    ($t:ty, $reduce:ident, $parts:ident) => {{
        let ways: Ways<$t> = [<$t>::wrapping_add, <$t>::wrapping_mul, <$t>::max, <$t>::min];
        fold($parts, <$t>::from_le_bytes, <$t>::to_le_bytes, ways[$reduce as usize])
    }};
}

/// The ranks' parts, of the same length, as one. bf16 is summed in f32 and rounded once.
pub fn reduced(number: Number, reduce: Reduce, parts: &[&[u8]]) -> Vec<u8> {
    let f32s: Ways<f32> = [|a, b| a + b, |a, b| a * b, f32::max, f32::min];
    let f64s: Ways<f64> = [|a, b| a + b, |a, b| a * b, f64::max, f64::min];
    match number {
        Number::Uint8 => whole!(u8, reduce, parts),
        Number::Int32 => whole!(i32, reduce, parts),
        Number::Uint32 => whole!(u32, reduce, parts),
        Number::Int64 => whole!(i64, reduce, parts),
        Number::Uint64 => whole!(u64, reduce, parts),
        Number::Float32 => fold(parts, f32::from_le_bytes, f32::to_le_bytes, f32s[reduce as usize]),
        Number::Float64 => fold(parts, f64::from_le_bytes, f64::to_le_bytes, f64s[reduce as usize]),
        Number::Bfloat16 => {
            let load = |bytes| bf16::from_le_bytes(bytes).to_f32();
            fold(parts, load, |wide| bf16::from_f32(wide).to_le_bytes(), f32s[reduce as usize])
        }
    }
}

fn fold<const N: usize, W: Copy>(
    parts: &[&[u8]],
    load: fn([u8; N]) -> W,
    store: fn(W) -> [u8; N],
    two: fn(W, W) -> W,
) -> Vec<u8> {
    let at = |part: &[u8], i: usize| load(part[i * N..][..N].try_into().expect("N bytes"));
    let one = |i| store(parts[1..].iter().fold(at(parts[0], i), |sum, part| two(sum, at(part, i))));
    (0..parts[0].len() / N).flat_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_rounded_once() {
        // 256 + 1 + 1: each addend alone would be lost.
        let parts = [256.0f32, 1.0, 1.0].map(|x| bf16::from_f32(x).to_le_bytes());
        let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
        assert_eq!(reduced(Number::Bfloat16, Reduce::Sum, &parts), bf16::from_f32(258.0).to_le_bytes());
    }

    #[test]
    fn every_rank_counts() {
        let parts = [[3u32, 9], [5, 1], [4, 2]].map(|pair| pair.map(u32::to_le_bytes).concat());
        let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
        for (reduce, want) in
            [(Reduce::Sum, [12, 12]), (Reduce::Prod, [60, 18]), (Reduce::Max, [5, 9]), (Reduce::Min, [3, 1])]
        {
            assert_eq!(reduced(Number::Uint32, reduce, &parts), want.map(u32::to_le_bytes).concat(), "{reduce:?}");
        }
    }
}
