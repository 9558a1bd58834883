//! The backward of RMSNorm, with the residual's gradient and without.

use super::shapes::{data, data_mut, expect};
use super::{Cpu, Float, ops};
use crate::backend::{Acc, Act};

impl<A: Float> Cpu<A> {
    pub(super) fn norm_gradients(
        &self,
        dres: Option<&[A]>,
        dy: &mut Act<Self>,
        x: &Act<Self>,
        rstd: &Acc<Self>,
        w: &Act<Self>,
        dw: &mut Acc<Self>,
    ) {
        expect("dy", dy, x.rows(), x.cols());
        expect("rstd", rstd, x.rows(), 1);
        expect("w", w, 1, x.cols());
        expect("dw", dw, 1, x.cols());
        let saved = ops::norm::Saved { x: data(x), rstd: data(rstd), w: data(w) };
        ops::norm::rmsnorm_bwd(self.workers(), &self.pool, dres, data_mut(dy), saved, data_mut(dw));
    }
}
