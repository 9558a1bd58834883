//! `train --dry-run`: a step of every rank without data, ranks or devices, and what each would hold of its
//! memory and send to others.

use super::tokenizer::or_broken_pipe;
use super::topology::{PARTS, aligned, table};
use crate::memory::GIB;
use crate::progress::Count;
use engine::config::{Axis, BackendKind, Config, Named, Precision};
use engine::cpu::CpuScratch;
use engine::dry::Keep;
use engine::error::Result;
use engine::mesh::Mesh;
use engine::place::layers_of_chunks;
use engine::placement::spans;
use engine::rehearsal::{Rehearsal, classes, rehearse};
use engine::split;
use half::bf16;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;

/// On `ranks` ranks; where that is not given, on those that the configuration is meant for, or as few as
/// its layout can have.
pub fn run(path: &Path, set: &[String], ranks: Option<usize>) -> Result<()> {
    let config = Config::read(path, set)?;
    let p = &config.parallel;
    let mesh = config.mesh(ranks.or(p.ranks).unwrap_or(p.tensor * p.pipeline * p.context))?;
    let (backend, precision) = config.backend(false)?;
    let rows = rows(&config, &mesh, precision)?;
    let text =
        [head(path, &config, &mesh, precision), memory(&rows, &mesh), traffic(&rows, &mesh), foot(&rows, backend)];
    or_broken_pipe(write!(std::io::stdout(), "{}", text.join("\n")))
}

/// Ranks that hold and send the same.
struct Row {
    ranks: Vec<usize>,
    of: Rehearsal,
}

/// A rehearsal of one rank of each class, on all cores; classes that turn out equal are one row.
fn rows(config: &Config, mesh: &Mesh, precision: Precision) -> Result<Vec<Row>> {
    let classes = classes(mesh);
    let count = Count::new("rehearsing ranks", classes.len() as u64);
    let (queue, done) = (Mutex::new(classes.into_iter()), Mutex::new(Vec::new()));
    let next = || queue.lock().expect("no rehearsal panics while it takes the next").next();
    let one = |rank| match precision {
        Precision::F32 => rehearse::<f32>(config, mesh, rank, CpuScratch::<f32>::new(1), Keep::Totals, 1),
        Precision::Bf16 => rehearse::<bf16>(config, mesh, rank, CpuScratch::<bf16>::new(1), Keep::Totals, 1),
    };
    let work = || {
        while let Some(ranks) = next() {
            let row = one(ranks[0]).map(|of| Row { ranks, of });
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
    Ok(rows.into_iter().fold(Vec::new(), joined))
}

fn joined(mut rows: Vec<Row>, row: Row) -> Vec<Row> {
    let same = |of: &Rehearsal| of.usage == row.of.usage && of.held == row.of.held && of.traffic == row.of.traffic;
    match rows.iter_mut().find(|other| same(&other.of)) {
        Some(other) => other.ranks.extend(row.ranks),
        None => rows.push(row),
    }
    rows
}

fn head(path: &Path, config: &Config, mesh: &Mesh, precision: Precision) -> String {
    let along = |axis| mesh.size(axis);
    let (tp, pp, dp) = (along(Axis::Tensor), along(Axis::Pipeline), along(Axis::Data));
    let costs = split::Costs::of(&config.model, config.train.seq_length);
    format!(
        "{}: {} ranks (tensor {tp}, pipeline {pp}, data {dp}) in {}, {} micro-batches of {} x {} tokens a step\n{}\n",
        path.display(),
        mesh.ranks(),
        precision.name(),
        config.train.global_batch_size / (config.train.micro_batch_size * dp),
        config.train.micro_batch_size,
        config.train.seq_length,
        split::describe(&layers_of_chunks(config), pp, &costs)
    )
}

/// Where ranks stand in the mesh.
fn places(ranks: &[usize], mesh: &Mesh) -> [String; 3] {
    let along = |axis| spans(ranks.iter().map(|&rank| mesh.coord(rank, axis)));
    [spans(ranks.iter().copied()), along(Axis::Pipeline), along(Axis::Tensor)]
}

fn memory(rows: &[Row], mesh: &Mesh) -> String {
    let parts = ["weights", "gradients", "optimizer", "activations", "peak"];
    let mut table = table(&[&["GiB a rank: ranks", "stage", "tp"], &parts[..]].concat());
    for Row { ranks, of } in rows {
        let bytes = [of.held.weights, of.held.gradients, of.held.optimizer, of.activations(), of.usage.peak];
        let cells = bytes.map(|bytes| format!("{:.2}", bytes as f64 / GIB));
        table.add_row(places(ranks, mesh).into_iter().chain(cells));
    }
    format!("{}\n", aligned(table, 3))
}

fn traffic(rows: &[Row], mesh: &Mesh) -> String {
    // The last part is all of them.
    let parts = PARTS.map(|(name, _)| name);
    let mut table = table(&[&["GiB sent a step: ranks", "stage", "tp"], &parts[..], &["calls"]].concat());
    for Row { ranks, of } in rows {
        let sent = PARTS.map(|(_, kinds)| {
            let among = of.traffic.iter().filter(|(kind, _)| kinds.is_empty() || kinds.contains(kind));
            format!("{:.2}", among.map(|(_, traffic)| traffic.bytes).sum::<u64>() as f64 / GIB)
        });
        let calls = of.traffic.values().map(|traffic| traffic.calls).sum::<u64>().to_string();
        table.add_row(places(ranks, mesh).into_iter().chain(sent).chain([calls]));
    }
    format!("{}\n", aligned(table, 3))
}

fn foot(rows: &[Row], backend: BackendKind) -> String {
    let largest = rows.iter().max_by_key(|row| row.of.usage.peak).expect("a mesh has ranks");
    let rules = match backend {
        BackendKind::Cpu => "",
        BackendKind::Cuda => "; the CUDA backend does not say its own yet",
    };
    format!(
        "the most: {:.2} GiB at the peak, {:.2} GiB with what is kept for the next step, on rank {}\n\
         activations are what else is there at the peak: what collectives have under way, and scratch, too\n\
         memory by the rules of the CPU backend, one thread a rank{rules}; buffers of MPI or NCCL come on top\n",
        largest.of.usage.peak as f64 / GIB,
        largest.of.usage.reserved as f64 / GIB,
        spans(largest.ranks.iter().copied()),
    )
}
