//! Data types, and reductions over ranks, always in rank order.

use half::bf16;
use std::ffi::c_int;

/// `ncclDataType_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataType {
    Uint8 = 1,
    Int32 = 2,
    Uint32 = 3,
    Int64 = 4,
    Uint64 = 5,
    Float32 = 7,
    Float64 = 8,
    Bfloat16 = 9,
}

/// `ncclRedOp_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReduceOp {
    Sum = 0,
    Prod = 1,
    Max = 2,
    Min = 3,
}

impl DataType {
    const ALL: [DataType; 8] = [
        DataType::Uint8,
        DataType::Int32,
        DataType::Uint32,
        DataType::Int64,
        DataType::Uint64,
        DataType::Float32,
        DataType::Float64,
        DataType::Bfloat16,
    ];

    pub fn of(code: c_int) -> Option<DataType> {
        DataType::ALL.into_iter().find(|data_type| *data_type as c_int == code)
    }

    pub fn bytes(self) -> usize {
        match self {
            DataType::Uint8 => 1,
            DataType::Bfloat16 => 2,
            DataType::Int32 | DataType::Uint32 | DataType::Float32 => 4,
            DataType::Int64 | DataType::Uint64 | DataType::Float64 => 8,
        }
    }
}

impl ReduceOp {
    const ALL: [ReduceOp; 4] = [ReduceOp::Sum, ReduceOp::Prod, ReduceOp::Max, ReduceOp::Min];

    pub fn of(code: c_int) -> Option<ReduceOp> {
        ReduceOp::ALL.into_iter().find(|reduce| *reduce as c_int == code)
    }
}

/// The binary functions of a type, in the order of [`ReduceOp`].
type BinaryOps<W> = [fn(W, W) -> W; 4];

macro_rules! whole {
    ($t:ty, $reduce:ident, $parts:ident) => {{
        let ops: BinaryOps<$t> = [<$t>::wrapping_add, <$t>::wrapping_mul, <$t>::max, <$t>::min];
        fold($parts, <$t>::from_le_bytes, <$t>::to_le_bytes, ops[$reduce as usize])
    }};
}

/// Reduces the ranks' inputs, all of one length. bf16 is summed in f32 and rounded once.
pub fn reduced(data_type: DataType, reduce: ReduceOp, parts: &[&[u8]]) -> Vec<u8> {
    let f32s: BinaryOps<f32> = [|a, b| a + b, |a, b| a * b, f32::max, f32::min];
    let f64s: BinaryOps<f64> = [|a, b| a + b, |a, b| a * b, f64::max, f64::min];
    match data_type {
        DataType::Uint8 => whole!(u8, reduce, parts),
        DataType::Int32 => whole!(i32, reduce, parts),
        DataType::Uint32 => whole!(u32, reduce, parts),
        DataType::Int64 => whole!(i64, reduce, parts),
        DataType::Uint64 => whole!(u64, reduce, parts),
        DataType::Float32 => fold(parts, f32::from_le_bytes, f32::to_le_bytes, f32s[reduce as usize]),
        DataType::Float64 => fold(parts, f64::from_le_bytes, f64::to_le_bytes, f64s[reduce as usize]),
        DataType::Bfloat16 => {
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
        // 256 + 1 + 1: with rounding after each addition both ones would be lost.
        let parts = [256.0f32, 1.0, 1.0].map(|x| bf16::from_f32(x).to_le_bytes());
        let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
        assert_eq!(reduced(DataType::Bfloat16, ReduceOp::Sum, &parts), bf16::from_f32(258.0).to_le_bytes());
    }

    #[test]
    fn all_ranks_are_reduced() {
        let parts = [[3u32, 9], [5, 1], [4, 2]].map(|pair| pair.map(u32::to_le_bytes).concat());
        let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
        for (reduce, want) in
            [(ReduceOp::Sum, [12, 12]), (ReduceOp::Prod, [60, 18]), (ReduceOp::Max, [5, 9]), (ReduceOp::Min, [3, 1])]
        {
            assert_eq!(reduced(DataType::Uint32, reduce, &parts), want.map(u32::to_le_bytes).concat(), "{reduce:?}");
        }
    }
}
