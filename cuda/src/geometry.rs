//! How many blocks of how many threads each kernel is launched with: pure functions of shapes and of the device's
//! processors, so that the emulator and a device launch the same.

/// Blocks along three axes, threads of a block, bytes of its shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    pub grid: [u32; 3],
    pub block: u32,
    pub shared: u32,
}

/// Columns that the kernels of RMSNorm take: 1024 threads with two vectors of eight in registers.
pub const NORM_COLUMNS: usize = 16384;

/// Threads of most kernels.
const BLOCK: u32 = 256;

/// Columns up to which `rmsnorm_bwd` goes; `rmsnorm_bwd_long` takes the rest.
pub const NORM_BWD_COLUMNS: usize = 8192;

/// Whole warps with `each` columns a thread.
fn norm_block(d: usize, each: usize) -> u32 {
    assert!(d > 0 && d <= NORM_COLUMNS, "RMSNorm over {d} columns, more than {NORM_COLUMNS}");
    (d.div_ceil(each).next_multiple_of(32)) as u32
}

/// `rmsnorm` and `rmsnorm_again`: a block a row.
pub fn rmsnorm(rows: usize, d: usize) -> Geometry {
    Geometry { grid: [rows as u32, 1, 1], block: norm_block(d, 16), shared: 128 }
}

/// `rmsnorm_bwd` and `rmsnorm_bwd_long`: as many blocks as run at once on `processors`; each leaves a row of parts.
pub fn rmsnorm_bwd(rows: usize, d: usize, processors: usize) -> Geometry {
    let block = norm_block(d, if d > NORM_BWD_COLUMNS { 32 } else { 16 });
    // With up to 83 registers a thread, 768 threads fit on a processor.
    let at_once = processors * (768 / block as usize).clamp(1, 6);
    Geometry { grid: [rows.min(at_once) as u32, 1, 1], block, shared: 256 }
}

/// `sum_rows`: 32 columns a block.
pub fn sum_rows(cols: usize) -> Geometry {
    Geometry { grid: [cols.div_ceil(32) as u32, 1, 1], block: BLOCK, shared: 1024 }
}

/// `swiglu` and `swiglu_bwd`: (row, piece of the row).
pub fn swiglu(rows: usize, f: usize) -> Geometry {
    let block = (f.div_ceil(8).next_multiple_of(32) as u32).min(BLOCK);
    Geometry { grid: [rows as u32, f.div_ceil(8 * block as usize) as u32, 1], block, shared: 0 }
}

/// `rope`: a block a row.
pub fn rope(rows: usize, heads: usize, dim: usize) -> Geometry {
    let items = heads * (dim / 2).div_ceil(8);
    Geometry { grid: [rows as u32, 1, 1], block: (items.next_multiple_of(32) as u32).clamp(32, BLOCK), shared: 0 }
}

/// The element-by-element kernels, `each` elements of a thread at once.
pub fn elementwise(n: usize, each: usize, processors: usize) -> Geometry {
    let blocks = n.div_ceil(each * BLOCK as usize).clamp(1, processors * 8);
    Geometry { grid: [blocks as u32, 1, 1], block: BLOCK, shared: 0 }
}

/// `squares`: one part a warp, as many as [`squares_parts`] says.
pub fn squares(n: usize) -> Geometry {
    // Not of the device's processors: the sum must not depend on the device.
    elementwise(n, 4, 128)
}

/// Parts that `squares` leaves of n elements.
pub fn squares_parts(n: usize) -> usize {
    let g = squares(n);
    (g.grid[0] * g.block / 32) as usize
}

/// `squares_total`: one warp.
pub fn squares_total() -> Geometry {
    Geometry { grid: [1, 1, 1], block: 32, shared: 0 }
}
