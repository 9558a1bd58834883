//! MXFP4, the format of the experts in published GPT-OSS checkpoints: numbers of 4 bits in blocks of 32 that share a
//! power of two (Open Compute Project, "Microscaling Formats (MX) Specification 1.0", 2023). A matrix `[E, in, out]` is
//! two tensors of bytes there, whose rows are output features: `NAME_blocks` `[E, out, in / 32, 16]`, of two numbers a
//! byte, the low half first, and `NAME_scales` `[E, out, in / 32]`, powers of two with an offset of 127. Values are
//! those that transformers gets in bf16. Nothing is written in this format.

use super::tensors::TensorFile;
use crate::error::Result;
use safetensors::tensor::{Dtype, TensorInfo};
use std::ops::Range;

/// Numbers of a block, and its bytes.
const BLOCK: usize = 32;
const BYTES: usize = BLOCK / 2;
/// Bytes of blocks that are read at a time.
const CHUNK: usize = 4 << 20;

/// Twice the numbers of 4 bits: a sign, two bits of exponent, one of mantissa.
const DOUBLES: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, -0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// The names of the two tensors that hold `tensor`: its blocks, and their scales.
pub(super) fn names(tensor: &str) -> [String; 2] {
    [format!("{tensor}_blocks"), format!("{tensor}_scales")]
}

/// A tensor of a file, and the file.
pub(super) type Found<'a> = (&'a TensorFile, &'a TensorInfo);

/// The matrices of a tensor `[E, in, out]`.
pub(super) struct Mxfp4<'a> {
    blocks: Found<'a>,
    scales: Found<'a>,
}

/// Checks that `[blocks, scales]` hold a tensor of these dimensions. The error is the index of the wrong one of the two
/// and what is wrong with it.
pub(super) fn check([blocks, scales]: [&TensorInfo; 2], dims: &[usize]) -> std::result::Result<(), (usize, String)> {
    let &[matrices, inputs, features] = dims else { panic!("{dims:?} are not the dimensions of packed experts") };
    if !inputs.is_multiple_of(BLOCK) {
        let what = format!("a block has {BLOCK} inputs, which do not divide the {inputs} of config.json");
        return Err((0, what));
    }
    let by_config = [vec![matrices, features, inputs / BLOCK, BYTES], vec![matrices, features, inputs / BLOCK]];
    for (i, (info, dims)) in [blocks, scales].into_iter().zip(by_config).enumerate() {
        if info.shape != dims {
            return Err((i, format!("its shape is {:?}; by config.json it should be {dims:?}", info.shape)));
        }
        if info.dtype != Dtype::U8 {
            return Err((i, format!("its dtype is {}; it must be U8", info.dtype)));
        }
    }
    Ok(())
}

impl<'a> Mxfp4<'a> {
    /// Takes tensors that [`check`] has accepted.
    pub fn new([blocks, scales]: [Found<'a>; 2]) -> Mxfp4<'a> {
        Mxfp4 { blocks, scales }
    }

    /// Output features of a matrix.
    pub fn features(&self) -> usize {
        self.scales.1.shape[1]
    }

    /// Fills `out` `[rows, inputs]` with every `step`-th of `rows` of the matrices one below the other, `[E out, in]`,
    /// from their first on, and with these inputs of them.
    pub fn read(&self, rows: &Range<usize>, step: usize, inputs: &Range<usize>, out: &mut [f32]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let groups = self.scales.1.shape[2];
        let (bytes, blocks) =
            (inputs.start / 2..inputs.end.div_ceil(2), inputs.start / BLOCK..inputs.end.div_ceil(BLOCK));
        let each = (CHUNK / (step * groups * BYTES)).max(1);
        for (i, out) in out.chunks_mut(each * inputs.len()).enumerate() {
            let first = rows.start + i * each * step;
            let rows = first..first + (out.len() / inputs.len() - 1) * step + 1;
            let codes = read_rows(self.blocks, groups * BYTES, &rows, &bytes)?;
            let scales = read_rows(self.scales, groups, &rows, &blocks)?;
            for (row, out) in out.chunks_exact_mut(inputs.len()).enumerate() {
                let (codes, scales) = (&codes[row * step * groups * BYTES..], &scales[row * step * groups..]);
                dequantize(codes, scales, inputs, out);
            }
        }
        Ok(())
    }
}

/// The bytes from the first to the last of a rectangle of a tensor whose rows have `width` bytes.
fn read_rows((file, info): Found, width: usize, rows: &Range<usize>, cols: &Range<usize>) -> Result<Vec<u8>> {
    let first = rows.start * width + cols.start;
    let mut bytes = vec![0; (rows.end - 1) * width + cols.end - first];
    file.read_bytes(info, first, &mut bytes)?;
    Ok(bytes)
}

/// out = these inputs of a row, from the bytes and the scales of the blocks that begin with the first of them.
fn dequantize(codes: &[u8], scales: &[u8], inputs: &Range<usize>, out: &mut [f32]) {
    let (byte, block) = (inputs.start / 2, inputs.start / BLOCK);
    for (input, out) in inputs.clone().zip(out) {
        let pair = codes[input / 2 - byte];
        let code = if input % 2 == 0 { pair & 15 } else { pair >> 4 };
        *out = DOUBLES[code as usize] * half_power(scales[input / BLOCK - block]);
    }
}

/// 2^(scale - 127) / 2, which is a finite f32 for every scale. Products that are finite are numbers of bf16, so that
/// none is rounded.
fn half_power(scale: u8) -> f32 {
    match scale {
        0 | 1 => f32::from_bits(1 << (21 + scale)),
        _ => f32::from_bits((scale as u32 - 1) << 23),
    }
}

#[cfg(test)]
mod tests;
