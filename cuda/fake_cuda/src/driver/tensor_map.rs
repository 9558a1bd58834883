//! Tensor maps for the emulator, from the driver's description of tiles. What the driver would refuse is refused, and
//! so is what the kernels do not expect.

use crate::code::*;
use crate::memory;
use crate::settings::settings;
use cuda::machine::Machine;
use cuda::tensor::{PAGE, Tiles, View};
use cudarc::driver::sys;
use emulator::{Emulator, Schedule};
use std::ffi::{c_uint, c_void};

/// The arguments of `cuTensorMapEncodeTiled` (CUDA Driver API, "Tensor Map Object Management"). Extents and the box are
/// in elements, strides in bytes.
#[derive(Debug, Clone, Copy)]
struct Encoding {
    kind: c_uint,
    at: u64,
    dims: [u64; 4],
    strides: [u64; 3],
    tile: [u32; 4],
    each: [u32; 4],
    interleave: c_uint,
    swizzle: c_uint,
    fill: c_uint,
}

impl Encoding {
    /// Why the driver refuses the map, or why it is none of bf16 tiles with 128-byte rows as `prim_hopper.cuh` says.
    fn refused(&self) -> Option<&'static str> {
        let row = u64::from(self.tile[0]) * 2;
        let rules = [
            (
                self.kind == sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 as c_uint,
                "another type than bf16",
            ),
            (self.at.is_multiple_of(16), "the address is no multiple of 16"),
            (self.dims.iter().all(|d| (1..=1 << 32).contains(d)), "an extent is 0 or above 2^32"),
            (self.strides.iter().all(|s| s % 16 == 0 && *s < 1 << 40), "a stride is no multiple of 16, or too large"),
            (self.tile.iter().all(|t| (1..=256).contains(t)), "the box has an extent of 0 or above 256"),
            (self.each == [1; 4], "elements are left out"),
            (self.interleave == sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE as c_uint, "interleaved"),
            (
                self.swizzle == sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B as c_uint,
                "not swizzled by 128 bytes",
            ),
            (row == 128, "the rows of the box do not have the 128 bytes of the swizzle"),
            (
                self.fill == sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE as c_uint,
                "elements out of bounds are not zero",
            ),
        ];
        rules.into_iter().find_map(|(holds, otherwise)| (!holds).then_some(otherwise))
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuTensorMapEncodeTiled(
    to: *mut [u64; 16],
    kind: c_uint,
    rank: u32,
    at: *mut c_void,
    dims: *const u64,
    strides: *const u64,
    tile: *const u32,
    each: *const u32,
    interleave: c_uint,
    swizzle: c_uint,
    _promotion: c_uint,
    fill: c_uint,
) -> Code {
    if settings().capability < 90 {
        return NOT_SUPPORTED;
    }
    if rank != 4 || !to.addr().is_multiple_of(64) {
        return INVALID_VALUE;
    }
    // SAFETY: the caller passes one number per dimension, and one stride less.
    let (dims, strides, tile, each) = unsafe { (*dims.cast(), *strides.cast(), *tile.cast(), *each.cast()) };
    let given = Encoding { kind, at: at as u64, dims, strides, tile, each, interleave, swizzle, fill };
    if let Some(why) = given.refused() {
        eprintln!("fake CUDA: {given:?}: {why}");
        return INVALID_VALUE;
    }
    let len = (dims[3] * strides[2] / 2) as usize;
    // SAFETY: the view is only stored; the map's user guarantees the memory.
    let of = unsafe { View::new(at as u64, len) };
    let (cols, dim) = ((strides[0] / 2) as usize, tile[2] as usize * PAGE);
    let tiles = Tiles { of, cols, seq: dims[1] as usize, rows: tile[1] as usize, dim };
    let shape = (dims.map(|d| d as usize), strides.map(|s| s as usize / 2), tile.map(|t| t as usize));
    let map = || {
        memory::known(at as u64, len * 2)?;
        if shape != (tiles.dims(), tiles.strides(), tiles.tile()) {
            return Err(INVALID_VALUE);
        }
        Emulator::new(Schedule::Forward).tensor_map(tiles).map_err(|_| INVALID_VALUE)
    };
    // SAFETY: the caller passes a valid pointer.
    status_of(map().map(|map| unsafe { *to = map.0 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are those of `cuda.h`.
    #[test]
    fn each_wrong_argument_is_refused() {
        let (dims, strides) = ([64, 10, 6, 2], [768, 128, 7680]);
        let (tile, each) = ([64, 128, 2, 1], [1; 4]);
        let right = Encoding { kind: 9, at: 4096, dims, strides, tile, each, interleave: 0, swizzle: 3, fill: 0 };
        assert_eq!(right.refused(), None);
        let wrong = [
            Encoding { kind: 6, ..right },
            Encoding { at: 4104, ..right },
            Encoding { dims: [64, 0, 6, 2], ..right },
            Encoding { strides: [768, 120, 7680], ..right },
            Encoding { strides: [768, 128, 1 << 40], ..right },
            Encoding { tile: [64, 257, 2, 1], ..right },
            Encoding { tile: [32, 128, 2, 1], ..right },
            Encoding { each: [1, 2, 1, 1], ..right },
            Encoding { interleave: 1, ..right },
            Encoding { swizzle: 2, ..right },
            Encoding { fill: 1, ..right },
        ];
        for encoding in wrong {
            assert!(encoding.refused().is_some(), "{encoding:?}");
        }
    }
}
