//! A product as the library knows it: descriptors that are made once, and the algorithm that computes it.

use super::library::{Algorithm, CublasLt, Owned, Proposal, Status};
use super::product::{Form, Key, Matrix};
use crate::args::View;
use cudarc::cublaslt::sys;
use std::ffi::{c_int, c_void};

/// Algorithms that the library is asked for, its best first.
pub(super) const PROPOSALS: usize = 8;

const BF16: u32 = sys::cudaDataType_t::CUDA_R_16BF as u32;
const F32: u32 = sys::cudaDataType_t::CUDA_R_32F as u32;

/// Descriptors of a product on views of certain alignments.
pub(super) struct Plan {
    key: Key,
    desc: Owned<sys::cublasLtMatmulDescOpaque_t>,
    // Column-major: b is the library's first operand.
    b: Owned<Layout>,
    a: Owned<Layout>,
    out: Owned<Layout>,
}

type Layout = sys::cublasLtMatrixLayoutOpaque_t;

/// Where a product is computed: the memory that algorithms may use meanwhile, and the stream.
#[derive(Clone, Copy)]
pub(super) struct Site {
    pub workspace: View,
    pub stream: *mut c_void,
}

impl Plan {
    pub fn new(lt: &CublasLt, key: Key) -> Result<Plan, String> {
        let operands = key.product.operands();
        let api = lt.api();
        let sum = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F as u32;
        // SAFETY: it is made for this function to give back; the library reads nothing but the numbers.
        let desc = unsafe { lt.made(api.desc_destroy, |at| (api.desc)(at, sum, F32)) }?;
        let attributes = [
            sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
            sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB,
        ];
        for (attribute, turned) in attributes.into_iter().zip(operands.turned) {
            // 0 leaves an operand as it is (CUBLAS_OP_N), 1 transposes it (CUBLAS_OP_T).
            lt.said(set(api.desc_set, &desc, attribute as u32, i32::from(turned)))?;
        }
        let kind = if key.product.form == Form::TnAcc { F32 } else { BF16 };
        Ok(Plan {
            key,
            desc,
            b: layout(lt, BF16, operands.b)?,
            a: layout(lt, BF16, operands.a)?,
            out: layout(lt, kind, operands.out)?,
        })
    }

    /// Algorithms that need no more than `workspace` bytes, the library's best first.
    pub fn propose(&self, lt: &CublasLt, workspace: usize) -> Result<Vec<Proposal>, String> {
        let (api, preference) = (lt.api(), self.preference(lt, workspace)?);
        let (mut proposals, mut count) = ([Proposal::default(); PROPOSALS], 0);
        // SAFETY: all of it lives, and there is room for as many proposals as are asked for.
        lt.said(unsafe {
            (api.propose)(
                lt.handle.at(),
                self.desc.at(),
                self.b.at(),
                self.a.at(),
                self.out.at(),
                self.out.at(),
                preference.at(),
                PROPOSALS as c_int,
                proposals.as_mut_ptr(),
                &mut count,
            )
        })?;
        let given = &proposals[..(count.max(0) as usize).min(PROPOSALS)];
        Ok(given.iter().filter(|p| p.state == 0 && p.workspace <= workspace).copied().collect())
    }

    fn preference(
        &self,
        lt: &CublasLt,
        workspace: usize,
    ) -> Result<Owned<sys::cublasLtMatmulPreferenceOpaque_t>, String> {
        use sys::cublasLtMatmulPreferenceAttributes_t::*;
        let (api, [a, b, out]) = (lt.api(), self.key.align);
        // SAFETY: it is made for this function to give back.
        let preference = unsafe { lt.made(api.preference_destroy, |at| (api.preference)(at)) }?;
        lt.said(set(
            api.preference_set,
            &preference,
            CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES as u32,
            workspace as u64,
        ))?;
        for (attribute, value) in [
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out),
            (CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, self.reductions()),
        ] {
            lt.said(set(api.preference_set, &preference, attribute as u32, value))?;
        }
        Ok(preference)
    }

    /// How partial sums may be added where an algorithm splits k: never where each would be rounded to bf16.
    fn reductions(&self) -> u32 {
        use sys::cublasLtReductionScheme_t::*;
        match self.key.product.form {
            Form::Nt | Form::Nn => CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32,
            Form::TnAcc => CUBLASLT_REDUCTION_SCHEME_MASK as u32,
        }
    }

    /// Whether an algorithm from elsewhere computes this within `workspace` bytes.
    pub fn check(&self, lt: &CublasLt, algorithm: &Algorithm, workspace: usize) -> Result<(), String> {
        let mut found = Proposal::default();
        // SAFETY: all of it lives; the library writes to `found`.
        lt.said(unsafe {
            (lt.api().check)(
                lt.handle.at(),
                self.desc.at(),
                self.b.at(),
                self.a.at(),
                self.out.at(),
                self.out.at(),
                algorithm,
                &mut found,
            )
        })?;
        match found.workspace {
            needed if needed > workspace => Err(format!("it needs a workspace of {needed} bytes, not {workspace}")),
            _ => lt.said(found.state),
        }
    }

    /// Starts the product.
    ///
    /// # Safety
    /// The views are as long as the product says and as aligned as the key says, and live in the memory of the stream's
    /// device until the stream has passed this; nothing else uses the site's workspace on another stream.
    pub unsafe fn start(
        &self,
        lt: &CublasLt,
        [a, b, out]: [View; 3],
        algorithm: &Algorithm,
        site: Site,
    ) -> Result<(), String> {
        let alpha = 1.0f32;
        let beta: f32 = if self.key.product.form == Form::TnAcc { 1.0 } else { 0.0 };
        let number = |x: &f32| std::ptr::from_ref(x).cast::<c_void>();
        // SAFETY: the descriptors live, both factors do until the call returns, the caller answers for the rest.
        lt.said(unsafe {
            (lt.api().multiply)(
                lt.handle.at(),
                self.desc.at(),
                number(&alpha),
                b.at() as *const c_void,
                self.b.at(),
                a.at() as *const c_void,
                self.a.at(),
                number(&beta),
                out.at() as *const c_void,
                self.out.at(),
                out.at() as *mut c_void,
                self.out.at(),
                algorithm,
                site.workspace.at() as *mut c_void,
                site.workspace.len(),
                site.stream,
            )
        })
    }
}

fn layout(lt: &CublasLt, kind: u32, Matrix { rows, cols }: Matrix) -> Result<Owned<Layout>, String> {
    let api = lt.api();
    // SAFETY: it is made for this function to give back; the library reads nothing but the numbers.
    unsafe { lt.made(api.layout_destroy, |at| (api.layout)(at, kind, rows as u64, cols as u64, rows as i64)) }
}

/// An attribute, which is a number of the width that the header says.
fn set<T, N: Copy>(
    function: unsafe extern "C" fn(*mut T, u32, *const c_void, usize) -> Status,
    of: &Owned<T>,
    attribute: u32,
    value: N,
) -> Status {
    // SAFETY: what is set lives, and the library copies as many bytes as the number has.
    unsafe { function(of.at(), attribute, std::ptr::from_ref(&value).cast(), size_of::<N>()) }
}
