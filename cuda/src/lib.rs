//! The CUDA side of the engine: kernels, what launches them, and the devices that there are.
//!
//! An op (`ops`) fills in a kernel's arguments (`args`) and launches it on a `Machine` with the blocks and threads
//! that `geometry` says: on a device, or on the emulator of the tests.
//! The driver is loaded when it is first asked for, so the program starts on machines without one.

pub mod args;
pub mod geometry;
pub mod kernels;
pub mod links;
pub mod machine;
pub mod ops;

use cudarc::driver::{DriverError, result, sys};

/// A CUDA device as the driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// For example `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Major and minor: (9, 0) is `sm_90`.
    pub compute_capability: (i32, i32),
    /// Bytes of device memory.
    pub memory: usize,
}

/// The devices that the driver offers, in its order. None where there is no driver or no device;
/// an error where there is a driver that does not work.
pub fn devices() -> Result<Vec<Device>, String> {
    // SAFETY: this only opens libcuda, whose initialisers run nothing but the driver's own set-up.
    // Every call of cudarc panics where the library is missing, so this comes first.
    if !unsafe { sys::is_culib_present() } {
        return Ok(Vec::new());
    }
    match result::init() {
        Ok(()) => {}
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Ok(Vec::new()),
        Err(e) => return Err(format!("the CUDA driver does not start: {e}")),
    }
    let count = result::device::get_count().map_err(|e| format!("the CUDA driver does not count its devices: {e}"))?;
    (0..count).map(|i| device(i).map_err(|e| format!("CUDA device {i}: {e}"))).collect()
}

fn device(ordinal: i32) -> Result<Device, DriverError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let handle = result::device::get(ordinal)?;
    let name = result::device::get_name(handle)?;
    // SAFETY: `handle` was given by the driver just now, which is all that these calls ask of it.
    let (major, minor, memory) = unsafe {
        (
            result::device::get_attribute(handle, MAJOR)?,
            result::device::get_attribute(handle, MINOR)?,
            result::device::total_mem(handle)?,
        )
    };
    Ok(Device { name, compute_capability: (major, minor), memory })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Holds on machines with a GPU and without: `/dev/nvidia0` is there where the first one is.
    #[test]
    fn devices_are_found_where_they_are() {
        let found = super::devices();
        if !Path::new("/dev/nvidia0").exists() {
            // A driver without a device may say so as an error; it must not offer one.
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
