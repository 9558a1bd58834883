//! The driver's devices, its version, and the descriptions of its errors.

use super::Error;
use crate::compile::Version;
use cudarc::driver::sys::CUresult;
use cudarc::driver::{DriverError, result, sys};

/// A CUDA device as the driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// For example `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// (major, minor): (9, 0) is `sm_90`.
    pub compute_capability: (i32, i32),
    /// Bytes of device memory.
    pub memory: usize,
    /// The device's UUID: 16 bytes in hexadecimal.
    pub uuid: String,
}

/// The devices visible to the driver, in its order: none without a driver or a device, an error if the driver does not
/// work.
pub fn devices() -> Result<Vec<Info>, String> {
    if !start().map_err(|e| e.to_string())? {
        return Ok(Vec::new());
    }
    let count = result::device::get_count()
        .map_err(|e| format!("the CUDA driver does not count its devices: {}", describe(e)))?;
    let at = |i| result::device::get(i).and_then(info).map_err(|e| format!("CUDA device {i}: {}", describe(e)));
    (0..count).map(at).collect()
}

/// Initializes the driver, once or more; false without a driver or a device.
pub(super) fn start() -> Result<bool, Error> {
    // SAFETY: this only opens libcuda, whose initializers run nothing but the driver's own setup.
    // Every call of cudarc panics if the library is missing, so this comes first.
    if !unsafe { sys::is_culib_present() } {
        return Ok(false);
    }
    match result::init() {
        Ok(()) => Ok(true),
        // The stub library of a toolkit is not a driver.
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE | sys::CUresult::CUDA_ERROR_STUB_LIBRARY)) => Ok(false),
        Err(e) => Err(Error::Driver(format!("the CUDA driver does not start: {}", describe(e)))),
    }
}

/// The description of a device.
pub(super) fn info(handle: sys::CUdevice) -> Result<Info, DriverError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let name = result::device::get_name(handle)?;
    // SAFETY: `handle` is a device of the driver.
    let memory = unsafe { result::device::total_mem(handle)? };
    let mut uuid = sys::CUuuid { bytes: [0; 16] };
    // SAFETY: `handle` is a device of the driver, and the call sets sixteen bytes.
    unsafe { sys::cuDeviceGetUuid_v2(&mut uuid, handle) }.result()?;
    let uuid = uuid.bytes.map(|byte| format!("{:02x}", byte as u8)).concat();
    Ok(Info { name, uuid, compute_capability: (attribute(handle, MAJOR)?, attribute(handle, MINOR)?), memory })
}

pub(super) fn attribute(handle: sys::CUdevice, which: sys::CUdevice_attribute) -> Result<i32, DriverError> {
    // SAFETY: `handle` is a device of the driver.
    unsafe { result::device::get_attribute(handle, which) }
}

/// The CUDA version that the driver supports.
pub(super) fn version() -> Result<Version, DriverError> {
    let mut version = 0;
    // SAFETY: the call sets the number. The driver is loaded: a device was queried before.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    // 12080 is 12.8.
    let version = version.unsigned_abs();
    Ok(Version { major: version / 1000, minor: version % 1000 / 10 })
}

/// An error's description and name, with a remedy if there is one.
pub(crate) fn describe(error: DriverError) -> String {
    let words = error.error_string().map_or("an error unknown to the driver".into(), |e| e.to_string_lossy());
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
            "the GPU's memory had an uncorrectable ECC error (Xid 48, 63, 64, 94 or 95 in dmesg); drain this node, see \
             nvidia-smi -q -d ECC,ROW_REMAPPER, reset the GPU, and continue from the last checkpoint elsewhere"
        }
        CUDA_ERROR_NVLINK_UNCORRECTABLE => {
            "an NVLink had an uncorrectable error (Xid 74 in dmesg); drain this node, and continue from the last \
             checkpoint elsewhere"
        }
        CUDA_ERROR_ILLEGAL_ADDRESS | CUDA_ERROR_MISALIGNED_ADDRESS | CUDA_ERROR_INVALID_ADDRESS_SPACE => {
            "a kernel accessed memory out of bounds (Xid 13 or 31 in dmesg): a bug of the engine if it happens again \
             on another GPU; compute-sanitizer names the line"
        }
        CUDA_ERROR_LAUNCH_FAILED | CUDA_ERROR_HARDWARE_STACK_ERROR | CUDA_ERROR_ILLEGAL_INSTRUCTION => {
            "a kernel crashed (see the Xid in dmesg): a bug of the engine if it happens again on another GPU, else a \
             defect of the GPU"
        }
        CUDA_ERROR_LAUNCH_TIMEOUT => "a kernel exceeded the time limit of a GPU that also drives a display",
        CUDA_ERROR_DEVICE_UNAVAILABLE => {
            "another process uses the GPU exclusively (nvidia-smi -q -d COMPUTE), or the GPU fell off the bus (Xid \
             79 in dmesg)"
        }
        CUDA_ERROR_OUT_OF_MEMORY => "another process may use memory of this GPU: see nvidia-smi",
        CUDA_ERROR_SYSTEM_DRIVER_MISMATCH | CUDA_ERROR_SYSTEM_NOT_READY => {
            "the fabric manager is not running, or its version differs from the driver's: systemctl status \
             nvidia-fabricmanager"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Passes with and without a GPU; `/dev/nvidia0` shows which is the case.
    #[test]
    fn devices_are_found_if_there_are_any() {
        let found = super::devices();
        if !Path::new("/dev/nvidia0").exists() {
            // A driver without a device may return an error, but never a device.
            assert!(found.unwrap_or_default().is_empty());
            return;
        }
        let found = found.unwrap();
        assert!(!found.is_empty());
        for device in found {
            assert!(device.name.len() > 3, "{device:?}");
            assert!((3..100).contains(&device.compute_capability.0), "{device:?}");
            assert!(device.memory > 1 << 30, "{device:?}");
        }
    }
}
