//! The border to C++: `runtime/report.h` and the functions that the kernels become.

use super::Fault;
use cuda::args;
use std::ffi::c_int;

#[repr(C)]
pub struct Launch {
    pub grid: [u32; 3],
    pub block: u32,
    pub shared: u32,
    pub schedule: u32,
}

#[repr(C)]
pub struct Report {
    pub conflicts: u64,
    pub switches: u64,
    block: [u32; 3],
    thread: u32,
    line: u32,
    kernel: [u8; 32],
    file: [u8; 32],
    text: [u8; 196],
}

const _: () = assert!(size_of::<Launch>() == 24 && size_of::<Report>() == 296, "as in report.h");

impl Default for Report {
    fn default() -> Self {
        let (kernel, file, text) = ([0; 32], [0; 32], [0; 196]);
        Report { conflicts: 0, switches: 0, block: [0; 3], thread: 0, line: 0, kernel, file, text }
    }
}

impl Report {
    pub fn fault(&self) -> Fault {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes.split(|&b| b == 0).next().unwrap_or(&[])).into_owned();
        let (kernel, file, said) = (text(&self.kernel), text(&self.file), text(&self.text));
        Fault { kernel, block: self.block, thread: self.thread, file, line: self.line, text: said }
    }
}

pub type Kernel<A> = unsafe extern "C" fn(*const A, *const Launch, *mut Report) -> c_int;

/// Declares the functions of kernels by the struct that they take.
macro_rules! kernels {
    ($($args:path: $($name:ident)*;)*) => {
        unsafe extern "C" {
            $($(pub fn $name(args: *const $args, launch: *const Launch, report: *mut Report) -> c_int;)*)*
        }
    };
}

kernels! {
    args::RmsNorm: emu_rmsnorm emu_rmsnorm_again;
    args::RmsNormBwd: emu_rmsnorm_bwd emu_rmsnorm_bwd_long;
    args::SumRows: emu_sum_rows;
    args::SwiGlu: emu_swiglu emu_swiglu_bwd;
    args::Rope: emu_rope;
    args::Round: emu_round_bf16;
    args::Add: emu_add_bf16;
    args::Copy: emu_copy_f32;
    args::SumSquares: emu_squares emu_squares_total;
    args::AdamW: emu_adamw;
    crate::planted::Planted: emu_race emu_race_of_a_warp emu_race_in_a_loop emu_overwritten emu_no_wait emu_waits_too_little
        emu_lost_thread emu_lost_lane emu_two_barriers emu_unset emu_unset_mma emu_unwritten emu_tail emu_odd_wide
        emu_beyond_shared emu_product emu_conflicts;
}
