//! What a device was asked to do last: a fault shows only later, in a launch or a wait that has no part in it.

use crate::blas::Product;
use crate::geometry::Geometry;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::rc::Rc;

/// Launches that are remembered.
const REMEMBERED: usize = 8;

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

/// The last launches, and the part of the whole that is under way.
#[derive(Default)]
pub struct Trace {
    part: RefCell<Rc<str>>,
    launches: RefCell<VecDeque<(Launch, Rc<str>)>>,
}

impl Trace {
    pub fn within<T>(&self, label: &str, work: impl FnOnce() -> T) -> T {
        let outer = self.part.borrow().clone();
        let inner = if outer.is_empty() { label.into() } else { format!("{outer}, {label}").into() };
        *self.part.borrow_mut() = inner;
        let done = work();
        *self.part.borrow_mut() = outer;
        done
    }

    pub fn started(&self, launch: Launch) {
        let mut launches = self.launches.borrow_mut();
        if launches.len() == REMEMBERED {
            launches.pop_front();
        }
        launches.push_back((launch, self.part.borrow().clone()));
    }

    /// An error with where it was met and what was launched before it, the newest first.
    pub fn explain(&self, error: &str) -> String {
        let part = self.part.borrow();
        let mut text = if part.is_empty() { error.to_string() } else { format!("in {part}: {error}") };
        let launches = self.launches.borrow();
        for (i, (launch, part)) in launches.iter().rev().enumerate() {
            let before = if i == 0 { "\n  launched before, the newest first:" } else { "" };
            let part = if part.is_empty() { String::new() } else { format!(" in {part}") };
            _ = write!(text, "{before}\n  {launch}{part}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blas::Form;

    fn launch(trace: &Trace, kernel: &'static str) {
        trace.started(Launch::Kernel(kernel, Geometry { grid: [4, 2, 1], block: 256, shared: 128 }));
    }

    #[test]
    fn a_fault_comes_with_the_last_launches_and_their_layer() {
        let trace = Trace::default();
        assert_eq!(trace.explain("lost"), "lost");
        (0..REMEMBERED).for_each(|_| launch(&trace, "old"));
        let said = trace.within("layer 3", || {
            trace.within("norm", || launch(&trace, "rmsnorm"));
            trace.within("attention", || {
                launch(&trace, "rope");
                trace.started(Launch::Product(Product::new(Form::Nt, 3, 4, 5)));
                trace.explain("lost")
            })
        });
        let lines: Vec<&str> = said.lines().map(str::trim).collect();
        assert_eq!(lines[0], "in layer 3, attention: lost");
        assert_eq!(lines[2], "the product a b^T of m x n x k = 3 x 4 x 5 in layer 3, attention");
        assert_eq!(lines[3], "rope of [4, 2, 1] x 256 threads, 128 bytes of shared memory in layer 3, attention");
        assert_eq!(lines[4], "rmsnorm of [4, 2, 1] x 256 threads, 128 bytes of shared memory in layer 3, norm");
        assert_eq!(lines.len(), 2 + REMEMBERED);
        assert!(trace.explain("lost").starts_with("lost\n"), "the part is over");
    }
}
