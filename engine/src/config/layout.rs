//! Does the configuration fit this number of ranks?

use super::validate::near;
use super::{BackendKind, Config, Precision};
use crate::error::{Error, Result};
use crate::mesh::Mesh;

impl Config {
    /// The grid of `ranks` ranks, each with the same whole number of micro-batches a step.
    pub fn mesh(&self, ranks: usize) -> Result<Mesh> {
        let p = &self.parallel;
        let used = p.tensor * p.pipeline * p.context;
        let Some(mesh) = Mesh::new(ranks, p) else {
            return Err(Error::user(format!(
                "mpirun -n {ranks}: parallel.tensor {} x pipeline {} x context {} wants a multiple of {used} ranks; {}",
                p.tensor,
                p.pipeline,
                p.context,
                near(ranks as u64, used as u64)
            )));
        };
        let (batch, micro, dp) = (self.train.global_batch_size, self.train.micro_batch_size, ranks / used);
        if !batch.is_multiple_of(micro * dp) {
            let fitting = fitting_ranks(batch / micro, ranks / used).map(|dp| (dp * used).to_string());
            return Err(Error::user(format!(
                "train.global_batch_size = {batch}: must be a multiple of micro_batch_size ({micro}) x data-parallel \
                 ranks ({dp}); {}, or keep it and run on {} ranks",
                near(batch as u64, (micro * dp) as u64),
                fitting.collect::<Vec<_>>().join(" or "),
            )));
        }
        Ok(mesh)
    }

    /// The backend and its precision, `device` saying whether there is one for CUDA.
    pub fn backend(&self, device: bool) -> Result<(BackendKind, Precision)> {
        let best = if device { BackendKind::Cuda } else { BackendKind::Cpu };
        match (self.train.backend.unwrap_or(best), self.train.precision) {
            (BackendKind::Cuda, Some(Precision::F32)) => Err(Error::user(
                "train.precision = \"f32\": this machine has a CUDA device, which computes in \"bf16\"; \
                 write train.backend = \"cpu\" to stay in f32",
            )),
            (BackendKind::Cuda, _) => Ok((BackendKind::Cuda, Precision::Bf16)),
            (BackendKind::Cpu, precision) => Ok((BackendKind::Cpu, precision.unwrap_or(Precision::F32))),
        }
    }
}

/// The divisors of `micro_batches` on either side of `dp`.
fn fitting_ranks(micro_batches: usize, dp: usize) -> impl Iterator<Item = usize> {
    let divides = move |n: &usize| micro_batches.is_multiple_of(*n);
    let below = (1..dp).rev().find(divides);
    let above = (dp + 1..=micro_batches.min(dp.saturating_mul(16))).find(divides);
    below.into_iter().chain(above)
}
