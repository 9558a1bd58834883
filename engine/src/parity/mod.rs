//! Checks that every parallel layout trains like one rank: small models, on the CPU in f32, all layouts in one run.
//!
//! `layouts.rs` enumerates the layouts and assigns them to ranks, `pairwise.rs` chooses a covering subset, `trial.rs`
//! trains one layout, `assemble.rs` gathers its weights, and `compare.rs` compares it with the one-rank run.

mod assemble;
mod compare;
mod layouts;
mod pairwise;
#[cfg(test)]
mod tests;
mod trial;

use compare::Reference;
pub use compare::{Outcome, bounds};
pub use layouts::{Layout, Shift, shifts};
pub use pairwise::pairwise;

use crate::batch::Samples;
use crate::config::Config;
use crate::error::Result;
use crate::mpi::Comm;

/// Trains every layout, several at once where the ranks allow it, and returns the outcomes in the order of `layouts`,
/// the same on all ranks. No layout may have more ranks than `comm`; the layout of `config` is not used. Collective.
///
/// `done(n, total)` is called at the start and after each layout: n of the `total` layouts that this rank takes part in
/// are done. An error is returned on this rank only, while the others wait for it.
pub fn run(
    comm: &Comm,
    config: &Config,
    data: &dyn Samples,
    layouts: &[Layout],
    mut done: impl FnMut(usize, usize),
) -> Result<Vec<Outcome>> {
    let single = Layout::ONE.config(config)?;
    let one = if comm.rank() == 0 { Some(trial::single_rank(&single, data)?) } else { None };
    let reference = Reference::broadcast(comm, &single, one)?;
    let sizes: Vec<usize> = layouts.iter().map(Layout::ranks).collect();
    let shifts = shifts(&sizes, comm.size());
    let mine = |shift: &Shift| shift.block_of(comm.rank()).map_or(0, |block| shift.blocks[block].len());
    let (total, mut count) = (shifts.iter().map(mine).sum(), 0);
    done(count, total);
    let mut outcomes: Vec<(usize, Outcome)> = Vec::new();
    for shift in &shifts {
        let block = shift.block_of(comm.rank());
        // The ranks that are in no block form a communicator of their own and wait.
        let ranks = comm.split(block.unwrap_or(shift.blocks.len()), comm.rank());
        for &i in block.map_or(&[][..], |block| &shift.blocks[block]) {
            let outcome = trial::train_and_compare(&ranks, &layouts[i].config(config)?, data, &reference)?;
            // Only the block's first rank contributes the outcome.
            outcomes.extend((ranks.rank() == 0).then_some((i, outcome)));
            count += 1;
            done(count, total);
        }
    }
    Ok(collect(comm, &outcomes))
}

/// The outcomes of all ranks, sorted by the index of their layout.
fn collect(comm: &Comm, mine: &[(usize, Outcome)]) -> Vec<Outcome> {
    let text = serde_json::to_vec(mine).expect("numbers and texts become JSON");
    let parse = |bytes: &Vec<u8>| -> Vec<(usize, Outcome)> {
        serde_json::from_slice(bytes).expect("this program wrote the JSON")
    };
    let mut all: Vec<(usize, Outcome)> = comm.all_gather_bytes(&text).iter().flat_map(parse).collect();
    all.sort_by_key(|(i, _)| *i);
    all.into_iter().map(|(_, outcome)| outcome).collect()
}
