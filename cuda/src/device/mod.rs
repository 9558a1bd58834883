//! A device that runs kernels: its context, a stream, the kernels loaded, and what it was doing when a fault is
//! found. Only the driver's own interface is used; nothing here waits for the device but what says so.

mod copies;
mod list;
mod meaning;
mod memory;
mod pinned;
mod products;
mod progress;
mod recorder;
mod stream;
mod timer;
mod trace;

pub use copies::Current;
pub use list::{Info, devices};
pub use memory::Memory;
pub use pinned::{Pinned, Pins};
pub use progress::Progress;
pub use stream::{Event, Events, Knows, Stream, Urgency};

use crate::arch::Arch;
use crate::compile::{self, Cubin, Nvrtc, Places, Version};
use crate::geometry::Geometry;
use crate::kernels::File;
use crate::machine::{Machine, Target};
use crate::search::Search;
use crate::tensor::{TensorMap, Tiles, device_map};
use cudarc::driver::{DriverError, result, sys};
use engine::backend::{Detail, Label, Track};
pub(crate) use meaning::said;
use recorder::Recorder;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use trace::{Launch, Trace};

/// Why a device cannot be used, or what went wrong on it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "there is no NVIDIA driver with a device on this machine: install the driver (R525 or newer; in a container, \
         pass the GPUs in), or use train.backend = \"cpu\""
    )]
    NoDriver,
    #[error("there is no CUDA device {asked}: this machine has {there}")]
    NoDevice { asked: usize, there: usize },
    #[error("the driver of {name} is one of CUDA {version}, and the kernels need CUDA 12 (R525) or newer: update it")]
    OldDriver { name: String, version: Version },
    #[error("{name}: {why}")]
    OldDevice { name: String, why: String },
    #[error(transparent)]
    Kernels(#[from] compile::Error),
    #[error(
        "the driver (CUDA {version}) does not load the kernels for {arch} from {origin}: {error}; update the driver"
    )]
    Load { version: Version, arch: Arch, origin: String, error: String },
    #[error("{0}")]
    Driver(String),
}

pub type Result<T> = std::result::Result<T, Error>;

impl From<DriverError> for Error {
    fn from(error: DriverError) -> Self {
        Error::Driver(format!("the CUDA driver: {}", said(error)))
    }
}

/// A device with its kernels. It stays on the thread that opened it, whose current context is the device's.
pub struct Device {
    // Dropped in this order: what came from the context goes before it.
    stream: Stream,
    progress: Progress,
    recorder: Recorder,
    events: Events,
    pins: Pins,
    functions: HashMap<&'static str, sys::CUfunction>,
    modules: Vec<Module>,
    context: Context,
    trace: Trace,
    info: Info,
    version: Version,
    arch: Arch,
    origin: String,
    processors: usize,
    l2: usize,
}

impl Device {
    /// Opens a device by its number and loads its kernels; hands on what `places` have to tell.
    pub fn open(ordinal: usize, places: &Places) -> Result<(Device, Vec<String>)> {
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE as L2, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as PROCESSORS,
        };
        let handle = handle(ordinal)?;
        let (info, version) = (list::describe(handle)?, list::version()?);
        let name = || info.name.clone();
        let arch = Arch::of(info.compute_capability).map_err(|why| Error::OldDevice { name: name(), why })?;
        if version.major < 12 {
            return Err(Error::OldDriver { name: name(), version });
        }
        let kernels = places.kernels(arch, Some(version.major))?;

        let (context, stream) = (Context::of(handle)?, Stream::new(Urgency::Usual)?);
        let pins = Pins::default();
        let progress = Progress::new(pins.take(size_of::<u32>())?)?;
        let load = |error: DriverError| {
            let (arch, origin) = (kernels.arch, kernels.origin.clone());
            Error::Load { version, arch, origin, error: said(error) }
        };
        let (modules, functions) = load_all(&kernels.cubins, handle).map_err(load)?;
        let device = Device {
            stream,
            progress,
            recorder: Recorder::default(),
            events: Events::default(),
            pins,
            functions,
            modules,
            context,
            version,
            trace: Trace::default(),
            info,
            arch: kernels.arch,
            origin: kernels.origin,
            processors: list::attribute(handle, PROCESSORS)? as usize,
            l2: list::attribute(handle, L2)? as usize,
        };
        Ok((device, kernels.notes))
    }

    /// A cubin for this device of a file of further kernels, such as a test's own.
    pub fn compile(&self, file: &File, search: &Search) -> Result<Cubin> {
        let image = Nvrtc::find(search, Some(self.version.major))?.compile(file, self.arch)?.cubin;
        Ok(Cubin { kernels: file.kernels, image })
    }

    /// Loads further kernels beside the others.
    pub fn load(&mut self, cubins: &[Cubin]) -> Result<()> {
        let (modules, functions) = load_all(cubins, self.context.device)?;
        self.modules.extend(modules);
        self.functions.extend(functions);
        Ok(())
    }

    /// What the driver says of it.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// What its kernels are compiled for.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// Where its kernels came from.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Bytes of the cache that all processors share.
    pub fn l2(&self) -> usize {
        self.l2
    }

    /// Runs `work`, whose launches are told of as this part of the whole: `layer 3`, and in it `attention`.
    pub fn scope<T>(&self, label: &str, work: impl FnOnce() -> T) -> T {
        // What profilers show; without one it is next to nothing.
        let _range = nvtx::LocalRange::new(nvtx::Str::from_str_lossy(label));
        // A stream that does not take this has a fault that the next launch tells of.
        self.trace.scope(label, |number| _ = self.progress.begin(&self.stream, number), work)
    }

    /// How far the device has come, part by part.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// A fault in the driver's words, with the part that the device was in and what it was to do there.
    pub fn fault(&self, error: DriverError) -> String {
        self.stuck(&said(error))
    }

    /// The same of somebody else's words.
    pub fn stuck(&self, what: &str) -> String {
        self.trace.explain_at(self.progress.now(), what)
    }

    /// The stream of all launches.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Events to be recorded on its streams.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Pinned memory of the host.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Bytes of its memory that nobody has taken, and all of them.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.checked(result::mem_get_info())
    }

    /// Waits until everything that was started is done.
    pub fn sync(&self) -> Result<()> {
        self.checked(self.stream.synchronize())
    }

    /// A fault may be that of an earlier launch: it comes with the last ones.
    fn checked<T>(&self, done: std::result::Result<T, DriverError>) -> Result<T> {
        done.map_err(|error| Error::Driver(self.trace.explain(&said(error))))
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
        // The one parameter of every kernel; the driver copies it before it returns.
        let mut parameters = [args.cast_mut()];
        // SAFETY: the function is of a module that lives as long as the device, on whose stream it is started; the
        // caller answers for the arguments.
        let launch = || unsafe {
            result::launch_kernel(function, grid, block, geometry.shared, self.stream.raw(), &mut parameters)
        };
        let started =
            self.recorded(Detail::Ops, Track::Compute, || Label::Op(kernel.to_string()), &self.stream, launch);
        let started = started.map_err(|error| self.trace.explain(&said(error)));
        self.trace.started(Launch::Kernel(kernel, geometry));
        started
    }
}

fn handle(ordinal: usize) -> Result<sys::CUdevice> {
    if !list::start()? {
        return Err(Error::NoDriver);
    }
    let there = result::device::get_count()?.max(0) as usize;
    if ordinal >= there {
        return Err(Error::NoDevice { asked: ordinal, there });
    }
    Ok(result::device::get(ordinal as i32)?)
}

type Functions = HashMap<&'static str, sys::CUfunction>;

/// Every kernel by its name, allowed as much shared memory as the device gives a block.
fn load_all(cubins: &[Cubin], device: sys::CUdevice) -> std::result::Result<(Vec<Module>, Functions), DriverError> {
    use sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as MOST_SHARED;
    use sys::CUfunction_attribute::{
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as DYNAMIC, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as STATIC,
    };
    let most = list::attribute(device, MOST_SHARED)?;
    let (mut modules, mut functions) = (Vec::new(), HashMap::new());
    for cubin in cubins {
        let module = Module::load(&cubin.image)?;
        for &name in cubin.kernels {
            let c_name = CString::new(name).expect("no kernel's name holds a zero");
            // SAFETY: the module is loaded, and lives as long as the functions that are taken from it.
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

/// The device's primary context, which all users of the device in this process share.
struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
}

impl Context {
    fn of(device: sys::CUdevice) -> std::result::Result<Self, DriverError> {
        // SAFETY: the driver gave this device; the context is given back by `drop`.
        unsafe {
            let kept = Context { device, raw: result::primary_ctx::retain(device)? };
            kept.current()?;
            Ok(kept)
        }
    }

    fn current(&self) -> std::result::Result<(), DriverError> {
        // SAFETY: the context is retained for as long as this lives.
        unsafe { result::ctx::set_current(self.raw) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: it was retained once by `of`. An error here would be one of launches before, told of already.
        _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// A cubin on the device.
struct Module(sys::CUmodule);

impl Module {
    fn load(image: &[u8]) -> std::result::Result<Self, DriverError> {
        // SAFETY: the image is a whole cubin: the compiler's own, or one whose checksum was right. The driver copies it.
        unsafe { result::module::load_data(image.as_ptr().cast()) }.map(Module)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: it was loaded once, and nothing launches its functions any more.
        _ = unsafe { result::module::unload(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Where there is no device, one sentence says what to do.
    #[test]
    fn a_machine_without_a_device_is_told_what_to_install() {
        if Path::new("/dev/nvidia0").exists() {
            return;
        }
        let opened = Device::open(0, &Places::of(|_| None, None));
        let said = opened.err().unwrap().to_string();
        assert!(said.contains("driver") && said.contains("cpu"), "{said}");
    }
}
