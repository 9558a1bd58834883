//! Matrix multiplication by cuBLASLt: bf16 times bf16 with f32 sums, on a device's compute stream.
//!
//! Descriptors are created once and kept. Before a run the fastest algorithm of each product is found (`tune`), cached
//! in a file, and broadcast to all ranks (`adopt`), so that all use the same one.

mod choice;
mod library;
mod plan;
mod tune;

pub use crate::product::{Form, Product};
pub use choice::{Choice, Platform};
pub use library::Error;
pub use tune::scratch_len;

use crate::device::Device;
use crate::machine::{Done, Target};
use crate::product::{ALIGNED, Key};
use crate::search::Search;
use crate::tensor::View;
use choice::{Choices, Store};
use engine::backend::{Detail, Label, Track};
use library::{Algorithm, CublasLt};
use plan::{Plan, Site, Views};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;
use std::rc::Rc;

pub type Result<T> = std::result::Result<T, Error>;

/// Workspace in bytes that the best algorithms for this target need.
pub const fn workspace(target: Target) -> usize {
    match target {
        Target::Sm80 => 32 << 20,
        Target::Sm90a => 64 << 20,
    }
}

/// cuBLASLt on a device.
pub struct Blas {
    // Dropped in this order: descriptors before the library's handle, and that before the device.
    plans: RefCell<HashMap<Key, Ready>>,
    lt: CublasLt,
    device: Rc<Device>,
    workspace: View,
    store: Option<Store>,
    /// The choices from the file, which are checked before they are used.
    cached: Choices,
    choices: RefCell<Choices>,
    timed: Cell<usize>,
    notes: RefCell<Vec<String>>,
}

/// A product with its descriptors and algorithm.
struct Ready {
    plan: Plan,
    algorithm: Algorithm,
}

impl Blas {
    /// Loads the library. `cache` is the folder of cached choices; `workspace` is device memory, in bytes, that nothing
    /// else uses ([`workspace`] gives its best size).
    pub fn open(device: Rc<Device>, search: &Search, cache: Option<&Path>, workspace: View) -> Result<Blas> {
        assert!(workspace.at().is_multiple_of(256), "a workspace at an address of {} mod 256", workspace.at() % 256);
        let lt = CublasLt::open(search, device.driver())?;
        let store = cache.map(|folder| Store::of(folder, Platform::new(&device, lt.version())));
        let (cached, note) = store.as_ref().map_or_else(Default::default, Store::read);
        let notes = RefCell::new(Vec::from_iter(note));
        let (plans, choices, timed) = Default::default();
        Ok(Blas { plans, lt, device, workspace, store, cached, choices, timed, notes })
    }

    /// The library's version number: 120901 is 12.9.1.
    pub fn version(&self) -> usize {
        self.lt.version()
    }

    /// The library's file.
    pub fn path(&self) -> &Path {
        self.lt.path()
    }

    /// Number of products that were timed here, instead of taken from the file or from another rank.
    pub fn timed(&self) -> usize {
        self.timed.get()
    }

    /// Notes for the user since the last call.
    pub fn notes(&self) -> Vec<String> {
        self.notes.take()
    }

    /// Enqueues a product on the compute stream. A product that was not tuned, or whose addresses are not multiples of
    /// 16, uses the library's first proposal.
    pub fn run(&self, product: Product, a: View, b: View, out: View) -> Done {
        self.start(product, Views { of: [a, b, out], bias: View::NONE })
    }

    /// The same for [`Form::NtBias`].
    pub fn run_with_bias(&self, product: Product, a: View, b: View, bias: View, out: View) -> Done {
        self.start(product, Views { of: [a, b, out], bias })
    }

    fn start(&self, product: Product, views: Views) -> Done {
        views.check(product);
        let key = views.key(product);
        let mut plans = self.plans.borrow_mut();
        let ready = match plans.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(self.ready(key).map_err(|what| product.fault(what))?),
        };
        let site = Site { workspace: self.workspace, stream: self.device.stream().raw().cast() };
        // SAFETY: the views are checked against the product, and the key is derived from them. By the contract of
        // `View::new` they live until the stream has completed this; only this stream's products use the workspace.
        let start = || unsafe { ready.plan.start(&self.lt, views, &ready.algorithm, site) };
        let label = || Label::Op(product.to_string());
        let started = self.device.recorded(Detail::Ops, Track::Compute, label, self.device.stream(), start);
        let started = started.map_err(|what| product.fault(self.device.explain(&what)));
        self.device.log_product(product);
        started
    }

    fn ready(&self, key: Key) -> std::result::Result<Ready, String> {
        let plan = Plan::new(&self.lt, key)?;
        let chosen = if key.align == [ALIGNED; 3] { self.chosen(&plan, key.product) } else { None };
        let algorithm = match chosen {
            Some(algorithm) => algorithm,
            None => {
                let proposals = plan.propose(&self.lt, self.workspace.len())?;
                let none =
                    || format!("the library proposes no algorithm for addresses aligned to {:?} bytes", key.align);
                proposals.first().ok_or_else(none)?.algorithm
            }
        };
        Ok(Ready { plan, algorithm })
    }

    /// The tuned algorithm of a product. One with a bias that was not tuned itself uses that of the product without,
    /// which does the same work, if the library supports it there.
    fn chosen(&self, plan: &Plan, product: Product) -> Option<Algorithm> {
        let choices = self.choices.borrow();
        let own = choices.get(&product).map(|choice| choice.algorithm);
        let plain = || choices.get(&product.without_bias()?).map(|choice| choice.algorithm);
        own.or_else(|| plain().filter(|found| plan.check(&self.lt, found, self.workspace.len()).is_ok()))
    }

    /// Finds the fastest algorithm of each product that has none yet, from the file or by timing the library's
    /// proposals in `scratch`, at least [`scratch_len`] bytes. Returns the choices of all these products, in order.
    pub fn tune(&self, products: &[Product], scratch: View) -> Result<Vec<Choice>> {
        let needed = scratch_len(products);
        assert!(scratch.len() >= needed, "{} bytes to time products in, not {needed}", scratch.len());
        let (mut filled, mut found) = (false, Choices::new());
        for &product in products {
            if self.choices.borrow().contains_key(&product) {
                continue;
            }
            let choice = match self.cached(product) {
                Some(choice) => choice,
                None => {
                    if !std::mem::replace(&mut filled, true) {
                        self.device.repeat(&tune::input_data(), scratch)?;
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

    fn cached(&self, product: Product) -> Option<Choice> {
        let choice = self.cached.get(&product)?;
        match self.check(choice) {
            Ok(()) => Some(choice.clone()),
            Err(why) => {
                let note =
                    format!("{product}: the cached algorithm is not supported any more and is timed again: {why}");
                self.notes.borrow_mut().push(note);
                None
            }
        }
    }

    /// All tuned or adopted choices, in the same order on all ranks.
    pub fn choices(&self) -> Vec<Choice> {
        self.choices.borrow().values().cloned().collect()
    }

    /// Writes all choices into a folder, so that a resumed run uses the same ones.
    pub fn keep(&self, folder: &Path) -> std::result::Result<(), String> {
        Store::of(folder, self.platform()).add(&self.choices.borrow())
    }

    /// Runs the product once, in memory that may hold anything.
    pub fn once(&self, product: Product, scratch: View) -> Done {
        self.start(product, tune::operands(product, scratch))
    }

    /// The platform that algorithms are chosen for.
    pub fn platform(&self) -> Platform {
        Platform::new(&self.device, self.version())
    }

    /// Replaces the choices made here by another rank's.
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
        let mut plans = self.plans.borrow_mut();
        plans.remove(&Key::aligned(choice.product));
        // One with a bias may use the same algorithm.
        plans.retain(|key, _| key.product.without_bias() != Some(choice.product));
        drop(plans);
        self.choices.borrow_mut().insert(choice.product, choice);
    }
}
