//! `topology`: which rank sits where, and what a step sends over which link, for the engine's mapping and
//! for the naive one. On the nodes at hand or on those of a cluster file.

use crate::output::or_broken_pipe;
use crate::under_mpirun;
use comfy_table::{CellAlignment, Table, presets};
use cuda::links;
use engine::config::{Axis, Cluster, Config, Named, Precision, Ranks, ranks_used};
use engine::error::{Error, Result, counted};
use engine::layout::mesh::{GroupKind, Mesh};
use engine::layout::placement::{RankSlot, dealt, fullest, reorder_ranks, spans, split_warning};
use engine::mpi::World;
use engine::mpi::nodes;
use plan::traffic;
use plan::traffic::{Crossing, Links};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Which rank sits where, and how many bytes a step send over which link
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The run's configuration (TOML); its data need not be there
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Replace one key, such as parallel.tensor=4
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Nodes that are not at hand (configs/clusters)
    #[arg(long, value_name = "FILE")]
    cluster: Option<PathBuf>,
    /// Without mpirun [default: parallel.ranks, else as few as the layout can have]
    #[arg(long, value_name = "N", value_parser = super::ranks_flag())]
    ranks: Option<usize>,
}

const EXAMPLES: &str = "Examples:
  swallow-engine topology --config configs/swallow-70b.toml --cluster configs/clusters/abci-a100-40.toml
  swallow-engine topology --config configs/swallow-7b.toml --cluster configs/clusters/dgx-h100.toml --ranks 32
  mpirun -n 16 swallow-engine topology --config run.toml      # the nodes that mpirun started it on";

/// Nodes of up to this many ranks together are shown rank by rank, more of them a node a line.
const SHOWN: usize = 32;

pub fn run(args: Args, world: &World) -> Result<()> {
    let found = nodes::seats(world.comm());
    let work = || print(&args, &found).map(|()| Vec::new());
    world.comm().on_first(work).map(|_| ())
}

/// Where the ranks are to sit, and what joins them inside a node.
struct Site {
    name: String,
    /// By process, in MPI's order.
    seats: Vec<RankSlot>,
    /// Processes that a node has room for.
    room: usize,
    inside: Inside,
    /// GB/s of a node, where it is known.
    network: Option<f64>,
}

/// What ranks of a node talk through.
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
    let site = match &args.cluster {
        Some(path) => on_cluster(&Cluster::load(path)?, wanted(args, &config), path)?,
        None => at_hand(args, &config, found)?,
    };
    let mesh = super::mesh(&config, args.ranks, site.seats.len())?;
    let started: Vec<usize> = site.seats.iter().map(|seat| seat.node).collect();
    let order = reorder_ranks(&started, &mesh);
    let seats: Vec<&RankSlot> = order.iter().map(|&process| &site.seats[process]).collect();
    let nodes: Vec<usize> = seats.iter().map(|seat| seat.node).collect();

    let device = site.inside != Inside::Memory;
    let act = if config.backend(device)?.1 == Precision::Bf16 { 2 } else { 4 };
    let crossing = |nodes: &[usize]| traffic::crossing(&config, &mesh, act, nodes);
    let (ours, naive) = (crossing(&nodes), crossing(&dealt(&started)));

    let links = if args.cluster.is_none() { links_at_hand() } else { String::new() };
    or_broken_pipe(write!(
        std::io::stdout(),
        "{}\n{}{}\n{}\n{}\n",
        title(args, &config, &mesh, &site, nodes.iter().max().map_or(1, |last| last + 1)),
        links,
        if seats.len() <= SHOWN {
            rank_by_rank(&mesh, &seats, &order, site.inside)
        } else {
            node_by_node(&mesh, &seats)
        },
        bytes_table(&ours, &naive, site.inside),
        busiest(&ours, &naive, site.network),
    ))?;
    if let Some(warning) = split_warning(&mesh, &nodes, site.room) {
        eprintln!("warning: {warning}");
    }
    Ok(())
}

/// The number of ranks that the command line or the configuration asks for.
fn wanted(args: &Args, config: &Config) -> usize {
    let p = &config.parallel;
    args.ranks.or(p.ranks).unwrap_or(ranks_used(p))
}

/// Node after node is filled, as batch systems with `ppr:N:node` do.
fn on_cluster(cluster: &Cluster, ranks: usize, path: &Path) -> Result<Site> {
    must_hold(cluster, ranks, path)?;
    let (gpus, name) = (cluster.gpus_per_node, cluster.name.clone());
    let seat = |rank| RankSlot { host: String::new(), node: rank / gpus, local: rank % gpus };
    let inside = if cluster.nvlink_gb_s.is_some() { Inside::NvLink } else { Inside::Pcie };
    let seats = (0..ranks).map(seat).collect();
    Ok(Site { name: format!("{name} ({})", cluster.device), seats, room: gpus, inside, network: cluster.network_gb_s })
}

/// The cluster of this file has a GPU for each rank.
pub fn must_hold(cluster: &Cluster, ranks: usize, path: &Path) -> Result<()> {
    let (gpus, name) = (cluster.gpus_per_node, &cluster.name);
    if cluster.nodes_for(ranks).is_some() {
        return Ok(());
    }
    Err(Error::user(format!(
        "--cluster {}: {ranks} ranks take {} nodes with {gpus} a node, {name} has {}; give --ranks or a larger cluster",
        path.display(),
        ranks.div_ceil(gpus),
        cluster.nodes.unwrap_or_default(),
    )))
}

/// The nodes that mpirun started this on; without it, this machine for all ranks.
fn at_hand(args: &Args, config: &Config, found: &[RankSlot]) -> Result<Site> {
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
                "--ranks {ranks}: mpirun started {started}; leave it out, or give --cluster"
            )));
        }
        let room = fullest(&found.iter().map(|seat| seat.node).collect::<Vec<_>>());
        return Ok(Site {
            name: "the nodes of this mpirun".into(),
            seats: found.to_vec(),
            room,
            inside,
            network: None,
        });
    }
    let ranks = wanted(args, config);
    let seats = (0..ranks).map(|local| RankSlot { local, ..found[0].clone() }).collect();
    Ok(Site { name: "this machine, as if all ranks ran here".into(), seats, room: ranks, inside, network: None })
}

fn title(args: &Args, config: &Config, mesh: &Mesh, site: &Site, nodes: usize) -> String {
    let axes =
        [("tensor", Axis::Tensor), ("context", Axis::Context), ("data", Axis::Data), ("pipeline", Axis::Pipeline)];
    let sizes: Vec<String> = axes.map(|(name, axis)| format!("{name} {}", mesh.size(axis))).into();
    format!(
        "{} on {}: {} on {}, {}, order {}",
        args.config.display(),
        site.name,
        counted(mesh.ranks(), "rank"),
        counted(nodes, "node"),
        sizes.join(" x "),
        config.parallel.order.map(Named::name).join("-"),
    )
}

/// What joins this node's GPUs to each other and to the network, a line each.
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

fn rank_by_rank(mesh: &Mesh, seats: &[&RankSlot], order: &[usize], inside: Inside) -> Table {
    let slot = if inside == Inside::Memory { "slot" } else { "GPU" };
    let mut table = table(&["node", slot, "rank", "MPI's rank", "tp", "dp", "pp"]);
    for (rank, seat) in seats.iter().enumerate() {
        let at = [Axis::Tensor, Axis::Data, Axis::Pipeline].map(|axis| mesh.coord(rank, axis));
        let numbers = [seat.local, rank, order[rank], at[0], at[1], at[2]].map(|n| n.to_string());
        table.add_row([named(seat)].into_iter().chain(numbers));
    }
    aligned(table, 1)
}

fn node_by_node(mesh: &Mesh, seats: &[&RankSlot]) -> Table {
    let mut table = table(&["node", "ranks", "tp", "dp", "pp"]);
    let mut nodes: Vec<usize> = seats.iter().map(|seat| seat.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    for node in nodes {
        let ranks: Vec<usize> = (0..seats.len()).filter(|&rank| seats[rank].node == node).collect();
        let along = |axis| spans(ranks.iter().map(|&rank| mesh.coord(rank, axis)));
        let (tp, dp, pp) = (along(Axis::Tensor), along(Axis::Data), along(Axis::Pipeline));
        table.add_row([named(seats[ranks[0]]), spans(ranks.iter().copied()), tp, dp, pp]);
    }
    aligned(table, 1)
}

/// A node's number, and the name that it has where it is at hand.
fn named(seat: &RankSlot) -> String {
    format!("{} {}", seat.node, seat.host).trim_end().to_string()
}

/// What goes to the network passes PCIe on its way to the adapter and is counted there too.
fn bytes_table(ours: &Links, naive: &Links, inside: Inside) -> Table {
    let columns = match inside {
        Inside::Memory => ["shared memory", "network"].as_slice(),
        Inside::NvLink | Inside::Pcie => &["NVLink", "PCIe", "network"],
    };
    let mut table = table(&[&["bytes a step", "for"], columns].concat());
    let cells = |c: Crossing| match inside {
        Inside::NvLink => vec![c.inside, c.network, c.network],
        Inside::Pcie => vec![0, c.inside + c.network, c.network],
        Inside::Memory => vec![c.inside, c.network],
    };
    for (name, links) in [("this mapping", ours), ("ranks dealt to nodes in turn", naive)] {
        for (what, kinds) in PARTS {
            let crossing = if kinds.is_empty() { links.total() } else { links.of(kinds) };
            let bytes = cells(crossing).into_iter().map(human);
            table.add_row([name.to_string(), what.to_string()].into_iter().chain(bytes));
        }
    }
    aligned(table, 2)
}

/// Groups by what they are for.
pub const PARTS: [(&str, &[GroupKind]); 4] = [
    ("tensor parallelism", &[GroupKind::Tensor, GroupKind::KvHeads]),
    ("pipeline", &[GroupKind::Activations, GroupKind::Gradients, GroupKind::Tied]),
    ("data parallelism", &[GroupKind::Data, GroupKind::Optimizer]),
    ("all", &[]),
];

/// The node that sends most, and the time that takes at the least.
fn busiest(ours: &Links, naive: &Links, network: Option<f64>) -> String {
    if ours.busiest() + naive.busiest() == 0 {
        return "nothing crosses a network".into();
    }
    let time = |bytes: u64| network.map_or(String::new(), |speed| format!(" ({:.3} s)", bytes as f64 / 1e9 / speed));
    let each = |links: &Links| format!("{}{}", human(links.busiest()), time(links.busiest()));
    let at = network.map_or(String::new(), |speed| format!(", at {speed} GB/s"));
    format!("the busiest node sends {} over the network a step{at}; dealt in turn {}", each(ours), each(naive))
}

/// Bytes as links are sold: 1 GB is 1e9.
fn human(bytes: u64) -> String {
    let units = [("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    match units.iter().find(|(_, unit)| bytes as f64 >= *unit) {
        Some((name, unit)) => format!("{:.2} {name}", bytes as f64 / unit),
        None => format!("{bytes} B"),
    }
}

pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(header);
    table
}

/// Columns from `first` on hold numbers.
pub fn aligned(mut table: Table, first: usize) -> Table {
    table.column_iter_mut().skip(first).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table
}
