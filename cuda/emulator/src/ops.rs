//! Each op of the backend that has kernels, as the launcher of a device runs it: same kernels, same geometry.

use crate::ffi::*;
use crate::{Fault, Schedule, run};
use cuda::args::{self, View};
use cuda::geometry;
use half::bf16;

/// Processors of the device that is emulated: few, so that blocks have several rows to walk over.
const PROCESSORS: usize = 2;

fn view<T>(x: &[T]) -> View {
    View { at: x.as_ptr() as u64, n: x.len() as u64 }
}

fn view_mut<T>(x: &mut [T]) -> View {
    View { at: x.as_mut_ptr() as u64, n: x.len() as u64 }
}

/// What the forward of RMSNorm reads beside x: w `[d]` and eps.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    pub w: &'a [bf16],
    pub eps: f32,
    pub schedule: Schedule,
}

/// y `[T, D]` and rstd `[T]` of x, or of h += x where `h` has elements.
pub fn rmsnorm(x: &[bf16], h: &mut [bf16], y: &mut [bf16], rstd: &mut [f32], n: Norm<'_>) -> Result<(), Fault> {
    let (rows, d) = (rstd.len(), n.w.len());
    let (h, y, rstd) = (view_mut(h), view_mut(y), view_mut(rstd));
    let args = norm_args(view(x), h, y, rstd, n);
    // SAFETY: the views are of slices that outlive the call; those written to are borrowed exclusively.
    unsafe { run(emu_rmsnorm, &args, geometry::rmsnorm(rows, d), n.schedule) }.map(drop)
}

/// y again from x and rstd.
pub fn rmsnorm_again(x: &[bf16], rstd: &[f32], y: &mut [bf16], n: Norm<'_>) -> Result<(), Fault> {
    let args = norm_args(view(x), View::NONE, view_mut(y), view(rstd), n);
    // SAFETY: as above; `rmsnorm_again` only reads rstd.
    unsafe { run(emu_rmsnorm_again, &args, geometry::rmsnorm(rstd.len(), n.w.len()), n.schedule) }.map(drop)
}

fn norm_args(x: View, h: View, y: View, rstd: View, n: Norm<'_>) -> args::RmsNorm {
    let (rows, d) = (rstd.n as u32, n.w.len() as u32);
    args::RmsNorm { x, h, w: view(n.w), y, rstd, rows, d, eps: n.eps, unused: 0 }
}

/// dx in the place of dy, plus dres where it has elements; dw `[D]` is added to.
pub fn rmsnorm_bwd(
    dres: &[bf16],
    dy: &mut [bf16],
    x: &[bf16],
    rstd: &[f32],
    w: &[bf16],
    dw: &mut [f32],
    schedule: Schedule,
) -> Result<(), Fault> {
    let (rows, d) = (rstd.len(), w.len());
    let first = geometry::rmsnorm_bwd(rows, d, PROCESSORS);
    let kernel = if d > geometry::NORM_BWD_COLUMNS { emu_rmsnorm_bwd_long } else { emu_rmsnorm_bwd };
    let blocks = first.grid[0] as usize;
    let mut parts = vec![f32::NAN; blocks * d];
    let (dy, parts) = (view_mut(dy), view_mut(&mut parts[..]));
    let (dres, x, rstd, w) = (view(dres), view(x), view(rstd), view(w));
    let args = args::RmsNormBwd { dres, dy, x, rstd, w, parts, rows: rows as u32, d: d as u32 };
    let sum = args::SumRows { parts, to: view_mut(dw), rows: blocks as u32, cols: d as u32 };
    // SAFETY: the views are of slices and of a vector that outlive the calls; those written to are borrowed exclusively.
    unsafe {
        run(kernel, &args, first, schedule)?;
        run(emu_sum_rows, &sum, geometry::sum_rows(d), schedule)?;
    }
    Ok(())
}

/// y `[T, F]` of gate_up `[T, 2F]`.
pub fn swiglu(gate_up: &[bf16], y: &mut [bf16], f: usize, schedule: Schedule) -> Result<(), Fault> {
    let rows = y.len() / f;
    let args = args::SwiGlu { gate_up: view(gate_up), y: view_mut(y), rows: rows as u32, f: f as u32 };
    // SAFETY: as above; `swiglu` only reads gate_up.
    unsafe { run(emu_swiglu, &args, geometry::swiglu(rows, f), schedule) }.map(drop)
}

/// `[dgate | dup]` in the place of gate_up.
pub fn swiglu_bwd(dy: &[bf16], gate_up: &mut [bf16], f: usize, schedule: Schedule) -> Result<(), Fault> {
    let rows = dy.len() / f;
    let args = args::SwiGlu { gate_up: view_mut(gate_up), y: view(dy), rows: rows as u32, f: f as u32 };
    // SAFETY: as above; `swiglu_bwd` only reads y, which is dy here.
    unsafe { run(emu_swiglu_bwd, &args, geometry::swiglu(rows, f), schedule) }.map(drop)
}

/// Heads that turn, their size, columns of a row, rows of a sequence; sign 1 turns, -1 turns back.
#[derive(Clone, Copy)]
pub struct Turn {
    pub heads: usize,
    pub dim: usize,
    pub cols: usize,
    pub seq: usize,
    pub sign: f32,
}

/// Turns the leading heads of qkv in place.
pub fn rope(qkv: &mut [bf16], table: &[f32], t: Turn, schedule: Schedule) -> Result<(), Fault> {
    let rows = qkv.len() / t.cols;
    let (cols, heads, dim, seq) = (t.cols as u32, t.heads as u32, t.dim as u32, t.seq as u32);
    let (qkv, table) = (view_mut(qkv), view(table));
    let args = args::Rope { qkv, table, rows: rows as u32, cols, heads, dim, seq, sign: t.sign };
    // SAFETY: as above.
    unsafe { run(emu_rope, &args, geometry::rope(rows, t.heads, t.dim), schedule) }.map(drop)
}

/// y = x rounded.
pub fn round(x: &[f32], y: &mut [bf16], schedule: Schedule) -> Result<(), Fault> {
    let (geometry, args) = (geometry::elementwise(x.len(), 8, PROCESSORS), args::Round { x: view(x), y: view_mut(y) });
    // SAFETY: as above.
    unsafe { run(emu_round_bf16, &args, geometry, schedule) }.map(drop)
}

/// x += y.
pub fn add(x: &mut [bf16], y: &[bf16], schedule: Schedule) -> Result<(), Fault> {
    let (geometry, args) = (geometry::elementwise(x.len(), 8, PROCESSORS), args::Add { x: view_mut(x), y: view(y) });
    // SAFETY: as above.
    unsafe { run(emu_add_bf16, &args, geometry, schedule) }.map(drop)
}

/// to = from.
pub fn copy(from: &[f32], to: &mut [f32], schedule: Schedule) -> Result<(), Fault> {
    copy_or_zero(view(from), to, schedule)
}

/// to = 0.
pub fn zero(to: &mut [f32], schedule: Schedule) -> Result<(), Fault> {
    copy_or_zero(View::NONE, to, schedule)
}

fn copy_or_zero(from: View, to: &mut [f32], schedule: Schedule) -> Result<(), Fault> {
    let (geometry, args) = (geometry::elementwise(to.len(), 4, PROCESSORS), args::Copy { from, to: view_mut(to) });
    // SAFETY: as above.
    unsafe { run(emu_copy_f32, &args, geometry, schedule) }.map(drop)
}

/// out += the sum of squares of x.
pub fn sum_squares(x: &[f32], out: &mut [f32; 1], schedule: Schedule) -> Result<(), Fault> {
    let mut parts = vec![f64::NAN; geometry::squares_parts(x.len())];
    let args = args::SumSquares { x: view(x), parts: view_mut(&mut parts), out: view_mut(out) };
    // SAFETY: as above.
    unsafe {
        run(emu_squares, &args, geometry::squares(x.len()), schedule)?;
        run(emu_squares_total, &args, geometry::squares_total(), schedule)?;
    }
    Ok(())
}

/// A shard's f32 state, all of one length.
pub struct State<'a> {
    pub master: &'a mut [f32],
    pub m: &'a mut [f32],
    pub v: &'a mut [f32],
}

/// One step; `numbers` holds what the kernel takes beside the tensors. `out` holds the new weights.
pub fn adamw(
    g: &[f32],
    factor: &[f32; 2],
    s: State<'_>,
    out: &mut [bf16],
    numbers: args::Step,
    schedule: Schedule,
) -> Result<(), Fault> {
    let tensors = [view(g), view(factor), view_mut(s.master), view_mut(s.m), view_mut(s.v), view_mut(out)];
    let geometry = geometry::elementwise(g.len(), 4, PROCESSORS);
    // SAFETY: as above.
    unsafe { run(emu_adamw, &numbers.args(tensors), geometry, schedule) }.map(drop)
}
