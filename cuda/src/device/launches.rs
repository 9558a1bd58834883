//! A log of launches, for errors: a device reports a fault only in a later call, which names neither the launch nor the
//! layer at fault.

use crate::machine::Geometry;
use crate::product::Product;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::rc::Rc;

/// Launches that are kept: enough for a device that lies far behind the host.
const KEPT: usize = 1 << 14;
/// Launches that an error lists if the device's position is unknown.
const LISTED: usize = 8;

/// Something that was enqueued.
#[derive(Clone, Copy)]
pub enum Launch {
    Kernel(&'static str, Geometry),
    Product(Product),
}

impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Launch::Kernel(name, Geometry { grid, block, shared }) => {
                write!(f, "{name} of {grid:?} x {block} threads, {shared} bytes of shared memory")
            }
            Launch::Product(product) => product.fmt(f),
        }
    }
}

/// The scopes of a step, numbered in order, and the launches in each.
#[derive(Default)]
pub struct LaunchLog {
    scope: RefCell<Rc<str>>,
    number: Cell<u32>,
    launches: RefCell<VecDeque<Entry>>,
}

struct Entry {
    /// The number and the name of its scope.
    number: u32,
    scope: Rc<str>,
    launch: Launch,
}

impl LaunchLog {
    /// Runs `work` in a scope nested in the current one; `begun` is called with its number. Launches between the end of
    /// a scope and the next have the same number.
    pub fn scope<T>(&self, label: &str, begun: impl FnOnce(u32), work: impl FnOnce() -> T) -> T {
        let outer = self.scope.borrow().clone();
        let inner = if outer.is_empty() { label.into() } else { format!("{outer}, {label}").into() };
        *self.scope.borrow_mut() = inner;
        self.number.set(self.number.get().wrapping_add(1));
        begun(self.number.get());
        let done = work();
        *self.scope.borrow_mut() = outer;
        done
    }

    pub fn add(&self, launch: Launch) {
        let mut launches = self.launches.borrow_mut();
        if launches.len() == KEPT {
            launches.pop_front();
        }
        launches.push_back(Entry { number: self.number.get(), scope: self.scope.borrow().clone(), launch });
    }

    /// The scope of this number, where one of its launches is still known.
    pub fn scope_of(&self, number: u32) -> Option<Rc<str>> {
        self.launches.borrow().iter().find(|launch| launch.number == number).map(|launch| launch.scope.clone())
    }

    /// The error with the current scope and the last launches, the newest first.
    pub fn explain(&self, error: &str) -> String {
        let scope = self.scope.borrow();
        let mut text = if scope.is_empty() { error.to_string() } else { format!("in {scope}: {error}") };
        let launches = self.launches.borrow();
        let mut before = "\n  launched before, the newest first:";
        for launch in launches.iter().rev().take(LISTED) {
            text.push_str(std::mem::take(&mut before));
            launch.write(&mut text);
        }
        text
    }

    /// The error of a device that had reached the scope of this number, with the scope's launches.
    pub fn explain_at(&self, number: u32, error: &str) -> String {
        let launches = self.launches.borrow();
        let there: Vec<&Entry> = launches.iter().filter(|launch| launch.number == number).collect();
        let Some(first) = there.first() else {
            drop(there);
            return self.explain(error);
        };
        let scope = if first.scope.is_empty() { "outside of any scope".into() } else { format!("in {}", first.scope) };
        let mut text = format!("{scope}: {error}\n  launched there:");
        there.iter().for_each(|launch| launch.write(&mut text));
        text
    }
}

impl Entry {
    fn write(&self, text: &mut String) {
        _ = write!(text, "\n  {}", self.launch);
        if !self.scope.is_empty() {
            _ = write!(text, " in {}", self.scope);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(log: &LaunchLog, kernel: &'static str) {
        log.add(Launch::Kernel(kernel, Geometry { grid: [4, 2, 1], block: 256, shared: 128 }));
    }

    #[test]
    fn a_fault_comes_with_the_last_launches_and_their_layer() {
        let log = LaunchLog::default();
        assert_eq!(log.explain("lost"), "lost");
        (0..LISTED).for_each(|_| launch(&log, "old"));
        let numbers = RefCell::new(Vec::new());
        let begun = |number| numbers.borrow_mut().push(number);
        let said = log.scope("layer 3", begun, || {
            log.scope("norm", begun, || launch(&log, "rmsnorm"));
            log.scope("attention", begun, || {
                launch(&log, "rope");
                log.explain("lost")
            })
        });
        let lines: Vec<&str> = said.lines().map(str::trim).collect();
        assert_eq!(lines[0], "in layer 3, attention: lost");
        assert_eq!(lines[2], "rope of [4, 2, 1] x 256 threads, 128 bytes of shared memory in layer 3, attention");
        assert_eq!(lines[3], "rmsnorm of [4, 2, 1] x 256 threads, 128 bytes of shared memory in layer 3, norm");
        assert_eq!(lines.len(), 2 + LISTED);
        assert!(log.explain("lost").starts_with("lost\n"), "the scope has ended");
        assert_eq!(*numbers.borrow(), [1, 2, 3]);
        // The norm was the second scope.
        let there = log.explain_at(2, "lost");
        assert!(there.starts_with("in layer 3, norm: lost\n  launched there:\n  rmsnorm of"), "{there}");
        assert!(!there.contains("rope"), "{there}");
        assert_eq!(log.explain_at(77, "lost"), log.explain("lost"));
    }
}
