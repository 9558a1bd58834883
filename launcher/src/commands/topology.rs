//! `topology`: the node of each rank, and the bytes that a step sends over each link, for the engine's placement and
//! the naive one; on the nodes of mpirun or those of a cluster file.

use crate::output::{or_broken_pipe, say};
use crate::table::render;
use crate::under_mpirun;
use cuda::links;
use engine::config::{Axis, Cluster, Config, Named, Precision, Ranks, ranks_used};
use engine::cpu::CpuScratch;
use engine::error::{Error, Result, counted};
use engine::layout::mesh::{GroupKind, Mesh};
use engine::layout::placement::{RankSlot, fullest, reorder_ranks, round_robin, spans, split_warning};
use engine::mpi::World;
use engine::mpi::nodes;
use half::bf16;
use plan::traffic::{Crossing, Links, links, sent};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Show the node of each rank, and the bytes that a step sends over each link
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Configuration of the run (TOML); its data need not exist
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Replace one key, such as parallel.tensor=4
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Cluster file with nodes that need not be there (configs/clusters)
    #[arg(long, value_name = "FILE")]
    cluster: Option<PathBuf>,
    /// Number of ranks without mpirun [default: parallel.ranks, else the least that the layout needs]
    #[arg(long, value_name = "N", value_parser = super::ranks_flag())]
    ranks: Option<usize>,
}

const EXAMPLES: &str = "Examples:
  swallow-engine topology --config configs/swallow-70b.toml --cluster configs/clusters/abci-a100-40.toml
  swallow-engine topology --config configs/swallow-7b.toml --cluster configs/clusters/dgx-h100.toml --ranks 32
  mpirun -n 16 swallow-engine topology --config run.toml      # on the nodes of mpirun";

/// Up to this many ranks are shown one a line, more of them one node a line.
const SHOWN: usize = 32;

pub fn run(args: Args, world: &World) -> Result<()> {
    let found = nodes::slots(world.comm());
    let work = || print(&args, &found).map(|()| Vec::new());
    world.comm().on_first(work).map(|_| ())
}

/// The nodes, and the links between them.
struct Machine {
    name: String,
    /// The slot of each process, in MPI's order.
    slots: Vec<RankSlot>,
    /// Processes that fit on a node.
    room: usize,
    inside: Inside,
    /// GB/s of a node, if known.
    network: Option<f64>,
}

/// The link between ranks of a node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    NvLink,
    Pcie,
    Memory,
}

fn print(args: &Args, found: &[RankSlot]) -> Result<()> {
    let started = Some(found.len()).filter(|_| under_mpirun() && args.cluster.is_none());
    let ranks = args.ranks.or(started).map_or(Ranks::Its, Ranks::AtHand);
    let config = Config::read_for(ranks, &args.config, &args.set)?;
    let machine = match &args.cluster {
        Some(path) => on_cluster(&Cluster::load(path)?, wanted(args, &config), path)?,
        None => at_hand(args, &config, found)?,
    };
    let mesh = super::mesh(&config, args.ranks, machine.slots.len())?;
    let started: Vec<usize> = machine.slots.iter().map(|slot| slot.node).collect();
    let order = reorder_ranks(&started, &mesh);
    let slots: Vec<&RankSlot> = order.iter().map(|&process| &machine.slots[process]).collect();
    let nodes: Vec<usize> = slots.iter().map(|slot| slot.node).collect();

    let sent = match config.backend(machine.inside != Inside::Memory)?.1 {
        Precision::F32 => sent::<f32>(&config, &mesh, &CpuScratch::<f32>::new(1)),
        Precision::Bf16 => sent::<bf16>(&config, &mesh, &CpuScratch::<bf16>::new(1)),
    }?;
    let [ours, naive] = [&nodes, &round_robin(&started)].map(|nodes| links(&config, &mesh, &sent, nodes));

    let at_hand = if args.cluster.is_none() { links_at_hand() } else { String::new() };
    or_broken_pipe(write!(
        std::io::stdout(),
        "{}\n{at_hand}{}{}{}\n",
        title(args, &config, &mesh, &machine, nodes.iter().max().map_or(1, |last| last + 1)),
        if slots.len() <= SHOWN {
            rank_by_rank(&mesh, &slots, &order, machine.inside)
        } else {
            node_by_node(&mesh, &slots)
        },
        bytes_table(&ours, &naive, machine.inside),
        busiest(&ours, &naive, machine.network),
    ))?;
    if let Some(warning) = split_warning(&mesh, &nodes, machine.room) {
        say!("warning: {warning}");
    }
    Ok(())
}

/// The number of ranks by the command line or the configuration.
fn wanted(args: &Args, config: &Config) -> usize {
    let p = &config.parallel;
    args.ranks.or(p.ranks).unwrap_or(ranks_used(p))
}

/// Nodes are filled one after another, as by `mpirun --map-by ppr:N:node`.
fn on_cluster(cluster: &Cluster, ranks: usize, path: &Path) -> Result<Machine> {
    must_hold(cluster, ranks, path)?;
    let (gpus, name) = (cluster.gpus_per_node, cluster.name.clone());
    let slot = |rank| RankSlot { host: String::new(), node: rank / gpus, local: rank % gpus };
    let inside = if cluster.nvlink_gb_s.is_some() { Inside::NvLink } else { Inside::Pcie };
    let slots = (0..ranks).map(slot).collect();
    Ok(Machine {
        name: format!("{name} ({})", cluster.device),
        slots,
        room: gpus,
        inside,
        network: cluster.network_gb_s,
    })
}

/// Refuses a cluster with fewer GPUs than ranks.
pub fn must_hold(cluster: &Cluster, ranks: usize, path: &Path) -> Result<()> {
    let (gpus, name) = (cluster.gpus_per_node, &cluster.name);
    if cluster.nodes_for(ranks).is_some() {
        return Ok(());
    }
    Err(Error::user(format!(
        "--cluster {}: {ranks} ranks take {} nodes with {gpus} a node, {name} has {}; use a smaller --ranks or a \
         larger cluster",
        path.display(),
        ranks.div_ceil(gpus),
        cluster.nodes.unwrap_or_default(),
    )))
}

/// The nodes of mpirun; without mpirun this machine, with all ranks.
fn at_hand(args: &Args, config: &Config, found: &[RankSlot]) -> Result<Machine> {
    let gpus = links::gpus();
    let inside = match gpus.iter().map(|gpu| gpu.nvlinks).min() {
        None => Inside::Memory,
        Some(0) => Inside::Pcie,
        Some(_) => Inside::NvLink,
    };
    if under_mpirun() {
        if let Some(ranks) = args.ranks.filter(|&ranks| ranks != found.len()) {
            let started = found.len();
            return Err(Error::user(format!(
                "--ranks {ranks}: mpirun started {started} ranks; leave the flag out, or add --cluster"
            )));
        }
        let room = fullest(&found.iter().map(|slot| slot.node).collect::<Vec<_>>());
        return Ok(Machine {
            name: "the nodes of this mpirun".into(),
            slots: found.to_vec(),
            room,
            inside,
            network: None,
        });
    }
    let ranks = wanted(args, config);
    let slots = (0..ranks).map(|local| RankSlot { local, ..found[0].clone() }).collect();
    Ok(Machine { name: "this machine, as if all ranks ran here".into(), slots, room: ranks, inside, network: None })
}

fn title(args: &Args, config: &Config, mesh: &Mesh, machine: &Machine, nodes: usize) -> String {
    let size = |axis| mesh.size(axis);
    let axes = [
        ("tensor", size(Axis::Tensor)),
        ("context", size(Axis::Context)),
        ("data", mesh.replicas()),
        ("pipeline", size(Axis::Pipeline)),
    ];
    let experts = Some(("experts shared by", size(Axis::Expert))).filter(|(_, ranks)| *ranks > 1);
    let sizes: Vec<String> = axes.into_iter().map(|(name, size)| format!("{name} {size}")).collect();
    let experts = experts.map_or(String::new(), |(what, ranks)| format!(", {what} {ranks}"));
    format!(
        "{} on {}: {} on {}, {}{experts}, order {}",
        args.config.display(),
        machine.name,
        counted(mesh.ranks(), "rank"),
        counted(nodes, "node"),
        sizes.join(" x "),
        config.parallel.order.map(Named::name).join("-"),
    )
}

/// The GPUs and network ports of this node, one a line.
fn links_at_hand() -> String {
    let (gpus, ports) = (links::gpus(), links::ports(Path::new(links::INFINIBAND)));
    if gpus.is_empty() && ports.is_empty() {
        return "this node has no NVIDIA GPU and no InfiniBand adapter\n".into();
    }
    let gpu = |(i, gpu): (usize, &links::Gpu)| {
        let pcie = gpu.pcie.map_or(String::new(), |(generation, lanes)| format!(", PCIe {generation} x{lanes}"));
        format!("GPU {i}: {}, {} NVLinks{pcie}\n", gpu.name, gpu.nvlinks)
    };
    let port = |port: &links::Port| {
        let down = if port.active { "" } else { ", down" };
        format!("{}: {} {}{down}\n", port.name, port.layer, port.rate)
    };
    gpus.iter().enumerate().map(gpu).chain(ports.iter().map(port)).collect()
}

fn rank_by_rank(mesh: &Mesh, slots: &[&RankSlot], order: &[usize], inside: Inside) -> String {
    let column = if inside == Inside::Memory { "slot" } else { "GPU" };
    let row = |(rank, slot): (usize, &&RankSlot)| {
        let at = [mesh.coord(rank, Axis::Tensor), mesh.replica(rank), mesh.coord(rank, Axis::Pipeline)];
        let numbers = [slot.local, rank, order[rank], at[0], at[1], at[2]].map(|n| n.to_string());
        [named(slot)].into_iter().chain(numbers).collect()
    };
    render(&["node", column, "rank", "MPI rank", "tp", "dp", "pp"], 1, slots.iter().enumerate().map(row))
}

fn node_by_node(mesh: &Mesh, slots: &[&RankSlot]) -> String {
    let mut nodes: Vec<usize> = slots.iter().map(|slot| slot.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let row = |node| {
        let ranks: Vec<usize> = (0..slots.len()).filter(|&rank| slots[rank].node == node).collect();
        let along = |axis| spans(ranks.iter().map(|&rank| mesh.coord(rank, axis)));
        let (tp, pp) = (along(Axis::Tensor), along(Axis::Pipeline));
        let dp = spans(ranks.iter().map(|&rank| mesh.replica(rank)));
        vec![named(slots[ranks[0]]), spans(ranks.iter().copied()), tp, dp, pp]
    };
    render(&["node", "ranks", "tp", "dp", "pp"], 1, nodes.into_iter().map(row))
}

/// A node's number and, if it is at hand, its name.
fn named(slot: &RankSlot) -> String {
    format!("{} {}", slot.node, slot.host).trim_end().to_string()
}

/// Network traffic passes PCIe on its way to the adapter and is counted there as well.
fn bytes_table(ours: &Links, naive: &Links, inside: Inside) -> String {
    let columns = match inside {
        Inside::Memory => ["shared memory", "network"].as_slice(),
        Inside::NvLink | Inside::Pcie => &["NVLink", "PCIe", "network"],
    };
    let cells = |c: Crossing| match inside {
        Inside::NvLink => vec![c.inside, c.network, c.network],
        Inside::Pcie => vec![0, c.inside + c.network, c.network],
        Inside::Memory => vec![c.inside, c.network],
    };
    let row = |(name, links): (&str, &Links), (what, kinds): (&str, &[GroupKind])| {
        let crossing = if kinds.is_empty() { links.total() } else { links.of(kinds) };
        let bytes = cells(crossing).into_iter().map(human);
        [name.to_string(), what.to_string()].into_iter().chain(bytes).collect()
    };
    let placements = [("this placement", ours), ("round robin over nodes", naive)];
    let rows = placements.into_iter().flat_map(|placement| PARTS.map(|part| row(placement, part)));
    render(&[&["bytes a step", "for"], columns].concat(), 2, rows)
}

/// Kinds of groups by the parallelism that they serve; the last entry stands for all.
pub const PARTS: [(&str, &[GroupKind]); 4] = [
    ("tensor parallelism", &[GroupKind::Tensor, GroupKind::KvHeads]),
    ("pipeline", &[GroupKind::Activations, GroupKind::Gradients, GroupKind::Tied]),
    ("data parallelism", &[GroupKind::Data, GroupKind::Optimizer]),
    ("all", &[]),
];

/// The node that sends most, and the least time that this takes.
fn busiest(ours: &Links, naive: &Links, network: Option<f64>) -> String {
    if ours.busiest() + naive.busiest() == 0 {
        return "nothing crosses a network".into();
    }
    let time = |bytes: u64| network.map_or(String::new(), |speed| format!(" ({:.3} s)", bytes as f64 / 1e9 / speed));
    let each = |links: &Links| format!("{}{}", human(links.busiest()), time(links.busiest()));
    let at = network.map_or(String::new(), |speed| format!(", at {speed} GB/s"));
    format!(
        "the busiest node sends {} over the network a step{at}; round robin it would send {}",
        each(ours),
        each(naive)
    )
}

/// Bytes in decimal units, as bandwidths are given: 1 GB is 1e9.
fn human(bytes: u64) -> String {
    let units = [("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    match units.iter().find(|(_, unit)| bytes as f64 >= *unit) {
        Some((name, unit)) => format!("{:.2} {name}", bytes as f64 / unit),
        None => format!("{bytes} B"),
    }
}
