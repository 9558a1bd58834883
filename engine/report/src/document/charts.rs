//! Curves over steps, and the pipeline as it ran.

use super::number::whole;
use super::{Block, Chart, Curve, Drawing, Gantt, Scale, Section, Tone};
use crate::efficiency::{Bucket, Efficiency, buckets, can_be_shown, differs, per_token, steady};
use crate::metrics::StepRecord;
use crate::run::Run;
use crate::timeline::Timeline;
use engine::config::Axis;
use engine::model::flops::Formula;

/// Points of a curve: more are not told apart.
const POINTS: usize = 600;

pub fn over_steps(e: &Efficiency, run: &Run) -> Section {
    let steps = run.steps.records.len();
    let mut blocks = vec![Block::Charts(vec![
        loss(run),
        plain("Gradient norm", "Of the whole gradient, before clipping", run, |step| step.grad_norm),
        plain("Learning rate", "Used in the step", run, |step| step.lr),
        tokens(e, run),
        utilization(e, run),
        seconds(e, run),
    ])];
    if steps > POINTS {
        let each = steps.div_ceil(POINTS);
        blocks.push(Block::Text(format!(
            "A point is the mean of {each} steps; the band around it is their least and most."
        )));
    }
    Section::new("steps", "Over steps", blocks)
}

pub fn line(run: &Run, of: impl Fn(&StepRecord) -> f64) -> Vec<Bucket> {
    buckets(run.steps.records.iter().map(|step| (step.step, of(step))), POINTS)
}

pub fn curve(title: impl Into<String>, caption: impl Into<String>, curve: Curve) -> Chart {
    Chart { title: title.into(), caption: caption.into(), keys: Vec::new(), drawing: Drawing::Curve(curve) }
}

fn plain(title: &str, caption: &str, run: &Run, of: impl Fn(&StepRecord) -> f64) -> Chart {
    let lines = vec![(Tone::This, line(run, of))];
    curve(title, caption, Curve { lines, marks: Vec::new(), scale: Scale::Zero })
}

fn loss(run: &Run) -> Chart {
    let marks: Vec<(u64, f64)> = run
        .steps
        .records
        .iter()
        .filter_map(|step| Some((step.step, step.valid_loss?)))
        .filter(|&(_, loss)| can_be_shown(loss))
        .collect();
    let lines = vec![(Tone::This, line(run, |step| step.loss))];
    let keys = match marks.is_empty() {
        true => Vec::new(),
        false => vec![(Tone::This, "training".into()), (Tone::Other, "validation".into())],
    };
    let drawing = Curve { lines, marks: vec![(Tone::Other, marks)], scale: Scale::Least };
    Chart { keys, ..curve("Loss", "Nats a token", drawing) }
}

fn tokens(e: &Efficiency, run: &Run) -> Chart {
    plain(&format!("Tokens/s a {}", e.setup.worker), "Of each step by itself", run, |step| step.tokens_per_s_per_rank)
}

/// By both formulas that metrics have; in TFLOPS where the peak is not known.
fn utilization(e: &Efficiency, run: &Run) -> Chart {
    let by = |formula: Formula| {
        let flops = per_token(run, formula) / 1e12;
        let unit = e.peak.tflops.map_or(1.0, |peak| 100.0 / peak);
        line(run, |step| step.tokens_per_s_per_rank * flops * unit)
    };
    let lines = vec![(Tone::This, by(Formula::Model)), (Tone::Other, by(Formula::Full))];
    let (title, caption) = match e.peak.tflops {
        Some(_) => ("MFU".into(), "% of the peak, by two formulas"),
        None => (format!("TFLOPS a {}", e.setup.worker), "By two formulas"),
    };
    let keys = vec![(Tone::This, "`model`".into()), (Tone::Other, "`full`".into())];
    Chart { keys, ..curve(title, caption, Curve { lines, marks: Vec::new(), scale: Scale::Zero }) }
}

/// Of the steps that the median is of: the first ones would make all others look alike.
fn seconds(e: &Efficiency, run: &Run) -> Chart {
    let steps = steady(run).into_iter().map(|step| (step.step, step.step_time_s));
    let lines = vec![(Tone::This, buckets(steps, POINTS))];
    let caption = format!("From step {} on", whole(e.speed.first_step));
    curve("Seconds a step", caption, Curve { lines, marks: Vec::new(), scale: Scale::Zero })
}

pub fn pipeline(e: &Efficiency, run: &Run) -> Section {
    let Some(ran) = run.timeline.there() else {
        let absent = "No `timeline.json`: a run with `report.interval` above 0 leaves one, of its last sampled step.";
        return Section::new("pipeline", "The pipeline", vec![Block::Text(run.timeline.instead(absent))]);
    };
    let plan = run.plan.as_ref().filter(|plan| differs(plan, run).is_none());
    let planned = plan.and_then(|plan| plan.step.as_ref()?.timeline.as_ref());
    let planned = planned.filter(|planned| planned.layout == run.mesh.layout());
    let until = planned.map_or(0.0, |planned| planned.seconds).max(ran.seconds);
    let mut charts = vec![gantt(format!("Step {} as it ran", whole(ran.step)), run, ran, until)];
    charts.extend(planned.map(|planned| gantt("A step as it was planned".into(), run, planned, until)));
    let theirs = match ran.ranks.len() == e.setup.ranks {
        true => "",
        false => " Of so many ranks these stand for all.",
    };
    let text = format!(
        "Each row is a rank, each box a micro-batch with its number; where nothing is drawn, nothing was measured.{theirs}"
    );
    let blocks = charts.into_iter().map(|chart| Block::Charts(vec![chart]));
    Section::new("pipeline", "The pipeline", [Block::Text(text)].into_iter().chain(blocks).collect())
}

fn gantt(title: String, run: &Run, timeline: &Timeline, until: f64) -> Chart {
    let label = |rank: usize| match run.config.parallel.pipeline {
        1 => format!("rank {rank}"),
        _ => format!("rank {rank} · stage {}", run.mesh.coord(rank, Axis::Pipeline)),
    };
    let keys = [
        (Tone::Forward, "forward"),
        (Tone::Backward, "backward"),
        (Tone::Optimizer, "optimizer"),
        (Tone::Stages, "waits for another stage"),
        (Tone::Groups, "waits for others"),
    ];
    Chart {
        title,
        caption: "Time from left to right".into(),
        keys: keys.map(|(tone, name)| (tone, name.to_string())).into(),
        drawing: Drawing::Gantt(Gantt {
            labels: timeline.ranks.iter().map(|row| label(row.rank)).collect(),
            timeline: timeline.clone(),
            until,
        }),
    }
}
