//! Calls of a communicator that may not be done. What is needed to tell of them is asked of no driver and no NCCL, so that
//! any thread may tell, also while others wait inside of them.

use crate::device::{Progress, Stream};
use cudarc::driver::DriverError;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Instant;

/// The calls of one communicator, in the order of its stream.
pub(super) struct Flights {
    /// Whose, for messages.
    pub name: String,
    /// The number of the call that the stream passed last.
    passed: Progress,
    list: Mutex<VecDeque<Flight>>,
    /// The call that the host is in, which may wait for other ranks as long as they are not connected.
    inside: Mutex<Option<(Instant, String)>>,
}

/// Until the host is back from a call.
pub(super) struct Inside<'a>(&'a Flights);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        *self.0.inside.lock().expect("nothing panics while it holds the call") = None;
    }
}

struct Flight {
    number: u32,
    what: &'static str,
    bytes: usize,
    since: Instant,
}

impl Flights {
    pub fn new(name: String, passed: Progress) -> Self {
        Flights { name, passed, list: Mutex::default(), inside: Mutex::default() }
    }

    /// The host goes into a call.
    pub fn enter(&self, what: &'static str, bytes: usize) -> Inside<'_> {
        let call = (Instant::now(), format!("{}: {what} of {bytes} bytes", self.name));
        *self.inside.lock().expect("nothing panics while it holds the call") = Some(call);
        Inside(self)
    }

    /// The call that the host is in, and since when.
    pub fn inside(&self) -> Option<(Instant, String)> {
        self.inside.lock().expect("nothing panics while it holds the call").clone()
    }

    /// A call was just started on the stream.
    pub fn started(&self, stream: &Stream, what: &'static str, bytes: usize) -> Result<(), DriverError> {
        let number = self.passed.begun().wrapping_add(1);
        let mut list = self.list.lock().expect("nothing panics while it holds the list");
        let passed = self.passed.now();
        while list.front().is_some_and(|flight| is_past(flight.number, passed)) {
            list.pop_front();
        }
        list.push_back(Flight { number, what, bytes, since: Instant::now() });
        self.passed.begin(stream, number)
    }

    /// The first call that is not done, and when it was begun.
    pub fn unfinished(&self) -> Option<(Instant, String)> {
        if let Some(call) = self.inside() {
            return Some(call);
        }
        let (list, passed) = (self.list.lock().expect("nothing panics while it holds the list"), self.passed.now());
        let Flight { what, bytes, since, .. } = list.iter().find(|flight| !is_past(flight.number, passed))?;
        Some((*since, format!("{}: {what} of {bytes} bytes", self.name)))
    }
}

/// Numbers start over after the last.
fn is_past(number: u32, passed: u32) -> bool {
    passed.wrapping_sub(number) < u32::MAX / 2
}

/// Of several communicators the call that was begun first and is not done: the others wait for it.
pub(super) fn first_unfinished<'a>(all: impl Iterator<Item = &'a Flights>) -> Option<String> {
    let (since, what) = all.filter_map(Flights::unfinished).min_by_key(|(since, _)| *since)?;
    let seconds = since.elapsed().as_secs();
    Some(format!("{what}, begun {seconds} s ago, is not done; a rank of it has not come or is lost"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_start_over_keep_their_order() {
        for (number, passed, past) in
            [(1, 0, false), (1, 1, true), (1, 7, true), (0, u32::MAX, false), (u32::MAX, 3, true)]
        {
            assert_eq!(is_past(number, passed), past, "{number} {passed}");
        }
    }
}
