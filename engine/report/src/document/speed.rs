//! The speed beside what was planned, and by every formula.

use super::head::{sentence, tflops};
use super::number::{count, fixed, percent, seconds};
use super::{Block, Section};
use crate::efficiency::{ByFormula, Efficiency, Planned, PlannedShare, differs};
use crate::run::Run;

pub fn plan(e: &Efficiency, run: &Run) -> Section {
    let title = "Plan and run";
    let Some(planned) = &e.plan else {
        return Section::new("plan", title, vec![Block::Text(without(run, e.setup.worker))]);
    };
    let mut blocks = Vec::new();
    let rows = vec![
        row("s a step", planned.step_s, planned.measured_step_s, seconds),
        row(
            &format!("tokens/s a {}", e.setup.worker),
            planned.tokens_per_s_per_rank,
            planned.measured_tokens_per_s_per_rank,
            count,
        ),
    ];
    let head = ["", "planned", "measured", "measured / planned"];
    blocks.push(Block::table(format!("On {}, and as it ran", planned.cluster), &head, rows));
    blocks.push(shares(planned));
    Section::new("plan", title, blocks)
}

fn without(run: &Run, worker: &str) -> String {
    let (ranks, on) = (run.mesh.ranks(), if worker == "GPU" { "--cluster FILE" } else { "--calibrate FILE" });
    match &run.plan {
        Some(plan) => match differs(plan, run) {
            Some([planned, ran]) => {
                format!("`plan.json` is a plan of {planned}, and the run is of {ran}: they do not compare.")
            }
            None => format!("`plan.json` tells no times: nobody knows what {} reaches.", plan.cluster),
        },
        None => format!(
            "No `plan.json`: in the run's directory `swallow-engine plan --config config.toml --ranks {ranks} {on} --json > \
             plan.json` would bring it."
        ),
    }
}

fn row(name: &str, planned: f64, measured: f64, say: fn(f64) -> String) -> Vec<String> {
    vec![name.to_string(), say(planned), say(measured), fixed(measured / planned, 2)]
}

fn shares(planned: &Planned) -> Block {
    let measured = |share: &PlannedShare| share.measured_s.map_or("-".into(), seconds);
    let row = |share: &PlannedShare| {
        vec![share.name.clone(), seconds(share.seconds), percent(share.seconds / planned.step_s), measured(share)]
    };
    Block::table(
        "Shares of the planned step, and what the run waited for as much; a run's waits for other stages all stand beside the bubble",
        &["share", "planned, s", "planned, %", "measured, s"],
        planned.shares.iter().map(row).collect(),
    )
}

pub fn formulas(e: &Efficiency) -> Section {
    let worker = e.setup.worker;
    let flops = |by: &ByFormula| format!("{} G", tflops(by.flops_per_token / 1e9));
    let row = |by: &ByFormula| {
        let cells = vec![format!("`{}`", by.formula), flops(by), tflops(by.tflops_per_rank)];
        cells.into_iter().chain(by.mfu.map(percent)).collect()
    };
    let head = ["formula", "FLOPs a token", &format!("TFLOPS a {worker}"), "% of the peak"];
    let head = if e.peak.tflops.is_some() { &head[..] } else { &head[..3] };
    let caption = format!("At {} tokens/s a {worker}, the median", count(e.speed.tokens_per_s_per_rank));
    let peak = match e.peak.tflops {
        Some(peak) => Block::Text(format!("The peak is {} TFLOPS, {}.", tflops(peak), e.peak.source)),
        None => Block::Note(sentence(&e.peak.source)),
    };
    let why =
        "The same speed is another number of TFLOPS by each way of counting: compare only what has the same name.";
    let table = Block::table(caption, head, e.formulas.iter().map(row).collect());
    Section::new("formulas", "By every formula", vec![Block::Text(why.into()), table, peak])
}
