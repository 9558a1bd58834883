//! The output of a plan, as text and as JSON.

use super::machine::Machine;
use crate::table::render;
use engine::config::{Axis, Config, Named};
use engine::error::counted;
use engine::layout::mesh::Mesh;
use engine::memory::table::GIB;
use engine::model::flops::{self, Formula};
use engine::time::TimeCategory;
use plan::dry_run::DryRun;
use plan::search::Candidate;
use plan::{Change, Forecast, Speed, Step, bottleneck};
use report::records::settings::settings;
use report::records::timeline::{Row, Timeline};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// The least share of a step that a change must save to be mentioned.
const GAIN: f64 = 0.005;

pub struct Summary<'a> {
    pub machine: Machine,
    /// The file of the cluster or the profile.
    pub path: PathBuf,
    pub config: &'a Config,
    pub mesh: &'a Mesh,
    pub forecast: Forecast,
    /// The change of one key that gains most: `None` if it is unknown, `Some(None)` if none fits.
    pub change: Option<Option<Change>>,
}

impl Summary<'_> {
    pub fn text(&self, config: &Path) -> String {
        let mut parts = vec![self.head(config), self.memory()];
        match &self.forecast.step {
            Some(step) => parts.extend([time(step), self.speed(step), self.advice(step)]),
            None => parts.push(format!(
                "step time unavailable: {} has no [reached] table with the achieved rates of kernels and links\n",
                self.path.display()
            )),
        }
        parts.join("\n")
    }

    fn head(&self, config: &Path) -> String {
        let (t, machine, ranks) = (&self.config.train, &self.machine, self.mesh.ranks());
        let [tp, pp, dp] = self.mesh.layout();
        let (units, nodes) = (counted(ranks, machine.unit), counted(ranks.div_ceil(machine.units), "node"));
        let (config, software) = (config.display(), &machine.software);
        let n_mbs = t.global_batch_size / (t.micro_batch_size * dp);
        let p = &self.config.parallel;
        let shared = match p.expert {
            1 => String::new(),
            n => format!(" (experts over {n}, the most loaded with {} times the mean rows)", p.expert_imbalance),
        };
        format!(
            "{config} with {software} on {} ({}): {units} on {nodes}, tensor {tp} x pipeline {pp} x data {dp}{shared}, \
             {} of {} x {} tokens a step, recompute {}\n",
            machine.name,
            machine.device,
            counted(n_mbs, "micro-batch"),
            t.micro_batch_size,
            t.seq_length,
            t.recompute.name(),
        )
    }

    fn memory(&self) -> String {
        let (ranks, machine) = (&self.forecast.memory, &self.machine);
        let header = format!("GiB a {}, stage", machine.unit);
        let names = ranks[0].uses().map(|(name, _)| name);
        let row = |(stage, rank): (usize, &DryRun)| {
            let bytes = rank.uses().map(|(_, bytes)| bytes).into_iter().chain([rank.usage.reserved]);
            let cells = bytes.map(|bytes| format!("{:.2}", bytes as f64 / GIB));
            [stage.to_string()].into_iter().chain(cells).collect()
        };
        let header = [&[header.as_str()], &names[..], &["total"]].concat();
        let (most, room, note) = (self.forecast.bytes() as f64 / GIB, machine.room as f64 / GIB, &machine.room_note);
        let left = match room - most {
            left if left >= 0.0 => format!("{left:.2} GiB are left"),
            missing => format!("{:.2} GiB are missing", -missing),
        };
        format!(
            "{}maximum {most:.2} GiB of {room:.2} GiB available ({note}); {left}\n",
            render(&header, 1, ranks.iter().enumerate().map(row))
        )
    }

    fn speed(&self, step: &Step) -> String {
        let (speed, machine) = (Speed::of(self.config, self.mesh, step.seconds), &self.machine);
        let unit = machine.unit;
        let row = |(name, formula): &(&str, Formula)| {
            let tflops = speed.tflops(self.config, *formula);
            let share = machine.peak_tflops.map_or("unknown".into(), |peak| format!("{:.1}", 100.0 * tflops / peak));
            vec![name.to_string(), digits(tflops), share]
        };
        let header = ["formula", &format!("TFLOPS a {unit}"), "% of peak"];
        let table = render(&header, 1, Formula::NAMES.iter().map(row));
        let Speed { tokens_per_s_per_rank: each, days, rank_hours } = speed;
        let lasts = match days < 1.0 {
            true => format!("{:.2} hours", 24.0 * days),
            false => format!("{days:.1} days"),
        };
        let (all, steps) = (each * self.mesh.ranks() as f64, self.config.train.steps);
        format!(
            "{each:.0} tokens/s a {unit}, {all:.0} in total; {lasts} and {rank_hours:.1} {unit}-hours for {steps} \
             steps\n{table}"
        )
    }

    /// The bottleneck of a run that fits, and the best change.
    fn advice(&self, step: &Step) -> String {
        match self.fits() {
            true => format!("{}\n{}", bottleneck(self.config, self.mesh, step), self.change()),
            false => self.change(),
        }
    }

    fn fits(&self) -> bool {
        self.forecast.bytes() <= self.machine.room
    }

    fn change(&self) -> String {
        let text = match (&self.change, self.fits()) {
            (Some(Some(change)), true) if change.saves > GAIN => {
                format!("the best change of one key saves {:.1} %: {}", 100.0 * change.saves, self.changed(&change.to))
            }
            (Some(Some(change)), false) => {
                format!("the fastest change of one key with which it fits: {}", self.changed(&change.to))
            }
            (Some(_), true) => format!(
                "no change of one key saves more than {} % in the simulation (parallel.tensor, pipeline and \
                 virtual_pipeline, train.micro_batch_size and recompute)",
                100.0 * GAIN
            ),
            _ => return String::new(),
        };
        format!("{text}; --search changes several keys at once\n")
    }

    fn changed(&self, to: &Candidate) -> String {
        let (key, most) = (self.config.changes_to(&to.config).join(", "), to.bytes as f64 / GIB);
        format!("{key} ({} a step, {most:.2} GiB)", seconds(to.seconds))
    }

    pub fn json(&self) -> Value {
        let (mesh, machine) = (self.mesh, &self.machine);
        let memory = |rank: &DryRun| {
            let uses: Map<_, _> = rank.uses().iter().map(|(name, bytes)| (name.to_string(), json!(bytes))).collect();
            json!({ "bytes": rank.usage.reserved, "uses": uses })
        };
        json!({
            "ranks": mesh.ranks(),
            "tensor": mesh.size(Axis::Tensor),
            "pipeline": mesh.size(Axis::Pipeline),
            "data": mesh.replicas(),
            "expert": self.config.parallel.expert,
            "settings": settings(self.config, mesh),
            "parameters": flops::parameters(&self.config.model),
            "active_parameters": flops::active_parameters(&self.config.model),
            "cluster": machine.name,
            "software": machine.software,
            "room_bytes": machine.room,
            "stages": self.forecast.memory.iter().map(memory).collect::<Vec<_>>(),
            "step": self.forecast.step.as_ref().map(|step| self.step_json(step)),
        })
    }

    fn change_json(&self, Change { to, saves }: &Change) -> Value {
        let changes = self.config.changes_to(&to.config);
        json!({ "changes": changes, "seconds": to.seconds, "saves": saves, "bytes": to.bytes })
    }

    fn step_json(&self, step: &Step) -> Value {
        let speed = Speed::of(self.config, self.mesh, step.seconds);
        let shares: Map<_, _> =
            step.shares.iter().map(|(share, seconds)| (share.name().to_string(), json!(seconds))).collect();
        let formula = |(name, formula): &(&str, Formula)| {
            let tflops = speed.tflops(self.config, *formula);
            (name.to_string(), json!({ "tflops": tflops, "mfu": self.machine.peak_tflops.map(|peak| tflops / peak) }))
        };
        let mut json = json!({
            "seconds": step.seconds,
            "shares": shares,
            "tokens_per_s_per_gpu": speed.tokens_per_s_per_rank,
            "days": speed.days,
            "gpu_hours": speed.rank_hours,
            "formulas": Formula::NAMES.iter().map(formula).collect::<Map<_, _>>(),
            "bottleneck": bottleneck(self.config, self.mesh, step),
            "timeline": timeline(step, self.mesh),
        });
        if let Some(change) = &self.change {
            json["best_change"] = change.as_ref().map_or(Value::Null, |change| self.change_json(change));
        }
        json
    }
}

/// The simulated step of one rank of each stage.
fn timeline(step: &Step, mesh: &Mesh) -> Timeline {
    let rows = step.tracks().into_iter().map(|(rank, spans)| (Row::of(rank, spans), None));
    Timeline::of(0, mesh.layout(), rows.collect())
}

/// At least three digits.
fn seconds(x: f64) -> String {
    if x < 10.0 { format!("{x:.3} s") } else { format!("{x:.2} s") }
}

/// Cores need more decimals than GPUs.
fn digits(tflops: f64) -> String {
    if tflops < 1.0 { format!("{tflops:.3}") } else { format!("{tflops:.1}") }
}

fn time(step: &Step) -> String {
    let shares =
        TimeCategory::ALL.iter().map(|share| (share.name(), step.shares[share])).filter(|(_, seconds)| *seconds > 0.0);
    let row = |(name, seconds): (&str, f64)| {
        vec![name.to_string(), format!("{seconds:.3}"), format!("{:.1}", 100.0 * seconds / step.seconds)]
    };
    render(&["step time, mean of the stages", "s", "%"], 1, shares.chain([("total", step.seconds)]).map(row))
}
