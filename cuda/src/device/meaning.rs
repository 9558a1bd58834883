//! What the driver's errors mean for whoever has to do something about them.

use cudarc::driver::{DriverError, sys::CUresult};

/// An error in the driver's words, with its name, and with what to do where that is known.
pub(crate) fn said(error: DriverError) -> String {
    let words = error.error_string().map_or("an error that the driver does not know".into(), |e| e.to_string_lossy());
    let words = format!("{words} ({:?})", error.0);
    match remedy(error.0) {
        Some(remedy) => format!("{words}: {remedy}"),
        None => words,
    }
}

fn remedy(error: CUresult) -> Option<&'static str> {
    use CUresult::*;
    Some(match error {
        CUDA_ERROR_ECC_UNCORRECTABLE => {
            "the GPU's memory lost data that ECC could not restore (Xid 48, 63, 64, 94 or 95 in dmesg); drain this node, \
             see nvidia-smi -q -d ECC,ROW_REMAPPER, reset the GPU, and continue from the last checkpoint elsewhere"
        }
        CUDA_ERROR_NVLINK_UNCORRECTABLE => {
            "an NVLink lost data (Xid 74 in dmesg); drain this node, and continue from the last checkpoint elsewhere"
        }
        CUDA_ERROR_ILLEGAL_ADDRESS | CUDA_ERROR_MISALIGNED_ADDRESS | CUDA_ERROR_INVALID_ADDRESS_SPACE => {
            "a kernel used memory that is not its own (Xid 13 or 31 in dmesg): a bug of the engine if it happens again \
             on another GPU; compute-sanitizer names the line"
        }
        CUDA_ERROR_LAUNCH_FAILED | CUDA_ERROR_HARDWARE_STACK_ERROR | CUDA_ERROR_ILLEGAL_INSTRUCTION => {
            "a kernel ended the hard way (see the Xid in dmesg): a bug of the engine if it happens again on another GPU, \
             else the GPU"
        }
        CUDA_ERROR_LAUNCH_TIMEOUT => "a kernel ran too long for a GPU that also shows a screen",
        CUDA_ERROR_DEVICE_UNAVAILABLE => {
            "another process has the GPU for itself (nvidia-smi -q -d COMPUTE), or it fell off the bus (Xid 79 in dmesg)"
        }
        CUDA_ERROR_OUT_OF_MEMORY => "another process may hold memory of this GPU: see nvidia-smi",
        CUDA_ERROR_SYSTEM_DRIVER_MISMATCH | CUDA_ERROR_SYSTEM_NOT_READY => {
            "the driver and the fabric manager do not fit, or it is not running: systemctl status nvidia-fabricmanager"
        }
        _ => return None,
    })
}
