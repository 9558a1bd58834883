//! MPI for the host side: start, abort, communicators and small messages. The non-blocking collectives on tensors are
//! in `cpu/group.rs`.
//!
//! All MPI calls are made on the main thread (`MPI_THREAD_FUNNELED`); [`Comm`] is not `Send`.

mod abort;
pub mod nodes;

use crate::error::{Error, Result};
use crate::flight::{Channel, Recorder, Waiting, Working};
use mpi::collective::SystemOperation;
use mpi::datatype::PartitionMut;
use mpi::environment::{Threading, Universe};
use mpi::raw::AsRaw;
use mpi::topology::{Color, Communicator, SimpleCommunicator};
use mpi::traits::{CommunicatorCollectives, Root};
use std::sync::Arc;

/// All ranks of the run. The fields are in drop order: the communicator is freed before MPI is finalized.
pub struct World {
    comm: Comm,
    recorder: Arc<Recorder>,
    _universe: Universe,
}

/// An MPI communicator.
pub struct Comm {
    raw: SimpleCommunicator,
    /// Records each call, and that the host waits in it.
    recorder: Arc<Recorder>,
    /// Whether it has all ranks of the run.
    channel: Channel,
}

impl World {
    /// Initializes MPI; without mpirun the world has one rank. From here on a panic ends all ranks.
    pub fn start() -> Result<World> {
        let (universe, level) = mpi::initialize_with_threading(Threading::Funneled)
            .ok_or_else(|| Error::run("MPI was already initialized in this process"))?;
        if level < Threading::Funneled {
            return Err(Error::run(format!("this MPI library gives thread level {level:?}; Funneled is needed")));
        }
        let recorder = Arc::<Recorder>::default();
        let comm = Comm { raw: universe.world(), recorder: recorder.clone(), channel: Channel::Host };
        recorder.is_rank(comm.rank());
        abort::end_all_on_panic(recorder.clone());
        Ok(World { comm, recorder, _universe: universe })
    }

    pub fn comm(&self) -> &Comm {
        &self.comm
    }

    /// The recorder of what this rank does. A panic and an abort name its step and phase.
    pub fn recorder(&self) -> Arc<Recorder> {
        self.recorder.clone()
    }

    /// Renumbers the ranks: rank r becomes the process that was rank `order[r]`. Collective; every rank passes the
    /// same order.
    pub fn reorder(&mut self, order: &[usize]) {
        let me = self.comm.rank();
        let rank = order.iter().position(|&process| process == me).expect("an order names every rank");
        self.comm = self.comm.split(0, rank);
        self.recorder.is_rank(rank);
    }

    /// Ends every rank, for a failure that the other ranks do not know of. If several ranks fail with the same message,
    /// one of them prints it, and what `report` adds to it.
    pub fn abort(&self, error: &Error, report: impl FnOnce(&str) -> String) -> ! {
        let what = error.to_string();
        let print = || {
            let message = format!("rank {} on {}, {}: {what}", self.comm.rank(), host(), self.recorder);
            crate::stderr::print(&format!("{message}{}", report(&message)));
        };
        abort::end_all(&self.recorder, &what, print, error.exit_code())
    }
}

/// Ends this process at once, without exit handlers; mpirun then ends the other ranks. May be called on any thread.
pub fn end_process(code: i32) -> ! {
    abort::end_this(code)
}

/// The name and version of the MPI library, as in "Open MPI v4.1.4".
pub fn library() -> String {
    let version = mpi::environment::library_version().unwrap_or_else(|_| "unknown MPI library".into());
    version.split([',', '\n']).next().unwrap_or_default().trim_end_matches('\0').trim().to_string()
}

/// This machine's name.
pub fn host() -> String {
    nix::unistd::gethostname().map_or_else(|_| "unknown host".into(), |name| name.to_string_lossy().into_owned())
}

impl Comm {
    pub fn rank(&self) -> usize {
        self.raw.rank() as usize
    }

    pub fn size(&self) -> usize {
        self.raw.size() as usize
    }

    /// The ranks that give the same `color`, ordered by `key`.
    pub fn split(&self, color: usize, key: usize) -> Comm {
        let color = Color::with_value(color as i32);
        let _call = self.call("split");
        self.part(self.raw.split_by_color_with_key(color, key as i32).expect("a rank with a colour is in some group"))
    }

    /// The ranks of this rank's node (those that can share memory with it), in the order that they have in this
    /// communicator.
    pub fn split_node(&self) -> Comm {
        let _call = self.call("split");
        self.part(self.raw.split_shared(self.raw.rank()))
    }

    /// A communicator of some of these ranks, or of all of them.
    fn part(&self, raw: SimpleCommunicator) -> Comm {
        let whole = raw.size() == self.raw.size();
        let channel = if whole { self.channel } else { Channel::HostGroup };
        Comm { raw, recorder: self.recorder.clone(), channel }
    }

    /// Records a collective of the host, until it is dropped.
    fn call(&self, what: &str) -> Waiting<'_> {
        self.recorder.call(self.channel, what, 0)
    }

    pub fn barrier(&self) {
        let _call = self.call("barrier");
        self.raw.barrier();
    }

    /// Every rank's bytes, in rank order, on every rank.
    pub fn all_gather_bytes(&self, mine: &[u8]) -> Vec<Vec<u8>> {
        let _call = self.call("all-gather");
        // One byte of padding: the address of an empty slice is 1, which Open MPI takes for MPI_IN_PLACE.
        let mine = &[mine, &[0]].concat()[..];
        let mut counts = vec![0i32; self.size()];
        let len = i32::try_from(mine.len()).expect("a message between ranks is smaller than 2 GiB");
        self.raw.all_gather_into(&len, &mut counts[..]);
        let (starts, mut all) = space(&counts);
        self.raw.all_gather_varcount_into(mine, &mut PartitionMut::new(&mut all[..], &counts[..], &starts[..]));
        parts(&all, &starts, &counts)
    }

    /// Every rank's bytes, in rank order, on rank 0; `None` on the others.
    pub fn gather_bytes(&self, mine: &[u8]) -> Option<Vec<Vec<u8>>> {
        let _call = self.call("gather");
        let mine = &[mine, &[0]].concat()[..];
        let len = i32::try_from(mine.len()).expect("a message between ranks is smaller than 2 GiB");
        let root = self.raw.process_at_rank(0);
        if self.rank() != 0 {
            root.gather_into(&len);
            root.gather_varcount_into(mine);
            return None;
        }
        let mut counts = vec![0i32; self.size()];
        root.gather_into_root(&len, &mut counts[..]);
        let (starts, mut all) = space(&counts);
        root.gather_varcount_into_root(mine, &mut PartitionMut::new(&mut all[..], &counts[..], &starts[..]));
        Some(parts(&all, &starts, &counts))
    }

    /// Rank 0's bytes on every rank.
    pub fn broadcast_bytes(&self, mine: Vec<u8>) -> Vec<u8> {
        let _call = self.call("broadcast");
        let root = self.raw.process_at_rank(0);
        let mut len = mine.len() as u64;
        root.broadcast_into(&mut len);
        let mut bytes = if self.rank() == 0 { mine } else { vec![0; len as usize] };
        if len > 0 {
            root.broadcast_into(&mut bytes[..]);
        }
        bytes
    }

    /// The largest of all ranks' numbers.
    pub fn max(&self, mine: u64) -> u64 {
        let _call = self.call("all-reduce");
        let mut most = mine;
        self.raw.all_reduce_into(&mine, &mut most, SystemOperation::max());
        most
    }

    /// Returns `Ok` only if every rank passes `Ok`; otherwise every rank gets the error of the first rank that failed,
    /// prefixed with that rank and its host. An error of rank 0 has no prefix: it reads as in a run of one rank.
    pub fn agree<T>(&self, mine: Result<T>) -> Result<T> {
        let verdict = match &mine {
            Ok(_) => Vec::new(),
            Err(error) => {
                let prefix =
                    if self.rank() == 0 { String::new() } else { format!("rank {} on {}: ", self.rank(), host()) };
                format!("{}{prefix}{error}", error.exit_code()).into_bytes()
            }
        };
        let verdicts = self.all_gather_bytes(&verdict);
        match verdicts.into_iter().find(|verdict| !verdict.is_empty()) {
            None => mine,
            Some(verdict) => Err(decode_error(&verdict)),
        }
    }

    /// Runs `work` on rank 0 only; every rank gets its result.
    pub fn on_first(&self, work: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        let mine = if self.rank() == 0 { work() } else { Ok(Vec::new()) };
        self.agree(mine).map(|bytes| self.broadcast_bytes(bytes))
    }

    /// Records work that is neither an op nor a call, until the guard is dropped.
    pub fn working(&self, what: &str) -> Working<'_> {
        self.recorder.work(what)
    }

    /// The recorder of this rank.
    pub fn recorder(&self) -> Arc<Recorder> {
        self.recorder.clone()
    }

    pub(crate) fn raw(&self) -> mpi::ffi::MPI_Comm {
        self.raw.as_raw()
    }
}

/// The offset of each rank's message in one buffer, and the buffer.
fn space(counts: &[i32]) -> (Vec<i32>, Vec<u8>) {
    let mut end = 0i32;
    let begin = |n: &i32| {
        let start = end;
        end = end.checked_add(*n).expect("messages of all ranks together are smaller than 2 GiB");
        start
    };
    let starts = counts.iter().map(begin).collect();
    (starts, vec![0; end as usize])
}

/// The messages, without their byte of padding.
fn parts(all: &[u8], starts: &[i32], counts: &[i32]) -> Vec<Vec<u8>> {
    starts.iter().zip(counts).map(|(&at, &n)| all[at as usize..(at + n - 1) as usize].to_vec()).collect()
}

/// The error that [`Comm::agree`] sent: the digit of its exit code, then its message.
fn decode_error(verdict: &[u8]) -> Error {
    let what = String::from_utf8_lossy(&verdict[1..]).into_owned();
    if verdict[0] == b'2' { Error::User(what) } else { Error::Run(what) }
}
