//! The kernels of `planted/`: each has one bug, which the emulator must report, or none.

use crate::place::Lent;
use crate::{Emulator, Fault, Schedule, Stats};
use cuda::args::View;
use cuda::geometry::Geometry;

/// x is read and y written.
#[repr(C)]
struct Planted {
    x: View,
    y: View,
}

/// Runs the kernel of that name in one block of 64 threads with 4096 bytes of shared memory.
pub fn planted(name: &str, x: &[f32], y: &mut [f32], schedule: Schedule) -> Result<Stats, Fault> {
    let emulator = Emulator::new(schedule);
    let mut lent = Lent::to(&emulator);
    let args = Planted { x: lent.read(x), y: lent.write(y) };
    let geometry = Geometry { grid: [1, 1, 1], block: 64, shared: 4096 };
    // SAFETY: every kernel of `planted/` takes this struct; the views live as long as `lent`.
    unsafe { emulator.run(name, (&raw const args).cast(), geometry)? };
    Ok(emulator.stats())
}
