//! The descriptors of a matrix multiplication, created once.

use super::library::{Algorithm, CublasLt, Owned, Proposal, Status};
use crate::product::{ALIGNED, Form, Key, Matrix, Product};
use crate::tensor::View;
use cudarc::cublaslt::sys;
use std::ffi::{c_int, c_void};

/// Number of algorithms to request.
pub(super) const PROPOSALS: usize = 8;

const BF16: u32 = sys::cudaDataType_t::CUDA_R_16BF as u32;
const F32: u32 = sys::cudaDataType_t::CUDA_R_32F as u32;

/// Descriptors of a product for certain alignments of its operands.
pub(super) struct Plan {
    key: Key,
    desc: Owned<sys::cublasLtMatmulDescOpaque_t>,
    // In column-major order b is the first operand.
    b: Owned<Layout>,
    a: Owned<Layout>,
    out: Owned<Layout>,
}

type Layout = sys::cublasLtMatrixLayoutOpaque_t;

/// a, b and out, and the bias, which is empty where the product has none.
#[derive(Clone, Copy)]
pub(super) struct Views {
    pub of: [View; 3],
    pub bias: View,
}

impl Views {
    /// Asserts that the views have the product's shapes.
    pub fn check(&self, product: Product) {
        product.check(self.of);
        let n = if product.form == Form::NtBias { product.n } else { 0 };
        assert_eq!(self.bias.len(), n, "elements of the bias of {product}");
    }

    /// The product with their alignments.
    pub fn key(&self, product: Product) -> Key {
        if self.bias.is_empty() { Key::new(product, self.of) } else { Key::with_bias(product, self.of, self.bias) }
    }
}

/// The workspace and the stream of a multiplication.
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
        // SAFETY: the given function destroys it; the call reads only the numbers.
        let desc = unsafe { lt.create(api.desc_destroy, |at| (api.desc)(at, sum, F32)) }?;
        let attributes = [
            sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
            sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB,
        ];
        for (attribute, transposed) in attributes.into_iter().zip(operands.transposed) {
            // CUBLAS_OP_N is 0, CUBLAS_OP_T is 1.
            lt.checked(set(api.desc_set, &desc, attribute as u32, i32::from(transposed)))?;
        }
        let kind = if key.product.form.is_wide() { F32 } else { BF16 };
        let plan = Plan {
            key,
            desc,
            b: layout(lt, BF16, operands.b)?,
            a: layout(lt, BF16, operands.a)?,
            out: layout(lt, kind, operands.out)?,
        };
        plan.add_bias(lt)?;
        Ok(plan)
    }

    /// Makes the bias a part of the operation, if the product has one: a number for each row of the library's
    /// column-major result, which is a column of ours, in the result's type. The library looks at the alignment of its
    /// address when it proposes algorithms, so that it gets one before the actual address is known; it reads nothing
    /// there.
    fn add_bias(&self, lt: &CublasLt) -> Result<(), String> {
        if self.key.product.form != Form::NtBias {
            return Ok(());
        }
        let epilogue = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE as u32;
        let bias = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
        lt.checked(set(lt.api().desc_set, &self.desc, epilogue, bias))?;
        self.set_bias(lt, u64::from(ALIGNED * 256 + self.key.align[2] % ALIGNED))
    }

    fn set_bias(&self, lt: &CublasLt, at: u64) -> Result<(), String> {
        let pointer = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER as u32;
        lt.checked(set(lt.api().desc_set, &self.desc, pointer, at))
    }

    /// Algorithms that need at most `workspace` bytes, the library's best first.
    pub fn propose(&self, lt: &CublasLt, workspace: usize) -> Result<Vec<Proposal>, String> {
        let (api, preference) = (lt.api(), self.preference(lt, workspace)?);
        let (mut proposals, mut count) = ([Proposal::default(); PROPOSALS], 0);
        // SAFETY: all handles are alive, and there is room for the requested number of proposals.
        lt.checked(unsafe {
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
        // SAFETY: the given function destroys it.
        let preference = unsafe { lt.create(api.preference_destroy, |at| (api.preference)(at)) }?;
        lt.checked(set(
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
            lt.checked(set(api.preference_set, &preference, attribute as u32, value))?;
        }
        Ok(preference)
    }

    /// The allowed reduction schemes of algorithms that split k: partial sums must not be rounded to bf16.
    fn reductions(&self) -> u32 {
        use sys::cublasLtReductionScheme_t::*;
        match self.key.product.form {
            Form::Nt | Form::NtBias | Form::Nn => CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32,
            Form::NtF32 | Form::TnAcc => CUBLASLT_REDUCTION_SCHEME_MASK as u32,
        }
    }

    /// Whether an algorithm from a file or another rank supports this product with `workspace` bytes.
    pub fn check(&self, lt: &CublasLt, algorithm: &Algorithm, workspace: usize) -> Result<(), String> {
        let mut found = Proposal::default();
        // SAFETY: all handles are alive; the call writes to `found`.
        lt.checked(unsafe {
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
            _ => lt.checked(found.state),
        }
    }

    /// Enqueues the product.
    ///
    /// # Safety
    /// The views have the product's lengths and the key's alignments. They are of the stream's device and live until
    /// the stream has completed this. No other stream uses the workspace.
    pub unsafe fn start(
        &self,
        lt: &CublasLt,
        Views { of: [a, b, out], bias }: Views,
        algorithm: &Algorithm,
        site: Site,
    ) -> Result<(), String> {
        if self.key.product.form == Form::NtBias {
            self.set_bias(lt, bias.at())?;
        }
        let alpha = 1.0f32;
        let beta: f32 = if self.key.product.form == Form::TnAcc { 1.0 } else { 0.0 };
        let number = |x: &f32| std::ptr::from_ref(x).cast::<c_void>();
        // SAFETY: the descriptors are alive, and both factors until the call returns; the rest is this function's
        // contract.
        lt.checked(unsafe {
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
    // SAFETY: the given function destroys it; the call reads only the numbers.
    unsafe { lt.create(api.layout_destroy, |at| (api.layout)(at, kind, rows as u64, cols as u64, rows as i64)) }
}

/// Sets an attribute of the width that the header declares.
fn set<T, N: Copy>(
    function: unsafe extern "C" fn(*mut T, u32, *const c_void, usize) -> Status,
    of: &Owned<T>,
    attribute: u32,
    value: N,
) -> Status {
    // SAFETY: the descriptor is alive, and the library copies the bytes of the value.
    unsafe { function(of.at(), attribute, std::ptr::from_ref(&value).cast(), size_of::<N>()) }
}
