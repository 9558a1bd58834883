//! The kernels of `probes/`: each primitive by itself. A device compiles them from the text that is kept here.

use cuda::args::View;
use cuda::geometry::Geometry;
use cuda::kernels::{File, Kernel};
use cuda::machine::{Done, Machine, launch};

/// x is read and y written.
#[repr(C)]
#[derive(Debug)]
struct Probe {
    x: View,
    y: View,
}

const _: () = assert!(size_of::<Probe>() == 32, "as in probes.cu");

/// All probes, as a device loads them.
pub const FILE: File = File {
    name: "probes.cu",
    text: include_str!("../probes/probes.cu"),
    kernels: &[
        "probe_pack2",
        "probe_fmadd",
        "probe_unfused",
        "probe_div_rn",
        "probe_sqrt_rn",
        "probe_ln",
        "probe_fast_exp2",
        "probe_fast_rcp",
        "probe_fast_rsqrt",
        "probe_fmadd64",
        "probe_indices",
        "probe_wide",
        "probe_shared",
        "probe_shared16",
        "probe_cp_async16",
        "probe_shfl",
        "probe_shfl_xor",
        "probe_warp_sync",
        "probe_ldmatrix",
        "probe_ldmatrix_trans",
        "probe_mma",
    ],
    only: None,
};

/// Threads of a block of the probes.
pub const THREADS: usize = 64;

/// Runs a probe on a grid of blocks, with 4096 bytes of shared memory each.
pub fn probe(m: &dyn Machine, name: &'static str, x: View, y: View, grid: [u32; 3]) -> Done {
    assert!(FILE.kernels.contains(&name), "there is no probe {name}");
    let geometry = Geometry { grid, block: THREADS as u32, shared: 4096 };
    // SAFETY: every kernel of the file takes this struct, and the tests make the views as long as it reads and writes.
    unsafe { launch(m, Kernel::named(name), &Probe { x, y }, geometry) }
}
