//! Where numbers that are not finite came from, for the message of a run that diverged.

use engine::backend::{Backend, Origin};
use engine::batch::Samples;
use engine::error::Result;
use engine::mpi::{Comm, host};
use engine::train::trainer::Trainer;
use serde::{Deserialize, Serialize};

/// The findings of one rank.
#[derive(Serialize, Deserialize)]
struct Found {
    host: String,
    op: Option<Origin>,
    /// A tensor of its main parameters.
    weights: Option<String>,
}

/// Computes the step again on all ranks, and says in which op and layer of which rank a number was first not finite,
/// and which weights are not: a part of a sentence, empty where nothing was found. Collective.
pub fn find<B: Backend>(trainer: &mut Trainer<B>, data: &dyn Samples, step: u64, comm: &Comm) -> Result<String> {
    let weights = trainer.weights_not_finite()?;
    let mine = Found { host: host(), op: trainer.origin_of(step, data)?, weights };
    let all = comm.all_gather_bytes(&serde_json::to_vec(&mine).expect("text and numbers are JSON"));
    let read = |bytes: &Vec<u8>| serde_json::from_slice(bytes).expect("a rank of this program wrote it");
    let all: Vec<Found> = all.iter().map(read).collect();
    Ok(describe(&all))
}

fn describe(all: &[Found]) -> String {
    let op = |(rank, found): (usize, &Found)| Some((found.op.clone()?, rank));
    let first = all.iter().enumerate().filter_map(op).min();
    let op = first.map_or(String::new(), |(origin, rank)| {
        format!("; the first number that is not finite came from {} on rank {rank} ({})", origin.what, all[rank].host)
    });
    let bad = all.iter().enumerate().find_map(|(rank, found)| Some((rank, found.weights.as_ref()?)));
    let weights = bad.map_or(String::new(), |(rank, tensor)| {
        format!("; the weights of {tensor} on rank {rank} ({}) are not finite", all[rank].host)
    });
    op + &weights
}

/// The checkpoints from which the run may continue.
pub fn earlier(steps: &[u64]) -> String {
    match steps {
        [] => String::new(),
        [.., newest] => {
            let listed: Vec<String> = steps.iter().rev().take(5).map(u64::to_string).collect();
            format!(
                ": the newest is of step {newest}; after a change of optimizer.lr or spike.skip, the same command \
                 continues, or --from-step with one of {}",
                listed.join(", ")
            )
        }
    }
}
