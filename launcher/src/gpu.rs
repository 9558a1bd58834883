//! The GPU of every rank: which device it takes, whether the devices of all ranks fit together, and whether they fit
//! the run.

use crate::library_settings;
use crate::memory::{self, Taken};
use crate::output::say;
use cuda::Device;
use cuda::arch::Arch;
use cuda::backend::{CommOptions, Cuda, Error as CudaError, Tuning, product_of};
use cuda::blas::Product;
use cuda::compile::{Places, Version};
use cuda::device::{Error as DeviceError, devices};
use cuda::limits::{Shape, refusal as refusal_of_shape};
use cuda::nccl::{Nccl, shown};
use engine::backend::Backend;
use engine::config::{Config, Precision};
use engine::error::{Error, Result, counted};
use engine::layout::rank_layout::RankLayout;
use engine::memory::table::GIB;
use engine::mpi::{Comm, host};
use engine::train::state::copy_bytes;
use half::bf16;
use plan::dry_run::{self, DryRun, refusal};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

/// The name by which NCCL identifies a node. Ranks with different ones may share a GPU, which is slow, but lets tests
/// run several ranks on one device.
const HOSTID: &str = "NCCL_HOSTID";
/// The variables that override NCCL's configuration of a communicator, or raise its number of channels.
const CHANNELS: [&str; 3] = ["NCCL_MAX_CTAS", "NCCL_MIN_CTAS", "NCCL_MIN_NCHANNELS"];
/// The variable that has NCCL order the kernels of all communicators. This engine does not need that.
const LAUNCH_ORDER: &str = "NCCL_LAUNCH_ORDER_IMPLICIT";

/// The properties of their devices that the ranks compare.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Facts {
    host: String,
    uuid: String,
    name: String,
    /// Bytes of device memory.
    memory: usize,
    /// NCCL's version code; `None` in a run of one rank.
    nccl: Option<i32>,
    hostid: Option<String>,
}

/// The folders in which this process looks for NVIDIA's libraries and for compiled kernels.
pub fn places() -> Places {
    let program = std::env::current_exe().ok();
    Places::of(|name| std::env::var_os(name), program.as_deref())
}

/// The folder of the cache of cuBLASLt algorithm choices.
pub fn cache() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(home.join("swallow-engine/products"))
}

/// Whether every rank has a device; an error where only some have one. Collective.
pub fn are_present(comm: &Comm) -> Result<bool> {
    let mine = devices().map(|devices| devices.len()).map_err(Error::run);
    let mine = comm.agree(mine)?;
    let all = comm.all_gather_bytes(format!("{mine} {}", host()).as_bytes());
    let all: Vec<String> = all.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect();
    let first = |has: bool| {
        let rank = all.iter().position(|text| text.starts_with("0 ") != has)?;
        let (_, host) = all[rank].split_once(' ').expect("every rank wrote two words");
        Some(format!("rank {rank} on {host}"))
    };
    match (first(true), first(false)) {
        (Some(with), Some(without)) => Err(Error::user(format!(
            "{without} has no CUDA device, but {with} has one: make a device visible to every rank \
             (CUDA_VISIBLE_DEVICES), leave that machine out, or set train.backend = \"cpu\""
        ))),
        (with, _) => Ok(with.is_some()),
    }
}

/// Why a rank's device cannot be used for this run, as far as that is known without opening it; the first such rank's
/// reason. Collective.
pub fn unsuitable(config: &Config, comm: &Comm) -> Option<String> {
    let mine = unsuitable_here(config).unwrap_or_default();
    let all = comm.all_gather_bytes(mine.as_bytes());
    all.into_iter().find(|why| !why.is_empty()).map(|why| String::from_utf8_lossy(&why).into_owned())
}

fn unsuitable_here(config: &Config) -> Option<String> {
    if config.train.precision == Some(Precision::F32) {
        return Some("train.precision is \"f32\"".into());
    }
    let first = devices().ok()?.into_iter().next()?;
    let arch = || Arch::of(first.compute_capability).err().map(|why| format!("{}: {why}", first.name));
    refusal_of_shape(shape(config)).or_else(arch)
}

/// The kernels accept only some shapes of models.
pub fn must_fit_kernels(config: &Config) -> Result<()> {
    refusal_of_shape(shape(config))
        .map_or(Ok(()), |why| Err(Error::user(format!("{why}; choose another shape, or set train.backend = \"cpu\""))))
}

fn shape(config: &Config) -> Shape {
    Shape { head_dim: config.model.head_dim, hidden_size: config.model.hidden_size }
}

/// Opens this rank's device as a backend. The ranks of `comm` are in the mesh's order. Collective.
pub fn open(config: &Config, comm: &Rc<Comm>) -> Result<Cuda> {
    let node = comm.split_node();
    let ordinal = comm.agree(ordinal(&node))?;
    // The first rank of a node compiles the kernels that are not cached yet, for all ranks of the node.
    let first = if node.rank() == 0 { Some(device(ordinal)) } else { None };
    node.barrier();
    let (device, notes) = comm.agree(first.unwrap_or_else(|| device(ordinal)))?;
    if comm.rank() == 0 {
        notes.iter().chain([&library_settings::note()]).for_each(|note| say!("note: {note}"));
    }
    let places = places();
    let nccl = (comm.size() > 1).then(|| Nccl::find(places.search()).map_err(Error::user)).transpose();
    let nccl = comm.agree(nccl)?;
    let facts = Facts {
        host: host(),
        uuid: device.info().uuid.clone(),
        name: device.info().name.clone(),
        memory: device.info().memory,
        nccl: nccl.as_ref().map(|nccl| nccl.version()),
        hostid: std::env::var(HOSTID).ok(),
    };
    let facts = comm.all_gather_bytes(&serde_json::to_vec(&facts).expect("text and numbers are JSON"));
    let read = |bytes: &Vec<u8>| serde_json::from_slice(bytes).expect("every rank wrote it with this program");
    let facts: Vec<Facts> = facts.iter().map(read).collect();
    check(&facts).map_or(Ok(()), |why| Err(Error::user(why)))?;
    let world = (comm.size() > 1).then(|| comm.clone());
    let allowed = |nccl: &Rc<Nccl>| counted_ctas().and(launch_order(nccl.version(), device.driver()));
    comm.agree(nccl.as_ref().map_or(Ok(()), allowed))?;
    let options = CommOptions { nccl, ctas: config.nccl.clone() };
    comm.agree(Cuda::open(device, world, options).map_err(at_start))
}

/// Allocates the arena that the run needs according to a dry run, and chooses the algorithms of its matrix products.
/// Collective.
pub fn allocate_arena(b: &Cuda, config: &Config, rank_layout: &RankLayout, comm: &Comm) -> Result<Taken> {
    let planned = comm.agree(dry_run::plan::<bf16>(config, &rank_layout.mesh, comm.rank(), b.scratch()))?;
    let (blocks, copy, others) = (planned.usage, copy_bytes(config, rank_layout), b.taken_by_others());
    comm.agree(b.check_streams().map_err(at_start))?;
    memory::must_fit(config, comm, copy)?;
    // Rank 0 alone finds the remedies, which takes dry runs.
    let refusal = |worst| refusal::<bf16>(config, &rank_layout.mesh, worst, &b.scratch()).unwrap_or_else(|error| error);
    must_fit(b, blocks.reserved, refusal, comm)?;
    let own = config.checkpoint.dir.join("products");
    // The run keeps its own choices: those of another machine's cache could round differently.
    let cache = if own.is_dir() { Some(own.clone()) } else { cache() };
    make_arena(b, &planned, cache, comm)?;
    if comm.rank() == 0
        && let Err(why) = b.keep_choices(&own)
    {
        say!("note: {why}; a run that continues this one may choose other algorithms, which round differently");
    }
    let others = others.map(|taken| taken + reserve(comm.size()));
    Ok(Taken { blocks, copy, others })
}

/// Allocates the arena that an evaluation needs according to a dry run, and chooses the algorithms of its matrix
/// products. Collective.
pub fn allocate_arena_to_evaluate(b: &Cuda, config: &Config, rank_layout: &RankLayout, comm: &Comm) -> Result<()> {
    let planned = comm.agree(dry_run::evaluation::<bf16>(config, &rank_layout.mesh, comm.rank(), b.scratch()))?;
    comm.agree(b.check_streams().map_err(at_start))?;
    let refusal = |(needed, free): (usize, usize)| {
        Error::user(format!(
            "--backend cuda: the evaluation needs {:.1} GiB of a device that has {:.1} GiB free; share the model over \
             more ranks with --tensor or --pipeline",
            gib(needed),
            gib(free)
        ))
    };
    must_fit(b, planned.usage.reserved, refusal, comm)?;
    make_arena(b, &planned, cache(), comm)
}

/// Allocates the arena of a dry run, and chooses the algorithms of its matrix products, those in the folder `cache`
/// first. Collective.
fn make_arena(b: &Cuda, planned: &DryRun, cache: Option<PathBuf>, comm: &Comm) -> Result<()> {
    let products: Vec<Product> = planned.log.products.iter().map(product_of).collect();
    let places = places();
    let tuning = Tuning { search: places.search(), cache: cache.as_deref(), products: &products };
    comm.agree(b.allocate_arena(planned.cut(), &tuning).map_err(at_start))?;
    let notes = comm.agree(b.tune(&tuning).map_err(at_start))?;
    if comm.rank() == 0 {
        notes.iter().for_each(|note| say!("note: {note}"));
    }
    Ok(())
}

/// Every rank's `bytes` must be free on its device, else rank 0 makes the error of the worst rank's needed and free
/// bytes. Collective.
fn must_fit(b: &Cuda, bytes: usize, refusal: impl Fn((usize, usize)) -> Error, comm: &Comm) -> Result<()> {
    let (free, _) = comm.agree(b.memory().map_err(at_start))?;
    let all = comm.all_gather_bytes(&[bytes.to_le_bytes(), free.to_le_bytes()].concat());
    let number = |bytes: &[u8]| usize::from_le_bytes(bytes.try_into().expect("every rank wrote two numbers"));
    let all = all.iter().map(|pair| (number(&pair[..8]), number(&pair[8..])));
    let all = all.map(|(needed, free): (usize, usize)| (needed, free.saturating_sub(reserve(comm.size()))));
    let worst = all.max_by_key(|(needed, free)| *needed as i128 - *free as i128).expect("a run has ranks");
    if worst.0 <= worst.1 {
        return Ok(());
    }
    comm.agree(if comm.rank() == 0 { Err(refusal(worst)) } else { Ok(()) })
}

/// Device bytes that libraries allocate at first use: cuBLASLt's kernels, and with several ranks what NCCL does not
/// take when it connects them. A generous estimate, not yet measured on a device.
pub fn reserve(ranks: usize) -> usize {
    if ranks > 1 { 1 << 30 } else { 256 << 20 }
}

fn gib(bytes: usize) -> f64 {
    bytes as f64 / GIB
}

/// The ordinal of this rank's device on its node.
fn ordinal(node: &Comm) -> Result<usize> {
    let n_devices = devices().map_err(Error::run)?.len();
    choose(node.rank(), node.size(), n_devices, std::env::var_os(HOSTID).is_some()).map_err(Error::user)
}

/// The node's ranks take the devices in order. A rank that sees one device only takes that one.
fn choose(rank: usize, ranks: usize, devices: usize, shared: bool) -> std::result::Result<usize, String> {
    match devices {
        0 => Err(format!("{}: {}", host(), DeviceError::NoDriver)),
        1 => Ok(0),
        _ if shared => Ok(rank % devices),
        _ if devices >= ranks => Ok(rank),
        _ => Err(format!(
            "{} has {} for {} of this job: start one rank per GPU (mpirun --map-by ppr:{devices}:node)",
            host(),
            counted(devices, "GPU"),
            counted(ranks, "rank")
        )),
    }
}

fn device(ordinal: usize) -> Result<(Device, Vec<String>)> {
    Device::open(ordinal, &places()).map_err(|error| match error {
        DeviceError::Driver(_) => Error::run(format!("{}: {error}", host())),
        _ => Error::user(format!("{}: {error}", host())),
    })
}

/// Why these ranks cannot form a job, if they cannot.
fn check(ranks: &[Facts]) -> Option<String> {
    shared(ranks).or_else(|| mixed(ranks))
}

/// Two ranks on one GPU without different values of `NCCL_HOSTID`, by which the user allows it.
fn shared(ranks: &[Facts]) -> Option<String> {
    let mut seen = BTreeMap::new();
    for (rank, facts) in ranks.iter().enumerate() {
        let Some(before) = seen.insert(&facts.uuid, rank) else { continue };
        if facts.hostid.is_none() || facts.hostid == ranks[before].hostid {
            return Some(format!(
                "ranks {before} and {rank} on {} have the same GPU ({}): start one rank per GPU, make another GPU \
                 visible to each rank (CUDA_VISIBLE_DEVICES), or, for a test, set another {HOSTID} for each rank",
                facts.host, facts.name
            ));
        }
    }
    None
}

/// Devices or libraries that differ: the slowest rank would hold up the others, and results would depend on the rank.
fn mixed(ranks: &[Facts]) -> Option<String> {
    let first = &ranks[0];
    let (rank, other) = ranks.iter().enumerate().find(|(_, facts)| {
        (&facts.name, facts.nccl) != (&first.name, first.nccl) || is_other(facts.memory, first.memory)
    })?;
    if other.nccl != first.nccl {
        let [a, b] = [first, other].map(|facts| shown(facts.nccl.unwrap_or_default()));
        return Some(format!(
            "rank 0 on {} has NCCL {a}, rank {rank} on {} has NCCL {b}: all ranks need the same version",
            first.host, other.host
        ));
    }
    Some(format!(
        "rank 0 on {} has {} ({:.1} GiB), rank {rank} on {} has {} ({:.1} GiB): all ranks need devices of one kind",
        first.host,
        first.name,
        gib(first.memory),
        other.host,
        other.name,
        gib(other.memory)
    ))
}

/// Whether two memory sizes are those of different devices: drivers reserve a little, and not all the same amount.
fn is_other(a: usize, b: usize) -> bool {
    a.abs_diff(b) > a.max(b) / 32
}

/// Refuses variables by which NCCL would take other thread blocks than `[nccl]` says.
fn counted_ctas() -> Result<()> {
    let set = |name: &&'static str| Some((*name, std::env::var_os(name).filter(|value| !value.is_empty())?));
    match CHANNELS.iter().find_map(set) {
        None => Ok(()),
        Some((name, value)) => Err(Error::user(format!(
            "{name} = {value:?}: NCCL would take another number of multiprocessors than this run counts on; unset it, \
             and write [nccl] in the configuration"
        ))),
    }
}

/// NCCL's implicit launch order waits for whole kernels on drivers before CUDA 12.3. Then a receive holds up the work
/// that its sender waits for.
fn launch_order(nccl: i32, driver: Version) -> Result<()> {
    let asked = std::env::var_os(LAUNCH_ORDER).is_some_and(|value| !value.is_empty() && value != "0");
    let (has_it, waits) = (nccl >= 22600, driver < Version { major: 12, minor: 3 });
    if !(asked && has_it && waits) {
        return Ok(());
    }
    Err(Error::user(format!(
        "{LAUNCH_ORDER}: with this driver (CUDA {driver}) NCCL {} runs one communicator at a time, so that pipeline \
         stages can wait for each other for ever: unset it, or install a driver of CUDA 12.3 or newer",
        shown(nccl)
    )))
}

/// An error of the backend before the first step: where something is missing, the user has to act.
pub fn at_start(error: CudaError) -> Error {
    match error {
        CudaError::Products(_)
        | CudaError::Mixed { .. }
        | CudaError::SharedQueues { .. }
        | CudaError::NoProcessor(_) => Error::user(format!("{}: {error}", host())),
        CudaError::Device(_) | CudaError::Fault(_) => Error::run(format!("{}: {error}", host())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(host: &str, uuid: &str) -> Facts {
        let (host, uuid, name) = (host.into(), uuid.into(), "NVIDIA A100-SXM4-40GB".into());
        Facts { host, uuid, name, memory: 40 << 30, nccl: Some(22703), hostid: None }
    }

    #[test]
    fn each_rank_takes_a_device_of_its_own() {
        let all = |ranks, devices| (0..ranks).map(|rank| choose(rank, ranks, devices, false)).collect::<Vec<_>>();
        assert_eq!(all(3, 4), [Ok(0), Ok(1), Ok(2)]);
        // Each rank sees one device only.
        assert_eq!(all(2, 1), [Ok(0), Ok(0)]);
        let message = all(8, 4)[5].clone().unwrap_err();
        assert!(message.contains("4 GPUs for 8 ranks") && message.contains("ppr:4:node"), "{message}");
        assert_eq!(choose(5, 8, 4, true), Ok(1));
        assert!(choose(0, 1, 0, false).unwrap_err().contains("driver"));
    }

    #[test]
    fn ranks_share_a_device_only_if_they_say_so() {
        let two = [rank("a", "1"), rank("b", "3"), rank("a", "2"), rank("a", "1")];
        let message = check(&two).unwrap();
        assert!(message.contains("ranks 0 and 3 on a") && message.contains("CUDA_VISIBLE_DEVICES"), "{message}");
        assert_eq!(check(&two[..3]), None);
        let named = |id: &str| Facts { hostid: Some(id.into()), ..rank("a", "1") };
        assert_eq!(check(&[named("x"), named("y")]), None);
        assert!(check(&[named("x"), named("x")]).is_some());
    }

    #[test]
    fn devices_and_libraries_are_of_one_kind() {
        let other = Facts { name: "NVIDIA A100-SXM4-80GB".into(), memory: 80 << 30, ..rank("b", "2") };
        let message = check(&[rank("a", "1"), other]).unwrap();
        assert!(message.contains("rank 1 on b") && message.contains("80.0 GiB"), "{message}");
        let old = Facts { nccl: Some(21803), ..rank("b", "2") };
        assert!(check(&[rank("a", "1"), old]).unwrap().contains("NCCL 2.18.3"));
        let nearly = Facts { memory: (40 << 30) - (300 << 20), ..rank("b", "2") };
        assert_eq!(check(&[rank("a", "1"), nearly]), None);
    }
}
