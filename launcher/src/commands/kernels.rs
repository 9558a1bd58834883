//! `kernels`: compiles the CUDA kernels ahead of time, and shows which kernels this machine would use.

use crate::output::{or_broken_pipe, say};
use crate::progress::Count;
use crate::table::{aligned, table};
use clap::{Args as ClapArgs, Subcommand};
use comfy_table::{Table, presets};
use cuda::arch::Arch;
use cuda::compile::{self, Manifest, Nvrtc, Places, Resources};
use cuda::kernels::{FILES, files_for};
use cuda::search::Search;
use cuda::{Device, device, ops};
use engine::error::{Error, Result};
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compile all kernels into a pack, for machines without NVRTC
    #[command(
        after_help = "The program looks for a pack beside itself (kernels/ or ../share/swallow-engine/kernels/) and at \
        the path in SWALLOW_KERNELS. A pack works only with the program that built it. A driver loads code compiled by \
        its own CUDA version or an older one: build with NVRTC 12 for clusters with drivers before \
        R580.\n\nExamples:\n  swallow-engine kernels build --arch sm_80,sm_90a --out kernels\n  \
        swallow-engine kernels build --arch sm_80 --out /opt/swallow/kernels \\\n      \
        --nvrtc /usr/local/cuda-12.9/lib64"
    )]
    Build(Build),
    /// Find the kernels as a run would, and load them where there is a device
    #[command(
        after_help = "A pack is used first, then the cache of kernels compiled earlier, then NVRTC. With --arch no \
        device is needed, and the cache is filled for nodes of that architecture that share this home \
        directory.\n\nExamples:\n  swallow-engine kernels check\n  swallow-engine kernels check --arch sm_80"
    )]
    Check(Check),
}

#[derive(ClapArgs)]
struct Build {
    /// Architectures: sm_80 for A100, sm_90a for H100 and H200
    #[arg(long, required = true, value_delimiter = ',', value_name = "ARCH")]
    arch: Vec<String>,
    /// Folder of the pack
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Path of libnvrtc.so or its folder [default: search SWALLOW_CUDA_LIBS, Python's wheels, CUDA toolkits, the
    /// system]
    #[arg(long, value_name = "PATH")]
    nvrtc: Option<PathBuf>,
}

#[derive(ClapArgs)]
struct Check {
    /// Check for this architecture instead of this machine's devices
    #[arg(long, value_name = "ARCH")]
    arch: Option<String>,
}

pub fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Build(args) => build(&args),
        Command::Check(args) => check(&args),
    }
}

fn build(args: &Build) -> Result<()> {
    let mut archs = args.arch.iter().map(|name| arch(name)).collect::<Result<Vec<_>>>()?;
    archs.sort();
    archs.dedup();
    let nvrtc = match &args.nvrtc {
        None => Nvrtc::find(&Search::of(|name| std::env::var_os(name)), None).map_err(compile_error)?,
        Some(path) => named(path)?,
    };
    let count = Count::new("compiling kernels", archs.iter().map(|arch| files_for(arch.target()).count() as u64).sum());
    let built = compile::build(&nvrtc, &archs, &args.out, || count.one());
    count.finish();
    let built = built.map_err(compile_error)?;
    for cubin in &built.cubins {
        cubin.warnings.iter().for_each(|warning| say!("warning: {}, {}: {warning}", cubin.file, cubin.arch));
    }
    let (out, cubins, version) = (args.out.display(), built.cubins.len(), nvrtc.version());
    let summary = format!("{out}: {cubins} cubins by NVRTC {version} ({})", nvrtc.path().display());
    or_broken_pipe(writeln!(std::io::stdout(), "{}\n\n{summary}", resources(&built, &archs)))
}

/// The compiler at the path that the user gave.
fn named(path: &Path) -> Result<Nvrtc> {
    Nvrtc::find(&Search::only(path), None).map_err(|error| {
        let why = match error {
            compile::Error::NoCompiler { tried, .. } if !tried.is_empty() => tried.join("; "),
            _ => format!("{} contains no libnvrtc.so", path.display()),
        };
        Error::user(format!("--nvrtc {}: this is not NVRTC of CUDA 12 or newer ({why})", path.display()))
    })
}

/// One row per kernel: its largest launch, then for each architecture its registers per thread, and the number of
/// threads that a multiprocessor can run at once with them.
fn resources(built: &Manifest, archs: &[Arch]) -> Table {
    let columns = archs.iter().flat_map(|arch| [arch.to_string(), format!("threads on {arch}")]);
    let header: Vec<String> =
        ["kernel", "block", "shared, bytes"].into_iter().map(String::from).chain(columns).collect();
    let mut table = table(&header.iter().map(String::as_str).collect::<Vec<_>>());
    table.load_style(presets::ASCII_MARKDOWN);
    for file in FILES {
        for &kernel in file.kernels {
            let launch = ops::largest(kernel).expect("a test holds it to know every kernel");
            let mut row = vec![kernel.to_string(), launch.block.to_string(), launch.shared.to_string()];
            row.extend(archs.iter().flat_map(|&arch| match found(built, kernel, arch) {
                None => [String::new(), String::new()],
                Some(needs) => {
                    let shared = launch.shared + needs.shared;
                    let blocks = arch.processor().at_once(launch.block, needs.registers, shared);
                    [registers(needs), (blocks * launch.block).to_string()]
                }
            }));
            table.add_row(row);
        }
    }
    aligned(table, 1)
}

fn found<'a>(built: &'a Manifest, kernel: &str, arch: Arch) -> Option<&'a Resources> {
    let arch = arch.to_string();
    let of_arch = built.cubins.iter().filter(|cubin| cubin.arch == arch);
    of_arch.flat_map(|cubin| &cubin.kernels).find(|needs| needs.kernel == kernel)
}

fn registers(needs: &Resources) -> String {
    match needs.spill_stores.max(needs.spill_loads) {
        0 => needs.registers.to_string(),
        spilled => format!("{} + {spilled} bytes spilled", needs.registers),
    }
}

fn check(args: &Check) -> Result<()> {
    let program = std::env::current_exe().ok();
    let places = Places::of(|name| std::env::var_os(name), program.as_deref());
    if let Some(name) = &args.arch {
        let kernels = places.kernels(arch(name)?, None).map_err(compile_error)?;
        kernels.notes.iter().for_each(|note| say!("note: {note}"));
        return or_broken_pipe(writeln!(std::io::stdout(), "{}: {}", kernels.arch, kernels.origin));
    }
    let devices = cuda::devices().map_err(Error::run)?;
    // If there is no device, opening the first one returns the reason.
    for ordinal in 0..devices.len().max(1) {
        let (device, notes) = Device::open(ordinal, &places).map_err(device_error)?;
        notes.iter().for_each(|note| say!("note: {note}"));
        let (name, arch, origin) = (&device.info().name, device.arch(), device.origin());
        or_broken_pipe(writeln!(std::io::stdout(), "device {ordinal}, {name}: {arch}, {origin}"))?;
    }
    Ok(())
}

fn arch(name: &str) -> Result<Arch> {
    Arch::named(name).map_err(|known| Error::user(format!("--arch {name:?}: the kernels are compiled for {known}")))
}

/// A kernel that does not compile is not the user's mistake; a missing or unsuitable library is.
fn compile_error(error: compile::Error) -> Error {
    match error {
        compile::Error::Compile { .. } => Error::run(error.to_string()),
        compile::Error::Io { path, error } => Error::io(&path, error),
        error => Error::user(error.to_string()),
    }
}

fn device_error(error: device::Error) -> Error {
    match error {
        device::Error::Kernels(error) => compile_error(error),
        device::Error::Driver(what) => Error::run(what),
        error => Error::user(error.to_string()),
    }
}
