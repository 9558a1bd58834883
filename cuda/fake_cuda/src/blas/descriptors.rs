//! Descriptors: the operation, the layouts of matrices, and the preferences for algorithms.

use super::{INVALID_VALUE, NOT_SUPPORTED, Outcome, SUCCESS, Status, reject, status_of};
use crate::handles::Handles;
use cudarc::cublaslt::sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
use cudarc::cublaslt::sys::cublasLtEpilogue_t as Epilogue;
use cudarc::cublaslt::sys::cublasLtMatmulDescAttributes_t as DescAttribute;
use cudarc::cublaslt::sys::cublasLtMatmulPreferenceAttributes_t as Prefer;
use cudarc::cublaslt::sys::cudaDataType_t;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard};

pub(super) const BF16: u32 = cudaDataType_t::CUDA_R_16BF as u32;
pub(super) const F32: u32 = cudaDataType_t::CUDA_R_32F as u32;

/// An operation with f32 sums, and alpha and beta in host memory.
#[derive(Clone, Copy, Default)]
pub(super) struct Desc {
    /// Whether the first and the second operand are transposed.
    pub transposed: [bool; 2],
    /// Whether a bias is added, and its address; the library reads the address only if one is.
    pub adds_bias: bool,
    pub bias: usize,
}

/// A column-major matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub kind: u32,
    pub rows: usize,
    pub cols: usize,
    pub ld: usize,
}

impl Layout {
    pub fn size(&self) -> usize {
        if self.kind == F32 { 4 } else { 2 }
    }

    /// Elements from the first to the last, including gaps.
    pub fn span(&self) -> usize {
        (self.cols - 1) * self.ld + self.rows
    }
}

/// Restrictions on algorithms.
#[derive(Clone, Copy)]
pub(super) struct Preference {
    pub workspace: usize,
    /// Alignment in bytes of A, B, C and D.
    pub align: [usize; 4],
    pub reductions: u32,
}

static DESCS: Handles<Mutex<Desc>> = Handles::from(0x5100_0000);
static LAYOUTS: Handles<Mutex<Layout>> = Handles::from(0x5200_0000);
static PREFERENCES: Handles<Mutex<Preference>> = Handles::from(0x5300_0000);

fn get<T: Copy>(from: &Handles<Mutex<T>>, handle: *mut c_void) -> Outcome<T> {
    let found = from.get(handle).or_else(|_| reject(INVALID_VALUE, "an unknown descriptor"))?;
    Ok(*lock(&found))
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().expect("no holder panics")
}

fn destroy<T>(from: &Handles<Mutex<T>>, handle: *mut c_void) -> Status {
    status_of(
        from.remove(handle).map(|_| ()).or_else(|_| reject(INVALID_VALUE, "a descriptor that was destroyed before")),
    )
}

pub(super) fn desc(handle: *mut c_void) -> Outcome<Desc> {
    get(&DESCS, handle)
}

pub(super) fn layout(handle: *mut c_void) -> Outcome<Layout> {
    get(&LAYOUTS, handle)
}

pub(super) fn preference(handle: *mut c_void) -> Outcome<Preference> {
    get(&PREFERENCES, handle)
}

/// The value of an attribute, of the expected size.
unsafe fn value<N: Copy>(from: *const c_void, bytes: usize) -> Outcome<N> {
    if from.is_null() || bytes != size_of::<N>() {
        return reject(INVALID_VALUE, &format!("an attribute of {} bytes set to {bytes}", size_of::<N>()));
    }
    // SAFETY: the caller passes the stated number of bytes.
    Ok(unsafe { from.cast::<N>().read_unaligned() })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescCreate(to: *mut *mut c_void, compute: u32, scale: u32) -> Status {
    if compute != CUBLAS_COMPUTE_32F as u32 || scale != F32 {
        return status_of(reject(NOT_SUPPORTED, "sums that are not f32"));
    }
    // SAFETY: the caller passes a valid pointer.
    unsafe { *to = DESCS.add(Arc::default()) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtMatmulDescDestroy(desc: *mut c_void) -> Status {
    destroy(&DESCS, desc)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescSetAttribute(
    desc: *mut c_void,
    attribute: u32,
    from: *const c_void,
    bytes: usize,
) -> Status {
    let set = |desc: Arc<Mutex<Desc>>| {
        let mut desc = lock(&desc);
        // SAFETY: the caller's pointer is passed on, here and below.
        let small = || unsafe { value::<u32>(from, bytes) };
        match attribute {
            a if a == DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA as u32 => desc.transposed[0] = transposed(small()?)?,
            a if a == DescAttribute::CUBLASLT_MATMUL_DESC_TRANSB as u32 => desc.transposed[1] = transposed(small()?)?,
            a if a == DescAttribute::CUBLASLT_MATMUL_DESC_EPILOGUE as u32 => match small()? {
                e if e == Epilogue::CUBLASLT_EPILOGUE_DEFAULT as u32 => desc.adds_bias = false,
                e if e == Epilogue::CUBLASLT_EPILOGUE_BIAS as u32 => desc.adds_bias = true,
                e => return reject(NOT_SUPPORTED, &format!("epilogue {e}")),
            },
            a if a == DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER as u32 => {
                // SAFETY: as above.
                desc.bias = unsafe { value::<u64>(from, bytes) }? as usize;
            }
            a => return reject(NOT_SUPPORTED, &format!("attribute {a} of an operation")),
        }
        Ok(())
    };
    status_of(DESCS.get(desc).or_else(|_| reject(INVALID_VALUE, "an unknown operation")).and_then(set))
}

/// Whether an operand with this `cublasOperation_t` is transposed.
fn transposed(operation: u32) -> Outcome<bool> {
    if operation > 1 {
        return reject(NOT_SUPPORTED, &format!("operation {operation} of an operand"));
    }
    Ok(operation == 1)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutCreate(
    to: *mut *mut c_void,
    kind: u32,
    rows: u64,
    cols: u64,
    ld: i64,
) -> Status {
    if ![BF16, F32].contains(&kind) {
        return status_of(reject(NOT_SUPPORTED, &format!("elements of type {kind}")));
    }
    let layout = Layout { kind, rows: rows as usize, cols: cols as usize, ld: ld as usize };
    // SAFETY: the caller passes a valid pointer.
    unsafe { *to = LAYOUTS.add(Arc::new(Mutex::new(layout))) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtMatrixLayoutDestroy(layout: *mut c_void) -> Status {
    destroy(&LAYOUTS, layout)
}

/// The defaults of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceCreate(to: *mut *mut c_void) -> Status {
    let preference = Preference { workspace: 0, align: [256; 4], reductions: 7 };
    // SAFETY: the caller passes a valid pointer.
    unsafe { *to = PREFERENCES.add(Arc::new(Mutex::new(preference))) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtMatmulPreferenceDestroy(preference: *mut c_void) -> Status {
    destroy(&PREFERENCES, preference)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceSetAttribute(
    preference: *mut c_void,
    attribute: u32,
    from: *const c_void,
    bytes: usize,
) -> Status {
    let set = |preference: Arc<Mutex<Preference>>| {
        let mut preference = lock(&preference);
        let alignments = Prefer::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES as u32
            ..=Prefer::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES as u32;
        // SAFETY: the caller's pointer is handed on, here and below.
        let small = || unsafe { value::<u32>(from, bytes) };
        match attribute {
            a if a == Prefer::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES as u32 => {
                // SAFETY: as above.
                preference.workspace = unsafe { value::<u64>(from, bytes) }? as usize;
            }
            a if a == Prefer::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK as u32 => preference.reductions = small()?,
            a if alignments.contains(&a) => preference.align[(a - alignments.start()) as usize] = small()? as usize,
            a => return reject(NOT_SUPPORTED, &format!("preference {a}")),
        }
        Ok(())
    };
    status_of(PREFERENCES.get(preference).or_else(|_| reject(INVALID_VALUE, "an unknown preference")).and_then(set))
}
