//! Devices and their contexts. As with the real driver, most calls fail on a thread without a current context.

use crate::code::*;
use crate::fault;
use crate::settings::settings;
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use std::cell::Cell;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

static STARTED: AtomicBool = AtomicBool::new(false);
/// The reference count of each device's primary context.
static HELD: Mutex<Vec<usize>> = Mutex::new(Vec::new());
/// A context's handle is this plus the device's ordinal.
const CONTEXT: usize = 0x100;
/// The lowest and the highest priority of a stream.
const PRIORITIES: [c_int; 2] = [0, -5];

thread_local! {
    static CURRENT: Cell<Option<i32>> = const { Cell::new(None) };
}

/// The device of this thread's current context.
pub(crate) fn current() -> Outcome<i32> {
    started()?;
    fault::check()?;
    CURRENT.get().ok_or(INVALID_CONTEXT)
}

fn started() -> Outcome<()> {
    STARTED.load(Ordering::Acquire).then_some(()).ok_or(NOT_INITIALIZED)
}

/// The machine's number of a device visible to this process.
fn physical(device: c_int) -> Outcome<usize> {
    started()?;
    usize::try_from(device).ok().and_then(|d| settings().visible.get(d).copied()).ok_or(INVALID_DEVICE)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuInit(flags: c_uint) -> Code {
    if flags != 0 {
        return INVALID_VALUE;
    }
    STARTED.store(true, Ordering::Release);
    if settings().visible.is_empty() { NO_DEVICE } else { 0 }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(to: *mut c_int) -> Code {
    // SAFETY: the caller passes a valid pointer.
    unsafe { *to = settings().cuda };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(to: *mut c_int) -> Code {
    // SAFETY: the caller passes a valid pointer.
    status_of(started().map(|()| unsafe { *to = settings().visible.len() as c_int }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(to: *mut c_int, ordinal: c_int) -> Code {
    // SAFETY: the caller passes a valid pointer.
    status_of(physical(ordinal).map(|_| unsafe { *to = ordinal }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(to: *mut c_char, len: c_int, device: c_int) -> Code {
    // SAFETY: the caller provides room for `len` bytes.
    status_of(physical(device).map(|_| unsafe { write(&settings().name, to, len) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetPCIBusId(to: *mut c_char, len: c_int, device: c_int) -> Code {
    // SAFETY: the caller provides room for `len` bytes.
    status_of(physical(device).map(|number| unsafe { write(&format!("0000:{:02x}:00.0", number + 1), to, len) }))
}

/// Writes as much of a text as there is room for, and a NUL.
unsafe fn write(text: &str, to: *mut c_char, len: c_int) {
    let n = text.len().min((len.max(1) - 1) as usize);
    // SAFETY: the caller provides room for n + 1 bytes.
    unsafe {
        to.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), n);
        to.add(n).write(0);
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(to: *mut usize, device: c_int) -> Code {
    // SAFETY: the caller passes a valid pointer.
    status_of(physical(device).map(|_| unsafe { *to = settings().memory }))
}

/// The first half identifies the host, so that devices of several hosts differ.
pub(crate) fn uuid(device: c_int) -> Outcome<[u8; 16]> {
    let number = physical(device)?;
    let mut host = DefaultHasher::new();
    std::fs::read("/proc/sys/kernel/hostname").unwrap_or_default().hash(&mut host);
    let mut uuid = [0; 16];
    uuid[..8].copy_from_slice(&host.finish().to_be_bytes());
    uuid[8..].copy_from_slice(&(number as u64).to_be_bytes());
    Ok(uuid)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid_v2(to: *mut [u8; 16], device: c_int) -> Code {
    // SAFETY: the caller provides room for 16 bytes.
    status_of(uuid(device).map(|uuid| unsafe { *to = uuid }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid(to: *mut [u8; 16], device: c_int) -> Code {
    // SAFETY: the caller's pointer is passed on.
    unsafe { cuDeviceGetUuid_v2(to, device) }
}

/// The most shared memory in bytes that a kernel can opt in to.
pub(crate) fn most_shared() -> c_int {
    if settings().capability >= 90 { 227 << 10 } else { 163 << 10 }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(to: *mut c_int, which: c_int, device: c_int) -> Code {
    use Attribute::*;
    let of = |number: usize| {
        let known: [(Attribute, c_int); 18] = [
            (CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024),
            (CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 48 << 10),
            (CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32),
            (CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, settings().processors),
            (CU_DEVICE_ATTRIBUTE_INTEGRATED, 0),
            (CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY, 1),
            (CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS, 1),
            (CU_DEVICE_ATTRIBUTE_ECC_ENABLED, 1),
            (CU_DEVICE_ATTRIBUTE_PCI_BUS_ID, number as c_int + 1),
            (CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID, 0),
            (CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID, 0),
            (CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, 1 << 20),
            (CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, 2048),
            (CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT, 2),
            (CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1),
            (CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, settings().capability / 10),
            (CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, settings().capability % 10),
            (CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, most_shared()),
        ];
        known.iter().find(|(a, _)| *a as c_int == which).map(|(_, value)| *value).ok_or(INVALID_VALUE)
    };
    // SAFETY: the caller passes a valid pointer.
    status_of(physical(device).and_then(of).map(|value| unsafe { *to = value }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(to: *mut *mut c_void, device: c_int) -> Code {
    status_of(physical(device).and_then(|_| fault::check()).map(|()| {
        let mut held = HELD.lock().expect("no holder panics");
        held.resize(settings().visible.len(), 0);
        held[device as usize] += 1;
        // SAFETY: the caller passes a valid pointer.
        unsafe { *to = (CONTEXT + device as usize) as *mut c_void };
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> Code {
    let release = |_| {
        let mut held = HELD.lock().expect("no holder panics");
        let held = held.get_mut(device as usize).filter(|held| **held > 0).ok_or(INVALID_CONTEXT)?;
        *held -= 1;
        Ok(())
    };
    status_of(physical(device).and_then(release))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetCurrent(context: *mut c_void) -> Code {
    let set = |()| {
        let device = (context as usize).checked_sub(CONTEXT);
        let held = HELD.lock().expect("no holder panics");
        match device.filter(|device| held.get(*device).is_some_and(|held| *held > 0)) {
            None if !context.is_null() => return Err(INVALID_CONTEXT),
            device => CURRENT.set(device.map(|device| device as i32)),
        }
        Ok(())
    };
    status_of(started().and_then(set))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(to: *mut *mut c_void) -> Code {
    let context = CURRENT.get().map_or(0, |device| CONTEXT + device as usize);
    // SAFETY: the caller passes a valid pointer.
    status_of(started().map(|()| unsafe { *to = context as *mut c_void }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetDevice(to: *mut c_int) -> Code {
    // SAFETY: the caller passes a valid pointer.
    status_of(current().map(|device| unsafe { *to = device }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) -> Code {
    status_of(current().map(|_| {
        for (to, value) in [least, greatest].into_iter().zip(PRIORITIES) {
            if !to.is_null() {
                // SAFETY: the pointer is valid or null.
                unsafe { *to = value };
            }
        }
    }))
}
