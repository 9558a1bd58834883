//! The setup of a rank's device: `open`, then the communicators, then `allocate_arena`, which takes the arena from the
//! memory that NCCL has left, then `tune`.

use super::pending::probe;
use super::rank::{CommOptions, Error, Rank};
use super::{Cuda, CudaScratch};
use crate::blas::{Choice, Form, Platform, Product};
use crate::device::Device;
use crate::search::Search;
use engine::backend;
use engine::dry::Product as Seen;
use engine::layout::mesh::GroupKind;
use engine::memory::arena::ArenaSpec;
use engine::mpi::Comm;
use std::path::Path;
use std::rc::Rc;

/// A matrix multiplication that a dry run logged, as cuBLASLt computes it.
pub fn product_of(seen: &Seen) -> Product {
    let Seen { form, sizes: [m, n, k] } = *seen;
    let form = match form {
        backend::Form::Nt => Form::Nt,
        backend::Form::Nn => Form::Nn,
        backend::Form::TnAcc => Form::TnAcc,
    };
    Product::new(form, m, n, k)
}

/// Inputs of the choice of cuBLASLt algorithms.
pub struct Tuning<'a> {
    pub search: &'a Search,
    /// The folder in which choices are cached.
    pub cache: Option<&'a Path>,
    /// All matrix multiplications of a step.
    pub products: &'a [Product],
}

impl Cuda {
    /// Opens the backend on this device, as one of the ranks of `world`, or as a single rank.
    pub fn open(device: Device, world: Option<Rc<Comm>>, options: CommOptions) -> Result<Cuda, Error> {
        Ok(Cuda(Rc::new(Rank::new(Rc::new(device), world, options)?)))
    }

    /// For a watchdog's thread: a counter that grows while the device works, and the first call between ranks that it
    /// has not completed, by its group, its number in the flight recorder and its name.
    pub fn probe(&self) -> impl Fn() -> (u64, Option<(GroupKind, u32, &'static str)>) + Send + use<> {
        let (progress, joined) = (self.0.device.progress().clone(), self.0.joined.clone());
        move || probe(&progress, &joined)
    }

    /// The sizes of the backend's buffers, for a dry run.
    pub fn scratch(&self) -> CudaScratch {
        self.0.scratch
    }

    /// Free and total bytes of device memory.
    pub fn memory(&self) -> Result<(usize, usize), Error> {
        self.0.first_fault()?;
        Ok(self.0.device.memory()?)
    }

    /// Checks that all streams run beside each other, once the groups are there. Not collective.
    pub fn check_streams(&self) -> Result<(), Error> {
        self.0.check_processors()?;
        self.0.check_queues()
    }

    /// Allocates the arena that a dry run has sized. Not collective.
    pub fn allocate_arena(&self, cut: ArenaSpec, tuning: &Tuning) -> Result<(), Error> {
        self.0.allocate_arena(cut, tuning.search, tuning.cache)
    }

    /// Chooses the algorithms of all ranks' products: rank 0 times those that it has no choice for, and all ranks use
    /// the same. Collective, and called while the arena is empty; returns notes for the user.
    pub fn tune(&self, tuning: &Tuning) -> Result<Vec<String>, Error> {
        let blas = self.0.blas();
        let Some(world) = &self.0.world else {
            self.0.tune(tuning.products)?;
            self.0.warm_up_products(tuning.products)?;
            return Ok(blas.notes());
        };
        let all = world.all_gather_bytes(&json(&(blas.platform(), tuning.products)));
        let all: Vec<(Platform, Vec<Product>)> = all.iter().map(|bytes| of_json(bytes)).collect();
        if let Some(rank) = all.iter().position(|(platform, _)| *platform != all[0].0) {
            let [first, other] = [0, rank].map(|rank| Box::new(all[rank].0.clone()));
            return Err(Error::Mixed { first, rank, other });
        }
        let mut all: Vec<Product> = all.into_iter().flat_map(|(_, products)| products).collect();
        all.sort_unstable();
        all.dedup();
        let chosen = if world.rank() == 0 { self.0.tune(&all).map(|choices| json(&choices)) } else { Ok(Vec::new()) };
        // If rank 0 could not tune it sends an empty list, and the others use the library's first proposals.
        let choices = world.broadcast_bytes(chosen.as_ref().map_or_else(|_| json(&Vec::<Choice>::new()), Vec::clone));
        chosen?;
        blas.adopt(&of_json::<Vec<Choice>>(&choices))?;
        self.0.warm_up_products(tuning.products)?;
        Ok(blas.notes())
    }

    /// Writes the choice of algorithms into a folder, so that a resumed run uses the same ones.
    pub fn keep_choices(&self, folder: &Path) -> Result<(), String> {
        self.0.blas().keep(folder)
    }
}

fn json(of: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(of).expect("numbers and strings are JSON")
}

fn of_json<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> T {
    serde_json::from_slice(bytes).expect("a rank of this program wrote it")
}
