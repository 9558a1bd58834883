//! What a product is told by: the operation, layouts of matrices, and what is preferred of algorithms.

use super::{INVALID_VALUE, NOT_SUPPORTED, SUCCESS, Said, Status, answer, no};
use crate::handles::Handles;
use cudarc::cublaslt::sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
use cudarc::cublaslt::sys::cublasLtMatmulDescAttributes_t as DescAttribute;
use cudarc::cublaslt::sys::cublasLtMatmulPreferenceAttributes_t as Prefer;
use cudarc::cublaslt::sys::cudaDataType_t;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard};

pub(super) const BF16: u32 = cudaDataType_t::CUDA_R_16BF as u32;
pub(super) const F32: u32 = cudaDataType_t::CUDA_R_32F as u32;

/// Sums in f32, factors in the host's memory.
#[derive(Clone, Copy, Default)]
pub(super) struct Desc {
    /// Whether the first and the second operand are transposed.
    pub turned: [bool; 2],
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

    /// Elements from the first to the last.
    pub fn span(&self) -> usize {
        (self.cols - 1) * self.ld + self.rows
    }
}

/// What algorithms may ask for.
#[derive(Clone, Copy)]
pub(super) struct Preference {
    pub workspace: usize,
    /// Bytes that the addresses of A, B, C and D are multiples of.
    pub align: [usize; 4],
    pub reductions: u32,
}

static DESCS: Handles<Mutex<Desc>> = Handles::from(0x5100_0000);
static LAYOUTS: Handles<Mutex<Layout>> = Handles::from(0x5200_0000);
static PREFERENCES: Handles<Mutex<Preference>> = Handles::from(0x5300_0000);

fn get<T: Copy>(from: &Handles<Mutex<T>>, handle: *mut c_void) -> Said<T> {
    let found = from.get(handle).or_else(|_| no(INVALID_VALUE, "a descriptor that is not there"))?;
    Ok(*lock(&found))
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().expect("no holder panics")
}

fn destroy<T>(from: &Handles<Mutex<T>>, handle: *mut c_void) -> Status {
    answer(from.remove(handle).map(|_| ()).or_else(|_| no(INVALID_VALUE, "a descriptor that is destroyed twice")))
}

pub(super) fn desc(handle: *mut c_void) -> Said<Desc> {
    get(&DESCS, handle)
}

pub(super) fn layout(handle: *mut c_void) -> Said<Layout> {
    get(&LAYOUTS, handle)
}

pub(super) fn preference(handle: *mut c_void) -> Said<Preference> {
    get(&PREFERENCES, handle)
}

/// The number that an attribute is set to, of as many bytes as it has.
unsafe fn number<N: Copy>(from: *const c_void, bytes: usize) -> Said<N> {
    if from.is_null() || bytes != size_of::<N>() {
        return no(INVALID_VALUE, &format!("an attribute of {} bytes set to {bytes}", size_of::<N>()));
    }
    // SAFETY: the caller gives as many bytes as it says.
    Ok(unsafe { from.cast::<N>().read_unaligned() })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescCreate(to: *mut *mut c_void, compute: u32, scale: u32) -> Status {
    if compute != CUBLAS_COMPUTE_32F as u32 || scale != F32 {
        return answer(no(NOT_SUPPORTED, "sums that are not in f32"));
    }
    // SAFETY: the caller gives a place for a handle.
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
        let operand = match attribute {
            a if a == DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA as u32 => 0,
            a if a == DescAttribute::CUBLASLT_MATMUL_DESC_TRANSB as u32 => 1,
            a => return no(NOT_SUPPORTED, &format!("attribute {a} of a product")),
        };
        // SAFETY: the caller's pointer is handed on.
        let turned = unsafe { number::<i32>(from, bytes) }?;
        if !(0..=1).contains(&turned) {
            return no(NOT_SUPPORTED, &format!("operation {turned} of an operand"));
        }
        lock(&desc).turned[operand] = turned == 1;
        Ok(())
    };
    answer(DESCS.get(desc).or_else(|_| no(INVALID_VALUE, "no such product")).and_then(set))
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
        return answer(no(NOT_SUPPORTED, &format!("elements of type {kind}")));
    }
    let layout = Layout { kind, rows: rows as usize, cols: cols as usize, ld: ld as usize };
    // SAFETY: the caller gives a place for a handle.
    unsafe { *to = LAYOUTS.add(Arc::new(Mutex::new(layout))) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtMatrixLayoutDestroy(layout: *mut c_void) -> Status {
    destroy(&LAYOUTS, layout)
}

/// As the header says of what is not set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceCreate(to: *mut *mut c_void) -> Status {
    let preference = Preference { workspace: 0, align: [256; 4], reductions: 7 };
    // SAFETY: the caller gives a place for a handle.
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
        let small = || unsafe { number::<u32>(from, bytes) };
        match attribute {
            a if a == Prefer::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES as u32 => {
                // SAFETY: as above.
                preference.workspace = unsafe { number::<u64>(from, bytes) }? as usize;
            }
            a if a == Prefer::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK as u32 => preference.reductions = small()?,
            a if alignments.contains(&a) => preference.align[(a - alignments.start()) as usize] = small()? as usize,
            a => return no(NOT_SUPPORTED, &format!("preference {a}")),
        }
        Ok(())
    };
    answer(PREFERENCES.get(preference).or_else(|_| no(INVALID_VALUE, "no such preference")).and_then(set))
}
