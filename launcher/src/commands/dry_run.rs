//! `train --dry-run`: a step of every rank without data, other processes or devices; prints the memory, traffic and ops
//! of each.

use super::mesh;
use super::topology::{PARTS, must_hold};
use crate::gpu::must_fit_kernels;
use crate::ideal;
use crate::output::or_broken_pipe;
use crate::progress::Count;
use crate::ranks_of_mpirun;
use crate::table::render;
use cuda::backend::CudaScratch;
use engine::backend::Op;
use engine::config::{Axis, BackendKind, Cluster, Config, Named, Precision, Ranks, TrainStage, ranks_used};
use engine::cpu::CpuScratch;
use engine::error::{Error, Result, counted};
use engine::layout::mesh::Mesh;
use engine::layout::placement::spans;
use engine::layout::rank_layout::{RankLayout, layers_of_chunks};
use engine::layout::split;
use engine::memory::table::{ByteUnit, GIB};
use engine::train::state::copy_bytes;
use half::bf16;
use plan::dry_run::{DryRun, HeldBytes, classes, dry_run_step, on_all_cores, refusal};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

/// The number of ranks is `flag`, else that of mpirun, else `parallel.ranks`, else the least that the layout needs.
/// `cluster`: a file that describes the GPUs.
pub fn run(path: &Path, set: &[String], flag: Option<usize>, cluster: Option<&Path>) -> Result<()> {
    let asked = flag.or_else(ranks_of_mpirun);
    let config = Config::read_for(asked.map_or(Ranks::Its, Ranks::AtHand), path, set)?;
    ideal::cluster(&config)?;
    let mesh = mesh(&config, flag, asked.or(config.parallel.ranks).unwrap_or(ranks_used(&config.parallel)))?;
    let (rules, precision) = rules(&config, &mesh, cluster)?;
    let rows = rows(&config, &mesh, &rules)?;
    let text = [
        head(path, &config, &mesh, precision),
        stages(&config),
        memory(&rows, &mesh),
        traffic(&rows, &mesh),
        ops(&rows, &mesh),
        foot(&rows, &rules) + &room(&rows, &rules, &config, &mesh)?,
    ];
    or_broken_pipe(write!(std::io::stdout(), "{}", text.join("\n")))
}

/// The backend whose memory rules apply.
enum Rules {
    Cpu(Precision),
    Cuda { scratch: CudaScratch, cluster: Option<Box<Cluster>> },
}

/// The rules of the backend that the configuration would run on.
fn rules(config: &Config, mesh: &Mesh, cluster: Option<&Path>) -> Result<(Rules, Precision)> {
    let (backend, precision) = config.backend(cluster.is_some())?;
    let load = |path| Cluster::load(path).and_then(|cluster| must_hold(&cluster, mesh.ranks(), path).map(|()| cluster));
    match (backend, cluster) {
        (BackendKind::Cpu, None) => Ok((Rules::Cpu(precision), precision)),
        (BackendKind::Cpu, Some(path)) => Err(Error::user(format!(
            "--cluster {}: train.backend = \"cpu\" uses no GPU; leave one of the two out",
            path.display()
        ))),
        (BackendKind::Cuda, path) => {
            must_fit_kernels(config)?;
            let cluster = path.map(load).transpose()?.map(Box::new);
            let device = cluster.as_ref().map_or("NVIDIA A100", |cluster| &cluster.device);
            Ok((Rules::Cuda { scratch: CudaScratch::of(device), cluster }, precision))
        }
    }
}

/// Ranks with the same memory and traffic.
struct Row {
    ranks: Vec<usize>,
    of: DryRun,
    /// Bytes of the host copy of a checkpoint, on the rank that saves most.
    copy: usize,
}

/// A dry run of one rank of each class.
fn rows(config: &Config, mesh: &Mesh, rules: &Rules) -> Result<Vec<Row>> {
    let classes = classes(mesh);
    let count = Count::new("dry runs", classes.len() as u64);
    let one = |rank| match *rules {
        Rules::Cpu(Precision::F32) => dry_run_step::<f32>(config, mesh, rank, CpuScratch::<f32>::new(1)),
        Rules::Cpu(Precision::Bf16) => dry_run_step::<bf16>(config, mesh, rank, CpuScratch::<bf16>::new(1)),
        Rules::Cuda { scratch, .. } => dry_run_step::<bf16>(config, mesh, rank, scratch),
    };
    let row = |ranks: Vec<usize>| {
        let copies = ranks.iter().map(|&rank| copy_bytes(config, &RankLayout::new(config, mesh.clone(), rank)));
        let copy = copies.max().expect("a class has ranks");
        Ok(Row { of: one(ranks[0])?, ranks, copy })
    };
    let rows = on_all_cores(classes, &|| count.one(), row);
    count.finish();
    rows
}

fn head(path: &Path, config: &Config, mesh: &Mesh, precision: Precision) -> String {
    let [tp, pp, dp] = mesh.layout();
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

/// The stages of training, where there are several, and notes about the data.
fn stages(config: &Config) -> String {
    let (steps, mut start) = (config.train.steps, 0);
    let stages = config.data.stages();
    let line = |stage: &TrainStage| {
        let end = stage.until_step.unwrap_or(steps).min(steps);
        let first = std::mem::replace(&mut start, end) + 1;
        let sources = stage.sources.iter().map(|source| source.prefix.display().to_string());
        let reached = if first > end { "not reached".to_string() } else { format!("steps {first} to {end}") };
        format!(
            "{}: {reached}, from {}\n",
            stage.key().trim_end_matches(".train"),
            sources.collect::<Vec<_>>().join(", ")
        )
    };
    let lines: Vec<String> = stages.iter().filter(|stage| stage.number.is_some()).map(line).collect();
    lines.into_iter().chain(config.data.notes(steps).iter().map(|note| format!("note: {note}\n"))).collect()
}

fn memory(rows: &[Row], mesh: &Mesh) -> String {
    let parts = |Row { of, copy, .. }: &Row| {
        let HeldBytes { weights, gradients, optimizer } = of.held;
        [weights, gradients, optimizer, of.beside_held(), of.usage.peak, *copy].map(|bytes| bytes as f64)
    };
    let unit = ByteUnit::of(rows.iter().map(|row| row.of.usage.peak as f64));
    let cells = |row: &Row| parts(row).map(|bytes| unit.show(bytes)).to_vec();
    let header = ["weights", "gradients", "optimizer", "activations", "peak", "checkpoint"];
    lines(&format!("{} a rank", unit.name), &header, rows, mesh, cells)
}

fn traffic(rows: &[Row], mesh: &Mesh) -> String {
    // The last part is the sum.
    let sent = |Row { of, .. }: &Row| {
        PARTS.map(|(_, kinds)| {
            let among = of.step.traffic.iter().filter(|(kind, _)| kinds.is_empty() || kinds.contains(kind));
            among.map(|(_, traffic)| traffic.bytes).sum::<u64>() as f64
        })
    };
    let unit = ByteUnit::of(rows.iter().map(|row| sent(row)[PARTS.len() - 1]));
    let cells = |row: &Row| {
        let calls = row.of.step.traffic.values().map(|traffic| traffic.calls).sum::<u64>();
        sent(row).map(|bytes| unit.show(bytes)).into_iter().chain([calls.to_string()]).collect()
    };
    let header = [&PARTS.map(|(name, _)| name)[..], &["calls"]].concat();
    lines(&format!("{} sent a step", unit.name), &header, rows, mesh, cells)
}

/// A table with one line for all ranks whose cells are the same.
fn lines(what: &str, header: &[&str], rows: &[Row], mesh: &Mesh, cells: impl Fn(&Row) -> Vec<String>) -> String {
    let row = |(cells, ranks): (Vec<String>, Vec<usize>)| {
        let along = |axis| spans(ranks.iter().map(|&rank| mesh.coord(rank, axis)));
        [vec![named(&ranks), along(Axis::Pipeline), along(Axis::Tensor)], cells].concat()
    };
    render(&[&[what, "stage", "tp"], header].concat(), 3, alike(rows, cells).into_iter().map(row))
}

/// The number of times that a step runs each op on the first tensor-parallel rank of a stage, with one column for
/// stages that are alike.
fn ops(rows: &[Row], mesh: &Mesh) -> String {
    let first = rows.iter().filter(|row| mesh.coord(row.ranks[0], Axis::Tensor) == 0);
    let columns = alike(first, |row| row.of.step.ops.clone());
    let stages = |ranks: &[usize]| spans(ranks.iter().map(|&rank| mesh.coord(rank, Axis::Pipeline)));
    let header: Vec<String> = columns.iter().map(|(_, ranks)| format!("stage {}", stages(ranks))).collect();
    let header: Vec<&str> = ["ops a step"].into_iter().chain(header.iter().map(String::as_str)).collect();
    let all: BTreeSet<Op> = columns.iter().flat_map(|(ops, _)| ops.keys().copied()).collect();
    let row = |op: Op| {
        let times = columns.iter().map(|(ops, _)| ops.get(&op).copied().unwrap_or_default().to_string());
        [op.name().to_string()].into_iter().chain(times).collect()
    };
    render(&header, 1, all.into_iter().map(row))
}

/// The different values of `of`, each with the ranks that have it.
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

/// The ranks, abbreviated if there are many.
fn named(ranks: &[usize]) -> String {
    let all = spans(ranks.iter().copied());
    match all.split(", ").collect::<Vec<_>>()[..] {
        [first, second, .., last] if all.len() > 24 => format!("{first}, {second}, ... {last} ({})", ranks.len()),
        _ => all,
    }
}

fn foot(rows: &[Row], rules: &Rules) -> String {
    let largest = most(rows);
    let usage = largest.of.usage;
    let unit = ByteUnit::of([usage.reserved as f64]);
    let [peak, reserved, free] = [usage.peak, usage.reserved, usage.reserved - usage.peak].map(|n| unit.show(n as f64));
    let (name, rank) = (unit.name, named(&largest.ranks));
    let (most, by) = match rules {
        Rules::Cpu(_) => (
            format!(
                "{peak} {name} at the peak on rank {rank}, {reserved} {name} with the free blocks that the pool keeps"
            ),
            "the CPU backend with one thread a rank; MPI's buffers come on top".to_string(),
        ),
        Rules::Cuda { scratch, cluster } => (
            format!(
                "an arena of {reserved} {name} on rank {rank}, {peak} {name} at the peak: {free} {name} ({:.1} %) are \
                 lost to fragmentation",
                100.0 * (usage.reserved - usage.peak) as f64 / usage.reserved as f64
            ),
            format!(
                "the CUDA backend on {} with {} multiprocessors; CUDA itself and NCCL's buffers come on top",
                cluster.as_ref().map_or("an A100", |cluster| &cluster.device),
                scratch.processors
            ),
        ),
    };
    format!(
        "the most: {most}\n\
         activations: everything else at the peak, including buffers of collectives in flight and scratch of ops\n\
         checkpoint: size of the host copy, on top of the peak, from the start of a save until it is on disk\n\
         computed with the memory rules of {by}\n",
    )
}

/// The ranks that need most.
fn most(rows: &[Row]) -> &Row {
    rows.iter().max_by_key(|row| row.of.usage.reserved).expect("a mesh has ranks")
}

/// A message that says whether the run fits the cluster's GPUs, and which changes would make it fit.
fn room(rows: &[Row], rules: &Rules, config: &Config, mesh: &Mesh) -> Result<String> {
    let Rules::Cuda { scratch, cluster: Some(cluster) } = rules else { return Ok(String::new()) };
    let needed = most(rows).of.usage.reserved;
    let limit = (cluster.memory_gib * GIB) as usize;
    if needed > limit {
        return Ok(format!("{}: {}\n", cluster.name, refusal::<bf16>(config, mesh, (needed, limit), scratch)?));
    }
    let left = (limit - needed) as f64 / GIB;
    Ok(format!("{}: {left:.2} GiB of the {:.2} GiB of a GPU are left\n", cluster.name, cluster.memory_gib))
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
}
