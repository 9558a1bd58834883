//! A communicator: its connections, received messages and state.

use super::bootstrap::{Hello, meet};
use super::code::*;
use super::wire::{Message, Signature};
use crate::fault;
use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

/// The interval at which a waiting thread checks whether the device has failed.
const POLL: Duration = Duration::from_millis(10);

/// The communicator was aborted, or the device has failed.
pub struct Aborted;

/// Messages from a peer that no operation has taken yet.
#[derive(Default)]
pub struct Inbox {
    pub collectives: VecDeque<(Signature, Vec<u8>)>,
    pub sent: VecDeque<(Signature, Vec<u8>)>,
    /// Number of messages that the peer has received.
    pub received: usize,
    /// Whether the peer has left, in an orderly way or not.
    gone: bool,
}

pub struct State {
    pub inboxes: Vec<Inbox>,
    /// Plans that have run, one after another.
    pub done: u64,
    issued: u64,
    ready: bool,
    finalizing: bool,
    aborted: bool,
    error: Code,
}

/// A connection to another rank.
struct Link {
    out: Mutex<UnixStream>,
    /// The same socket, to shut it down while another thread writes.
    end: UnixStream,
}

pub struct Comm {
    pub rank: usize,
    pub size: usize,
    /// The ordinal of its device in this process.
    pub device: i32,
    /// Whether calls wait for the operations that they start.
    pub blocking: bool,
    links: OnceLock<Vec<Option<Link>>>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Comm {
    /// Starts to connect to the other ranks, which may never come.
    pub fn start(id: String, own: Hello, device: i32, blocking: bool) -> Arc<Comm> {
        let state = State {
            inboxes: (0..own.size).map(|_| Inbox::default()).collect(),
            done: 0,
            issued: 0,
            ready: false,
            finalizing: false,
            aborted: false,
            error: 0,
        };
        let (state, links) = (Mutex::new(state), OnceLock::new());
        let comm = Comm { rank: own.rank, size: own.size, device, blocking, links, state, changed: Condvar::new() };
        let comm = Arc::new(comm);
        let own_comm = comm.clone();
        std::thread::spawn(move || {
            let found = meet(&id, own, || if own_comm.lock().aborted { Err(INTERNAL_ERROR) } else { Ok(()) });
            match found.and_then(|links| own_comm.clone().connect(links)) {
                Ok(()) => own_comm.change(|state| state.ready = true),
                Err(code) => own_comm.set_error(code),
            }
        });
        comm
    }

    fn connect(self: Arc<Self>, links: Vec<Option<UnixStream>>) -> Outcome<()> {
        let another = |link: &UnixStream| {
            link.try_clone().map_err(|e| fail(INTERNAL_ERROR, &format!("a connection cannot be duplicated: {e}")))
        };
        for (peer, link) in links.iter().enumerate().filter_map(|(peer, link)| Some((peer, link.as_ref()?))) {
            let (comm, link) = (self.clone(), another(link)?);
            std::thread::spawn(move || comm.listen(peer, link));
        }
        let link = |link: UnixStream| Ok(Link { end: another(&link)?, out: Mutex::new(link) });
        let links = links.into_iter().map(|found| found.map(link).transpose()).collect::<Outcome<Vec<_>>>()?;
        self.links.set(links).map_err(|_| fail(INTERNAL_ERROR, "a communicator is connected twice"))
    }

    /// Receives a peer's messages until it leaves.
    fn listen(&self, peer: usize, mut link: UnixStream) {
        loop {
            let message = Message::read(&mut link);
            let mut state = self.lock();
            let inbox = &mut state.inboxes[peer];
            match message {
                Ok(Message::Data(what, bytes)) if what.is_collective() => inbox.collectives.push_back((what, bytes)),
                Ok(Message::Data(what, bytes)) => inbox.sent.push_back((what, bytes)),
                Ok(Message::Received) => inbox.received += 1,
                Ok(Message::Bye) | Err(_) => {
                    inbox.gone = true;
                    if message.is_err() && !state.aborted && state.error == 0 {
                        let what = format!("rank {}: the connection to rank {peer} broke", self.rank);
                        state.error = fail(REMOTE_ERROR, &what);
                    }
                    return self.changed.notify_all();
                }
            }
            self.changed.notify_all();
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    pub fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Only the first error is kept.
    pub fn set_error(&self, code: Code) {
        self.change(|state| state.error = if state.error == 0 { code } else { state.error });
    }

    /// Blocks until `look` returns something. Errors do not end the wait: an operation whose peer is missing never
    /// completes, unless the communicator is aborted.
    pub fn wait<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> Result<T, Aborted> {
        let mut state = self.lock();
        loop {
            if state.aborted || fault::check().is_err() {
                return Err(Aborted);
            }
            if let Some(found) = look(&mut state) {
                return Ok(found);
            }
            state = self.changed.wait_timeout(state, POLL).expect("no holder panics").0;
        }
    }

    /// Sends to a peer, or to this rank itself. A peer that is gone is detected when a thread waits for it.
    pub fn send(&self, peer: usize, message: Message) {
        if peer == self.rank {
            let mut state = self.lock();
            let inbox = &mut state.inboxes[peer];
            match message {
                Message::Data(what, bytes) => inbox.sent.push_back((what, bytes)),
                Message::Received => inbox.received += 1,
                Message::Bye => {}
            }
            return self.changed.notify_all();
        }
        if let Some(link) = self.links.get().and_then(|links| links[peer].as_ref()) {
            _ = message.write(&mut *link.out.lock().expect("no holder panics"));
        }
    }

    /// Issues the ticket of the next plan.
    pub fn issue(&self) -> Outcome<u64> {
        let mut state = self.lock();
        if !state.ready || state.finalizing {
            return Err(fail(INVALID_ARGUMENT, "a communicator is used before it is ready or after it was finalized"));
        }
        state.issued += 1;
        Ok(state.issued - 1)
    }

    /// The status: success, an error, or in progress.
    pub fn status(&self) -> Code {
        let state = self.lock();
        match state.error {
            0 if !state.ready || state.finalizing && state.done < state.issued => IN_PROGRESS,
            code => code,
        }
    }

    /// Blocks until the communicator is ready or has failed.
    pub fn wait_ready(&self) -> Outcome<()> {
        let ended = self.wait(|state| match state.error {
            0 => state.ready.then_some(Ok(())),
            code => Some(Err(code)),
        });
        ended.unwrap_or(Err(UNHANDLED_CUDA_ERROR))
    }

    pub fn finalize(&self) {
        self.change(|state| state.finalizing = true);
    }

    /// Blocks until all issued plans have run.
    pub fn drain(&self) {
        // After an abort there is nothing to wait for.
        _ = self.wait(|state| (state.done == state.issued).then_some(()));
    }

    /// Leaves in an orderly way and notifies the other ranks.
    pub fn leave(&self) {
        for peer in (0..self.size).filter(|peer| *peer != self.rank) {
            self.send(peer, Message::Bye);
        }
        self.abort();
    }

    /// Aborts all operations and closes all connections.
    pub fn abort(&self) {
        self.change(|state| state.aborted = true);
        for link in self.links.get().into_iter().flatten().flatten() {
            _ = link.end.shutdown(Shutdown::Both);
        }
    }

    /// The next message of a peer; an error if it can never come.
    pub fn next<T>(&self, state: &mut State, peer: usize, take: impl Fn(&mut Inbox) -> Option<T>) -> Option<T> {
        let inbox = &mut state.inboxes[peer];
        let taken = take(inbox);
        if taken.is_none() && inbox.gone && state.error == 0 {
            let what = format!("rank {} waits for rank {peer}, which has left", self.rank);
            state.error = fail(REMOTE_ERROR, &what);
        }
        taken
    }
}
