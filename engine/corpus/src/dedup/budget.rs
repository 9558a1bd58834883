//! How the memory is divided.
//!
//! A command that deduplicates uses, beside the program and its libraries ([`PROGRAM`]): for each worker, a batch and
//! its documents, buffers and the contexts of zstd ([`WORKER`]); while it reads, a sorter and the batches between the
//! threads; then 4 bytes a document for the components and 1 bit for those that have more than one, the index of the
//! spool, and merges and sorters. A document of many megabytes takes in addition up to ten times its size for each
//! worker.

use engine::error::{Error, Result};

/// Bytes of the program and its libraries.
const PROGRAM: usize = 30 << 20;

/// Bytes of a worker.
const WORKER: usize = 3 << 20;

/// The least that is left for sorters and batches.
const LEAST: usize = 8 << 20;

/// More batches between the threads do not make reading faster.
const MOST_IN_FLIGHT: usize = 64 << 20;

/// Bytes for what grows with the input.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    pub bytes: usize,
}

/// The least memory, in bytes, with which `workers` threads deduplicate: 46 MB for two.
pub fn least_memory(workers: usize) -> usize {
    PROGRAM + LEAST + workers * WORKER
}

impl Budget {
    /// The budget of `memory` bytes for the whole process.
    pub fn new(memory: usize, workers: usize) -> Result<Self> {
        let least = least_memory(workers);
        if memory < least {
            return Err(Error::user(format!(
                "--memory: {} MB is too little for {workers} workers; give at least {} MB",
                memory / 1_000_000,
                least.div_ceil(1_000_000)
            )));
        }
        Ok(Self { bytes: memory - least + LEAST })
    }

    /// What is left for `documents` documents with an index of `index` bytes.
    pub fn with_documents(self, documents: u32, index: usize) -> Result<Self> {
        let documents = documents as usize;
        let fixed = 4 * documents + documents / 8 + index;
        if fixed > self.bytes / 2 {
            let more = (2 * fixed - self.bytes).div_ceil(1_000_000);
            return Err(Error::user(format!(
                "--memory: {documents} documents take {} MB; give at least {more} MB more",
                fixed / 1_000_000
            )));
        }
        Ok(Self { bytes: self.bytes - fixed })
    }

    /// Bytes of a sorter that is filled while nothing else is sorted.
    pub fn sorter(self) -> usize {
        self.bytes / 2
    }

    /// Bytes of a merge, or of a sorter beside one.
    pub fn merge(self) -> usize {
        self.bytes / 4
    }

    /// Bytes of batches between the threads.
    pub fn in_flight(self) -> usize {
        (self.bytes / 8).min(MOST_IN_FLIGHT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_memory_is_refused_with_what_would_be_enough() {
        let error = Budget::new(45_000_000, 2).unwrap_err().to_string();
        assert_eq!(error, "--memory: 45 MB is too little for 2 workers; give at least 47 MB");
        assert_eq!(Budget::new(least_memory(2), 2).unwrap().bytes, LEAST);
        assert!(Budget::new(47_000_000, 2).is_ok());
    }

    #[test]
    fn more_documents_than_the_memory_holds_are_refused() {
        let budget = Budget::new(64_000_000, 2).unwrap();
        assert!(budget.with_documents(2_000_000, 600_000).unwrap().bytes > 10 << 20);
        let error = budget.with_documents(50_000_000, 0).unwrap_err().to_string();
        assert!(error.starts_with("--memory: 50000000 documents take 206 MB; give at least "), "{error}");
    }
}
