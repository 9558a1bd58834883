//! How a rank comes to its device, step by step: groups are made between `open` and `settle`, so that the slab is taken
//! when NCCL has what it needs.

use super::rank::{Error, Outlook, Rank};
use super::{Cuda, CudaScratch};
use crate::blas::{Choice, Form, Machine, Product};
use crate::device::Device;
use crate::search::Search;
use engine::backend;
use engine::dry::Product as Seen;
use engine::memory::arena::ArenaSpec;
use engine::mpi::Comm;
use std::path::Path;
use std::rc::Rc;

/// A product of the dry run, as cuBLASLt is asked for it.
pub fn product_of(seen: &Seen) -> Product {
    let Seen { form, sizes: [m, n, k] } = *seen;
    let form = match form {
        backend::Form::Nt => Form::Nt,
        backend::Form::Nn => Form::Nn,
        backend::Form::TnAcc => Form::TnAcc,
    };
    Product::new(form, m, n, k)
}

/// Where the choice of algorithms comes from.
pub struct Tuning<'a> {
    pub search: &'a Search,
    /// The folder that choices are kept in.
    pub cache: Option<&'a Path>,
    /// All products of a step.
    pub products: &'a [Product],
}

impl Cuda {
    /// On this device, as one of the ranks of `world`; without one, alone.
    pub fn open(device: Device, world: Option<Rc<Comm>>, outlook: Outlook) -> Result<Cuda, Error> {
        Ok(Cuda(Rc::new(Rank::new(Rc::new(device), world, outlook)?)))
    }

    /// What the backend takes of its memory, for a rehearsal.
    pub fn scratch(&self) -> CudaScratch {
        self.0.scratch
    }

    /// Bytes of the device's memory that are free, and all.
    pub fn memory(&self) -> Result<(usize, usize), Error> {
        self.0.first_fault()?;
        Ok(self.0.device.memory()?)
    }

    /// Takes a slab that is cut as a rehearsal says. Only this rank takes part.
    pub fn settle(&self, cut: ArenaSpec, tuning: &Tuning) -> Result<(), Error> {
        self.0.settle(cut, tuning.search, tuning.cache)
    }

    /// Chooses the algorithms of all ranks' products: the first rank times what it does not know, all take the same.
    /// All ranks call it together, before anything else is in the slab; notes for the user come back.
    pub fn tune(&self, tuning: &Tuning) -> Result<Vec<String>, Error> {
        let blas = self.0.blas();
        let Some(world) = &self.0.world else {
            self.0.tune(tuning.products)?;
            self.0.warm_up_products(tuning.products)?;
            return Ok(blas.notes());
        };
        let all = world.all_gather_bytes(&json(&(blas.machine(), tuning.products)));
        let all: Vec<(Machine, Vec<Product>)> = all.iter().map(|bytes| of_json(bytes)).collect();
        if let Some(rank) = all.iter().position(|(machine, _)| *machine != all[0].0) {
            let [first, other] = [0, rank].map(|rank| Box::new(all[rank].0.clone()));
            return Err(Error::Mixed { first, rank, other });
        }
        let mut all: Vec<Product> = all.into_iter().flat_map(|(_, products)| products).collect();
        all.sort_unstable();
        all.dedup();
        let chosen = if world.rank() == 0 { self.0.tune(&all).map(|choices| json(&choices)) } else { Ok(Vec::new()) };
        // A rank that could not tune sends nothing, and all take the library's first proposals.
        let choices = world.broadcast_bytes(chosen.as_ref().map_or_else(|_| json(&Vec::<Choice>::new()), Vec::clone));
        chosen?;
        blas.adopt(&of_json::<Vec<Choice>>(&choices))?;
        self.0.warm_up_products(tuning.products)?;
        Ok(blas.notes())
    }

    /// Writes all ranks' choice of algorithms into a folder, from which a run that continues it takes the same.
    pub fn keep_choices(&self, folder: &Path) -> Result<(), String> {
        self.0.blas().keep(folder)
    }
}

fn json(of: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(of).expect("numbers and strings are JSON")
}

fn of_json<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> T {
    serde_json::from_slice(bytes).expect("what a rank of this program wrote")
}
