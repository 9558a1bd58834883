//! `plan --search`: which layout of so many GPUs is the fastest, and why not another.

use super::site::GIB;
use super::{room, unknown};
use crate::commands::topology::{aligned, table};
use crate::output::or_broken_pipe;
use crate::progress::Count;
use cuda::backend::CudaScratch;
use engine::config::{Axis, Cluster, Config, Named};
use engine::error::{Error, Result, counted};
use engine::layout::mesh::Mesh;
use engine::model::flops::Formula;
use half::bf16;
use plan::search::{Found, Left, Outcome, Room, SETTLED, Why, as_it_is, search};
use plan::{Speed, Step, bottleneck};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// How many layouts are shown.
const SHOWN: usize = 10;

/// What is to be searched around.
pub struct Asked<'a> {
    pub config: &'a Config,
    pub mesh: &'a Mesh,
    pub cluster: &'a Cluster,
    pub scratch: CudaScratch,
}

/// The fastest layouts, and the configuration's own beside them. `path`: of the cluster's file.
pub fn run(asked: &Asked, path: &Path, as_json: bool) -> Result<()> {
    let Asked { config, mesh, cluster, scratch } = asked;
    let reached = cluster.reached.as_ref().ok_or_else(|| unknown(path, "--search"))?;
    let limit = room(cluster, mesh);
    let count = Count::new("simulating layouts", SETTLED as u64);
    let room = Room { ranks: mesh.ranks(), cluster, reached, limit, scratch };
    let outcome = search::<bf16, _>(config, &room, &|| count.one());
    count.finish();
    let outcome = outcome?;
    let (this, step) = as_it_is::<bf16, _>(config, mesh, &room)?;
    let own = Own { this, step };
    let text = if as_json { format!("{:#}\n", json(asked, &outcome, &own)) } else { text(asked, &outcome, &own) };
    or_broken_pipe(std::io::stdout().write_all(text.as_bytes()))?;
    match outcome.found.is_empty() {
        true => Err(Error::user("no layout fits: take more GPUs, or such with more memory")),
        false => Ok(()),
    }
}

/// The configuration as it is.
struct Own {
    this: Found,
    step: Step,
}

impl Own {
    /// What the best would change.
    fn verdict(&self, best: &Found, room: usize) -> String {
        let faster = 100.0 * (self.this.seconds / best.seconds - 1.0);
        let changes = || self.this.config.changes_to(&best.config).join(", ");
        match (self.this.bytes > room, faster > 0.5) {
            (true, _) => format!("it does not fit; the first of the table does: {}", changes()),
            (_, true) => format!("the first of the table is {faster:.1} % faster: {}", changes()),
            _ => "nothing that was simulated is more than 0.5 % faster".to_string(),
        }
    }
}

fn text(asked: &Asked, outcome: &Outcome, own: &Own) -> String {
    let Asked { config, mesh, cluster, .. } = asked;
    let head = head(asked, outcome);
    let Some(best) = outcome.found.first() else {
        return head;
    };
    let mut table = table(&HEADER);
    outcome.found.iter().take(SHOWN).for_each(|found| _ = table.add_row(row(found, cluster)));
    let cells = HEADER.iter().zip(row(&own.this, cluster)).map(|(name, cell)| format!("{name} {cell}"));
    let as_it_is = cells.collect::<Vec<_>>().join(", ");
    let (limit, verdict) = (bottleneck(config, mesh, &own.step), own.verdict(best, room(cluster, mesh)));
    format!("{head}{}\n\nthe configuration as it is: {as_it_is}\n{limit}\n{verdict}\n", aligned(table, 0))
}

const HEADER: [&str; 10] = [
    "tensor",
    "pipeline",
    "virtual",
    "data",
    "micro-batch",
    "recompute",
    "s a step",
    "tokens/s a GPU",
    "MFU model",
    "GiB at most",
];

/// How many there are, and why not the others.
fn head(asked: &Asked, outcome: &Outcome) -> String {
    let Asked { config, mesh, cluster, .. } = asked;
    let left = |why| outcome.left_for(why).count();
    let counts = format!(
        "{} of {} ({}): {} layouts are possible; {} need more than {:.2} GiB of a GPU, {} are behind by the closed \
         form, {} were simulated (--json has each)\n",
        counted(mesh.ranks(), "GPU"),
        cluster.name,
        cluster.device,
        outcome.possible(),
        left(Why::TooLarge),
        room(cluster, mesh) as f64 / GIB,
        left(Why::Behind),
        outcome.found.len(),
    );
    let missed = outcome.left_for(Why::TooLarge).next().map(|missed| {
        let (changes, bytes) = (config.changes_to(&missed.config), missed.bytes as f64 / GIB);
        let layout = if changes.is_empty() { "the configuration as it is".into() } else { changes.join(", ") };
        format!("of those that do not fit the fastest by the closed form would take {bytes:.2} GiB: {layout}\n")
    });
    counts + &missed.unwrap_or_default()
}

fn row(found: &Found, cluster: &Cluster) -> Vec<String> {
    let Found { config, mesh, seconds, bytes } = found;
    let speed = Speed::of(config, mesh, *seconds);
    let mfu = 100.0 * speed.tflops(config, Formula::Model) / cluster.peak_tflops;
    let [tensor, pipeline, data] = [Axis::Tensor, Axis::Pipeline, Axis::Data].map(|axis| mesh.size(axis));
    let sizes = [tensor, pipeline, config.parallel.virtual_pipeline, data, config.train.micro_batch_size];
    let figures = [
        config.train.recompute.name().to_string(),
        format!("{seconds:.2}"),
        format!("{:.0}", speed.tokens_per_s_per_rank),
        format!("{mfu:.1} %"),
        format!("{:.2}", *bytes as f64 / GIB),
    ];
    sizes.map(|size| size.to_string()).into_iter().chain(figures).collect()
}

fn json(asked: &Asked, outcome: &Outcome, own: &Own) -> Value {
    let Asked { config, mesh, cluster, .. } = asked;
    let found = |found: &Found| {
        let speed = Speed::of(&found.config, &found.mesh, found.seconds);
        let mut told = layout(&found.config, &found.mesh, found.seconds, found.bytes);
        told["tokens_per_s_per_gpu"] = json!(speed.tokens_per_s_per_rank);
        told["tflops_model"] = json!(speed.tflops(&found.config, Formula::Model));
        told
    };
    let left = |left: &Left| {
        let mut told = layout(&left.config, &left.mesh, left.seconds, left.bytes);
        told["why"] = json!(if left.why == Why::TooLarge { "too large" } else { "behind by the closed form" });
        told
    };
    let best = outcome.found.first();
    json!({
        "ranks": mesh.ranks(),
        "room_bytes": room(cluster, mesh),
        "own": found(&own.this),
        "bottleneck": bottleneck(config, mesh, &own.step),
        "verdict": best.map(|best| own.verdict(best, room(cluster, mesh))),
        "found": outcome.found.iter().map(found).collect::<Vec<_>>(),
        "left": outcome.left.iter().map(left).collect::<Vec<_>>(),
    })
}

fn layout(config: &Config, mesh: &Mesh, seconds: f64, bytes: usize) -> Value {
    json!({
        "tensor": mesh.size(Axis::Tensor),
        "pipeline": mesh.size(Axis::Pipeline),
        "virtual_pipeline": config.parallel.virtual_pipeline,
        "data": mesh.size(Axis::Data),
        "micro_batch_size": config.train.micro_batch_size,
        "recompute": config.train.recompute.name(),
        "seconds": seconds,
        "bytes": bytes,
    })
}
