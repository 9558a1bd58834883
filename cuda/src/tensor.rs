//! Tensor maps: how the copy engine of sm_90a walks a matrix of activations, tile by tile.

use crate::args::View;
use cudarc::driver::sys;
use std::ffi::c_void;
use std::fmt;

/// As kernels take it (`prim_hopper.cuh`): each machine has a form of its own.
#[repr(C, align(128))]
#[derive(Clone, Copy)]
pub struct TensorMap(pub [u64; 16]);

/// A map holds an address and no shape that the other arguments do not tell.
impl fmt::Debug for TensorMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[map]")
    }
}

/// Columns of a page of a tile: 128 bytes of bf16.
pub const PAGE: usize = 64;

/// The tiles of one head in a matrix `[n seq, cols]` of bf16, as four dimensions: 64 columns, the rows of a
/// sequence, pages of 64 columns, sequences. A tile never reaches into the next sequence: what lies beyond is zero.
#[derive(Debug, Clone, Copy)]
pub struct Tiles {
    pub of: View,
    pub cols: usize,
    /// Rows of a sequence.
    pub seq: usize,
    /// Rows and columns of a tile; the columns are whole pages.
    pub rows: usize,
    pub dim: usize,
}

impl Tiles {
    pub fn dims(&self) -> [usize; 4] {
        [PAGE, self.seq, self.cols / PAGE, self.of.len() / (self.seq * self.cols)]
    }

    /// Elements from one index of the outer three dimensions to the next.
    pub fn strides(&self) -> [usize; 3] {
        [self.cols, PAGE, self.seq * self.cols]
    }

    /// Of a tile along the four dimensions.
    pub fn tile(&self) -> [usize; 4] {
        [PAGE, self.rows, self.dim / PAGE, 1]
    }

    /// What the copy engine does not take.
    pub fn check(&self) -> Result<(), String> {
        let [page, cols] = [self.dim, self.cols].map(|c| c % PAGE == 0 && c > 0);
        let whole = self.seq > 0 && self.of.len().is_multiple_of((self.seq * self.cols).max(1)) && !self.of.is_empty();
        if page && cols && whole && (1..=256).contains(&self.rows) && self.of.at().is_multiple_of(16) {
            return Ok(());
        }
        Err(format!("no tensor map of {self:?} from an address that is {} beside a multiple of 16", self.of.at() % 16))
    }
}

/// The form of a device; no device is asked, but the driver must be loaded, as it is where there is a `Device`.
pub fn device_map(tiles: Tiles) -> Result<TensorMap, String> {
    tiles.check()?;
    let dims = tiles.dims().map(|d| d as u64);
    let bytes = tiles.strides().map(|s| s as u64 * 2);
    let (tile, each) = (tiles.tile().map(|t| t as u32), [1; 4]);
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: the arrays have the four dimensions (three strides) that the call is told of and outlive it; the
    // address is only written down, and `View` answers for the memory behind it.
    let status = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            4,
            tiles.of.at() as *mut c_void,
            dims.as_ptr(),
            bytes.as_ptr(),
            tile.as_ptr(),
            each.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    match status {
        sys::CUresult::CUDA_SUCCESS => Ok(TensorMap(map.opaque)),
        error => Err(format!("the driver makes no tensor map of {tiles:?}: {error:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_projection_is_walked_head_by_head() {
        // SAFETY: nothing reads through this view.
        let of = unsafe { View::new(4096, 2 * 10 * 384) };
        let tiles = Tiles { of, cols: 384, seq: 10, rows: 128, dim: 128 };
        assert_eq!((tiles.dims(), tiles.strides(), tiles.tile()), ([64, 10, 6, 2], [384, 64, 3840], [64, 128, 2, 1]));
        assert_eq!(tiles.check(), Ok(()));
        let refused = [
            Tiles { dim: 96, ..tiles },
            Tiles { cols: 100, ..tiles },
            Tiles { rows: 257, ..tiles },
            Tiles { seq: 7, ..tiles },
            // SAFETY: as above.
            Tiles { of: unsafe { View::new(4098, of.len()) }, ..tiles },
        ];
        assert!(refused.iter().all(|t| t.check().is_err()));
    }
}
