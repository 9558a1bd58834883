//! Does every layout train as one rank does? Small models, all layouts in one process, on the CPU in f32.
//!
//! `layouts.rs` says which layouts there are and who trains which, `pairwise.rs` chooses some that stand for
//! all, `trial.rs` trains one, `assemble.rs` puts its weights together, `compare.rs` holds it to the one rank.

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

/// Trains every layout, several at once where there is room, and gives what came out in the order of
/// `layouts`, on all ranks alike. No layout has more ranks than `comm`; that of `config` does not matter.
///
/// `done` is told how many of the layouts that this rank takes part in are behind it, and how many there are.
/// An error is this rank's alone: the others wait for it.
pub fn run(
    comm: &Comm,
    config: &Config,
    data: &dyn Samples,
    layouts: &[Layout],
    mut done: impl FnMut(usize, usize),
) -> Result<Vec<Outcome>> {
    let alone = Layout::ONE.config(config)?;
    let one = if comm.rank() == 0 { Some(trial::alone(&alone, data)?) } else { None };
    let reference = Reference::shared(comm, &alone, one)?;
    let sizes: Vec<usize> = layouts.iter().map(Layout::ranks).collect();
    let shifts = shifts(&sizes, comm.size());
    let mine = |shift: &Shift| shift.block_of(comm.rank()).map_or(0, |block| shift.blocks[block].len());
    let (total, mut count) = (shifts.iter().map(mine).sum(), 0);
    let mut outcomes: Vec<(usize, Outcome)> = Vec::new();
    for shift in &shifts {
        let block = shift.block_of(comm.rank());
        // The ranks that are left over wait in a block of their own.
        let ranks = comm.split(block.unwrap_or(shift.blocks.len()), comm.rank());
        for &i in block.map_or(&[][..], |block| &shift.blocks[block]) {
            let outcome = trial::of(&ranks, &layouts[i].config(config)?, data, &reference)?;
            // One of the block's ranks reports.
            outcomes.extend((ranks.rank() == 0).then_some((i, outcome)));
            count += 1;
            done(count, total);
        }
    }
    Ok(collect(comm, &outcomes))
}

/// All ranks' outcomes by the numbers of their layouts.
fn collect(comm: &Comm, mine: &[(usize, Outcome)]) -> Vec<Outcome> {
    let text = serde_json::to_vec(mine).expect("numbers and texts become JSON");
    let parse = |bytes: &Vec<u8>| -> Vec<(usize, Outcome)> {
        serde_json::from_slice(bytes).expect("this program wrote the JSON")
    };
    let mut all: Vec<(usize, Outcome)> = comm.all_gather_bytes(&text).iter().flat_map(parse).collect();
    all.sort_by_key(|(i, _)| *i);
    all.into_iter().map(|(_, outcome)| outcome).collect()
}
