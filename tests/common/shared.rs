//! A folder that several tests start from, so that its run is trained once.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tempfile::TempDir;

/// A folder that the first test makes, and the last one that holds it deletes.
pub struct Shared(Mutex<Weak<TempDir>>);

impl Shared {
    pub const fn new() -> Shared {
        Shared(Mutex::new(Weak::new()))
    }

    /// The folder, filled by `make` unless it exists.
    pub fn get(&self, make: impl FnOnce(&Path)) -> Arc<TempDir> {
        // A test that failed to make it leaves nothing behind.
        let mut folder = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        folder.upgrade().unwrap_or_else(|| {
            let new = Arc::new(tempfile::tempdir().unwrap());
            make(new.path());
            *folder = Arc::downgrade(&new);
            new
        })
    }
}

/// Copies a folder to a path that does not exist yet.
pub fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-r").args([from, to]).status().unwrap().success());
}
