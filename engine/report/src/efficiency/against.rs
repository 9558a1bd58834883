//! The comparison of two runs.

use super::Efficiency;
use crate::run::Run;
use engine::config::{Model, Named};
use engine::memory::table::GIB;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Against {
    /// The other run's name.
    pub run: String,
    /// Why some numbers do not compare.
    pub warnings: Vec<String>,
    pub rows: Vec<Compared>,
}

/// One number of both runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compared {
    pub figure: String,
    pub this: Option<f64>,
    pub other: Option<f64>,
    /// this / other
    pub ratio: Option<f64>,
}

type Both<'a> = (&'a Efficiency, &'a Run);

impl Against {
    pub fn of(this: Both, other: Both) -> Against {
        Against { run: other.0.run.clone(), warnings: warnings(this.1, other.1), rows: rows(this, other) }
    }
}

impl Compared {
    fn new(figure: impl Into<String>, this: Option<f64>, other: Option<f64>) -> Compared {
        let ratio = this.zip(other).map(|(this, other)| this / other).filter(|ratio| ratio.is_finite());
        Compared { figure: figure.into(), this, other, ratio }
    }
}

fn rows(this: Both, other: Both) -> Vec<Compared> {
    let row = |figure: &str, of: fn(&Efficiency) -> Option<f64>| Compared::new(figure, of(this.0), of(other.0));
    let mut rows = vec![
        row("tokens/s per rank", |e| Some(e.speed.tokens_per_s_per_rank)),
        row("tokens/s of all ranks", |e| Some(e.speed.tokens_per_s)),
        row("step time, s (median)", |e| Some(e.speed.step_s)),
    ];
    rows.extend(loss(this.1, other.1));
    rows.push(row("MFU (`model`), %", |e| Some(100.0 * e.formula("model").mfu?)));
    let sol = row("ideal time, % of step", |e| Some(100.0 * e.speed.sol?));
    rows.extend((sol.this.is_some() || sol.other.is_some()).then_some(sol));
    rows.push(row("pipeline bubble, % of step", |e| Some(100.0 * e.time.as_ref()?.bubble.measured)));
    rows.extend(waits(this.0, other.0));
    rows.push(row("GiB on the rank that uses most", most_memory));
    rows
}

/// The loss of the last step that both have.
fn loss(this: &Run, other: &Run) -> Option<Compared> {
    let of = |run: &Run| run.steps.records.iter().map(|step| (step.step, step.loss)).collect::<BTreeMap<_, _>>();
    let (this, other) = (of(this), of(other));
    let (step, loss) = this.iter().rev().find(|(step, _)| other.contains_key(step))?;
    Some(Compared::new(format!("loss of step {step}"), Some(*loss), Some(other[step])))
}

fn waits(this: &Efficiency, other: &Efficiency) -> Vec<Compared> {
    let of = |efficiency: &Efficiency| -> BTreeMap<String, f64> {
        let waits = efficiency.time.iter().flat_map(|time| &time.waits);
        waits.map(|wait| (wait.group.clone(), wait.mean_s)).collect()
    };
    let (this, other) = (of(this), of(other));
    let groups: BTreeSet<&String> = this.keys().chain(other.keys()).collect();
    let row = |group| {
        Compared::new(
            format!("exposed communication per step, s: {group}"),
            this.get(group).copied(),
            other.get(group).copied(),
        )
    };
    groups.into_iter().map(row).collect()
}

fn most_memory(of: &Efficiency) -> Option<f64> {
    let most = of.memory.as_ref()?.iter().map(|rank| rank.used_bytes).max()?;
    Some(most as f64 / GIB)
}

fn warnings(this: &Run, other: &Run) -> Vec<String> {
    let shape = |run: &Run| Model { hf: None, ..run.config.model.clone() };
    let (a, b) = (&this.config.train, &other.config.train);
    let differ = |key: &str, a: String, b: String, what: &str| {
        (a != b).then(|| format!("{key} is {a} in this run and {b} in the other: {what}"))
    };
    let model = (shape(this) != shape(other)).then(|| "[model] differs: no numbers compare".to_string());
    let seq = differ("train.seq_length", a.seq_length.to_string(), b.seq_length.to_string(), "no numbers compare");
    let batch = differ(
        "train.global_batch_size",
        a.global_batch_size.to_string(),
        b.global_batch_size.to_string(),
        "step times and losses do not compare",
    );
    let recompute = differ(
        "train.recompute",
        a.recompute.name().into(),
        b.recompute.name().into(),
        "the formula `hardware` counts different FLOPs per token",
    );
    let on = |run: &Run| {
        let machine = run.machine.present();
        machine.map_or("unknown".to_string(), |machine| format!("{} in {}", machine.device, machine.precision))
    };
    let device = differ("the device", on(this), on(other), "speeds per rank depend on the device, too");
    let ranks = |run: &Run| run.mesh.ranks().to_string();
    let ranks = differ("the number of ranks", ranks(this), ranks(other), "step times do not compare");
    [model, seq, batch, recompute, device, ranks].into_iter().flatten().collect()
}
