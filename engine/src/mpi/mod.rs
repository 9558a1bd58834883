//! MPI for the host: starting and ending, splitting, small messages. Non-blocking collectives on tensors are
//! `cpu/group.rs`.
//!
//! All MPI calls are made on the main thread (level Funneled); [`Comm`] is not `Send`.

mod ending;
pub mod nodes;

use crate::error::{Error, Result};
use crate::time::RankProgress;
use mpi::datatype::PartitionMut;
use mpi::environment::{Threading, Universe};
use mpi::raw::AsRaw;
use mpi::topology::{Color, Communicator, SimpleCommunicator};
use mpi::traits::{CommunicatorCollectives, Root};
use std::sync::Arc;

/// All ranks of the run. Declared so that the communicator goes before MPI is finalized.
pub struct World {
    comm: Comm,
    place: Arc<RankProgress>,
    _universe: Universe,
}

/// Some of the ranks, in an order of their own.
pub struct Comm(SimpleCommunicator);

impl World {
    /// Starts MPI; a run without mpirun is a world of one rank. From here on a panic ends all ranks.
    pub fn start() -> Result<World> {
        let (universe, level) = mpi::initialize_with_threading(Threading::Funneled)
            .ok_or_else(|| Error::run("MPI was already initialized in this process"))?;
        if level < Threading::Funneled {
            return Err(Error::run(format!("this MPI library gives thread level {level:?}; Funneled is needed")));
        }
        let (comm, place) = (Comm(universe.world()), Arc::<RankProgress>::default());
        place.is_rank(comm.rank());
        ending::end_all_on_panic(Arc::clone(&place));
        Ok(World { comm, place, _universe: universe })
    }

    pub fn comm(&self) -> &Comm {
        &self.comm
    }

    /// Where this rank is; said if it ends with a panic or an error of its own.
    pub fn whereabouts(&self) -> Arc<RankProgress> {
        self.place.clone()
    }

    /// From here on rank r is the process that was rank `order[r]`. All ranks call it together, with the same order.
    pub fn reorder(&mut self, order: &[usize]) {
        let me = self.comm.rank();
        let rank = order.iter().position(|&process| process == me).expect("an order names every rank");
        self.comm = self.comm.split(0, rank);
        self.place.is_rank(rank);
    }

    /// Ends every rank. For a failure that the other ranks do not know of; where several fail alike, one says it.
    pub fn abort(&self, error: &Error) -> ! {
        let what = error.to_string();
        let say = || ending::say_line(format!("rank {} on {}, {}: {what}", self.comm.rank(), host(), self.place));
        ending::end_all(&self.place, &what, say, error.exit_code())
    }
}

/// Ends this process at once, without what runs at an orderly end; mpirun ends the other ranks. For any thread.
pub fn end_process(code: i32) -> ! {
    ending::end_this(code)
}

/// This machine's name.
pub fn host() -> String {
    nix::unistd::gethostname().map_or_else(|_| "unknown host".into(), |name| name.to_string_lossy().into_owned())
}

impl Comm {
    pub fn rank(&self) -> usize {
        self.0.rank() as usize
    }

    pub fn size(&self) -> usize {
        self.0.size() as usize
    }

    /// The ranks that give the same `color`, ordered by `key`.
    pub fn split(&self, color: usize, key: usize) -> Comm {
        let color = Color::with_value(color as i32);
        Comm(self.0.split_by_color_with_key(color, key as i32).expect("a rank with a colour is in some group"))
    }

    /// The ranks that can share memory with this one, in their order here: those of its node.
    pub fn split_node(&self) -> Comm {
        Comm(self.0.split_shared(self.0.rank()))
    }

    pub fn barrier(&self) {
        self.0.barrier();
    }

    /// Every rank's bytes, in rank order, on every rank.
    pub fn all_gather_bytes(&self, mine: &[u8]) -> Vec<Vec<u8>> {
        // A last byte of no meaning: the address of an empty slice is 1, which Open MPI reads as MPI_IN_PLACE.
        let mine = &[mine, &[0]].concat()[..];
        let mut counts = vec![0i32; self.size()];
        let len = i32::try_from(mine.len()).expect("a message between ranks is smaller than 2 GiB");
        self.0.all_gather_into(&len, &mut counts[..]);
        let (starts, mut all) = space(&counts);
        self.0.all_gather_varcount_into(mine, &mut PartitionMut::new(&mut all[..], &counts[..], &starts[..]));
        parts(&all, &starts, &counts)
    }

    /// Every rank's bytes, in rank order, on rank 0; nothing on the others.
    pub fn gather_bytes(&self, mine: &[u8]) -> Option<Vec<Vec<u8>>> {
        let mine = &[mine, &[0]].concat()[..];
        let len = i32::try_from(mine.len()).expect("a message between ranks is smaller than 2 GiB");
        let root = self.0.process_at_rank(0);
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
        let root = self.0.process_at_rank(0);
        let mut len = mine.len() as u64;
        root.broadcast_into(&mut len);
        let mut bytes = if self.rank() == 0 { mine } else { vec![0; len as usize] };
        if len > 0 {
            root.broadcast_into(&mut bytes[..]);
        }
        bytes
    }

    /// All ranks succeed or all get the error of the first rank that did not.
    pub fn agree<T>(&self, mine: Result<T>) -> Result<T> {
        let verdict = match &mine {
            Ok(_) => Vec::new(),
            Err(error) => [&[error.exit_code() as u8], error.to_string().as_bytes()].concat(),
        };
        let verdicts = self.all_gather_bytes(&verdict);
        match verdicts.iter().enumerate().find(|(_, v)| !v.is_empty()) {
            None => mine,
            Some((rank, verdict)) => Err(named(verdict, rank)),
        }
    }

    /// What only rank 0 does, its result known to all.
    pub fn on_first(&self, work: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        let mine = if self.rank() == 0 { work() } else { Ok(Vec::new()) };
        self.agree(mine).map(|bytes| self.broadcast_bytes(bytes))
    }

    pub(crate) fn raw(&self) -> mpi::ffi::MPI_Comm {
        self.0.as_raw()
    }
}

/// Where the messages of all ranks begin, and room for them.
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

/// The messages, without their last byte.
fn parts(all: &[u8], starts: &[i32], counts: &[i32]) -> Vec<Vec<u8>> {
    starts.iter().zip(counts).map(|(&at, &n)| all[at as usize..(at + n - 1) as usize].to_vec()).collect()
}

/// The error that `agree` sent. Rank 0's reads as if it were alone.
fn named(verdict: &[u8], rank: usize) -> Error {
    let what = String::from_utf8_lossy(&verdict[1..]).into_owned();
    let what = if rank == 0 { what } else { format!("rank {rank}: {what}") };
    if verdict[0] == 2 { Error::User(what) } else { Error::Run(what) }
}
