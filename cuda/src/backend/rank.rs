//! One rank's device with what it holds: memory, products, links to other ranks, and the first fault.

use super::CudaScratch;
use super::group::Link;
use super::hazards::Reads;
use super::watchdog::{Joined, Watchdog};
use crate::args::View;
use crate::blas::{self, Blas, Choice, Product, scratch_len};
use crate::device::{self, Device, Memory, Stream, Urgency};
use crate::machine::Machine;
use crate::nccl::Nccl;
use crate::search::Search;
use cudarc::driver::DriverError;
use engine::backend::{Fault, Scratch};
use engine::layout::mesh::GroupKind;
use engine::memory::arena::{Arena, ArenaSpec};
use engine::memory::free_list::Allocator;
use engine::mpi::{Comm, end_process, host};
use std::cell::{OnceCell, RefCell};
use std::path::Path;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

/// Which the first of some ranks has to speak for all.
const WORD: Duration = Duration::from_secs(2);
/// In which all ranks agree that one of them cannot start, if they can: others may wait for it inside of NCCL.
const AGREE: Duration = Duration::from_secs(10);

/// What a rank knows of the world around its device.
pub struct Outlook {
    /// Needed where there are several ranks.
    pub nccl: Option<Rc<Nccl>>,
    /// After which a rank that does not answer is given up.
    pub patience: Duration,
}

/// Why a device cannot be used for a run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Device(#[from] device::Error),
    #[error(transparent)]
    Products(#[from] blas::Error),
    #[error(
        "rank 0 has {first}, rank {rank} has {other}: an algorithm of one means nothing to the other, and all ranks of a job take the same"
    )]
    Mixed { first: Box<blas::Machine>, rank: usize, other: Box<blas::Machine> },
    #[error(transparent)]
    Fault(#[from] Fault),
}

pub(super) struct Rank {
    // Dropped in this order: what uses memory goes before it, and all of it before the device.
    links: RefCell<Vec<Weak<Link>>>,
    lanes: RefCell<Vec<(GroupKind, Rc<Stream>)>>,
    joined: Joined,
    _watchdog: Watchdog,
    blas: OnceCell<Blas>,
    pub allocator: RefCell<Arena>,
    slab: OnceCell<Memory<Rc<Device>>>,
    pub reads: Reads,
    /// For large copies to the host.
    pub side: Stream,
    fault: RefCell<Option<Fault>>,
    /// Of a rank that cannot start.
    lost: RefCell<Option<Deadline>>,
    pub scratch: CudaScratch,
    pub outlook: Outlook,
    /// All ranks in the mesh's order; `None` for a rank alone.
    pub world: Option<Rc<Comm>>,
    pub device: Rc<Device>,
}

impl Rank {
    pub fn new(device: Rc<Device>, world: Option<Rc<Comm>>, outlook: Outlook) -> Result<Rank, Error> {
        let side = Stream::new(Urgency::Usual).map_err(device::Error::from)?;
        let (rank, joined) = (world.as_ref().map_or(0, |world| world.rank()), Joined::default());
        Ok(Rank {
            links: RefCell::default(),
            lanes: RefCell::default(),
            _watchdog: Watchdog::start(device.progress().clone(), joined.clone(), rank, outlook.patience),
            joined,
            blas: OnceCell::new(),
            allocator: RefCell::default(),
            slab: OnceCell::new(),
            reads: Reads::default(),
            side,
            fault: RefCell::default(),
            lost: RefCell::default(),
            scratch: CudaScratch { processors: device.processors(), target: device.target() },
            outlook,
            world,
            device,
        })
    }

    /// Takes the slab and what lies in it for good.
    pub fn settle(&self, cut: ArenaSpec, search: &Search, cache: Option<&Path>) -> Result<(), Error> {
        self.lost.take();
        self.first_fault()?;
        let slab = Memory::of(self.device.clone(), cut.bytes)?;
        self.allocator.replace(Arena::new(cut));
        let workspace = self.scratch.fixed().into_iter().map(|bytes| {
            let offset = self.allocator.borrow_mut().take(self.scratch.block(bytes));
            // SAFETY: the slab lives longer than the products, and its books give these bytes to nobody else.
            unsafe { View::new(slab.at() + offset as u64, bytes) }
        });
        let workspace = workspace.last().expect("products have a workspace");
        let blas = Blas::open(self.device.clone(), search, cache, workspace)?;
        assert!(self.slab.set(slab).is_ok() && self.blas.set(blas).is_ok(), "a rank settles once");
        Ok(())
    }

    /// The algorithms of these products, as far as the slab has room to time them, which holds nothing yet.
    pub fn tune(&self, products: &[Product]) -> Result<Vec<Choice>, Error> {
        let free = self.free();
        let fitting: Vec<Product> = products.iter().copied().filter(|&p| scratch_len(&[p]) <= free.len()).collect();
        Ok(self.blas().tune(&fitting, free)?)
    }

    /// Each product once, so that its kernel is there before the first step.
    pub fn warm_up_products(&self, products: &[Product]) -> Result<(), Error> {
        let free = self.free();
        for product in products.iter().filter(|&&p| scratch_len(&[p]) <= free.len()) {
            self.blas().once(*product, free).map_err(blas::Error::from)?;
        }
        Ok(self.device.sync()?)
    }

    /// What lies in the slab's middle.
    fn free(&self) -> View {
        let middle = self.allocator.borrow().middle();
        // SAFETY: no block lies there, and none is taken while products are tried there, before a run begins.
        unsafe { View::new(self.slab().at() + middle.start as u64, middle.len()) }
    }

    pub fn slab(&self) -> &Memory<Rc<Device>> {
        self.slab.get().expect("a rank settles before it takes memory")
    }

    pub fn blas(&self) -> &Blas {
        self.blas.get().expect("a rank settles before it multiplies")
    }

    /// Keeps the first thing that went wrong. What comes after it follows from it.
    pub fn note(&self, what: String) {
        let mut fault = self.fault.borrow_mut();
        if fault.is_none() {
            self.links().iter().for_each(|link| link.break_off());
            *fault = Some(Fault(what));
        }
    }

    /// Notes why this rank cannot start. It ends where the others do not come to hear of it.
    pub fn lost(&self, why: String) {
        if self.first_fault().is_ok() {
            let end = end_after(AGREE, format!("rank {} on {}: {why}\n", self.world_rank(), host()));
            *self.lost.borrow_mut() = Some(end);
        }
        self.note(why);
    }

    /// What came of a call of the driver; a fault is noted.
    pub fn must<T>(&self, done: Result<T, DriverError>) -> Option<T> {
        done.map_err(|error| self.note(self.device.fault(error))).ok()
    }

    pub fn first_fault(&self) -> Result<(), Fault> {
        self.fault.borrow().clone().map_or(Ok(()), Err)
    }

    /// Notes what went wrong; the first such thing comes back.
    pub fn fault(&self, what: &str) -> Fault {
        self.note(what.to_string());
        self.first_fault().expect_err("it was just noted")
    }

    pub fn add_link(&self, link: &Rc<Link>) {
        self.links.borrow_mut().push(Rc::downgrade(link));
        self.joined.lock().expect("nothing panics while it holds the list").push(Arc::downgrade(&link.flights));
    }

    /// The stream of a kind of group.
    pub fn stream_of(&self, kind: GroupKind) -> Result<Rc<Stream>, DriverError> {
        let lane = kind.lane();
        let mut lanes = self.lanes.borrow_mut();
        if let Some((_, stream)) = lanes.iter().find(|(other, _)| *other == lane) {
            return Ok(stream.clone());
        }
        let urgency = if lane == GroupKind::Tensor { Urgency::First } else { Urgency::Usual };
        let stream = Rc::new(Stream::new(urgency)?);
        lanes.push((lane, stream.clone()));
        Ok(stream)
    }

    pub fn world_rank(&self) -> usize {
        self.world.as_ref().map_or(0, |world| world.rank())
    }

    pub fn links(&self) -> Vec<Rc<Link>> {
        self.links.borrow().iter().filter_map(Weak::upgrade).collect()
    }

    /// Ends the process where what follows takes longer than patience: other ranks may never come. MPI is not called:
    /// mpirun ends the others. Of ranks that wait for each other the one at `place` 0 speaks, the others where it does not.
    pub fn deadline(&self, place: usize, what: &str) -> Deadline {
        let patience = self.outlook.patience + if place == 0 { Duration::ZERO } else { WORD };
        let (rank, seconds) = (self.world_rank(), self.outlook.patience.as_secs());
        end_after(patience, format!("rank {rank} on {}: {what} within {seconds} s\n", host()))
    }
}

/// Says a line and ends the process, if what comes back is not dropped until then.
fn end_after(time: Duration, line: String) -> Deadline {
    let (met, wait) = channel::<()>();
    std::thread::spawn(move || {
        if wait.recv_timeout(time) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            // In one write: the lines of ranks that speak together do not mix.
            eprint!("{line}");
            end_process(1);
        }
    });
    Deadline { _met: met }
}

/// Met when it is dropped.
pub(super) struct Deadline {
    _met: Sender<()>,
}
