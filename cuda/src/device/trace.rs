//! What a device was asked to do: a fault shows only later, in a launch or a wait that has no part in it.

use crate::blas::Product;
use crate::geometry::Geometry;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::rc::Rc;

/// Launches that are remembered: of a device that lies far behind, too.
const REMEMBERED: usize = 1 << 14;
/// Launches that are told of where it is not known how far the device has come.
const TOLD: usize = 8;

/// What a device was started on.
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

/// Parts of the whole, numbered as they begin, and what was launched in them.
#[derive(Default)]
pub struct Trace {
    part: RefCell<Rc<str>>,
    number: Cell<u32>,
    launches: RefCell<VecDeque<Started>>,
}

struct Started {
    /// Of its part.
    number: u32,
    part: Rc<str>,
    launch: Launch,
}

impl Trace {
    /// Does `work` as a part of the part that is under way; `begun` is told its number. What comes after it and before
    /// the next part has the same number.
    pub fn scope<T>(&self, label: &str, begun: impl FnOnce(u32), work: impl FnOnce() -> T) -> T {
        let outer = self.part.borrow().clone();
        let inner = if outer.is_empty() { label.into() } else { format!("{outer}, {label}").into() };
        *self.part.borrow_mut() = inner;
        self.number.set(self.number.get().wrapping_add(1));
        begun(self.number.get());
        let done = work();
        *self.part.borrow_mut() = outer;
        done
    }

    pub fn started(&self, launch: Launch) {
        let mut launches = self.launches.borrow_mut();
        if launches.len() == REMEMBERED {
            launches.pop_front();
        }
        launches.push_back(Started { number: self.number.get(), part: self.part.borrow().clone(), launch });
    }

    /// An error with where it was met and what was launched before it, the newest first.
    pub fn explain(&self, error: &str) -> String {
        let part = self.part.borrow();
        let mut text = if part.is_empty() { error.to_string() } else { format!("in {part}: {error}") };
        let launches = self.launches.borrow();
        let mut before = "\n  launched before, the newest first:";
        for launch in launches.iter().rev().take(TOLD) {
            text.push_str(std::mem::take(&mut before));
            launch.tell(&mut text);
        }
        text
    }

    /// An error of a device that had begun the part of this number, and what it was to do there.
    pub fn explain_at(&self, number: u32, error: &str) -> String {
        let launches = self.launches.borrow();
        let there: Vec<&Started> = launches.iter().filter(|launch| launch.number == number).collect();
        let Some(first) = there.first() else {
            drop(there);
            return self.explain(error);
        };
        let part = if first.part.is_empty() { "outside of any part".into() } else { format!("in {}", first.part) };
        let mut text = format!("{part}: {error}\n  launched there:");
        there.iter().for_each(|launch| launch.tell(&mut text));
        text
    }
}

impl Started {
    fn tell(&self, text: &mut String) {
        _ = write!(text, "\n  {}", self.launch);
        if !self.part.is_empty() {
            _ = write!(text, " in {}", self.part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(trace: &Trace, kernel: &'static str) {
        trace.started(Launch::Kernel(kernel, Geometry { grid: [4, 2, 1], block: 256, shared: 128 }));
    }

    #[test]
    fn a_fault_comes_with_the_last_launches_and_their_layer() {
        let trace = Trace::default();
        assert_eq!(trace.explain("lost"), "lost");
        (0..TOLD).for_each(|_| launch(&trace, "old"));
        let numbers = RefCell::new(Vec::new());
        let begun = |number| numbers.borrow_mut().push(number);
        let said = trace.scope("layer 3", begun, || {
            trace.scope("norm", begun, || launch(&trace, "rmsnorm"));
            trace.scope("attention", begun, || {
                launch(&trace, "rope");
                trace.explain("lost")
            })
        });
        let lines: Vec<&str> = said.lines().map(str::trim).collect();
        assert_eq!(lines[0], "in layer 3, attention: lost");
        assert_eq!(lines[2], "rope of [4, 2, 1] x 256 threads, 128 bytes of shared memory in layer 3, attention");
        assert_eq!(lines[3], "rmsnorm of [4, 2, 1] x 256 threads, 128 bytes of shared memory in layer 3, norm");
        assert_eq!(lines.len(), 2 + TOLD);
        assert!(trace.explain("lost").starts_with("lost\n"), "the part is over");
        assert_eq!(*numbers.borrow(), [1, 2, 3]);
        // The norm was the second part that began.
        let there = trace.explain_at(2, "lost");
        assert!(there.starts_with("in layer 3, norm: lost\n  launched there:\n  rmsnorm of"), "{there}");
        assert!(!there.contains("rope"), "{there}");
        assert_eq!(trace.explain_at(77, "lost"), trace.explain("lost"));
    }
}
