//! Tasks that were scored while the run trained: a curve for each.

use std::collections::BTreeMap;

use super::charts::{curve, line_of};
use super::number::{fixed, whole};
use super::{Block, Chart, Curve, Scale, Section, Tone};
use crate::run::Run;

/// Steps and scores of a task, by its name and the metric's.
type Scored<'a> = BTreeMap<(&'a str, &'a str), Vec<(u64, f64)>>;

/// `None` where no tasks were scored.
pub fn scores(run: &Run) -> Option<Section> {
    let mut scored = Scored::new();
    for step in &run.steps.records {
        for (task, scores) in &step.tasks {
            for (metric, score) in scores {
                scored.entry((task, metric)).or_default().push((step.step, 100.0 * score));
            }
        }
    }
    let chart = |((task, metric), points): (&(&str, &str), &Vec<(u64, f64)>)| -> Chart {
        let lines = vec![(Tone::This, line_of(points.iter().copied()))];
        curve(*task, format!("{metric}, %"), Curve { lines, marks: Vec::new(), scale: Scale::Least })
    };
    let head = ["task", "metric", "first step", "score, %", "last step", "score, %", "change"];
    let rows = scored.iter().map(|(names, points)| row(*names, points)).collect();
    let table = Block::table("Scores of the tasks of [eval], at their first and last evaluation", &head, rows);
    let charts = Block::Charts(scored.iter().map(chart).collect());
    (!scored.is_empty()).then(|| Section::new("tasks", "Tasks", vec![charts, table]))
}

fn row((task, metric): (&str, &str), points: &[(u64, f64)]) -> Vec<String> {
    let (first, last) = (points[0], points[points.len() - 1]);
    let at = |(step, score): (u64, f64)| [whole(step), fixed(score, 2)];
    let change = format!("{:+.2}", last.1 - first.1);
    [vec![task.to_string(), metric.to_string()], at(first).into(), at(last).into(), vec![change]].concat()
}
