//! Sinks of attention: one more score of each head's softmax, without a value.

use super::BLOCK;
use crate::machine::{Done, File, Geometry, Kernel, Machine, launch};
use crate::tensor::View;

kernels! {
    SINKS_CU = "sinks.cu" {
        ADD_SINKS = "add_sinks": Sinks;
        SINKS_BWD = "sinks_bwd": SinksBwd;
    }
}

sized! { Sinks: 64, SinksBwd: 96 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Sinks {
    pub o: View,
    pub lse: View,
    pub sinks: View,
    pub heads: u32,
    pub dim: u32,
    pub lanes: u32,
    pub padding: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct SinksBwd {
    pub do_: View,
    pub o: View,
    pub lse: View,
    pub sinks: View,
    pub dsinks: View,
    pub rows: u32,
    pub heads: u32,
    pub dim: u32,
    pub lanes: u32,
}

/// Elements of a head that a warp takes, eight a lane.
pub const SINK_HEAD: usize = 256;
/// Threads of a block of `sinks_bwd`. There are only as many blocks as heads, and a thread of 1024 would have too few
/// registers for the rows that it reads at once.
const MOST: u32 = 512;

/// Lanes of a head.
fn lanes(dim: usize) -> usize {
    assert!(dim <= SINK_HEAD, "sinks of heads of {dim}");
    dim.div_ceil(8).next_power_of_two()
}

/// `add_sinks`: some lanes for each head of each row.
pub(super) fn add_sinks_geometry(heads: usize, dim: usize) -> Geometry {
    Geometry { grid: [(heads * lanes(dim)).div_ceil(BLOCK as usize) as u32, 1, 1], block: BLOCK, shared: 0 }
}

/// `sinks_bwd`: a block for each head.
pub(super) fn sinks_bwd_geometry(heads: usize) -> Geometry {
    Geometry { grid: [heads as u32, 1, 1], block: MOST, shared: 128 }
}

/// Rows, heads and elements of a head of o `[T, H d]`.
fn sizes(o: View, lse: View, sinks: View) -> [usize; 3] {
    let (rows, dim) = (lse.len() / sinks.len(), o.len() / lse.len().max(1));
    assert_eq!((lse.len(), o.len()), (rows * sinks.len(), rows * sinks.len() * dim), "{} sinks", sinks.len());
    [rows, sinks.len(), dim]
}

/// Adds sinks `[H]` to o `[T, H d]` and its logsumexp `[T, H]`, in place.
pub fn add_sinks(m: &dyn Machine, o: View, lse: View, sinks: View) -> Done {
    let [rows, heads, dim] = sizes(o, lse, sinks);
    if rows == 0 {
        return Ok(());
    }
    let [heads32, dim32, lanes] = [heads, dim, lanes(dim)].map(|n| n as u32);
    let args = Sinks { o, lse, sinks, heads: heads32, dim: dim32, lanes, padding: 0 };
    // SAFETY: the views are checked against rows, heads and dim.
    unsafe { launch(m, ADD_SINKS, &args, add_sinks_geometry(rows * heads, dim)) }
}

/// dsinks `[H]` -= the sum over the rows of e^(sink - lse) (do . o), of do and o `[T, H d]` and lse `[T, H]`, both with
/// the sinks.
pub fn sinks_bwd(m: &dyn Machine, do_: View, [o, lse]: [View; 2], sinks: View, dsinks: View) -> Done {
    let [rows, heads, dim] = sizes(o, lse, sinks);
    assert_eq!((do_.len(), dsinks.len()), (o.len(), heads), "gradients of {heads} sinks");
    if rows == 0 {
        return Ok(());
    }
    let [rows, heads32, dim, lanes] = [rows, heads, dim, lanes(dim)].map(|n| n as u32);
    let args = SinksBwd { do_, o, lse, sinks, dsinks, rows, heads: heads32, dim, lanes };
    // SAFETY: the views are checked against rows, heads and dim.
    unsafe { launch(m, SINKS_BWD, &args, sinks_bwd_geometry(heads)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lanes_of_a_head_are_within_a_warp() {
        assert_eq!([1, 8, 9, 64, 96, 128, SINK_HEAD].map(lanes), [1, 1, 2, 8, 16, 16, 32]);
    }
}
