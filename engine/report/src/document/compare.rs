//! The speed of the run beside the planned one, by every FLOPs formula, and beside that of another run.

use super::charts::{curve, line};
use super::head::{sentence, tflops};
use super::number::{count, digits, fixed, percent, seconds};
use super::{Block, Chart, Curve, Scale, Section, Tone};
use crate::efficiency::{ByFormula, Compared, Efficiency, Planned, PlannedShare};
use crate::records::metrics::StepRecord;
use crate::run::Run;

pub fn plan(e: &Efficiency, run: &Run) -> Section {
    let blocks = match &e.plan {
        Some(planned) => vec![speed(planned, e.setup.worker), shares(planned)],
        None => vec![Block::Text(without_plan(run, e.setup.worker))],
    };
    Section::new("plan", "Plan and measurement", blocks)
}

fn without_plan(run: &Run, worker: &str) -> String {
    if let Some(plan) = run.plan.present() {
        return format!("`plan.json` has no step time, since the speeds that {} achieves are unknown.", plan.cluster);
    }
    let on = if worker == "GPU" { "--cluster FILE" } else { "--calibrate FILE" };
    run.plan.instead(&format!(
        "There is no `plan.json`. To compare the run with its plan, run `swallow-engine plan --config config.toml \
         --ranks {} {on} --json > plan.json` in the run directory.",
        run.mesh.ranks()
    ))
}

fn speed(planned: &Planned, worker: &str) -> Block {
    let row = |name: String, planned: f64, measured: f64, say: fn(f64) -> String| {
        vec![name, say(planned), say(measured), fixed(measured / planned, 2)]
    };
    let rows = vec![
        row("step time, s".into(), planned.step_s, planned.measured_step_s, seconds),
        row(
            format!("tokens/s per {worker}"),
            planned.tokens_per_s_per_rank,
            planned.measured_tokens_per_s_per_rank,
            count,
        ),
    ];
    let head = ["", "planned", "measured", "measured / planned"];
    Block::table(format!("Planned on {}, and measured", planned.cluster), &head, rows)
}

fn shares(planned: &Planned) -> Block {
    let measured = |share: &PlannedShare| share.measured_s.map_or("-".into(), seconds);
    let row = |share: &PlannedShare| {
        vec![share.name.clone(), seconds(share.seconds), percent(share.seconds / planned.step_s), measured(share)]
    };
    Block::table(
        "The planned step by category, and the waits that the run measured; all of its waits for other stages count as \
         pipeline bubble",
        &["category", "planned, s", "planned, %", "measured, s"],
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
    let head = ["formula", "FLOPs per token", &format!("TFLOPS per {worker}"), "% of peak"];
    let head = if e.peak.tflops.is_some() { &head[..] } else { &head[..3] };
    let caption = format!("At the median of {} tokens/s per {worker}", count(e.speed.tokens_per_s_per_rank));
    let peak = match e.peak.tflops {
        Some(peak) => Block::Text(format!("The peak is {} TFLOPS, {}.", tflops(peak), e.peak.source)),
        None => Block::Note(sentence(&e.peak.source)),
    };
    let why = "Formulas count different FLOPs, so they give different TFLOPS for the same speed: compare only numbers \
               of the same formula.";
    let table = Block::table(caption, head, e.formulas.iter().map(row).collect());
    Section::new("formulas", "TFLOPS and MFU by formula", vec![Block::Text(why.into()), table, peak])
}

/// `None` without a comparison.
pub fn runs(e: &Efficiency, run: &Run, other: &Run) -> Option<Section> {
    let against = e.against.as_ref()?;
    let number = |x: Option<f64>| x.map_or("-".into(), |x| digits(x, 4));
    let row = |row: &Compared| {
        let ratio = row.ratio.map_or("-".into(), |ratio| fixed(ratio, 3));
        vec![row.figure.clone(), number(row.this), number(row.other), ratio]
    };
    let head = ["", "this run", "other run", "this / other"];
    let caption = format!("{} compared with {}", e.run, against.run);
    let table = Block::table(caption, &head, against.rows.iter().map(row).collect());
    let both = |title: &str, caption: &str, scale: Scale, of: fn(&StepRecord) -> f64| {
        let lines = vec![(Tone::Other, line(other, of)), (Tone::This, line(run, of))];
        let keys = vec![(Tone::This, e.run.clone()), (Tone::Other, against.run.clone())];
        Chart { keys, ..curve(title, caption, Curve { lines, marks: Vec::new(), scale }) }
    };
    let charts = Block::Charts(vec![
        both("Loss", "Nats per token", Scale::Least, |step| step.loss),
        both("Tokens/s per rank", "By step", Scale::Zero, |step| step.tokens_per_s_per_rank),
    ]);
    let warnings = against.warnings.iter().map(|warning| Block::Note(sentence(warning)));
    let blocks = warnings.chain([table, charts]).collect();
    Some(Section::new("against", format!("Comparison with {}", against.run), blocks))
}
