//! Views of device memory, and tensor maps: how the copy engine (TMA) of sm_90a walks a matrix tile by tile.

use cudarc::driver::sys;
use std::ffi::c_void;
use std::fmt;
use std::ops::Range;

/// `n` elements of a machine's memory from the address `at` on.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct View {
    at: u64,
    n: u64,
}

impl View {
    /// An optional kernel argument that is absent.
    pub const NONE: View = View { at: 0, n: 0 };

    /// # Safety
    /// The `n` elements from `at` on are aligned and live as long as launches use the view. Nothing else accesses what
    /// these launches write, and nothing writes what they read.
    pub unsafe fn new(at: u64, n: usize) -> View {
        View { at, n: n as u64 }
    }

    /// The address of the first element.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.n as usize
    }

    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// The elements `range` of this view of `T`.
    pub(crate) fn part<T>(&self, range: Range<usize>) -> View {
        assert!(range.start <= range.end && range.end <= self.len(), "elements {range:?} of {}", self.n);
        View { at: self.at + (range.start * size_of::<T>()) as u64, n: range.len() as u64 }
    }
}

/// Only the length, for the message of a failed launch.
impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}]", self.n)
    }
}

/// A kernel's argument (`prim_hopper.cuh`). Device and emulator encode it differently.
#[repr(C, align(128))]
#[derive(Clone, Copy)]
pub struct TensorMap(pub [u64; 16]);

/// A map holds an address, and only shapes that the other arguments show.
impl fmt::Debug for TensorMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[map]")
    }
}

/// Columns of a page of a tile: 128 bytes of bf16.
pub const PAGE: usize = 64;

/// The tiles of one head in a bf16 matrix `[n seq, cols]`, as four dimensions: 64 columns, the rows of a sequence,
/// pages of 64 columns, sequences. A tile never reaches into the next sequence: elements out of bounds read as zero.
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

    /// Strides of the outer three dimensions, in elements.
    pub fn strides(&self) -> [usize; 3] {
        [self.cols, PAGE, self.seq * self.cols]
    }

    /// The extent of a tile along the four dimensions.
    pub fn tile(&self) -> [usize; 4] {
        [PAGE, self.rows, self.dim / PAGE, 1]
    }

    /// Whether the copy engine supports these tiles.
    pub fn check(&self) -> Result<(), String> {
        let [page, cols] = [self.dim, self.cols].map(|c| c % PAGE == 0 && c > 0);
        let whole = self.seq > 0 && self.of.len().is_multiple_of((self.seq * self.cols).max(1)) && !self.of.is_empty();
        if page && cols && whole && (1..=256).contains(&self.rows) && self.of.at().is_multiple_of(16) {
            return Ok(());
        }
        let beside = self.of.at() % 16;
        Err(format!("there is no tensor map of {self:?} at an address {beside} bytes past a multiple of 16"))
    }
}

/// The map in a device's encoding. The driver must be loaded, as it is once there is a `Device`; no device is accessed.
pub fn device_map(tiles: Tiles) -> Result<TensorMap, String> {
    tiles.check()?;
    let dims = tiles.dims().map(|d| d as u64);
    let bytes = tiles.strides().map(|s| s as u64 * 2);
    let (tile, each) = (tiles.tile().map(|t| t as u32), [1; 4]);
    // Encoded in place: CUDA 12 wants 64 bytes of alignment, and CUDA 13 the 128 of `TensorMap`.
    let mut map = TensorMap([0; 16]);
    // SAFETY: the map has the size of the driver's, and at least its alignment. The arrays have the stated four
    // dimensions (three strides) and outlive the call. The address is only stored, and `View` guarantees the memory
    // behind it.
    let status = unsafe {
        sys::cuTensorMapEncodeTiled(
            (&raw mut map).cast(),
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
        sys::CUresult::CUDA_SUCCESS => Ok(map),
        error => Err(format!("the driver cannot encode a tensor map of {tiles:?}: {error:?}")),
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
