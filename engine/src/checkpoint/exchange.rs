//! The communication that checkpoints need: an all-gather of a few bytes, and agreement on a result. It is a trait, so
//! that tests can run ranks as threads.

use crate::error::{Error, Result};
use crate::flight::Working;
use crate::mpi::Comm;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The ranks that save a checkpoint together.
pub trait Exchange {
    fn rank(&self) -> usize;
    fn size(&self) -> usize;
    /// Every rank's bytes, in rank order, on every rank.
    fn all_gather_bytes(&self, mine: &[u8]) -> Vec<Vec<u8>>;
    /// Records that this rank waits for work of its own, until the guard is dropped.
    fn working(&self, _what: &str) -> Option<Working<'_>> {
        None
    }
}

impl Exchange for Comm {
    fn rank(&self) -> usize {
        Comm::rank(self)
    }

    fn size(&self) -> usize {
        Comm::size(self)
    }

    fn all_gather_bytes(&self, mine: &[u8]) -> Vec<Vec<u8>> {
        Comm::all_gather_bytes(self, mine)
    }

    fn working(&self, what: &str) -> Option<Working<'_>> {
        Some(self.working(what))
    }
}

/// A single rank without MPI.
pub struct Solo;

impl Exchange for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_gather_bytes(&self, mine: &[u8]) -> Vec<Vec<u8>> {
        vec![mine.to_vec()]
    }
}

#[derive(Serialize, Deserialize)]
enum Verdict<T> {
    Done(T),
    User(String),
    Run(String),
}

/// Every rank's result, in rank order; if any rank failed, all ranks get the first failure instead.
pub(super) fn agree<T: Serialize + DeserializeOwned>(comm: &impl Exchange, mine: Result<T>) -> Result<Vec<T>> {
    let mine = match mine {
        Ok(value) => Verdict::Done(value),
        Err(Error::User(what)) => Verdict::User(what),
        Err(Error::Run(what) | Error::Disk(what)) => Verdict::Run(what),
    };
    let mine = serde_json::to_vec(&mine).expect("numbers and strings are JSON");
    let all = comm.all_gather_bytes(&mine);
    let all = all.iter().map(|bytes| serde_json::from_slice(bytes).expect("all ranks run the same program"));
    all.map(|verdict| match verdict {
        Verdict::Done(value) => Ok(value),
        Verdict::User(what) => Err(Error::User(what)),
        Verdict::Run(what) => Err(Error::Run(what)),
    })
    .collect()
}
