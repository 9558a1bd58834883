//! A device that runs kernels: its context, its compute stream, the loaded kernels, and the log of launches that errors
//! quote. Only the driver API is used. Functions that block say so.

mod driver;
mod gate;
mod launches;
mod memory;
mod pinned;
mod recorder;
mod stream;

pub(crate) use driver::describe;
pub use driver::{Info, devices};
pub use gate::Gate;
pub use memory::Memory;
pub use pinned::{Pinned, PinnedPool, Progress};
pub use stream::{Event, Events, Priority, Stream, Timing};

use crate::arch::Arch;
use crate::compile::{self, Cubin, Nvrtc, Places, Version};
use crate::kernels::File;
use crate::machine::{Geometry, Machine, Target};
use crate::product::Product;
use crate::search::Search;
use crate::tensor::{TensorMap, Tiles, device_map};
use cudarc::driver::{DriverError, result, sys};
use engine::backend::{Detail, Label, Track};
use engine::flight::Recorder as FlightRecorder;
use launches::{Launch, LaunchLog};
use recorder::Recorder;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::rc::Rc;
use std::sync::Arc;

/// Why a device cannot be used, or a fault on it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "there is no NVIDIA driver with a device on this machine: install the driver (R525 or newer; give a container \
         access to the GPUs), or use train.backend = \"cpu\""
    )]
    NoDriver,
    #[error("there is no CUDA device {asked}: this machine has {there}")]
    NoDevice { asked: usize, there: usize },
    #[error("the driver of {name} supports CUDA {version}, and the kernels need CUDA 12 (R525) or newer: update it")]
    OldDriver { name: String, version: Version },
    #[error("{name}: {why}")]
    OldDevice { name: String, why: String },
    #[error(transparent)]
    Kernels(#[from] compile::Error),
    #[error("the driver (CUDA {version}) cannot load the kernels for {arch} from {origin}: {error}; update the driver")]
    Load { version: Version, arch: Arch, origin: String, error: String },
    #[error("{0}")]
    Driver(String),
}

pub type Result<T> = std::result::Result<T, Error>;

impl From<DriverError> for Error {
    fn from(error: DriverError) -> Self {
        Error::Driver(format!("the CUDA driver: {}", describe(error)))
    }
}

/// A device with its kernels. It stays on the thread that opened it, on which its context is current.
pub struct Device {
    // Dropped in this order: everything created in the context before the context.
    stream: Stream,
    progress: Progress,
    recorder: Recorder,
    events: Events,
    pinned: PinnedPool,
    functions: HashMap<&'static str, sys::CUfunction>,
    modules: Vec<Module>,
    context: Context,
    log: LaunchLog,
    /// Records each launch before it is made, since a launch blocks when the driver's queue is full.
    flight: OnceCell<Arc<FlightRecorder>>,
    info: Info,
    version: Version,
    arch: Arch,
    origin: String,
    processors: usize,
    l2: usize,
}

impl Device {
    /// Opens a device by its ordinal and loads its kernels; returns the notes of `places`.
    pub fn open(ordinal: usize, places: &Places) -> Result<(Device, Vec<String>)> {
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE as L2, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as PROCESSORS,
        };
        let handle = handle(ordinal)?;
        let (info, version) = (driver::info(handle)?, driver::version()?);
        let name = || info.name.clone();
        let arch = Arch::of(info.compute_capability).map_err(|why| Error::OldDevice { name: name(), why })?;
        if version.major < 12 {
            return Err(Error::OldDriver { name: name(), version });
        }
        let kernels = places.kernels(arch, Some(version.major))?;

        let (context, stream) = (Context::of(handle)?, Stream::new(Priority::Normal)?);
        let pinned = PinnedPool::default();
        let progress = Progress::new(pinned.take(size_of::<u32>())?)?;
        let load = |error: DriverError| {
            let (arch, origin) = (kernels.arch, kernels.origin.clone());
            Error::Load { version, arch, origin, error: describe(error) }
        };
        let (modules, functions) = load_all(&kernels.cubins, handle).map_err(load)?;
        let device = Device {
            stream,
            progress,
            recorder: Recorder::default(),
            events: Events::default(),
            pinned,
            functions,
            modules,
            context,
            version,
            log: LaunchLog::default(),
            flight: OnceCell::new(),
            info,
            arch: kernels.arch,
            origin: kernels.origin,
            processors: driver::attribute(handle, PROCESSORS)? as usize,
            l2: driver::attribute(handle, L2)? as usize,
        };
        Ok((device, kernels.notes))
    }

    /// Compiles a file of additional kernels, such as a test's own, for this device.
    pub fn compile(&self, file: &File, search: &Search) -> Result<Cubin> {
        let image = Nvrtc::find(search, Some(self.version.major))?.compile(file, self.arch)?.cubin;
        Ok(Cubin { kernels: file.kernels, image })
    }

    /// Loads additional kernels.
    pub fn load(&mut self, cubins: &[Cubin]) -> Result<()> {
        let (modules, functions) = load_all(cubins, self.context.device)?;
        self.modules.extend(modules);
        self.functions.extend(functions);
        Ok(())
    }

    /// The driver's description.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// The architecture that its kernels are compiled for.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// The source of its kernels, for messages.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Bytes of the L2 cache.
    pub fn l2(&self) -> usize {
        self.l2
    }

    /// The CUDA version that the driver supports.
    pub fn driver(&self) -> Version {
        self.version
    }

    /// Runs `work` in a scope, which faults name: `layer 3`, and in it `attention`.
    pub fn scope<T>(&self, label: &str, work: impl FnOnce() -> T) -> T {
        // Profilers show the range; without one it costs next to nothing.
        let _range = nvtx::LocalRange::new(nvtx::Str::from_str_lossy(label));
        // If the stream has a fault, the next launch returns it.
        self.log.scope(label, |number| _ = self.progress.enqueue(&self.stream, number), work)
    }

    /// Seconds that the device takes for the operations that `work` enqueues. Blocks.
    pub fn seconds(&self, work: impl FnOnce()) -> Result<f64> {
        let start = self.checked(self.events.record(&self.stream, Timing::Enabled))?;
        work();
        let end = self.checked(self.events.record(&self.stream, Timing::Enabled))?;
        self.checked(end.wait())?;
        self.checked(end.seconds_since(&start))
    }

    /// The number of the scope that the device has reached.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// A driver error in words, with the scope that the device has reached and its launches.
    pub fn fault(&self, error: DriverError) -> String {
        self.locate(&describe(error))
    }

    /// The same for an error from elsewhere.
    pub fn locate(&self, what: &str) -> String {
        self.log.explain_at(self.progress.reached(), what)
    }

    /// An error with the current scope and the last launches.
    pub(crate) fn explain(&self, error: &str) -> String {
        self.log.explain(error)
    }

    /// Records launches from now on. A device has one recorder.
    pub fn record_into(&self, recorder: Arc<FlightRecorder>) {
        assert!(self.flight.set(recorder).is_ok(), "a device has one recorder");
    }

    /// Records that something is about to be launched.
    pub(crate) fn about_to_launch(&self, name: &str) {
        if let Some(recorder) = self.flight.get() {
            recorder.op(name);
        }
    }

    /// The scope of a step that the device has reached.
    pub fn reached_scope(&self) -> Option<Rc<str>> {
        self.log.scope_of(self.progress.reached())
    }

    /// Logs that a matrix multiplication was enqueued on the stream.
    pub(crate) fn log_product(&self, product: Product) {
        self.log.add(Launch::Product(product));
    }

    /// The compute stream, on which all kernels are launched.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    pub fn events(&self) -> &Events {
        &self.events
    }

    pub fn pinned(&self) -> &PinnedPool {
        &self.pinned
    }

    /// The context, for other threads.
    pub fn context(&self) -> ContextHandle {
        ContextHandle(self.context.raw)
    }

    /// Free and total bytes of device memory.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.checked(result::mem_get_info())
    }

    /// Blocks until all enqueued work has completed.
    pub fn sync(&self) -> Result<()> {
        self.checked(self.stream.synchronize())
    }

    /// The result of a driver call. An error may be an earlier launch's, so it comes with the last launches.
    fn checked<T>(&self, done: std::result::Result<T, DriverError>) -> Result<T> {
        done.map_err(|error| Error::Driver(self.log.explain(&describe(error))))
    }
}

impl Machine for Device {
    fn target(&self) -> Target {
        self.arch.target()
    }

    fn tensor_map(&self, tiles: Tiles) -> std::result::Result<TensorMap, String> {
        device_map(tiles)
    }

    fn processors(&self) -> usize {
        self.processors
    }

    unsafe fn start(
        &self,
        kernel: &'static str,
        args: *const c_void,
        geometry: Geometry,
    ) -> std::result::Result<(), String> {
        let function = *self.functions.get(kernel).ok_or("the device has no kernel of this name")?;
        let (grid, block) = (geometry.grid.into(), (geometry.block, 1, 1));
        // Every kernel has one parameter, which the driver copies before it returns.
        let mut parameters = [args.cast_mut()];
        // SAFETY: the function's module lives as long as the device, on whose stream it is launched; the caller
        // guarantees the arguments.
        self.about_to_launch(kernel);
        let launch = || unsafe {
            result::launch_kernel(function, grid, block, geometry.shared, self.stream.raw(), &mut parameters)
        };
        let started =
            self.recorded(Detail::Ops, Track::Compute, || Label::Op(kernel.to_string()), &self.stream, launch);
        let started = started.map_err(|error| self.log.explain(&describe(error)));
        self.log.add(Launch::Kernel(kernel, geometry));
        started
    }
}

fn handle(ordinal: usize) -> Result<sys::CUdevice> {
    if !driver::start()? {
        return Err(Error::NoDriver);
    }
    let there = result::device::get_count()?.max(0) as usize;
    if ordinal >= there {
        return Err(Error::NoDevice { asked: ordinal, there });
    }
    Ok(result::device::get(ordinal as i32)?)
}

type Functions = HashMap<&'static str, sys::CUfunction>;

/// All kernels by name, each allowed the largest shared memory that the device supports.
fn load_all(cubins: &[Cubin], device: sys::CUdevice) -> std::result::Result<(Vec<Module>, Functions), DriverError> {
    use sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as MOST_SHARED;
    use sys::CUfunction_attribute::{
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as DYNAMIC, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as STATIC,
    };
    let most = driver::attribute(device, MOST_SHARED)?;
    let (mut modules, mut functions) = (Vec::new(), HashMap::new());
    for cubin in cubins {
        let module = Module::load(&cubin.image)?;
        for &name in cubin.kernels {
            let c_name = CString::new(name).expect("a kernel's name has no NUL");
            // SAFETY: the module is loaded, and lives as long as its functions are used.
            functions.insert(name, unsafe {
                let function = result::module::get_function(module.0, c_name)?;
                let free = most - result::function::get_function_attribute(function, STATIC)?;
                result::function::set_function_attribute(function, DYNAMIC, free)?;
                function
            });
        }
        modules.push(module);
    }
    Ok((modules, functions))
}

/// A device's context, to be made current on other threads than the one that opened it.
#[derive(Clone, Copy)]
pub struct ContextHandle(sys::CUcontext);

// SAFETY: the driver accepts a context on any thread. The process retains the device's primary context until its end.
unsafe impl Send for ContextHandle {}

impl ContextHandle {
    /// Makes the context current on the calling thread.
    pub fn enter(&self) -> std::result::Result<(), DriverError> {
        // SAFETY: the context is the device's primary one; if it was released, the driver returns an error.
        unsafe { result::ctx::set_current(self.0) }
    }
}

/// The device's primary context, which all users of the device in this process share.
struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
}

impl Context {
    fn of(device: sys::CUdevice) -> std::result::Result<Self, DriverError> {
        // SAFETY: the handle is a device of the driver; `drop` releases the context.
        unsafe {
            let context = Context { device, raw: result::primary_ctx::retain(device)? };
            result::ctx::set_current(context.raw)?;
            Ok(context)
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: `of` retained it once. An error here would be an earlier launch's, which was reported before.
        _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// A loaded cubin.
struct Module(sys::CUmodule);

impl Module {
    fn load(image: &[u8]) -> std::result::Result<Self, DriverError> {
        // SAFETY: the image is a complete cubin, from the compiler or with a verified checksum. The driver copies it.
        unsafe { result::module::load_data(image.as_ptr().cast()) }.map(Module)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: it was loaded once, and its functions are not launched any more.
        _ = unsafe { result::module::unload(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Without a device the message is one sentence with the remedy.
    #[test]
    fn without_a_device_the_error_says_what_to_install() {
        if Path::new("/dev/nvidia0").exists() {
            return;
        }
        let opened = Device::open(0, &Places::of(|_| None, None));
        let said = opened.err().unwrap().to_string();
        assert!(said.contains("driver") && said.contains("cpu"), "{said}");
    }
}
