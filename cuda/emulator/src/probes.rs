//! The kernels of `probes/`, one per primitive. A device compiles them from the texts in this file.

use cuda::kernels::{File, Kernel};
use cuda::machine::{Done, Fault, Geometry, Machine, Target, launch};
use cuda::tensor::{TensorMap, Tiles, View};

/// Arguments of the probes, which read x and write y.
#[repr(C)]
#[derive(Debug)]
struct Probe {
    x: View,
    y: View,
}

const _: () = assert!(size_of::<Probe>() == 32, "as in probes.cu");

/// The probes of `prim.cuh`.
pub const FILE: File = File {
    name: "probes.cu",
    text: include_str!("../probes/probes.cu"),
    kernels: &[
        "probe_pack2",
        "probe_pack2_f16",
        "probe_halves_f16",
        "probe_larger",
        "probe_larger2",
        "probe_fresh",
        "probe_fmadd",
        "probe_unfused",
        "probe_div_rn",
        "probe_sqrt_rn",
        "probe_ln",
        "probe_fast_exp2",
        "probe_fast_log2",
        "probe_fast_rcp",
        "probe_fast_rsqrt",
        "probe_fmadd64",
        "probe_shared_base",
        "probe_indices",
        "probe_wide",
        "probe_whole",
        "probe_eight",
        "probe_shared",
        "probe_words64",
        "probe_shared16",
        "probe_cp_async16",
        "probe_shfl",
        "probe_shfl_xor",
        "probe_warp_any",
        "probe_warp_sync",
        "probe_ldmatrix",
        "probe_ldmatrix_trans",
        "probe_mma",
    ],
    only: None,
};

/// Threads per block of the probes.
pub const THREADS: usize = 64;

/// Runs a probe, with 4096 bytes of shared memory per block.
pub fn probe(m: &dyn Machine, name: &'static str, x: View, y: View, grid: [u32; 3]) -> Done {
    assert!(FILE.kernels.contains(&name), "there is no probe {name}");
    let geometry = Geometry { grid, block: THREADS as u32, shared: 4096 };
    // SAFETY: every kernel of the file takes this struct, and the tests pass views of the lengths that it accesses.
    unsafe { launch(m, Kernel::named(name), &Probe { x, y }, geometry) }
}

/// The probes of `prim_hopper.cuh`.
pub const HOPPER: File = File {
    name: "probes_hopper.cu",
    text: include_str!("../probes/probes_hopper.cu"),
    kernels: &[
        "probe_tma",
        "probe_bulk",
        "probe_mbarrier",
        "probe_group",
        "probe_registers",
        "probe_wgmma_64",
        "probe_wgmma_128",
        "probe_wgmma_across_64",
        "probe_wgmma_across_128",
        "probe_wgmma_left_across_64",
        "probe_wgmma_left_across_128",
        "probe_wgmma_both_across_64",
        "probe_wgmma_both_across_128",
        "probe_wgmma_registers_64",
        "probe_wgmma_registers_128",
        "probe_wgmma_registers_across_64",
        "probe_wgmma_registers_across_128",
        "probe_proxy_fence",
    ],
    only: Some(Target::Sm90a),
};

/// Arguments of the probes of tiles: a map of tiles of 64 rows and 64 columns, and the coordinates of one tile.
#[repr(C)]
#[derive(Debug)]
struct ProbeTiles {
    x: View,
    y: View,
    cols: u32,
    row: u32,
    page: u32,
    sequence: u32,
    unused: [u64; 10],
    map: TensorMap,
}

const _: () = assert!(size_of::<ProbeTiles>() == 256, "as in probes_hopper.cu");

/// A bf16 matrix, and the tile that a probe loads.
#[derive(Debug, Clone, Copy)]
pub struct Tile {
    pub cols: usize,
    /// Rows of a sequence.
    pub seq: usize,
    pub row: u32,
    pub page: u32,
    pub sequence: u32,
}

/// Runs a probe in one block. `x` views the matrix as bf16, `words` as pairs of bf16.
pub fn probe_tiles(m: &dyn Machine, name: &'static str, [x, words, y]: [View; 3], t: Tile, threads: u32) -> Done {
    assert!(HOPPER.kernels.contains(&name), "there is no probe {name}");
    let tiles = Tiles { of: x, cols: t.cols, seq: t.seq, rows: 64, dim: 64 };
    let map = m.tensor_map(tiles).map_err(|what| Fault { kernel: name, what, shapes: format!("{tiles:?}") })?;
    let (cols, row, page, sequence) = (t.cols as u32, t.row, t.page, t.sequence);
    let args = ProbeTiles { x: words, y, cols, row, page, sequence, unused: [0; 10], map };
    let geometry = Geometry { grid: [1, 1, 1], block: threads, shared: 3 * 64 * 64 * 2 + 64 };
    // SAFETY: every kernel of the file takes this struct, and the tests pass views of the lengths that it accesses.
    unsafe { launch(m, Kernel::named(name), &args, geometry) }
}
