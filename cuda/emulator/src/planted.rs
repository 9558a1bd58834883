//! The kernels of `planted/`: each has one bug that the emulator must report, or none.

use crate::place::TensorView;
use crate::{Emulator, Fault, Schedule, Stats};
use cuda::machine::{Geometry, Machine};
use cuda::tensor::{TensorMap, Tiles, View};
use half::bf16;

/// Arguments of the kernels, which read x and write y.
#[repr(C)]
struct Planted {
    x: View,
    y: View,
}

/// Runs a kernel in one block of 64 threads with 4096 bytes of shared memory.
pub fn planted(name: &str, x: &[f32], y: &mut [f32], schedule: Schedule) -> Result<Stats, Fault> {
    let emulator = Emulator::new(schedule);
    let mut lent = TensorView::to(&emulator);
    let args = Planted { x: lent.read(x), y: lent.write(y) };
    let geometry = Geometry { grid: [1, 1, 1], block: 64, shared: 4096 };
    // SAFETY: every kernel of `planted/` takes this struct; the views live as long as `lent`.
    unsafe { emulator.run(name, (&raw const args).cast(), geometry)? };
    Ok(emulator.stats())
}

/// Arguments of the kernels that write y and read tiles of 64 rows and 64 columns.
#[repr(C)]
struct PlantedTiles {
    y: View,
    x: TensorMap,
}

/// Runs a kernel of sm_90a in one block, with a tile and two mbarriers in shared memory. x has 64 columns.
pub fn planted_tiles(name: &str, threads: u32, x: &[bf16], y: &mut [f32], schedule: Schedule) -> Result<Stats, Fault> {
    let emulator = Emulator::new(schedule);
    let mut lent = TensorView::to(&emulator);
    let tiles = Tiles { of: lent.read(x), cols: 64, seq: x.len() / 64, rows: 64, dim: 64 };
    let map = emulator.tensor_map(tiles).expect("whole rows of 64 columns");
    let args = PlantedTiles { y: lent.write(y), x: map };
    let geometry = Geometry { grid: [1, 1, 1], block: threads, shared: 64 * 64 * 2 + 16 };
    // SAFETY: every kernel of `planted_hopper.cu` takes this struct; the views live as long as `lent`.
    unsafe { emulator.run(name, (&raw const args).cast(), geometry)? };
    Ok(emulator.stats())
}
