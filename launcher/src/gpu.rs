//! Every rank's GPU: which one it is, and whether those of all ranks make a job.

use crate::memory::{self, Taken};
use cuda::Device;
use cuda::arch::Arch;
use cuda::backend::{Cuda, Error as CudaError, Outlook, Tuning, product_of};
use cuda::blas::Product;
use cuda::compile::Places;
use cuda::device::{Error as DeviceError, devices};
use cuda::limits::{Shape, refusal as refusal_of_shape};
use cuda::nccl::{Nccl, shown};
use engine::config::{Config, Precision};
use engine::error::{Error, Result, counted};
use engine::layout::mesh::Mesh;
use engine::layout::rank_layout::RankLayout;
use engine::mpi::{Comm, host};
use engine::train::state::copy_bytes;
use half::bf16;
use plan::dry_run::{self, refusal};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// For which a rank waits for others that do not move.
const PATIENCE: Duration = Duration::from_secs(600);
const WAIT: &str = "SWALLOW_PATIENCE_S";
/// By which NCCL tells nodes apart. Ranks that each have their own may share a GPU, which is slow and good for tests.
const HOSTID: &str = "NCCL_HOSTID";

/// What the ranks must know of each other's devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Facts {
    host: String,
    uuid: String,
    name: String,
    /// Bytes of its memory.
    memory: usize,
    /// As NCCL counts; None where there is one rank.
    nccl: Option<i32>,
    hostid: Option<String>,
}

/// Where a process finds NVIDIA's libraries and compiled kernels.
pub fn places() -> Places {
    let program = std::env::current_exe().ok();
    Places::of(|name| std::env::var_os(name), program.as_deref())
}

/// The folder that choices of algorithms are kept in.
pub fn cache() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(home.join("swallow-engine/products"))
}

/// Whether every rank's machine has a device; refused where only some have.
pub fn are_there(comm: &Comm) -> Result<bool> {
    let mine = devices().map(|devices| devices.len()).map_err(Error::run);
    let mine = comm.agree(mine)?;
    let all = comm.all_gather_bytes(format!("{mine} {}", host()).as_bytes());
    let all: Vec<String> = all.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect();
    let first = |has: bool| {
        let rank_layout = all.iter().position(|text| text.starts_with("0 ") != has)?;
        let (_, host) = all[rank_layout].split_once(' ').expect("as it was written above");
        Some(format!("rank {rank_layout} on {host}"))
    };
    match (first(true), first(false)) {
        (Some(with), Some(without)) => Err(Error::user(format!(
            "{without} has no CUDA device, and {with} has one: show every rank a device (CUDA_VISIBLE_DEVICES), leave \
             that machine out, or take train.backend = \"cpu\""
        ))),
        (with, _) => Ok(with.is_some()),
    }
}

/// Why a rank's device will not do for a run, by what is known without opening it: the first such rank's answer. All ranks
/// call it together.
pub fn unfit(config: &Config, comm: &Comm) -> Option<String> {
    let mine = unfit_here(config).unwrap_or_default();
    let all = comm.all_gather_bytes(mine.as_bytes());
    all.into_iter().find(|why| !why.is_empty()).map(|why| String::from_utf8_lossy(&why).into_owned())
}

fn unfit_here(config: &Config) -> Option<String> {
    if config.train.precision == Some(Precision::F32) {
        return Some("train.precision is \"f32\"".into());
    }
    let shape = Shape { head_dim: config.model.head_dim, hidden_size: config.model.hidden_size };
    let first = devices().ok()?.into_iter().next()?;
    let arch = || Arch::of(first.compute_capability).err().map(|why| format!("{}: {why}", first.name));
    refusal_of_shape(shape).or_else(arch)
}

/// This rank's device as a backend. All ranks of `comm`, the mesh's order, call it together.
pub fn open(comm: &Rc<Comm>) -> Result<Cuda> {
    let node = comm.split_node();
    let ordinal = comm.agree(ordinal(&node))?;
    // The first rank of a node compiles what is not there yet, and leaves it to the others.
    let first = if node.rank() == 0 { Some(device(ordinal)) } else { None };
    node.barrier();
    let (device, notes) = comm.agree(first.unwrap_or_else(|| device(ordinal)))?;
    if comm.rank() == 0 {
        notes.iter().for_each(|note| eprintln!("note: {note}"));
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
    let facts = comm.all_gather_bytes(&serde_json::to_vec(&facts).expect("facts are JSON"));
    let facts: Vec<Facts> =
        facts.iter().map(|bytes| serde_json::from_slice(bytes).expect("a rank of this program wrote it")).collect();
    check(&facts).map_or(Ok(()), |why| Err(Error::user(why)))?;
    let (world, patience) = ((comm.size() > 1).then(|| comm.clone()), comm.agree(patience())?);
    comm.agree(Cuda::open(device, world, Outlook { nccl, patience }).map_err(told))
}

/// Takes the memory that the run will need, as a rehearsal says, and chooses the algorithms of its products. All ranks
/// call it together.
pub fn settle(b: &Cuda, config: &Config, rank_layout: &RankLayout, comm: &Comm) -> Result<Taken> {
    let rehearsed = comm.agree(dry_run::plan::<bf16>(config, &rank_layout.mesh, comm.rank(), b.scratch()))?;
    let (blocks, copy) = (rehearsed.usage, copy_bytes(config, rank_layout));
    memory::must_fit(config, comm, copy)?;
    must_fit(b, config, &rank_layout.mesh, blocks.reserved, comm)?;
    let products: Vec<Product> = rehearsed.log.products.iter().map(product_of).collect();
    let (places, own) = (places(), config.checkpoint.dir.join("products"));
    // What a run chose is kept with it: another choice, of another machine's cache, leaves other bits.
    let cache = if own.is_dir() { Some(own.clone()) } else { cache() };
    let tuning = Tuning { search: places.search(), cache: cache.as_deref(), products: &products };
    comm.agree(b.settle(rehearsed.cut(), &tuning).map_err(told))?;
    let notes = comm.agree(b.tune(&tuning).map_err(told))?;
    if comm.rank() == 0 {
        notes.iter().for_each(|note| eprintln!("note: {note}"));
    }
    if comm.rank() == 0
        && let Err(why) = b.keep_choices(&own)
    {
        eprintln!("note: {why}, so a run that continues this one may compute with other bits");
    }
    Ok(Taken { blocks, copy })
}

/// Every rank's `bytes` must be free on its device. All ranks call it together.
fn must_fit(b: &Cuda, config: &Config, mesh: &Mesh, bytes: usize, comm: &Comm) -> Result<()> {
    let (free, _) = comm.agree(b.memory().map_err(told))?;
    let all = comm.all_gather_bytes(&[bytes.to_le_bytes(), free.to_le_bytes()].concat());
    let number = |bytes: &[u8]| usize::from_le_bytes(bytes.try_into().expect("as it was written above"));
    let all = all.iter().map(|pair| (number(&pair[..8]), number(&pair[8..])));
    let all = all.map(|(needed, free): (usize, usize)| (needed, free.saturating_sub(reserve(comm.size()))));
    let worst = all.max_by_key(|(needed, free)| *needed as i128 - *free as i128).expect("a run has ranks");
    if worst.0 <= worst.1 {
        return Ok(());
    }
    // The remedies are rehearsed once, for all.
    let refusal = || refusal::<bf16>(config, mesh, worst, &b.scratch()).unwrap_or_else(|error| error);
    comm.agree(if comm.rank() == 0 { Err(refusal()) } else { Ok(()) })
}

/// Bytes of a device that libraries take when they are first used: cuBLASLt's kernels, and where there are several ranks
/// the buffers that NCCL makes for large calls. Set with room; not measured on a device yet.
pub fn reserve(ranks: usize) -> usize {
    if ranks > 1 { 1 << 30 } else { 256 << 20 }
}

fn gib(bytes: usize) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// The number of this rank's device on its node.
fn ordinal(node: &Comm) -> Result<usize> {
    let there = devices().map_err(Error::run)?.len();
    choose(node.rank(), node.size(), there, std::env::var_os(HOSTID).is_some()).map_err(Error::user)
}

/// Rank by rank where there are enough. Where each rank is shown one device only, it takes that.
fn choose(rank: usize, ranks: usize, devices: usize, shared: bool) -> std::result::Result<usize, String> {
    match devices {
        0 => Err(format!("{}: {}", host(), DeviceError::NoDriver)),
        1 => Ok(0),
        _ if shared => Ok(rank % devices),
        _ if devices >= ranks => Ok(rank),
        _ => Err(format!(
            "{} has {} and {} of this job: start one rank a GPU (mpirun --map-by ppr:{devices}:node)",
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

/// What keeps these ranks from being a job.
fn check(ranks: &[Facts]) -> Option<String> {
    shared(ranks).or_else(|| mixed(ranks))
}

/// Two ranks on one GPU that do not say that they mean it.
fn shared(ranks: &[Facts]) -> Option<String> {
    let mut seen = BTreeMap::new();
    for (rank, facts) in ranks.iter().enumerate() {
        let Some(before) = seen.insert(&facts.uuid, rank) else { continue };
        if facts.hostid.is_none() || facts.hostid == ranks[before].hostid {
            return Some(format!(
                "ranks {before} and {rank} on {} have the same GPU ({}): start one rank a GPU, show each rank its own \
                 (CUDA_VISIBLE_DEVICES), or, for a test, give each rank a {HOSTID} of its own",
                facts.host, facts.name
            ));
        }
    }
    None
}

/// Devices or libraries that differ: the slowest would set the pace, and results would depend on the rank.
fn mixed(ranks: &[Facts]) -> Option<String> {
    let first = &ranks[0];
    let (rank, other) = ranks.iter().enumerate().find(|(_, facts)| {
        (&facts.name, facts.nccl) != (&first.name, first.nccl) || is_other(facts.memory, first.memory)
    })?;
    if other.nccl != first.nccl {
        let [a, b] = [first, other].map(|facts| shown(facts.nccl.unwrap_or_default()));
        return Some(format!(
            "rank 0 on {} has NCCL {a}, rank {rank} on {} has NCCL {b}: all ranks need the same one",
            first.host, other.host
        ));
    }
    Some(format!(
        "rank 0 on {} has {} ({:.1} GiB), rank {rank} on {} has {} ({:.1} GiB): one job needs devices of one kind",
        first.host,
        first.name,
        gib(first.memory),
        other.host,
        other.name,
        gib(other.memory)
    ))
}

/// Drivers keep a little of a device's memory for themselves, not all the same.
fn is_other(a: usize, b: usize) -> bool {
    a.abs_diff(b) > a.max(b) / 32
}

fn patience() -> Result<Duration> {
    let Some(said) = std::env::var_os(WAIT) else { return Ok(PATIENCE) };
    let seconds = said.to_str().and_then(|text| text.parse().ok()).filter(|&seconds| seconds > 0);
    seconds.map(Duration::from_secs).ok_or_else(|| {
        Error::user(format!("{WAIT} = {said:?}: must be a number of seconds, 1 or more; 600 where it is not set"))
    })
}

/// Of what the backend says before the first step: that something is missing is the user's to mend.
pub fn told(error: CudaError) -> Error {
    match error {
        CudaError::Products(_) | CudaError::Mixed { .. } => Error::user(format!("{}: {error}", host())),
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
        // Each is shown its own.
        assert_eq!(all(2, 1), [Ok(0), Ok(0)]);
        let said = all(8, 4)[5].clone().unwrap_err();
        assert!(said.contains("4 GPUs and 8 ranks") && said.contains("ppr:4:node"), "{said}");
        assert_eq!(choose(5, 8, 4, true), Ok(1));
        assert!(choose(0, 1, 0, false).unwrap_err().contains("driver"));
    }

    #[test]
    fn ranks_share_a_device_only_if_they_say_so() {
        let two = [rank("a", "1"), rank("b", "3"), rank("a", "2"), rank("a", "1")];
        let said = check(&two).unwrap();
        assert!(said.contains("ranks 0 and 3 on a") && said.contains("CUDA_VISIBLE_DEVICES"), "{said}");
        assert_eq!(check(&two[..3]), None);
        let named = |id: &str| Facts { hostid: Some(id.into()), ..rank("a", "1") };
        assert_eq!(check(&[named("x"), named("y")]), None);
        assert!(check(&[named("x"), named("x")]).is_some());
    }

    #[test]
    fn devices_and_libraries_are_of_one_kind() {
        let other = Facts { name: "NVIDIA A100-SXM4-80GB".into(), memory: 80 << 30, ..rank("b", "2") };
        let said = check(&[rank("a", "1"), other]).unwrap();
        assert!(said.contains("rank 1 on b") && said.contains("80.0 GiB"), "{said}");
        let old = Facts { nccl: Some(21803), ..rank("b", "2") };
        assert!(check(&[rank("a", "1"), old]).unwrap().contains("NCCL 2.18.3"));
        let nearly = Facts { memory: (40 << 30) - (300 << 20), ..rank("b", "2") };
        assert_eq!(check(&[rank("a", "1"), nearly]), None);
    }
}
