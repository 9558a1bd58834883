//! The memory of a run: how much each rank will take, whether its machine has that much, and at the end both the
//! planned and the used bytes in `memory.json`.

use crate::informative;
use engine::backend::Scratch;
use engine::config::Config;
use engine::cpu::{CpuScratch, Float};
use engine::error::{Error, Result, counted};
use engine::layout::mesh::Mesh;
use engine::layout::rank_layout::RankLayout;
use engine::memory::free_list::Usage;
use engine::memory::table::GIB;
use engine::model::flops;
use engine::mpi::{Comm, host};
use engine::train::state;
use plan::dry_run::{self, HeldBytes};
use report::records::memory::{Bytes, Memory, RankMemory};
use std::path::Path;

/// The memory that a rank takes.
#[derive(Debug, Clone, Copy)]
pub struct Taken {
    /// The backend's allocations.
    pub blocks: Usage,
    /// Bytes of the host copy from which a checkpoint is written in the background.
    pub copy: usize,
    /// Bytes of the device beside these blocks: the context, libraries and other processes; `None` on the CPU.
    pub others: Option<usize>,
}

/// The memory that this rank will take on the CPU with `threads` threads; an error where the ranks of a machine
/// together take more than it has. The ranks of `comm` are in the mesh's order. Collective.
pub fn plan<A: Float>(config: &Config, mesh: &Mesh, comm: &Comm, threads: usize) -> Result<Taken> {
    let scratch = CpuScratch::<A>::new(threads);
    // First without a dry run, which would take long for a model that is far too large.
    let rank_layout = RankLayout::new(config, mesh.clone(), comm.rank());
    let copy = state::copy_bytes(config, &rank_layout);
    must_fit(config, comm, HeldBytes::of::<A>(config, &rank_layout, &scratch as &dyn Scratch).sum() + copy)?;
    let blocks = dry_run::plan::<A>(config, mesh, comm.rank(), scratch)?.usage;
    must_fit(config, comm, blocks.reserved + copy)?;
    Ok(Taken { blocks, copy, others: None })
}

/// The `bytes` of all ranks of a machine together must fit its memory. Collective.
pub fn must_fit(config: &Config, comm: &Comm, bytes: usize) -> Result<()> {
    let mine = host();
    let all = comm.all_gather_bytes(format!("{bytes} {mine}").as_bytes());
    let parse = |text: &Vec<u8>| {
        let text = String::from_utf8_lossy(text).into_owned();
        let (bytes, host) = text.split_once(' ').expect("every rank wrote two words");
        (host == mine).then(|| bytes.parse::<f64>().expect("a number of bytes"))
    };
    let here: Vec<f64> = all.iter().filter_map(parse).collect();
    comm.agree(fits(flops::parameters(&config.model), here.iter().sum::<f64>() / GIB, here.len(), have()))
}

fn fits(parameters: u64, need: f64, ranks: usize, have: Option<f64>) -> Result<()> {
    match have {
        Some(have) if need > have => Err(Error::user(format!(
            "[model]: {parameters} parameters need at least {need:.1} GiB for the {} of this machine, which has \
             {have:.1} GiB; use a smaller model, more memory or more machines",
            counted(ranks, "rank")
        ))),
        _ => Ok(()),
    }
}

/// GiB of this machine's memory; `None` where it is not known.
fn have() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.strip_prefix("MemTotal:").and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    total.map(|kib| kib * 1024.0 / GIB)
}

/// Leaves `memory.json` in the run's directory. All ranks call it together.
pub fn write(dir: &Path, comm: &Comm, planned: Taken, used: Taken) {
    let bytes = |Taken { blocks, copy, others }: Taken| Bytes {
        peak_bytes: blocks.peak as u64,
        reserved_bytes: blocks.reserved as u64,
        checkpoint_copy_bytes: copy as u64,
        others_bytes: others.map(|bytes| bytes as u64),
    };
    let mine = RankMemory { rank: comm.rank(), host: host(), planned: bytes(planned), used: bytes(used) };
    let all = comm.all_gather_bytes(&serde_json::to_vec(&mine).expect("text and numbers"));
    let ranks = all.iter().map(|text| serde_json::from_slice(text).expect("a rank wrote it above")).collect();
    if comm.rank() == 0 {
        informative::warn_of_failure(Memory { ranks }.write(&dir.join("memory.json")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_that_do_not_fit_are_refused_with_both_numbers() {
        assert!(fits(7, 9.9, 2, Some(10.0)).is_ok());
        assert!(fits(7, 1e9, 2, None).is_ok());
        let error = fits(7, 10.1, 2, Some(10.0)).unwrap_err().to_string();
        let wanted = "7 parameters need at least 10.1 GiB for the 2 ranks of this machine, which has 10.0 GiB";
        assert!(error.contains(wanted), "{error}");
    }
}
