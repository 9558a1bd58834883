//! The devices that there are, as the driver describes them.

use super::{Error, said};
use crate::compile::Version;
use cudarc::driver::{DriverError, result, sys};

/// A CUDA device as the driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// For example `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Major and minor: (9, 0) is `sm_90`.
    pub compute_capability: (i32, i32),
    /// Bytes of device memory.
    pub memory: usize,
    /// Sixteen bytes in hexadecimal that no other device has.
    pub uuid: String,
}

/// The devices that the driver offers, in its order. None where there is no driver or no device;
/// an error where there is a driver that does not work.
pub fn devices() -> Result<Vec<Info>, String> {
    if !start().map_err(|e| e.to_string())? {
        return Ok(Vec::new());
    }
    let count =
        result::device::get_count().map_err(|e| format!("the CUDA driver does not count its devices: {}", said(e)))?;
    let info = |i| result::device::get(i).and_then(describe).map_err(|e| format!("CUDA device {i}: {}", said(e)));
    (0..count).map(info).collect()
}

/// Starts the driver, which may be done again; false where there is no driver or no device.
pub(super) fn start() -> Result<bool, Error> {
    // SAFETY: this only opens libcuda, whose initialisers run nothing but the driver's own set-up.
    // Every call of cudarc panics where the library is missing, so this comes first.
    if !unsafe { sys::is_culib_present() } {
        return Ok(false);
    }
    match result::init() {
        Ok(()) => Ok(true),
        // The stub that comes with toolkits is no driver.
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE | sys::CUresult::CUDA_ERROR_STUB_LIBRARY)) => Ok(false),
        Err(e) => Err(Error::Driver(format!("the CUDA driver does not start: {}", said(e)))),
    }
}

/// Of a device that the driver gave.
pub(super) fn describe(handle: sys::CUdevice) -> Result<Info, DriverError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let name = result::device::get_name(handle)?;
    // SAFETY: `handle` was given by the driver, which is all that this call asks of it.
    let memory = unsafe { result::device::total_mem(handle)? };
    let mut uuid = sys::CUuuid { bytes: [0; 16] };
    // SAFETY: `handle` was given by the driver, and the sixteen bytes are there to be set.
    unsafe { sys::cuDeviceGetUuid_v2(&mut uuid, handle) }.result()?;
    let uuid = uuid.bytes.map(|byte| format!("{:02x}", byte as u8)).concat();
    Ok(Info { name, uuid, compute_capability: (attribute(handle, MAJOR)?, attribute(handle, MINOR)?), memory })
}

pub(super) fn attribute(handle: sys::CUdevice, which: sys::CUdevice_attribute) -> Result<i32, DriverError> {
    // SAFETY: `handle` was given by the driver, which is all that this call asks of it.
    unsafe { result::device::get_attribute(handle, which) }
}

/// The CUDA version that the driver is made for.
pub(super) fn version() -> Result<Version, DriverError> {
    let mut version = 0;
    // SAFETY: it points to a number that the call sets. The driver is there: a device of it was asked for before.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    // 12080 is 12.8.
    let version = version.unsigned_abs();
    Ok(Version { major: version / 1000, minor: version % 1000 / 10 })
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
