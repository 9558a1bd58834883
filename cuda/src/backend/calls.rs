//! Helpers of the `Backend` methods: they give access to the machine, make views and scratch of tensors, and build the
//! arguments of ops.

use super::Cuda;
use crate::blas::{Form, Product};
use crate::machine::{Done, Machine};
use crate::ops;
use crate::tensor::View;
use engine::backend::{Acc, Act, AdamW, Backend, Elem, HeadRms, Heads, Rms, Rotary, Tensor};

impl Cuda {
    pub(super) fn machine(&self) -> &dyn Machine {
        &*self.0.device
    }

    /// Records a fault; the first is returned by [`Backend::wait_host`].
    pub(super) fn note(&self, done: Done) {
        if let Err(fault) = done {
            self.0.note(fault.to_string());
        }
    }

    /// The op of this name is enqueued. While a search for numbers that are not finite goes on, it is waited for.
    pub(super) fn made<T: Elem>(&self, op: &'static str, result: &Tensor<Self, T>) {
        // A device with a fault has no numbers; the fault is returned at the end of the step.
        self.0.checks.made(op, || self.wait_host(self.copy_to_host_async(result)).unwrap_or_default());
    }

    /// Allocates `len` elements of scratch. It may be dropped as soon as the op that uses it is enqueued.
    pub(super) fn scratch_of<T: Elem>(&self, len: usize) -> Acc<Self> {
        self.alloc(1, len * size_of::<T>() / size_of::<f32>())
    }

    /// Matrix multiplication by cuBLASLt; the form says whether `out` is overwritten or accumulated.
    pub(super) fn product<T: Elem>(&self, form: Form, a: &Act<Self>, b: &Act<Self>, out: &Tensor<Self, T>) {
        let product = self.about_to_multiply(form, a, b, out);
        self.note(self.0.blas().run(product, view(a), view(b), view(out)));
    }

    /// The product of these matrices, whose launch follows.
    pub(super) fn about_to_multiply<T: Elem>(
        &self,
        form: Form,
        a: &Act<Self>,
        b: &Act<Self>,
        out: &Tensor<Self, T>,
    ) -> Product {
        let (m, n, k) = match form {
            Form::Nt | Form::NtBias | Form::NtF32 => (a.rows(), b.rows(), a.cols()),
            Form::Nn => (a.rows(), b.cols(), a.cols()),
            Form::TnAcc => (a.cols(), b.cols(), a.rows()),
        };
        let depth = if matches!(form, Form::Nn | Form::TnAcc) { b.rows() } else { b.cols() };
        assert_eq!((depth, out.shape()), (k, (m, n)), "the product {form:?} of {:?} and {:?}", a.shape(), b.shape());
        self.0.device.about_to_launch("matmul");
        Product::new(form, m, n, k)
    }

    pub(super) fn norm_gradients(
        &self,
        dres: View,
        dy: &mut Act<Self>,
        x: &Act<Self>,
        rstd: &Acc<Self>,
        n: Rms<Self>,
        dw: &mut Acc<Self>,
    ) {
        let parts = self.scratch_of::<f32>(ops::norm_parts(x.rows(), x.cols(), self.machine().processors()));
        let saved = ops::NormBwd { dres, x: view(x), rstd: view(rstd), n: norm(n) };
        self.note(ops::rmsnorm_bwd(self.machine(), saved, view(dy), view(dw), view(&parts)));
        self.made("rmsnorm_bwd", dy);
        self.made("rmsnorm_bwd", dw);
    }
}

/// The view of a matrix, as kernels take it.
pub(super) fn view<T: Elem>(x: &Tensor<Cuda, T>) -> View {
    // SAFETY: the block lives while the tensor is borrowed. After that only ops later on the compute stream, or streams
    // that wait for it, use the memory. `&mut` in the ops' signatures excludes other uses of what is written.
    unsafe { View::new(x.mem.at(), x.len()) }
}

/// The rotation of all heads of q and k.
pub(super) fn rope_shape(cols: usize, h: Heads, sign: f32) -> ops::RopeShape {
    assert_eq!(cols, h.qkv_cols(), "columns of qkv for {h:?}");
    ops::RopeShape { heads: h.query + h.kv, dim: h.dim, cols, sign }
}

/// A norm's weight, as its ops take it.
pub(super) fn norm(n: Rms<Cuda>) -> ops::NormWeight {
    ops::NormWeight { w: view(n.w), eps: n.eps, offset: n.offset }
}

/// The norms of heads and the rotation after them.
pub(super) fn head_norms(n: HeadRms<Cuda>, r: Rotary<Cuda>) -> ops::HeadNorms {
    ops::HeadNorms { q: view(n.q), k: view(n.k), eps: n.eps, table: view(r.table), positions: view(r.positions) }
}

pub(super) fn step(hp: AdamW) -> ops::Step {
    let AdamW { lr, beta1, beta2, eps, weight_decay, correction1, correction2, decayed } = hp;
    ops::Step { lr, beta1, beta2, eps, weight_decay, correction1, correction2, decayed }
}
