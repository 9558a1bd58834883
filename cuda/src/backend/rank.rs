//! The state of one rank: its device, memory, cuBLASLt, links to other ranks, and the first fault.

use super::CudaScratch;
use super::link::Link;
use super::pending::{Deadline, Joined};
use crate::blas::{self, Blas, Choice, Product, scratch_len};
use crate::device::{self, Device, Event, Memory, Priority, Stream};
use crate::machine::Machine;
use crate::nccl::Nccl;
use crate::search::Search;
use crate::tensor::View;
use cudarc::driver::DriverError;
use engine::backend::{Checks, Fault, Scratch};
use engine::config;
use engine::flight::Recorder;
use engine::layout::mesh::GroupKind;
use engine::memory::arena::{Arena, ArenaSpec};
use engine::memory::free_list::Allocator;
use engine::mpi::{Comm, host};
use std::cell::{OnceCell, RefCell};
use std::ops::Range;
use std::path::Path;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

/// Time for all ranks to agree that one of them cannot start. Others may be blocked in NCCL waiting for it.
const AGREE: Duration = Duration::from_secs(10);

/// The settings for communication with other ranks.
pub struct CommOptions {
    /// Required for several ranks.
    pub nccl: Option<Rc<Nccl>>,
    /// The thread blocks of a call by the kind of its group.
    pub ctas: config::Nccl,
}

/// Why a device cannot be used for a run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Device(#[from] device::Error),
    #[error(transparent)]
    Products(#[from] blas::Error),
    #[error(
        "rank 0 has {first}, but rank {rank} has {other}: all ranks of a job use the same cuBLASLt algorithms, which \
         requires the same kind of device, cuBLASLt and driver on every rank"
    )]
    Mixed { first: Box<blas::Platform>, rank: usize, other: Box<blas::Platform> },
    #[error(
        "the {streams} streams of this rank share hardware queues of the GPU, so that a receive could hold up the work \
         that its sender waits for, for ever: leave CUDA_DEVICE_MAX_CONNECTIONS unset, or set it to {most}, the most"
    )]
    SharedQueues { streams: usize, most: usize },
    #[error("{0}")]
    NoProcessor(String),
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// Reads under way on a stream beside the compute stream: address ranges, and when each is done.
type Reads = RefCell<Vec<(Range<u64>, Arc<Event>)>>;

pub(super) struct Rank {
    // Dropped in this order: users of memory before the memory, and everything before the device.
    links: RefCell<Vec<Weak<Link>>>,
    lanes: RefCell<Vec<(GroupKind, Rc<Stream>)>>,
    pub joined: Joined,
    blas: OnceCell<Blas>,
    pub allocator: RefCell<Arena>,
    arena: OnceCell<Memory<Rc<Device>>>,
    reads: Reads,
    /// The stream of large copies to the host.
    pub side: Stream,
    fault: RefCell<Option<Fault>>,
    /// Set on a rank that cannot start.
    lost: RefCell<Option<Deadline>>,
    pub scratch: CudaScratch,
    pub options: CommOptions,
    pub recorder: Arc<Recorder>,
    pub checks: Checks,
    /// All ranks in the mesh's order; None for a single rank.
    pub world: Option<Rc<Comm>>,
    pub device: Rc<Device>,
}

impl Rank {
    pub fn new(device: Rc<Device>, world: Option<Rc<Comm>>, options: CommOptions) -> Result<Rank, Error> {
        let side = Stream::new(Priority::Normal).map_err(device::Error::from)?;
        let recorder = world.as_ref().map_or_else(Arc::default, |world| world.recorder());
        device.record_into(recorder.clone());
        Ok(Rank {
            links: RefCell::default(),
            lanes: RefCell::default(),
            joined: Joined::default(),
            recorder,
            checks: Checks::default(),
            blas: OnceCell::new(),
            allocator: RefCell::default(),
            arena: OnceCell::new(),
            reads: RefCell::default(),
            side,
            fault: RefCell::default(),
            lost: RefCell::default(),
            scratch: CudaScratch { processors: device.processors(), target: device.target() },
            options,
            world,
            device,
        })
    }

    /// Allocates the arena and the buffers that stay in it for the whole run.
    pub fn allocate_arena(&self, cut: ArenaSpec, search: &Search, cache: Option<&Path>) -> Result<(), Error> {
        self.lost.take();
        self.first_fault()?;
        let arena = Memory::of(self.device.clone(), cut.bytes)?;
        self.allocator.replace(Arena::new(cut));
        let workspace = self.scratch.fixed().into_iter().map(|bytes| {
            let offset = self.allocator.borrow_mut().take(self.scratch.block(bytes));
            // SAFETY: the arena outlives cuBLASLt, and its allocator never hands these bytes out again.
            unsafe { View::new(arena.at() + offset as u64, bytes) }
        });
        let workspace = workspace.last().expect("cuBLASLt has a workspace");
        let blas = Blas::open(self.device.clone(), search, cache, workspace)?;
        assert!(self.arena.set(arena).is_ok() && self.blas.set(blas).is_ok(), "a rank allocates its arena once");
        Ok(())
    }

    /// Chooses algorithms for those of the products that fit into the arena, which must be empty, to be timed.
    pub fn tune(&self, products: &[Product]) -> Result<Vec<Choice>, Error> {
        let free = self.free();
        let fitting: Vec<Product> = products.iter().copied().filter(|&p| scratch_len(&[p]) <= free.len()).collect();
        Ok(self.blas().tune(&fitting, free)?)
    }

    /// Runs each product once, so that its kernel is loaded before the first step.
    pub fn warm_up_products(&self, products: &[Product]) -> Result<(), Error> {
        let free = self.free();
        for product in products.iter().filter(|&&p| scratch_len(&[p]) <= free.len()) {
            self.blas().once(*product, free).map_err(blas::Error::from)?;
        }
        Ok(self.device.sync()?)
    }

    /// Bytes of the arena; 0 before it is allocated.
    pub fn arena_bytes(&self) -> usize {
        self.arena.get().map_or(0, |arena| arena.len())
    }

    /// The free middle of the arena.
    fn free(&self) -> View {
        let middle = self.allocator.borrow().middle();
        // SAFETY: no block lies there, and none is allocated while products are tried there, before a run begins.
        unsafe { View::new(self.arena().at() + middle.start as u64, middle.len()) }
    }

    pub fn arena(&self) -> &Memory<Rc<Device>> {
        self.arena.get().expect("a rank has its arena before it allocates blocks")
    }

    pub fn blas(&self) -> &Blas {
        self.blas.get().expect("a rank has its arena before it multiplies matrices")
    }

    /// Notes that a stream beside the compute stream reads these bytes until `done`.
    pub fn add_read(&self, bytes: Range<u64>, done: Arc<Event>) {
        let mut reads = self.reads.borrow_mut();
        reads.retain(|(_, done)| !matches!(done.is_past(), Ok(true)));
        reads.push((bytes, done));
    }

    /// Makes the compute stream wait for reads of these bytes, so that its next op may overwrite them.
    pub fn before_change(&self, bytes: Range<u64>) {
        let mut reads = self.reads.borrow_mut();
        let overlaps = |read: &Range<u64>| read.start < bytes.end && bytes.start < read.end;
        for (_, done) in reads.extract_if(.., |(read, _)| overlaps(read)) {
            self.must(self.device.stream().wait(&done));
        }
    }

    /// Records a fault. Only the first is kept: later ones follow from it.
    pub fn note(&self, what: String) {
        let mut fault = self.fault.borrow_mut();
        if fault.is_none() {
            self.links().iter().for_each(|link| link.mark_broken());
            *fault = Some(Fault(what));
        }
    }

    /// Records why this rank cannot start. The process ends if the other ranks do not learn of it in time.
    pub fn lost(&self, why: String) {
        if self.first_fault().is_ok() {
            let end = Deadline::start(AGREE, format!("rank {} on {}: {why}\n", self.world_rank(), host()));
            *self.lost.borrow_mut() = Some(end);
        }
        self.note(why);
    }

    /// The result of a driver call; a fault is recorded.
    pub fn must<T>(&self, done: Result<T, DriverError>) -> Option<T> {
        done.map_err(|error| self.note(self.device.fault(error))).ok()
    }

    pub fn first_fault(&self) -> Result<(), Fault> {
        self.fault.borrow().clone().map_or(Ok(()), Err)
    }

    /// Records a fault and returns the first one.
    pub fn fault(&self, what: &str) -> Fault {
        self.note(what.to_string());
        self.first_fault().expect_err("a fault was just recorded")
    }

    pub fn add_link(&self, link: &Rc<Link>) {
        self.links.borrow_mut().push(Rc::downgrade(link));
        self.joined.lock().expect("no thread panics while it holds this lock").push(Arc::downgrade(&link.pending));
    }

    /// The stream of a kind of group.
    pub fn stream_of(&self, kind: GroupKind) -> Result<Rc<Stream>, DriverError> {
        let lane = kind.lane();
        let mut lanes = self.lanes.borrow_mut();
        if let Some((_, stream)) = lanes.iter().find(|(other, _)| *other == lane) {
            return Ok(stream.clone());
        }
        let priority = if lane == GroupKind::Tensor { Priority::High } else { Priority::Normal };
        let stream = Rc::new(Stream::new(priority)?);
        lanes.push((lane, stream.clone()));
        Ok(stream)
    }

    /// The streams of all kinds of groups so far, with the kind that names each.
    pub fn lanes(&self) -> Vec<(GroupKind, Rc<Stream>)> {
        self.lanes.borrow().clone()
    }

    pub fn world_rank(&self) -> usize {
        self.world.as_ref().map_or(0, |world| world.rank())
    }

    pub fn links(&self) -> Vec<Rc<Link>> {
        self.links.borrow().iter().filter_map(Weak::upgrade).collect()
    }
}
