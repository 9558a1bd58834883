//! A communicator: its links, what has come over them, and what became of it.

use super::bootstrap::{Hello, meet};
use super::code::*;
use super::wire::{Message, What};
use crate::fault;
use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

/// How often who waits looks whether the device has failed meanwhile.
const LOOK: Duration = Duration::from_millis(10);

/// Why an operation does not go on: the communicator was aborted, or the device has failed.
pub struct Released;

/// What has come from a peer and nobody has taken.
#[derive(Default)]
pub struct Inbox {
    pub collectives: VecDeque<(What, Vec<u8>)>,
    pub sent: VecDeque<(What, Vec<u8>)>,
    /// How many of what was sent to it the peer has received.
    pub received: usize,
    /// It has left: well, or not.
    gone: bool,
}

pub struct State {
    pub inboxes: Vec<Inbox>,
    /// Plans that have run: they do so one after another.
    pub done: u64,
    issued: u64,
    ready: bool,
    finalizing: bool,
    aborted: bool,
    error: Code,
}

/// To another rank.
struct Link {
    out: Mutex<UnixStream>,
    /// The same, to cut it while somebody writes.
    end: UnixStream,
}

pub struct Comm {
    pub rank: usize,
    pub size: usize,
    /// The number that this process knows its device by.
    pub device: i32,
    /// Whether calls wait for what they start.
    pub blocking: bool,
    links: OnceLock<Vec<Option<Link>>>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Comm {
    /// Starts to look for the other ranks, of which none may ever come.
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

    fn connect(self: Arc<Self>, links: Vec<Option<UnixStream>>) -> Said<()> {
        let another = |link: &UnixStream| {
            link.try_clone().map_err(|e| fail(INTERNAL_ERROR, &format!("no second handle of a link: {e}")))
        };
        for (peer, link) in links.iter().enumerate().filter_map(|(peer, link)| Some((peer, link.as_ref()?))) {
            let (comm, link) = (self.clone(), another(link)?);
            std::thread::spawn(move || comm.listen(peer, link));
        }
        let link = |link: UnixStream| Ok(Link { end: another(&link)?, out: Mutex::new(link) });
        let links = links.into_iter().map(|found| found.map(link).transpose()).collect::<Said<Vec<_>>>()?;
        self.links.set(links).map_err(|_| fail(INTERNAL_ERROR, "a communicator is connected twice"))
    }

    /// Takes in what a peer sends, until it leaves.
    fn listen(&self, peer: usize, mut link: UnixStream) {
        loop {
            let message = Message::read(&mut link);
            let mut state = self.lock();
            let inbox = &mut state.inboxes[peer];
            match message {
                Ok(Message::Part(what, bytes)) if what.is_collective() => inbox.collectives.push_back((what, bytes)),
                Ok(Message::Part(what, bytes)) => inbox.sent.push_back((what, bytes)),
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

    /// The first one stays.
    pub fn set_error(&self, code: Code) {
        self.change(|state| state.error = if state.error == 0 { code } else { state.error });
    }

    /// What `look` finds, as soon as it finds something. Errors do not end this wait: an operation that lacks its peer
    /// never ends, unless the communicator is aborted.
    pub fn wait<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> Result<T, Released> {
        let mut state = self.lock();
        loop {
            if state.aborted || fault::check().is_err() {
                return Err(Released);
            }
            if let Some(found) = look(&mut state) {
                return Ok(found);
            }
            state = self.changed.wait_timeout(state, LOOK).expect("no holder panics").0;
        }
    }

    /// Sends to a peer; to this rank itself too. A peer that is gone is found out by who waits for it.
    pub fn send(&self, peer: usize, message: Message) {
        if peer == self.rank {
            let mut state = self.lock();
            let inbox = &mut state.inboxes[peer];
            match message {
                Message::Part(what, bytes) => inbox.sent.push_back((what, bytes)),
                Message::Received => inbox.received += 1,
                Message::Bye => {}
            }
            return self.changed.notify_all();
        }
        if let Some(link) = self.links.get().and_then(|links| links[peer].as_ref()) {
            _ = message.write(&mut *link.out.lock().expect("no holder panics"));
        }
    }

    /// The ticket of the next plan.
    pub fn issue(&self) -> Said<u64> {
        let mut state = self.lock();
        if !state.ready || state.finalizing {
            return Err(fail(INVALID_ARGUMENT, "a communicator is used before it is ready, or after its end"));
        }
        state.issued += 1;
        Ok(state.issued - 1)
    }

    /// What became of it: 0 where all is well, or that it is not ready yet.
    pub fn status(&self) -> Code {
        let state = self.lock();
        match state.error {
            0 if !state.ready || state.finalizing && state.done < state.issued => IN_PROGRESS,
            code => code,
        }
    }

    /// Until it is ready or has failed.
    pub fn wait_ready(&self) -> Said<()> {
        let ended = self.wait(|state| match state.error {
            0 => state.ready.then_some(Ok(())),
            code => Some(Err(code)),
        });
        ended.unwrap_or(Err(UNHANDLED_CUDA_ERROR))
    }

    pub fn finalize(&self) {
        self.change(|state| state.finalizing = true);
    }

    /// Until everything that was started has run.
    pub fn drain(&self) {
        // Whoever is released has nothing to wait for any more.
        _ = self.wait(|state| (state.done == state.issued).then_some(()));
    }

    /// Leaves: the others know that this rank is well.
    pub fn leave(&self) {
        for peer in (0..self.size).filter(|peer| *peer != self.rank) {
            self.send(peer, Message::Bye);
        }
        self.abort();
    }

    /// Ends every operation where it stands, and all links.
    pub fn abort(&self) {
        self.change(|state| state.aborted = true);
        for link in self.links.get().into_iter().flatten().flatten() {
            _ = link.end.shutdown(Shutdown::Both);
        }
    }

    /// What is next in one of a peer's queues. Says so where it can never come.
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
