//! Checkpoints: the run's own format, written at one layout and read at any other, and Hugging Face's.
//!
//! A run's directory holds
//!
//! ```text
//! checkpoints/latest                    the name of the newest complete checkpoint
//! checkpoints/step-00000500/
//!     manifest.json                     position, configuration, identity; file, checksum and writer of every piece
//!     rank-00000-0.safetensors          the pieces of one rank, f32; a second file after 1 GiB
//! source/                               config.json and tokenizer of the Hugging Face model that the run started from,
//!                                       and form.json where its experts were packed
//! exports/step-00000500/                a checkpoint in Hugging Face's format
//! ```
//!
//! A piece is a rectangle of an unpadded Hugging Face tensor, in one of three [`StateKind`]s. This module does not
//! depend on layouts, padding or buckets: a reader asks for any rectangle. A checkpoint's directory becomes visible by
//! a rename, after each of its files was flushed and read back; all of that runs in the background ([`Saver`]). Files
//! that a full or absent disk refuses are written anew for a while ([`crate::retry`]). If a checkpoint has no moments
//! (an imported one), they are read as zeros.
//!
//! Deliberately absent: memory-mapped files (a positional read needs no `unsafe`, and a file that shrinks becomes an
//! error instead of SIGBUS), and anything generic over the backend.

mod commit;
mod directory;
mod exchange;
mod expand;
mod export;
mod exports;
mod finite;
mod from_saved;
mod hf;
mod identity;
mod import;
mod manifest;
mod mxfp4;
mod newest;
mod reference;
mod round;
mod saved;
mod saver;
mod shard;
pub mod source;
mod space;
mod tensors;
mod upcycle;

#[cfg(test)]
mod tests;

pub use directory::{latest_step, live_steps, new_path as new_directory, steps, write_whole as write_directory};
pub use exchange::{Exchange, Solo};
pub use expand::{ExpandVocab, Init, Rows, expand_vocab};
pub use export::{Export, export};
pub use finite::NotFinite;
pub use from_saved::FromSaved;
pub use hf::HuggingFace;
pub use identity::{Difference, compare};
pub use import::import;
pub use manifest::{Manifest, PieceEntry, TensorEntry};
pub use newest::{IfDamaged, Newest, newest};
pub use reference::Reference;
pub use saved::Saved;
pub use saver::{Completed, Options, Saver};
pub use space::{Ahead, Space};
pub use upcycle::{Upcycle, Upcycled, upcycle};

use crate::backend::HostCopy;
use crate::error::{Error, Result};
use crate::model::rect::Rect;
use nix::sys::signal::{SigSet, Signal};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Lets a write beyond the limit of the size of files (`ulimit -f`) fail with an error, where by default a signal would
/// end the process without a message. Called first in `main`, since threads inherit it from the one that starts them.
pub fn report_file_size_limits() {
    let mut signal = SigSet::empty();
    signal.add(Signal::SIGXFSZ);
    signal.thread_block().expect("any thread may block this signal");
}

/// Removes what killed saves and exports left in a run's directory. Only the process that holds the run's lock may call
/// it, before the run saves anything.
pub fn clean(run: &Path) -> Result<()> {
    directory::clean(run)?;
    exports::clean(run)
}

/// Which checkpoints and exports of a run stay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// The number of the newest that stay; `None`: all.
    pub keep: Option<usize>,
    /// Those of the steps that are multiples of this stay, too; 0: none.
    pub keep_every: u64,
}

impl Retention {
    /// Whether the checkpoint of `step` is never removed.
    fn spares(self, step: u64) -> bool {
        self.keep_every > 0 && step.is_multiple_of(self.keep_every)
    }
}

/// Makes the checkpoint of `step` the run's newest one. Later ones are marked as abandoned: they stay, and the run
/// takes them no more unless the user names one. Only the process that holds the run's lock may call it.
pub fn go_back(run: &Path, step: u64) -> Result<()> {
    directory::set_latest(run, step)?;
    continues_after(run, step)
}

/// Marks the checkpoints after the one that the run continues from: they are of a branch that it abandoned, also where
/// it was killed before it could say so, or of a save that was killed before `latest` named it. Only the process that
/// holds the run's lock may call it.
pub fn continues_after(run: &Path, step: u64) -> Result<()> {
    directory::abandon_after(run, step)
}

/// The states of a tensor that a checkpoint holds: the f32 master weight, and AdamW's first and second moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StateKind {
    Master,
    M,
    V,
}

impl StateKind {
    pub fn name(self) -> &'static str {
        match self {
            StateKind::Master => "master",
            StateKind::M => "m",
            StateKind::V => "v",
        }
    }

    pub fn in_words(self) -> &'static str {
        match self {
            StateKind::Master => "main parameters",
            StateKind::M => "first moments",
            StateKind::V => "second moments",
        }
    }
}

/// A rectangle of one tensor's state.
pub struct Piece {
    /// The tensor's Hugging Face name.
    pub name: String,
    /// The one or two dimensions of the whole, unpadded tensor.
    pub dims: Vec<usize>,
    pub rect: Rect,
    pub kind: StateKind,
    /// The elements of `rect`, row-major.
    pub data: Data,
}

/// The elements of a piece; a copy from a device may still be in progress.
pub struct Data(Box<dyn FnOnce() -> Result<Vec<f32>> + Send>);

impl Data {
    /// The result of an asynchronous copy of `rect` of a tensor's state, all of which must be finite: a checkpoint of
    /// a run that has diverged is not to replace the sound ones. The thread that writes the piece looks at it.
    pub fn finite(copy: impl HostCopy<f32>, tensor: String, kind: StateKind, rect: Rect) -> Data {
        Data(Box::new(move || {
            let data = copy.wait().map_err(|fault| Error::run(fault.to_string()))?;
            let mut values = finite::Watch::default();
            values.look(&data, |value| value);
            match values.found(&tensor, &rect) {
                None => Ok(data),
                Some(found) => {
                    let found = NotFinite { kind, ..found };
                    Err(Error::run(format!("{found}: training has diverged, and this step is not saved")))
                }
            }
        }))
    }

    /// Blocks until the copy is complete.
    fn wait(self) -> Result<Vec<f32>> {
        self.0()
    }
}

impl From<Vec<f32>> for Data {
    fn from(data: Vec<f32>) -> Data {
        Data(Box::new(|| Ok(data)))
    }
}

/// The position in the run; the sample order is a function of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Completed steps.
    pub step: u64,
    pub consumed_samples: u64,
}

/// The metadata of a checkpoint, besides its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    pub position: Position,
    /// The resolved configuration, TOML.
    pub config: String,
    /// Keys and values that a resumed run must share ([`compare`]).
    pub identity: Vec<(String, String)>,
    pub accepted: AcceptedSteps,
}

/// The last steps that were accepted, the oldest first, by which spikes are judged.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AcceptedSteps {
    pub losses: Vec<f32>,
    pub grad_norms: Vec<f32>,
}

impl AcceptedSteps {
    fn is_empty(&self) -> bool {
        self.losses.is_empty()
    }
}
