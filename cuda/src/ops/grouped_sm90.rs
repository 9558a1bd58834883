//! Grouped products with the instructions of sm_90a: one warpgroup drives the copy engine (TMA), two compute.

use super::grouped::{Groups, row_tiles};
use super::grouped_bias::GroupBias;
use crate::machine::{Done, Fault, File, Geometry, Kernel, Machine, launch};
use crate::tensor::{TensorMap, Tiles, View};

kernels! {
    GROUPED_SM90_CU = "grouped_sm90.cu" only Sm90a {
        GROUPED_NT_SM90 = "grouped_nt_sm90": GroupedTiles;
        GROUPED_NN_SM90 = "grouped_nn_sm90": GroupedTiles;
    }
    GROUPED_ACC_SM90_CU = "grouped_acc_sm90.cu" only Sm90a {
        GROUPED_TN_ACC_SM90 = "grouped_tn_acc_sm90": GroupedAccTiles;
    }
}

sized! { GroupedTiles: 384, GroupedAccTiles: 384 }

/// Declared in `kernels/args_sm90.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct GroupedTiles {
    pub counts: View,
    pub y: View,
    pub bias: GroupBias,
    pub first: u32,
    pub rows: u32,
    pub n: u32,
    pub k: u32,
    pub x: TensorMap,
    pub w: TensorMap,
}

/// Declared in `kernels/args_sm90.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct GroupedAccTiles {
    pub counts: View,
    pub dw: View,
    pub first: u32,
    pub rows: u32,
    pub n: u32,
    pub k: u32,
    pub dy: TensorMap,
    pub x: TensorMap,
}

/// Rows and columns of a tile of the result, and its depth.
const ROWS: usize = 128;
const COLUMNS: usize = 256;
const DEPTH: usize = 64;
/// Columns that are brought, and stored, together.
const PAGE: usize = 64;

/// Four stages of a tile of each operand, with two mbarriers each.
const SHARED: usize = 4 * ((ROWS + COLUMNS) * DEPTH * size_of::<u16>() + 16);

/// Blocks a multiprocessor, of which one runs at a time; see `attention_sm90.rs`.
const SHARES: usize = 4;

/// Persistent blocks, each of which loops over tiles.
pub(super) fn grouped_sm90_geometry(rows: usize, n: usize, experts: usize, processors: usize) -> Geometry {
    geometry(row_tiles(rows, experts) * n.div_ceil(COLUMNS), processors)
}

/// The same for tiles of the weights `[n, k]` of each expert.
pub(super) fn grouped_acc_sm90_geometry(n: usize, k: usize, experts: usize, processors: usize) -> Geometry {
    geometry(experts * n.div_ceil(ROWS) * k.div_ceil(COLUMNS), processors)
}

fn geometry(tiles: usize, processors: usize) -> Geometry {
    Geometry { grid: [tiles.min(SHARES * processors) as u32, 1, 1], block: 384, shared: SHARED as u32 }
}

/// Whether these kernels compute rows of `n` columns from rows of `k`, of matrices that begin there: whole tiles in the
/// depth, and whole pages of 64 columns.
pub fn fits_sm90(n: usize, k: usize, of: [View; 3]) -> bool {
    n.is_multiple_of(PAGE) && k.is_multiple_of(DEPTH) && of.iter().all(|view| view.at().is_multiple_of(16))
}

/// [`super::grouped_nt`] on sm_90a: `[R, n, k]` that [`fits_sm90`].
pub fn grouped_nt_sm90(
    m: &dyn Machine,
    [x, w, y]: [View; 3],
    bias: GroupBias,
    g: Groups,
    [rows, n, k]: [usize; 3],
) -> Done {
    let weights = Tiles { of: w, cols: k, seq: g.counts.len() * n, rows: COLUMNS, dim: DEPTH };
    grouped(m, GROUPED_NT_SM90, [x, y], weights, bias, g, [rows, n, k])
}

/// [`super::grouped_nn`] on sm_90a: `[R, n, k]` that [`fits_sm90`].
pub fn grouped_nn_sm90(m: &dyn Machine, [x, w, y]: [View; 3], g: Groups, [rows, n, k]: [usize; 3]) -> Done {
    let weights = Tiles { of: w, cols: n, seq: g.counts.len() * k, rows: DEPTH, dim: COLUMNS };
    grouped(m, GROUPED_NN_SM90, [x, y], weights, GroupBias::NONE, g, [rows, n, k])
}

fn grouped(
    m: &dyn Machine,
    kernel: Kernel<GroupedTiles>,
    [x, y]: [View; 2],
    weights: Tiles,
    bias: GroupBias,
    g: Groups,
    [rows, n, k]: [usize; 3],
) -> Done {
    assert!(fits_sm90(n, k, [x, weights.of, y]), "products of {n} x {k}");
    bias.check([rows, n], g.counts.len());
    let w = map(m, kernel.name, weights)?;
    let of_x = map(m, kernel.name, Tiles { of: x, cols: k, seq: rows, rows: ROWS, dim: DEPTH })?;
    let [first, rows32, n32, k32] = [g.first, rows, n, k].map(|n| n as u32);
    let args = GroupedTiles { counts: g.counts, y, bias, first, rows: rows32, n: n32, k: k32, x: of_x, w };
    // SAFETY: the caller checked the views against rows, n, k and the experts; maps never reach beyond their views, and
    // the kernel writes no more rows than these, whatever the counts are.
    unsafe { launch(m, kernel, &args, grouped_sm90_geometry(rows, n, g.counts.len(), m.processors())) }
}

fn map(m: &dyn Machine, kernel: &'static str, tiles: Tiles) -> Result<TensorMap, Fault> {
    m.tensor_map(tiles).map_err(|what| Fault { kernel, what, shapes: format!("{tiles:?}") })
}

/// Whether [`grouped_tn_acc_sm90`] takes rows of `n` and `k` columns and these dy, x and dw: whole pages of 64 columns,
/// and pairs of sums.
pub fn acc_fits_sm90(n: usize, k: usize, [dy, x, dw]: [View; 3]) -> bool {
    let aligned = [dy, x].iter().all(|view| view.at().is_multiple_of(16)) && dw.at().is_multiple_of(8);
    n.is_multiple_of(PAGE) && k.is_multiple_of(PAGE) && aligned
}

/// [`super::grouped_tn_acc`] on sm_90a: `[R, n, k]` that [`acc_fits_sm90`].
pub fn grouped_tn_acc_sm90(m: &dyn Machine, of: [View; 3], g: Groups, [rows, n, k]: [usize; 3]) -> Done {
    assert!(acc_fits_sm90(n, k, of), "products of {n} x {k}");
    let ([dy, x, dw], kernel) = (of, GROUPED_TN_ACC_SM90);
    let dy = map(m, kernel.name, Tiles { of: dy, cols: n, seq: rows, rows: DEPTH, dim: ROWS })?;
    let x = map(m, kernel.name, Tiles { of: x, cols: k, seq: rows, rows: DEPTH, dim: COLUMNS })?;
    let [first, rows, n32, k32] = [g.first, rows, n, k].map(|n| n as u32);
    let args = GroupedAccTiles { counts: g.counts, dw, first, rows, n: n32, k: k32, dy, x };
    // SAFETY: the caller checked the views against rows, n, k and the experts; maps never reach beyond their views, and
    // the kernel writes no weights behind those of the last expert, whatever the counts are.
    unsafe { launch(m, kernel, &args, grouped_acc_sm90_geometry(n, k, g.counts.len(), m.processors())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limit of a block on sm_90.
    #[test]
    fn stages_fit_into_shared_memory() {
        const { assert!(SHARED <= 227 << 10) };
    }
}
