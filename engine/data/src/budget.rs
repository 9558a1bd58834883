//! A limit on the bytes that threads hold at the same time.

use std::sync::{Condvar, Mutex};

/// Bytes that may be taken by all threads together.
pub struct Budget {
    limit: usize,
    taken: Mutex<usize>,
    returned: Condvar,
}

/// Bytes taken from a [`Budget`]; they return to it when this is dropped.
pub struct Share<'a> {
    budget: &'a Budget,
    bytes: usize,
}

impl Budget {
    pub fn new(limit: usize) -> Self {
        Self { limit, taken: Mutex::new(0), returned: Condvar::new() }
    }

    /// Waits until `bytes` fit into the limit. A request above the limit is granted when nothing else is taken.
    pub fn take(&self, bytes: usize) -> Share<'_> {
        let taken = self.taken.lock().expect("no thread panics with the lock");
        let full = |taken: &mut usize| *taken > 0 && *taken + bytes > self.limit;
        *self.returned.wait_while(taken, full).expect("no thread panics with the lock") += bytes;
        Share { budget: self, bytes }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        *self.budget.taken.lock().expect("no thread panics with the lock") -= self.bytes;
        self.budget.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn the_limit_holds_for_all_threads_together() {
        let (budget, held, most) = (Budget::new(100), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (budget, held, most) = (&budget, &held, &most);
                scope.spawn(move || {
                    for i in 0..200 {
                        let bytes = (thread * 31 + i * 17) % 60 + 1;
                        let share = budget.take(bytes);
                        most.fetch_max(held.fetch_add(bytes, Ordering::SeqCst) + bytes, Ordering::SeqCst);
                        std::thread::yield_now();
                        held.fetch_sub(bytes, Ordering::SeqCst);
                        drop(share);
                    }
                });
            }
        });
        let most = most.into_inner();
        assert!((60..=100).contains(&most), "{most} bytes at once");
        drop(budget.take(1000));
    }
}
