//! The hardware queues of a device. The driver deals its streams over them in the order of their creation, and the
//! operations of a queue start in the order in which they were enqueued, whichever their streams are: one that waits,
//! for an event, for a value or for the operation before it in its stream, holds up everything behind it.

use crate::settings::settings;
use std::sync::{Condvar, Mutex, OnceLock};

#[derive(Default)]
pub struct HardwareQueue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The ticket of the next operation to be enqueued.
    next: u64,
    /// The ticket of the operation whose turn it is.
    turn: u64,
}

impl HardwareQueue {
    /// The queue of stream number `number` of the process.
    pub fn of(number: usize) -> &'static HardwareQueue {
        static QUEUES: OnceLock<Vec<HardwareQueue>> = OnceLock::new();
        let queues = QUEUES.get_or_init(|| (0..settings().queues).map(|_| HardwareQueue::default()).collect());
        &queues[number % queues.len()]
    }

    /// Enqueues an operation; returns its ticket.
    pub fn enqueue(&self) -> u64 {
        let mut state = self.state.lock().expect("no holder panics");
        state.next += 1;
        state.next - 1
    }

    /// Blocks until all operations that were enqueued before have started.
    pub fn wait_for_turn(&self, ticket: u64) {
        let mut state = self.state.lock().expect("no holder panics");
        while state.turn != ticket {
            state = self.changed.wait(state).expect("no holder panics");
        }
    }

    /// The operation whose turn it is has started: the next one may.
    pub fn pass(&self) {
        self.state.lock().expect("no holder panics").turn += 1;
        self.changed.notify_all();
    }
}
