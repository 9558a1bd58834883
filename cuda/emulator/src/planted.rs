//! The kernels of `planted/`: each has one bug, which the emulator must report, or none.

use crate::ffi::*;
use crate::{Fault, Schedule, Stats, run};
use cuda::args::View;
use cuda::geometry::Geometry;

/// x is read and y written.
#[repr(C)]
pub struct Planted {
    x: View,
    y: View,
}

/// Runs the kernel of that name in one block of 64 threads with 4096 bytes of shared memory.
pub fn planted(name: &str, x: &[f32], y: &mut [f32], schedule: Schedule) -> Result<Stats, Fault> {
    let kernel = match name {
        "race" => emu_race,
        "race_of_a_warp" => emu_race_of_a_warp,
        "race_in_a_loop" => emu_race_in_a_loop,
        "overwritten" => emu_overwritten,
        "no_wait" => emu_no_wait,
        "waits_too_little" => emu_waits_too_little,
        "lost_thread" => emu_lost_thread,
        "lost_lane" => emu_lost_lane,
        "two_barriers" => emu_two_barriers,
        "unset" => emu_unset,
        "unset_mma" => emu_unset_mma,
        "unwritten" => emu_unwritten,
        "tail" => emu_tail,
        "odd_wide" => emu_odd_wide,
        "beyond_shared" => emu_beyond_shared,
        "product" => emu_product,
        "conflicts" => emu_conflicts,
        other => panic!("no planted kernel {other}"),
    };
    let view = |at: *const f32, n: usize| View { at: at as u64, n: n as u64 };
    let args = Planted { x: view(x.as_ptr(), x.len()), y: view(y.as_mut_ptr(), y.len()) };
    let geometry = Geometry { grid: [1, 1, 1], block: 64, shared: 4096 };
    // SAFETY: the views are of slices that outlive the call; only y is written to, and borrowed exclusively.
    unsafe { run(kernel, &args, geometry, schedule) }
}
