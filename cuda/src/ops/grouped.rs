//! Matrix products of rows that are grouped by expert. The numbers of rows are read on the device, so that the host
//! need not wait for them: it launches a bound of the tiles.

use super::grouped_bias::GroupBias;
use super::grouped_sm90::{acc_fits_sm90, fits_sm90, grouped_nn_sm90, grouped_nt_sm90, grouped_tn_acc_sm90};
use crate::machine::{Done, File, Geometry, Kernel, Machine, Target, launch};
use crate::tensor::View;

kernels! {
    GROUPED_CU = "grouped.cu" {
        GROUPED_NT = "grouped_nt": Grouped;
        GROUPED_NN = "grouped_nn": Grouped;
        GROUPED_NT_UNALIGNED = "grouped_nt_unaligned": Grouped;
        GROUPED_NN_UNALIGNED = "grouped_nn_unaligned": Grouped;
        GROUPED_TN_ACC = "grouped_tn_acc": GroupedAcc;
        GROUPED_TN_ACC_UNALIGNED = "grouped_tn_acc_unaligned": GroupedAcc;
    }
}

sized! { Grouped: 120, GroupedAcc: 80 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Grouped {
    pub x: View,
    pub w: View,
    pub counts: View,
    pub y: View,
    pub bias: GroupBias,
    pub first: u32,
    pub rows: u32,
    pub n: u32,
    pub k: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct GroupedAcc {
    pub dy: View,
    pub x: View,
    pub counts: View,
    pub dw: View,
    pub first: u32,
    pub rows: u32,
    pub n: u32,
    pub k: u32,
}

/// The expert of each row: the number of sorted rows of each expert, `[E]`; the matrices have those from `first` on.
#[derive(Debug, Clone, Copy)]
pub struct Groups {
    pub counts: View,
    pub first: usize,
}

/// Rows and columns of a block's tile.
const TILE: usize = 128;

/// Two stages of two tiles of 64 columns.
const SHARED: u32 = 2 * 2 * 64 * TILE as u32 * 2;

fn geometry(grid: [usize; 3]) -> Geometry {
    Geometry { grid: grid.map(|n| n as u32), block: 128, shared: SHARED }
}

/// A bound of the tiles of rows. Each expert with rows may leave one tile partly empty.
pub(super) fn row_tiles(rows: usize, experts: usize) -> usize {
    (rows + experts.min(rows) * (TILE - 1)) / TILE
}

/// The products to rows of `n` columns: (columns, tile of rows).
pub(super) fn grouped_geometry(rows: usize, n: usize, experts: usize) -> Geometry {
    geometry([n.div_ceil(TILE), row_tiles(rows, experts), 1])
}

/// The product to weights `[n, k]` of each expert: (columns, rows, expert).
pub(super) fn grouped_acc_geometry(n: usize, k: usize, experts: usize) -> Geometry {
    geometry([k.div_ceil(TILE), n.div_ceil(TILE), experts])
}

/// Whether rows of these numbers of bf16 columns are aligned to sixteen bytes, in all of these matrices.
fn aligned(cols: [usize; 2], of: &[View]) -> bool {
    cols.iter().all(|cols| cols % 8 == 0) && of.iter().all(|view| view.at().is_multiple_of(16))
}

/// y `[R, n]` = x `[R, k]` w^T plus a bias, each row with the weights of its expert in w `[E n, k]`, and with its bias.
pub fn grouped_nt(m: &dyn Machine, x: View, w: View, bias: GroupBias, g: Groups, y: View, rows: usize) -> Done {
    grouped(m, [GROUPED_NT, GROUPED_NT_UNALIGNED], grouped_nt_sm90, [x, w, y], bias, g, rows)
}

/// y `[R, n]` = x `[R, k]` w, each row with the weights of its expert in w `[E k, n]`.
pub fn grouped_nn(m: &dyn Machine, x: View, w: View, g: Groups, y: View, rows: usize) -> Done {
    let nn_sm90: Sm90 = |m, views, _, g, shape| grouped_nn_sm90(m, views, g, shape);
    grouped(m, [GROUPED_NN, GROUPED_NN_UNALIGNED], nn_sm90, [x, w, y], GroupBias::NONE, g, rows)
}

/// The same product with the instructions of sm_90a, `[R, n, k]`.
type Sm90 = fn(&dyn Machine, [View; 3], GroupBias, Groups, [usize; 3]) -> Done;

/// y = x times the weights of each row's expert, plus its bias, by the kernel that takes these shapes and addresses.
fn grouped(
    m: &dyn Machine,
    [kernel, unaligned]: [Kernel<Grouped>; 2],
    sm90: Sm90,
    [x, w, y]: [View; 3],
    bias: GroupBias,
    g: Groups,
    rows: usize,
) -> Done {
    if rows == 0 {
        return Ok(());
    }
    let (k, n, experts) = (x.len() / rows, y.len() / rows, g.counts.len());
    assert_eq!((x.len(), y.len(), w.len()), (rows * k, rows * n, experts * n * k), "{experts} products of {n} x {k}");
    bias.check([rows, n], experts);
    if m.target() == Target::Sm90a && fits_sm90(n, k, [x, w, y]) {
        return sm90(m, [x, w, y], bias, g, [rows, n, k]);
    }
    let kernel = if aligned([n, k], &[x, w, y]) { kernel } else { unaligned };
    let [first, rows32, n32, k32] = [g.first, rows, n, k].map(|n| n as u32);
    let args = Grouped { x, w, counts: g.counts, y, bias, first, rows: rows32, n: n32, k: k32 };
    // SAFETY: the views are checked against rows, n, k and the experts; the kernel takes no more rows than these,
    // whatever the counts are.
    unsafe { launch(m, kernel, &args, grouped_geometry(rows, n, experts)) }
}

/// dw `[E n, k]` += dy^T x over the rows of each expert, of dy `[R, n]` and x `[R, k]`.
pub fn grouped_tn_acc(m: &dyn Machine, dy: View, x: View, g: Groups, dw: View, rows: usize) -> Done {
    if rows == 0 {
        return Ok(());
    }
    let (n, k, experts) = (dy.len() / rows, x.len() / rows, g.counts.len());
    assert_eq!((dy.len(), x.len(), dw.len()), (rows * n, rows * k, experts * n * k), "{experts} products of {n} x {k}");
    if m.target() == Target::Sm90a && acc_fits_sm90(n, k, [dy, x, dw]) {
        return grouped_tn_acc_sm90(m, [dy, x, dw], g, [rows, n, k]);
    }
    let kernel = if aligned([n, k], &[dy, x]) { GROUPED_TN_ACC } else { GROUPED_TN_ACC_UNALIGNED };
    let [first, rows32, n32, k32] = [g.first, rows, n, k].map(|n| n as u32);
    let args = GroupedAcc { dy, x, counts: g.counts, dw, first, rows: rows32, n: n32, k: k32 };
    // SAFETY: as above.
    unsafe { launch(m, kernel, &args, grouped_acc_geometry(n, k, experts)) }
}
