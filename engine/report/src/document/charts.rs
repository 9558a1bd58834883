//! The charts: curves over the steps, and the timeline of the pipeline.

use super::number::whole;
use super::{Block, Chart, Curve, Drawing, Gantt, Scale, Section, Tone};
use crate::efficiency::{Efficiency, per_token, steady};
use crate::records::metrics::StepRecord;
use crate::records::timeline::Timeline;
use crate::run::Run;
use engine::config::Axis;
use engine::model::flops::Formula;

/// The most points of a curve; a chart does not resolve more.
const POINTS: usize = 600;
/// A larger number is damage, and no axis can show it.
const LARGEST: f64 = 1e30;

/// One point of a curve, which may stand for several steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    /// The middle of these steps.
    pub step: f64,
    pub mean: f64,
    pub least: f64,
    pub most: f64,
}

pub fn over_steps(e: &Efficiency, run: &Run) -> Section {
    let steps = run.steps.records.len();
    let mut blocks = vec![Block::Charts(vec![
        loss(run),
        plain("Gradient norm", "Of the whole gradient, before clipping", run, |step| step.grad_norm),
        plain("Learning rate", "By step", run, |step| step.lr),
        tokens(e, run),
        utilization(e, run),
        seconds(e, run),
    ])];
    if steps > POINTS {
        let each = steps.div_ceil(POINTS);
        blocks.push(Block::Text(format!(
            "Each point is the mean of {each} steps; the band shows their minimum and maximum."
        )));
    }
    Section::new("steps", "Training curves", blocks)
}

pub fn line(run: &Run, of: impl Fn(&StepRecord) -> f64) -> Vec<Bucket> {
    line_of(run.steps.records.iter().map(|step| (step.step, of(step))))
}

/// The line through these steps and values.
pub fn line_of(points: impl IntoIterator<Item = (u64, f64)>) -> Vec<Bucket> {
    buckets(points, POINTS)
}

pub fn curve(title: impl Into<String>, caption: impl Into<String>, curve: Curve) -> Chart {
    Chart { title: title.into(), caption: caption.into(), keys: Vec::new(), drawing: Drawing::Curve(curve) }
}

fn can_be_shown(value: f64) -> bool {
    value.abs() < LARGEST
}

/// At most `most` buckets of equally many points, except for the last. Points that cannot be shown are dropped.
fn buckets(points: impl IntoIterator<Item = (u64, f64)>, most: usize) -> Vec<Bucket> {
    let points: Vec<(u64, f64)> = points.into_iter().filter(|&(_, value)| can_be_shown(value)).collect();
    let each = points.len().div_ceil(most).max(1);
    points.chunks(each).map(bucket).collect()
}

fn bucket(points: &[(u64, f64)]) -> Bucket {
    let values = || points.iter().map(|&(_, value)| value);
    Bucket {
        step: (points[0].0 + points[points.len() - 1].0) as f64 / 2.0,
        mean: values().sum::<f64>() / points.len() as f64,
        least: values().fold(f64::INFINITY, f64::min),
        most: values().fold(f64::NEG_INFINITY, f64::max),
    }
}

fn plain(title: &str, caption: &str, run: &Run, of: impl Fn(&StepRecord) -> f64) -> Chart {
    let lines = vec![(Tone::This, line(run, of))];
    curve(title, caption, Curve { lines, marks: Vec::new(), scale: Scale::Zero })
}

fn loss(run: &Run) -> Chart {
    let validations = run.steps.records.iter().filter_map(|step| Some((step.step, step.valid_loss?)));
    let marks: Vec<(u64, f64)> = validations.filter(|&(_, loss)| can_be_shown(loss)).collect();
    let lines = vec![(Tone::This, line(run, |step| step.loss))];
    let keys = match marks.is_empty() {
        true => Vec::new(),
        false => vec![(Tone::This, "training".into()), (Tone::Other, "validation".into())],
    };
    let drawing = Curve { lines, marks: vec![(Tone::Other, marks)], scale: Scale::Least };
    Chart { keys, ..curve("Loss", "Nats per token", drawing) }
}

fn tokens(e: &Efficiency, run: &Run) -> Chart {
    plain(&format!("Tokens/s per {}", e.setup.worker), "By step", run, |step| step.tokens_per_s_per_rank)
}

/// MFU by the two formulas that `metrics.jsonl` has; TFLOPS where the peak is unknown.
fn utilization(e: &Efficiency, run: &Run) -> Chart {
    let by = |formula: Formula| {
        let flops = per_token(run, formula) / 1e12;
        let unit = e.peak.tflops.map_or(1.0, |peak| 100.0 / peak);
        line(run, |step| step.tokens_per_s_per_rank * flops * unit)
    };
    let lines = vec![(Tone::This, by(Formula::Model)), (Tone::Other, by(Formula::Full))];
    let (title, caption) = match e.peak.tflops {
        Some(_) => ("MFU".into(), "% of peak, by two formulas"),
        None => (format!("TFLOPS per {}", e.setup.worker), "By two formulas"),
    };
    let keys = vec![(Tone::This, "`model`".into()), (Tone::Other, "`full`".into())];
    Chart { keys, ..curve(title, caption, Curve { lines, marks: Vec::new(), scale: Scale::Zero }) }
}

/// Step times without the warm-up, which would flatten all other steps.
fn seconds(e: &Efficiency, run: &Run) -> Chart {
    let steps = steady(run).into_iter().map(|step| (step.step, step.step_time_s));
    let lines = vec![(Tone::This, buckets(steps, POINTS))];
    let caption = format!("Seconds, from step {} on", whole(e.speed.first_step));
    curve("Step time", caption, Curve { lines, marks: Vec::new(), scale: Scale::Zero })
}

pub fn pipeline(e: &Efficiency, run: &Run) -> Section {
    let title = "Pipeline timeline";
    let Some(ran) = run.timeline.present() else {
        let absent =
            "There is no `timeline.json`: with `report.interval` above 0 a run writes one of its last sampled step.";
        return Section::new("pipeline", title, vec![Block::Text(run.timeline.instead(absent))]);
    };
    let planned = run.plan.present().and_then(|plan| plan.step.as_ref()?.timeline.as_ref());
    let until = planned.map_or(0.0, |planned| planned.seconds).max(ran.seconds);
    let mut charts = vec![gantt(format!("Step {} as it ran", whole(ran.step)), run, ran, until)];
    charts.extend(planned.map(|planned| gantt("A step as planned".into(), run, planned, until)));
    let shown = match ran.ranks.len() == e.setup.ranks {
        true => String::new(),
        false => format!(" Only {} of {} ranks are shown.", ran.ranks.len(), whole(e.setup.ranks as u64)),
    };
    let text = format!(
        "Each row is a rank, each box the forward or backward pass of the micro-batch with that number; nothing was \
         measured where nothing is drawn.{shown}"
    );
    let blocks = charts.into_iter().map(|chart| Block::Charts(vec![chart]));
    Section::new("pipeline", title, [Block::Text(text)].into_iter().chain(blocks).collect())
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
        (Tone::Stages, "waits for other stages"),
        (Tone::Groups, "waits for other groups"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_points_become_few_and_few_stay() {
        let few = buckets([(3, 1.0), (4, f64::NAN), (4, 1e308), (5, 2.0)], 600);
        assert_eq!(few.len(), 2);
        assert_eq!(few[1], Bucket { step: 5.0, mean: 2.0, least: 2.0, most: 2.0 });
        let many = buckets((1..=1201).map(|step| (step, (step % 3) as f64)), 600);
        assert_eq!(many.len(), 401, "three per bucket");
        assert_eq!(many[0], Bucket { step: 2.0, mean: 1.0, least: 0.0, most: 2.0 });
        assert_eq!((many[400].step, many[400].mean), (1201.0, 1.0));
        assert!(buckets([], 600).is_empty());
    }
}
