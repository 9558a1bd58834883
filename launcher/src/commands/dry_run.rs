//! `train --dry-run`: a step of every rank without data, ranks or devices, and what each would hold of its
//! memory and send to others.

use super::mesh;
use super::topology::{PARTS, aligned, must_hold, table};
use super::train::must_fit_cuda;
use crate::output::or_broken_pipe;
use crate::progress::Count;
use crate::ranks_of_mpirun;
use cuda::backend::CudaScratch;
use engine::config::{Axis, BackendKind, Cluster, Config, Named, Precision, Ranks, ranks_used};
use engine::cpu::CpuScratch;
use engine::error::{Error, Result, counted};
use engine::layout::mesh::Mesh;
use engine::layout::placement::spans;
use engine::layout::rank_layout::{RankLayout, layers_of_chunks};
use engine::layout::split;
use engine::train::state::copy_bytes;
use half::bf16;
use plan::dry_run::{DryRun, Held, classes, dry_run_step, refusal};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;

/// On as many ranks as `flag` says; without it on mpirun's, else on those that the configuration is meant for, or
/// as few as its layout can have. `cluster`: a file that says on which GPUs.
pub fn run(path: &Path, set: &[String], flag: Option<usize>, cluster: Option<&Path>) -> Result<()> {
    let said = flag.or_else(ranks_of_mpirun);
    let config = Config::read_for(said.map_or(Ranks::Its, Ranks::AtHand), path, set)?;
    let mesh = mesh(&config, flag, said.or(config.parallel.ranks).unwrap_or(ranks_used(&config.parallel)))?;
    let (rules, precision) = rules(&config, &mesh, cluster)?;
    let rows = rows(&config, &mesh, &rules)?;
    let text = [
        head(path, &config, &mesh, precision),
        memory(&rows, &mesh),
        traffic(&rows, &mesh),
        ops(&rows, &mesh),
        foot(&rows, &rules) + &room(&rows, &rules, &config, &mesh)?,
    ];
    or_broken_pipe(write!(std::io::stdout(), "{}", text.join("\n")))
}

/// Whose memory the ranks take.
enum Rules {
    Cpu(Precision),
    Cuda { scratch: CudaScratch, cluster: Option<Box<Cluster>> },
}

/// Those of the backend that the configuration would run on.
fn rules(config: &Config, mesh: &Mesh, cluster: Option<&Path>) -> Result<(Rules, Precision)> {
    let (backend, precision) = config.backend(cluster.is_some())?;
    let load = |path| Cluster::load(path).and_then(|cluster| must_hold(&cluster, mesh.ranks(), path).map(|()| cluster));
    match (backend, cluster) {
        (BackendKind::Cpu, None) => Ok((Rules::Cpu(precision), precision)),
        (BackendKind::Cpu, Some(path)) => Err(Error::user(format!(
            "--cluster {}: with train.backend = \"cpu\" no rank is on a GPU; leave one of the two out",
            path.display()
        ))),
        (BackendKind::Cuda, path) => {
            must_fit_cuda(config)?;
            let cluster = path.map(load).transpose()?.map(Box::new);
            let device = cluster.as_ref().map_or("NVIDIA A100", |cluster| &cluster.device);
            Ok((Rules::Cuda { scratch: CudaScratch::of(device), cluster }, precision))
        }
    }
}

/// Ranks that hold and send the same.
struct Row {
    ranks: Vec<usize>,
    of: DryRun,
    /// Bytes of a checkpoint's copy on the host, on the rank that saves most.
    copy: usize,
}

/// A rehearsal of one rank of each class, on all cores.
fn rows(config: &Config, mesh: &Mesh, rules: &Rules) -> Result<Vec<Row>> {
    let classes = classes(mesh);
    let count = Count::new("rehearsing ranks", classes.len() as u64);
    let (queue, done) = (Mutex::new(classes.into_iter()), Mutex::new(Vec::new()));
    let next = || queue.lock().expect("no rehearsal panics while it takes the next").next();
    let one = |rank| match *rules {
        Rules::Cpu(Precision::F32) => dry_run_step::<f32>(config, mesh, rank, CpuScratch::<f32>::new(1)),
        Rules::Cpu(Precision::Bf16) => dry_run_step::<bf16>(config, mesh, rank, CpuScratch::<bf16>::new(1)),
        Rules::Cuda { scratch, .. } => dry_run_step::<bf16>(config, mesh, rank, scratch),
    };
    let work = || {
        while let Some(ranks) = next() {
            let copies = ranks.iter().map(|&rank| copy_bytes(config, &RankLayout::new(config, mesh.clone(), rank)));
            let copy = copies.max().expect("a class has ranks");
            let row = one(ranks[0]).map(|of| Row { ranks, of, copy });
            done.lock().expect("no rehearsal panics while it is put away").push(row);
            count.one();
        }
    };
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        (0..cores).for_each(|_| _ = scope.spawn(work));
    });
    count.finish();
    let mut rows: Vec<Row> = done.into_inner().expect("all are done").into_iter().collect::<Result<_>>()?;
    rows.sort_by_key(|row| row.ranks[0]);
    Ok(rows)
}

fn head(path: &Path, config: &Config, mesh: &Mesh, precision: Precision) -> String {
    let along = |axis| mesh.size(axis);
    let (tp, pp, dp) = (along(Axis::Tensor), along(Axis::Pipeline), along(Axis::Data));
    let costs = split::Costs::of(&config.model, config.train.seq_length);
    format!(
        "{}: {} (tensor {tp}, pipeline {pp}, data {dp}) in {}, {} micro-batches of {} x {} tokens a step\n{}\n",
        path.display(),
        counted(mesh.ranks(), "rank"),
        precision.name(),
        config.train.global_batch_size / (config.train.micro_batch_size * dp),
        config.train.micro_batch_size,
        config.train.seq_length,
        split::describe(&layers_of_chunks(config), pp, &costs)
    )
}

fn memory(rows: &[Row], mesh: &Mesh) -> String {
    let parts = |Row { of, copy, .. }: &Row| {
        let Held { weights, gradients, optimizer } = of.held;
        [weights, gradients, optimizer, of.activations(), of.usage.peak, *copy].map(|bytes| bytes as f64)
    };
    let unit = Unit::of(rows.iter().map(|row| row.of.usage.peak as f64));
    let cells = |row: &Row| parts(row).map(|bytes| unit.show(bytes)).to_vec();
    let header = ["weights", "gradients", "optimizer", "activations", "peak", "checkpoint"];
    lines(&format!("{} a rank", unit.name), &header, rows, mesh, cells)
}

fn traffic(rows: &[Row], mesh: &Mesh) -> String {
    // The last part is all of them.
    let sent = |Row { of, .. }: &Row| {
        PARTS.map(|(_, kinds)| {
            let among = of.step.traffic.iter().filter(|(kind, _)| kinds.is_empty() || kinds.contains(kind));
            among.map(|(_, traffic)| traffic.bytes).sum::<u64>() as f64
        })
    };
    let unit = Unit::of(rows.iter().map(|row| sent(row)[PARTS.len() - 1]));
    let cells = |row: &Row| {
        let calls = row.of.step.traffic.values().map(|traffic| traffic.calls).sum::<u64>();
        sent(row).map(|bytes| unit.show(bytes)).into_iter().chain([calls.to_string()]).collect()
    };
    let header = [&PARTS.map(|(name, _)| name)[..], &["calls"]].concat();
    lines(&format!("{} sent a step", unit.name), &header, rows, mesh, cells)
}

/// A table with a line for the ranks that read the same.
fn lines(what: &str, header: &[&str], rows: &[Row], mesh: &Mesh, cells: impl Fn(&Row) -> Vec<String>) -> String {
    let mut table = table(&[&[what, "stage", "tp"], header].concat());
    for (cells, ranks) in alike(rows, cells) {
        let along = |axis| spans(ranks.iter().map(|&rank| mesh.coord(rank, axis)));
        table.add_row([named(&ranks), along(Axis::Pipeline), along(Axis::Tensor)].into_iter().chain(cells));
    }
    format!("{}\n", aligned(table, 3))
}

/// How often a step does each op, on the first tensor-parallel rank of a stage: a column for stages that do the same.
fn ops(rows: &[Row], mesh: &Mesh) -> String {
    let first = rows.iter().filter(|row| mesh.coord(row.ranks[0], Axis::Tensor) == 0);
    let columns = alike(first, |row| row.of.step.ops.clone());
    let stages = |ranks: &[usize]| spans(ranks.iter().map(|&rank| mesh.coord(rank, Axis::Pipeline)));
    let header: Vec<String> = columns.iter().map(|(_, ranks)| format!("stage {}", stages(ranks))).collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut table = table(&[&["ops a step"], &header[..]].concat());
    let names: BTreeSet<&str> = columns.iter().flat_map(|(ops, _)| ops.keys().copied()).collect();
    for name in names {
        let times = columns.iter().map(|(ops, _)| ops.get(name).copied().unwrap_or_default().to_string());
        table.add_row([name.to_string()].into_iter().chain(times));
    }
    format!("{}\n", aligned(table, 1))
}

/// What `of` says of the ranks, each answer once, with all ranks that it is of.
fn alike<'a, T: PartialEq>(rows: impl IntoIterator<Item = &'a Row>, of: impl Fn(&Row) -> T) -> Vec<(T, Vec<usize>)> {
    let mut all: Vec<(T, Vec<usize>)> = Vec::new();
    for row in rows {
        let it = of(row);
        match all.iter_mut().find(|(other, _)| *other == it) {
            Some((_, ranks)) => ranks.extend(&row.ranks),
            None => all.push((it, row.ranks.clone())),
        }
    }
    all
}

/// A few words for many ranks.
fn named(ranks: &[usize]) -> String {
    let all = spans(ranks.iter().copied());
    match all.split(", ").collect::<Vec<_>>()[..] {
        [first, second, .., last] if all.len() > 24 => format!("{first}, {second}, ... {last} ({})", ranks.len()),
        _ => all,
    }
}

/// What the numbers of a table are in.
struct Unit {
    name: &'static str,
    bytes: f64,
}

impl Unit {
    /// So that the largest number is at least 1.
    fn of(bytes: impl Iterator<Item = f64>) -> Unit {
        let most = bytes.fold(0.0, f64::max);
        let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)].map(|(name, log2)| Unit { name, bytes: 2f64.powi(log2) });
        let [.., smallest] = &units;
        let Unit { name, bytes } = units.iter().find(|unit| most >= unit.bytes).unwrap_or(smallest);
        Unit { name, bytes: *bytes }
    }

    fn show(&self, bytes: f64) -> String {
        format!("{:.2}", bytes / self.bytes)
    }
}

fn foot(rows: &[Row], rules: &Rules) -> String {
    let largest = most(rows);
    let usage = largest.of.usage;
    let unit = Unit::of([usage.reserved as f64].into_iter());
    let [peak, reserved, free] = [usage.peak, usage.reserved, usage.reserved - usage.peak].map(|n| unit.show(n as f64));
    let (name, rank) = (unit.name, named(&largest.ranks));
    let (most, by) = match rules {
        Rules::Cpu(_) => (
            format!(
                "{peak} {name} at the peak on rank {rank}, {reserved} {name} with the free blocks that it keeps between ops"
            ),
            "the CPU backend, one thread a rank; the buffers of MPI come on top".to_string(),
        ),
        Rules::Cuda { scratch, cluster } => (
            format!(
                "a slab of {reserved} {name} on rank {rank}, {peak} {name} at the peak: {free} {name} ({:.1} %) lie between blocks",
                100.0 * (usage.reserved - usage.peak) as f64 / usage.reserved as f64
            ),
            format!(
                "the CUDA backend on {} with {} multiprocessors; CUDA itself and the buffers of NCCL come on top",
                cluster.as_ref().map_or("an A100", |cluster| &cluster.device),
                scratch.processors
            ),
        ),
    };
    format!(
        "the most: {most}\n\
         activations: all else that is there at the peak, also what collectives have under way and the scratch of ops\n\
         checkpoint: at most so much of a copy on the host, on top of the peak, from the beginning of a save until it is on the disk\n\
         by the memory rules of {by}\n",
    )
}

/// The rank that takes most.
fn most(rows: &[Row]) -> &Row {
    rows.iter().max_by_key(|row| row.of.usage.reserved).expect("a mesh has ranks")
}

/// Whether that is there on the cluster's GPUs, and what would fit where it is not.
fn room(rows: &[Row], rules: &Rules, config: &Config, mesh: &Mesh) -> Result<String> {
    let Rules::Cuda { scratch, cluster: Some(cluster) } = rules else { return Ok(String::new()) };
    let (gib, needed) = ((1u64 << 30) as f64, most(rows).of.usage.reserved);
    let limit = (cluster.memory_gib * gib) as usize;
    if needed > limit {
        return Ok(format!("{}: {}\n", cluster.name, refusal::<bf16>(config, mesh, (needed, limit), scratch)?));
    }
    let left = (limit - needed) as f64 / gib;
    Ok(format!("{}: of the {:.2} GiB of a GPU {left:.2} GiB are left\n", cluster.name, cluster.memory_gib))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_ranks_in_a_few_words() {
        assert_eq!(named(&[3, 0, 1, 2]), "0-3");
        assert_eq!(named(&[0, 2, 4]), "0, 2, 4");
        let odd: Vec<usize> = (0..512).filter(|rank| rank % 2 == 1).collect();
        assert_eq!(named(&odd), "1, 3, ... 511 (256)");
    }

    #[test]
    fn the_largest_number_chooses_the_unit() {
        let shown = |bytes: &[f64]| Unit::of(bytes.iter().copied()).show(bytes[0]);
        assert_eq!(shown(&[1.5 * 2f64.powi(30), 7.0]), "1.50");
        assert_eq!(shown(&[512.0, 2048.0]), "0.50");
        assert_eq!((Unit::of([0.0].into_iter()).name, shown(&[0.0])), ("KiB", "0.00".to_string()));
    }
}
