//! `plan --search`: the fastest layouts of a number of GPUs, and why the others were rejected.

use crate::output::or_broken_pipe;
use crate::progress::Count;
use crate::table::render;
use cuda::backend::CudaScratch;
use engine::config::{Axis, Config, Named};
use engine::error::{Error, Result, counted};
use engine::layout::mesh::Mesh;
use engine::memory::table::GIB;
use engine::model::flops::Formula;
use half::bf16;
use plan::search::{Candidate, Outcome, Reason, Rejected, SIMULATED, SearchSpace, search};
use plan::{Speed, bottleneck};
use serde_json::{Value, json};
use std::io::Write;

/// The number of layouts in the table.
const SHOWN: usize = 10;

type Space<'a> = SearchSpace<'a, CudaScratch>;

/// Prints the fastest layouts, and beside them the configuration as it is.
pub fn run(config: &Config, mesh: &Mesh, space: &Space, as_json: bool) -> Result<()> {
    let count = Count::new("simulating layouts", SIMULATED as u64);
    let outcome = search::<bf16, _>(config, space, &|| count.one());
    count.finish();
    let outcome = outcome?;
    let (own, step) = space.as_it_is::<bf16>(config, mesh)?;
    let own = Own { own, bottleneck: bottleneck(config, mesh, &step) };
    let text = match as_json {
        true => format!("{:#}\n", json(space, &outcome, &own)),
        false => text(space, &outcome, &own),
    };
    or_broken_pipe(std::io::stdout().write_all(text.as_bytes()))?;
    match outcome.simulated.is_empty() {
        true => Err(Error::user("no layout fits: use more GPUs, or GPUs with more memory")),
        false => Ok(()),
    }
}

/// The configuration as it is.
struct Own {
    own: Candidate,
    bottleneck: String,
}

impl Own {
    /// The comparison with the best layout.
    fn verdict(&self, best: &Candidate, limit: usize) -> String {
        let faster = 100.0 * (self.own.seconds / best.seconds - 1.0);
        let changes = || self.own.config.changes_to(&best.config).join(", ");
        match (self.own.bytes > limit, faster > 0.5) {
            (true, _) => format!("this configuration does not fit; the first layout of the table does: {}", changes()),
            (_, true) => format!("the first layout of the table is {faster:.1} % faster: {}", changes()),
            _ => "no simulated layout is more than 0.5 % faster".to_string(),
        }
    }
}

fn text(space: &Space, outcome: &Outcome, own: &Own) -> String {
    let head = head(space, outcome, own);
    let Some(best) = outcome.simulated.first() else {
        return head;
    };
    let table = render(&HEADER, 0, outcome.simulated.iter().take(SHOWN).map(|candidate| row(candidate, space)));
    let cells = HEADER.iter().zip(row(&own.own, space)).map(|(name, cell)| format!("{name} {cell}"));
    let (cells, verdict) = (cells.collect::<Vec<_>>().join(", "), own.verdict(best, space.limit));
    format!("{head}{table}\nthe configuration as it is: {cells}\n{}\n{verdict}\n", own.bottleneck)
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
    "max GiB",
];

/// The number of layouts, and why most were rejected.
fn head(space: &Space, outcome: &Outcome, own: &Own) -> String {
    let rejected = |reason| outcome.rejected_for(reason).count();
    let counts = format!(
        "{} of {} ({}): {} layouts are valid; {} need more than {:.2} GiB of a GPU, {} are slower by the closed form, \
         {} were simulated (--json lists all)\n",
        counted(space.ranks, "GPU"),
        space.cluster.name,
        space.cluster.device,
        outcome.valid(),
        rejected(Reason::TooLarge),
        space.limit as f64 / GIB,
        rejected(Reason::Slower),
        outcome.simulated.len(),
    );
    let missed = outcome.rejected_for(Reason::TooLarge).next().map(|missed| {
        let (changes, bytes) = (own.own.config.changes_to(&missed.config), missed.bytes as f64 / GIB);
        let layout = if changes.is_empty() { "the configuration as it is".into() } else { changes.join(", ") };
        format!("the fastest of those that do not fit, by the closed form, needs {bytes:.2} GiB: {layout}\n")
    });
    counts + &missed.unwrap_or_default()
}

fn row(candidate: &Candidate, space: &Space) -> Vec<String> {
    let Candidate { config, mesh, seconds, bytes } = candidate;
    let speed = Speed::of(config, mesh, *seconds);
    let mfu = 100.0 * speed.tflops(config, Formula::Model) / space.cluster.peak_tflops;
    let [tensor, pipeline, data] = mesh.layout();
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

fn json(space: &Space, outcome: &Outcome, own: &Own) -> Value {
    let simulated = |candidate: &Candidate| {
        let speed = Speed::of(&candidate.config, &candidate.mesh, candidate.seconds);
        let mut json = layout(candidate);
        json["tokens_per_s_per_gpu"] = json!(speed.tokens_per_s_per_rank);
        json["tflops_model"] = json!(speed.tflops(&candidate.config, Formula::Model));
        json
    };
    let rejected = |Rejected { candidate, reason }: &Rejected| {
        let mut json = layout(candidate);
        json["why"] = json!(if *reason == Reason::TooLarge { "too large" } else { "behind by the closed form" });
        json
    };
    json!({
        "ranks": space.ranks,
        "room_bytes": space.limit,
        "own": simulated(&own.own),
        "bottleneck": own.bottleneck,
        "verdict": outcome.simulated.first().map(|best| own.verdict(best, space.limit)),
        "found": outcome.simulated.iter().map(simulated).collect::<Vec<_>>(),
        "left": outcome.rejected.iter().map(rejected).collect::<Vec<_>>(),
    })
}

fn layout(Candidate { config, mesh, seconds, bytes }: &Candidate) -> Value {
    json!({
        "tensor": mesh.size(Axis::Tensor),
        "pipeline": mesh.size(Axis::Pipeline),
        "virtual_pipeline": config.parallel.virtual_pipeline,
        "data": mesh.replicas(),
        "micro_batch_size": config.train.micro_batch_size,
        "recompute": config.train.recompute.name(),
        "seconds": seconds,
        "bytes": bytes,
    })
}
