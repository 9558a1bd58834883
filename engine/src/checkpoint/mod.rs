//! Checkpoints: a run's own, written at one layout and read at any other, and Hugging Face's.
//!
//! A run's directory holds
//!
//! ```text
//! checkpoints/latest                    the name of the newest complete checkpoint
//! checkpoints/step-00000500/
//!     manifest.json                     position, configuration, identity, where every piece lies, who wrote it
//!     rank-00000-0.safetensors          the pieces of one rank, f32; a second file after 4 GiB
//! source/                               config.json and tokenizer of the Hugging Face model it came from
//! ```
//!
//! A piece is a rectangle of a true Hugging Face tensor, in one of three [`StateKind`]s, and nothing
//! here knows of layouts, padding or buckets: any reader asks for any rectangle. A directory becomes
//! visible by a rename, after every file of it was flushed and read back; all that happens beside the
//! training ([`Saver`]). A checkpoint without moments (an imported one) gives zeros for them.
//!
//! Deliberately absent: mapped files (a positional read needs no `unsafe` and turns a file that
//! shrinks into an error, not a signal), and anything generic over the backend.

mod directory;
mod exchange;
mod export;
mod hf;
mod identity;
mod import;
mod manifest;
mod saved;
mod saver;
mod shard;
pub mod source;
mod tensors;

#[cfg(test)]
mod tests;

pub use directory::steps;
pub use exchange::{Exchange, Solo};
pub use export::{Export, export};
pub use hf::HuggingFace;
pub use identity::{Difference, compare};
pub use import::import;
pub use manifest::{Manifest, PieceEntry, TensorEntry};
pub use saved::Saved;
pub use saver::Saver;

use crate::backend::HostCopy;
use crate::error::{Error, Result};
use crate::model::rect::Rect;
use serde::{Deserialize, Serialize};

/// What of a tensor is saved: the f32 weight, or AdamW's first or second moment.
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
}

/// A rectangle of one tensor's state.
pub struct Piece {
    /// The tensor's Hugging Face name.
    pub name: String,
    /// The true tensor's one or two dimensions.
    pub dims: Vec<usize>,
    pub rect: Rect,
    pub kind: StateKind,
    /// `rect`, row-major.
    pub data: Data,
}

/// The elements of a piece, which may still be on their way from a device.
pub struct Data(Box<dyn FnOnce() -> Result<Vec<f32>> + Send>);

impl Data {
    pub fn coming(fetch: impl HostCopy<f32>) -> Data {
        Data(Box::new(|| fetch.wait().map_err(|fault| Error::run(fault.to_string()))))
    }

    /// Blocks until they are here.
    fn wait(self) -> Result<Vec<f32>> {
        self.0()
    }
}

impl From<Vec<f32>> for Data {
    fn from(data: Vec<f32>) -> Data {
        Data(Box::new(|| Ok(data)))
    }
}

/// How far the run has come; the sample order needs no more to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Steps done.
    pub step: u64,
    pub consumed_samples: u64,
}

/// What a checkpoint says besides its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    pub position: Position,
    /// The resolved configuration, TOML.
    pub config: String,
    /// Keys and values that a resume compares with its own ([`compare`]).
    pub identity: Vec<(String, String)>,
}
