//! Biases of rows that are grouped by expert: the argument of products that add one, and its gradients.

use super::{BLOCK, Groups};
use crate::machine::{Done, File, Geometry, Kernel, Machine, launch};
use crate::tensor::View;

kernels! {
    GROUPED_BIAS_CU = "grouped_bias.cu" {
        GROUPED_BIAS_BWD = "grouped_bias_bwd": GroupedBias;
        GROUPED_BIAS_DOT = "grouped_bias_dot": GroupedBias;
    }
}

sized! { GroupBias: 40, GroupedBias: 104 }

/// A bias of the same columns of the rows of each expert. The kernels take it as it is.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct GroupBias {
    /// `[E, n]`; absent where nothing is added.
    pub bias: View,
    /// A factor of the bias for each row, `[R]`; absent where it is 1.
    pub weights: View,
    /// The column of the rows that the first element is added to.
    pub first: u32,
    /// n.
    pub width: u32,
}

impl GroupBias {
    pub const NONE: GroupBias = GroupBias { bias: View::NONE, weights: View::NONE, first: 0, width: 0 };

    /// The bias `[E, n]` of the columns from `first` on.
    pub fn new(bias: View, weights: View, first: usize, experts: usize) -> GroupBias {
        assert_eq!(bias.len() % experts, 0, "{} biases of {experts} experts", bias.len());
        GroupBias { bias, weights, first: first as u32, width: (bias.len() / experts) as u32 }
    }

    /// Fails where this is no bias of so many experts, of rows `[R, n]`.
    pub(super) fn check(&self, [rows, n]: [usize; 2], experts: usize) {
        let (first, width) = (self.first as usize, self.width as usize);
        assert_eq!(self.bias.len(), experts * width, "biases of {experts} experts");
        assert!(first + width <= n, "biases of the columns {first} .. {} of {n}", first + width);
        assert!(self.weights.is_empty() || self.weights.len() == rows, "{} weights of {rows} rows", self.weights.len());
    }
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct GroupedBias {
    pub dy: View,
    pub counts: View,
    pub bias: GroupBias,
    pub to: View,
    pub first: u32,
    pub rows: u32,
    pub n: u32,
    pub padding: u32,
}

/// Columns of a block of `grouped_bias_bwd`.
const COLUMNS: usize = 256;

/// `grouped_bias_bwd`: (columns, expert).
pub(super) fn grouped_bias_bwd_geometry(width: usize, experts: usize) -> Geometry {
    let grid = [width.div_ceil(COLUMNS) as u32, experts as u32, 1];
    Geometry { grid, block: BLOCK, shared: 8 * COLUMNS as u32 * 4 }
}

/// `grouped_bias_dot`: a warp for each row.
pub(super) fn grouped_bias_dot_geometry(rows: usize) -> Geometry {
    Geometry { grid: [rows.div_ceil(BLOCK as usize / 32) as u32, 1, 1], block: BLOCK, shared: 0 }
}

/// dbias `[E, n]` += the sums of the rows of each expert of dy `[R, N]`, times their weights.
pub fn grouped_bias_bwd(m: &dyn Machine, dy: View, bias: GroupBias, g: Groups, dbias: View, rows: usize) -> Done {
    assert_eq!(dbias.len(), bias.bias.len(), "gradients of a bias");
    let geometry = grouped_bias_bwd_geometry(bias.width as usize, g.counts.len());
    gradients(m, GROUPED_BIAS_BWD, [dy, dbias], bias, g, rows, geometry)
}

/// dweights `[R]` += dy . bias, of dy `[R, N]` and the bias of each row's expert.
pub fn grouped_bias_dot(m: &dyn Machine, dy: View, bias: GroupBias, g: Groups, dweights: View) -> Done {
    let rows = dweights.len();
    gradients(m, GROUPED_BIAS_DOT, [dy, dweights], bias, g, rows, grouped_bias_dot_geometry(rows))
}

fn gradients(
    m: &dyn Machine,
    kernel: Kernel<GroupedBias>,
    [dy, to]: [View; 2],
    bias: GroupBias,
    g: Groups,
    rows: usize,
    geometry: Geometry,
) -> Done {
    if rows == 0 {
        return Ok(());
    }
    let (n, experts) = (dy.len() / rows, g.counts.len());
    assert_eq!(dy.len(), rows * n, "{rows} rows");
    bias.check([rows, n], experts);
    let [first, rows, n] = [g.first, rows, n].map(|n| n as u32);
    let args = GroupedBias { dy, counts: g.counts, bias, to, first, rows, n, padding: 0 };
    // SAFETY: the views are checked against rows, n and the experts; the kernels take no more rows than these, whatever
    // the counts are.
    unsafe { launch(m, kernel, &args, geometry) }
}
