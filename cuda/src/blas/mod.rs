//! Products of matrices by cuBLASLt: bf16 times bf16 with sums in f32, on the stream of a device's launches.
//!
//! What the library has to know of a product is made once and kept. Which of its algorithms computes it is found out
//! before a run (`tune`), kept in a file, and told to all ranks (`adopt`), so that they all take the same.

mod choice;
mod library;
mod plan;
mod product;
mod tune;

pub use choice::{Choice, Machine};
pub use product::{Form, Product};
pub use tune::scratch_len;

use crate::args::View;
use crate::compile::Version;
use crate::device::{self, Device};
use crate::machine::{Done, Fault, Target};
use crate::search::{Search, listed};
use choice::{Choices, Store};
use engine::backend::{Detail, Label, Track};
use library::{Algorithm, CublasLt, Failure};
use plan::{Plan, Site};
use product::{ALIGNED, Key};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Why there are no products, or no algorithm for one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "there is no cuBLASLt (libcublasLt.so of CUDA 12 or 13) for products of matrices{}: install it with \
         `pip install {}` for the python3 in PATH, or name its folder in SWALLOW_CUDA_LIBS (wheels of that python3, \
         CUDA_HOME, CUDA_PATH, /usr/local/cuda* and the system's loader were asked)",
        listed(.tried), wheel(*.driver)
    )]
    NoLibrary {
        /// What was found and why it does not do.
        tried: Vec<String>,
        driver: Version,
    },
    #[error("{}: cuBLASLt does not start: {words}", .path.display())]
    Start { path: PathBuf, words: String },
    #[error(
        "{product}: the algorithm that another rank has chosen is not taken here: {why}; all ranks of a job need devices \
         of one kind and one version of cuBLASLt (here {version} on {device})"
    )]
    Mixed { product: Product, why: String, version: usize, device: String },
    #[error(transparent)]
    Device(#[from] device::Error),
    #[error(transparent)]
    Product(#[from] Fault),
}

pub type Result<T> = std::result::Result<T, Error>;

/// Bytes of memory that the algorithms for devices of this kind make good use of.
pub const fn workspace(target: Target) -> usize {
    match target {
        Target::Sm80 => 32 << 20,
        Target::Sm90a => 64 << 20,
    }
}

/// Products on a device.
pub struct Blas {
    // Dropped in this order: what the library made goes before its handle, and that before the device.
    plans: RefCell<HashMap<Key, Ready>>,
    lt: CublasLt,
    device: Rc<Device>,
    workspace: View,
    store: Option<Store>,
    /// What the file knew; it is checked before it becomes a choice.
    kept: Choices,
    choices: RefCell<Choices>,
    timed: Cell<usize>,
    notes: RefCell<Vec<String>>,
}

/// A product that can be started.
struct Ready {
    plan: Plan,
    algorithm: Algorithm,
}

impl Blas {
    /// Loads the library. `cache` is the folder to keep choices of algorithms in; `workspace` are bytes of the device's
    /// memory that only products use ([`workspace`] says how many do them good).
    pub fn open(device: Rc<Device>, search: &Search, cache: Option<&Path>, workspace: View) -> Result<Blas> {
        assert!(workspace.at().is_multiple_of(256), "a workspace at an address of {} mod 256", workspace.at() % 256);
        let driver = device.driver();
        let lt = CublasLt::open(search, driver).map_err(|failure| match failure {
            Failure::None(tried) => Error::NoLibrary { tried, driver },
            Failure::Start { path, words } => Error::Start { path, words },
        })?;
        let store = cache.map(|folder| Store::of(folder, Machine::here(&device, lt.version())));
        let (kept, note) = store.as_ref().map_or_else(Default::default, Store::read);
        let notes = RefCell::new(Vec::from_iter(note));
        let (plans, choices, timed) = Default::default();
        Ok(Blas { plans, lt, device, workspace, store, kept, choices, timed, notes })
    }

    /// As the library counts: 120901 is 12.9.1.
    pub fn version(&self) -> usize {
        self.lt.version()
    }

    /// Where the library lies.
    pub fn path(&self) -> &Path {
        self.lt.path()
    }

    /// How many products were timed here, rather than known from the file or from another rank.
    pub fn timed(&self) -> usize {
        self.timed.get()
    }

    /// What a user may want to know and nothing failed of, since the last time that this was asked.
    pub fn notes(&self) -> Vec<String> {
        self.notes.take()
    }

    /// Starts a product after what was started before on the device. What was not tuned, or lies at addresses that are no
    /// multiples of 16, is computed by the library's first proposal.
    pub fn run(&self, product: Product, a: View, b: View, out: View) -> Done {
        let views = [a, b, out];
        product.hold(views);
        let key = Key::new(product, views);
        let mut plans = self.plans.borrow_mut();
        let ready = match plans.entry(key) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(free) => free.insert(self.ready(key).map_err(|what| fault(product, what))?),
        };
        let site = Site { workspace: self.workspace, stream: self.device.stream().raw().cast() };
        // SAFETY: the views are held to the product and the key is made of them; that they live until the stream has
        // passed this is what `View::new` was promised, and only this stream's products use the workspace.
        let start = || unsafe { ready.plan.start(&self.lt, views, &ready.algorithm, site) };
        let label = || Label::Op(product.to_string());
        let started = self.device.recorded(Detail::Ops, Track::Compute, label, self.device.stream(), start);
        let started = started.map_err(|what| fault(product, self.device.explain(&what)));
        self.device.started(product);
        started
    }

    fn ready(&self, key: Key) -> std::result::Result<Ready, String> {
        let plan = Plan::new(&self.lt, key)?;
        let chosen = if key.align == [ALIGNED; 3] { self.choices.borrow().get(&key.product).cloned() } else { None };
        let algorithm = match chosen {
            Some(choice) => choice.algorithm,
            None => {
                let proposals = plan.propose(&self.lt, self.workspace.len())?;
                let none =
                    || format!("the library proposes no algorithm for addresses aligned to {:?} bytes", key.align);
                proposals.first().ok_or_else(none)?.algorithm
            }
        };
        Ok(Ready { plan, algorithm })
    }

    /// Finds the fastest algorithm of each product that has none yet: the file's, or by timing the library's best on
    /// `scratch`, at least [`scratch_len`] bytes that may hold anything. The choices of all these, in their order.
    pub fn tune(&self, products: &[Product], scratch: View) -> Result<Vec<Choice>> {
        let needed = scratch_len(products);
        assert!(scratch.len() >= needed, "{} bytes to time products in, not {needed}", scratch.len());
        let (mut filled, mut found) = (false, Choices::new());
        for &product in products {
            if self.choices.borrow().contains_key(&product) {
                continue;
            }
            let choice = match self.as_kept(product) {
                Some(choice) => choice,
                None => {
                    if !std::mem::replace(&mut filled, true) {
                        self.device.repeat(&tune::numbers(), scratch)?;
                    }
                    let choice = tune::tune(&self.device, &self.lt, product, scratch, self.workspace)?;
                    self.timed.set(self.timed.get() + 1);
                    found.insert(product, choice.clone());
                    choice
                }
            };
            self.take(choice);
        }
        if let Some(store) = self.store.as_ref().filter(|_| !found.is_empty()) {
            self.notes.borrow_mut().extend(store.add(&found).err());
        }
        let choices = self.choices.borrow();
        Ok(products.iter().map(|product| choices[product].clone()).collect())
    }

    fn as_kept(&self, product: Product) -> Option<Choice> {
        let choice = self.kept.get(&product)?;
        match self.check(choice) {
            Ok(()) => Some(choice.clone()),
            Err(why) => {
                let note =
                    format!("{product}: the algorithm that was kept is not taken any more, and is timed again: {why}");
                self.notes.borrow_mut().push(note);
                None
            }
        }
    }

    /// All that was tuned or adopted, in one order on all ranks.
    pub fn choices(&self) -> Vec<Choice> {
        self.choices.borrow().values().cloned().collect()
    }

    /// Writes all choices into a folder, for a run that is to take the same again.
    pub fn keep(&self, folder: &Path) -> std::result::Result<(), String> {
        Store::of(folder, self.machine()).add(&self.choices.borrow())
    }

    /// The product once, in memory that may hold anything.
    pub fn once(&self, product: Product, scratch: View) -> Done {
        let [a, b, out] = tune::parts(product, scratch);
        self.run(product, a, b, out)
    }

    /// What an algorithm is chosen for.
    pub fn machine(&self) -> Machine {
        Machine::here(&self.device, self.version())
    }

    /// Takes what another rank has chosen, in the place of what was chosen here.
    pub fn adopt(&self, choices: &[Choice]) -> Result<()> {
        for choice in choices {
            self.check(choice).map_err(|why| Error::Mixed {
                product: choice.product,
                why,
                version: self.version(),
                device: self.device.info().name.clone(),
            })?;
        }
        choices.iter().cloned().for_each(|choice| self.take(choice));
        Ok(())
    }

    fn check(&self, choice: &Choice) -> std::result::Result<(), String> {
        let plan = Plan::new(&self.lt, Key::aligned(choice.product))?;
        plan.check(&self.lt, &choice.algorithm, self.workspace.len())
    }

    fn take(&self, choice: Choice) {
        self.plans.borrow_mut().remove(&Key::aligned(choice.product));
        self.choices.borrow_mut().insert(choice.product, choice);
    }
}

fn fault(product: Product, what: String) -> Fault {
    Fault { kernel: product.form.name(), what, shapes: product.shapes() }
}

/// The wheel that the driver runs.
fn wheel(driver: Version) -> &'static str {
    if driver.major < 13 { "nvidia-cublas-cu12" } else { "nvidia-cublas" }
}
