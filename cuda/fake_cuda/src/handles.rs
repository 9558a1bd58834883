//! Handles given to the program. They are numbers, so that the use of a destroyed one is detected.

use crate::code::{INVALID_HANDLE, Outcome};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

pub struct Handles<T> {
    next: AtomicUsize,
    all: LazyLock<Mutex<HashMap<usize, Arc<T>>>>,
}

impl<T> Handles<T> {
    /// Handles from `first` on, so that those of different kinds differ.
    pub const fn from(first: usize) -> Self {
        Handles { next: AtomicUsize::new(first), all: LazyLock::new(Mutex::default) }
    }

    pub fn add(&self, what: Arc<T>) -> *mut c_void {
        let handle = self.next.fetch_add(16, Ordering::Relaxed);
        self.all.lock().expect("no holder panics").insert(handle, what);
        handle as *mut c_void
    }

    pub fn get(&self, handle: *mut c_void) -> Outcome<Arc<T>> {
        self.all.lock().expect("no holder panics").get(&(handle as usize)).cloned().ok_or(INVALID_HANDLE)
    }

    pub fn remove(&self, handle: *mut c_void) -> Outcome<Arc<T>> {
        self.all.lock().expect("no holder panics").remove(&(handle as usize)).ok_or(INVALID_HANDLE)
    }

    pub fn all(&self) -> Vec<Arc<T>> {
        self.all.lock().expect("no holder panics").values().cloned().collect()
    }
}
