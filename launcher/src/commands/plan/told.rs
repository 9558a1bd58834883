//! What a plan says, for people and for programs.

use super::site::{GIB, Site};
use crate::commands::topology::{aligned, table};
use engine::config::{Axis, Config, Named};
use engine::error::counted;
use engine::layout::mesh::Mesh;
use engine::model::flops::{self, Formula};
use plan::dry_run::{DryRun, Held};
use plan::search::Found;
use plan::{Change, Forecast, Share, Speed, Step, bottleneck};
use report::records::settings::settings;
use report::records::timeline::{Row, Timeline};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// What a step must get shorter by to be worth a word, a share.
const GAIN: f64 = 0.005;

/// What there is to tell.
pub struct Told<'a> {
    pub site: Site,
    /// Of the cluster or the figures.
    pub path: PathBuf,
    pub config: &'a Config,
    pub mesh: &'a Mesh,
    pub forecast: Forecast,
    /// The change of one key that gains most: `None` where it is not known, `Some(None)` where none fits.
    pub change: Option<Option<Change>>,
}

impl Told<'_> {
    pub fn text(&self, config: &Path) -> String {
        let mut parts = vec![self.head(config), self.memory()];
        match &self.forecast.step {
            Some(step) => {
                parts.extend([time(step), self.speed(step), self.limits(step)]);
            }
            None => parts.push(format!(
                "{}: no [reached] table, so nobody knows what kernels and links get of their peaks: times are not told\n",
                self.path.display()
            )),
        }
        parts.join("\n")
    }

    fn head(&self, config: &Path) -> String {
        let (t, site, ranks) = (&self.config.train, &self.site, self.mesh.ranks());
        let [tp, pp, dp] = [Axis::Tensor, Axis::Pipeline, Axis::Data].map(|axis| self.mesh.size(axis));
        let (units, nodes) = (counted(ranks, site.unit), counted(ranks.div_ceil(site.units), "node"));
        let (config, software) = (config.display(), &site.software);
        let n_mbs = t.global_batch_size / (t.micro_batch_size * dp);
        format!(
            "{config} by {software} on {} ({}): {units} of {nodes}, tensor {tp} x pipeline {pp} x data {dp}, \
             {} of {} x {} tokens a step, recompute {}\n",
            site.name,
            site.device,
            counted(n_mbs, "micro-batch"),
            t.micro_batch_size,
            t.seq_length,
            t.recompute.name(),
        )
    }

    fn memory(&self) -> String {
        let (ranks, site) = (&self.forecast.memory, &self.site);
        let there = site.room as f64 / GIB;
        let header = format!("GiB a {}, stage", site.unit);
        let names = uses(&ranks[0]).map(|(name, _)| name);
        let mut table = table(&[&[header.as_str()], &names[..], &["together"]].concat());
        for (stage, rank) in ranks.iter().enumerate() {
            let bytes = uses(rank).map(|(_, bytes)| bytes).into_iter().chain([rank.usage.reserved]);
            let cells = bytes.map(|bytes| format!("{:.2}", bytes as f64 / GIB));
            table.add_row([stage.to_string()].into_iter().chain(cells));
        }
        let most = self.forecast.bytes() as f64 / GIB;
        let left = match there - most {
            left if left >= 0.0 => format!("{left:.2} GiB are left"),
            missing => format!("{:.2} GiB are missing", -missing),
        };
        let rest = &site.rest;
        format!("{}\nthe most is {most:.2} of {there:.2} GiB, {rest}; {left}\n", aligned(table, 1))
    }

    fn speed(&self, step: &Step) -> String {
        let (speed, site) = (Speed::of(self.config, self.mesh, step.seconds), &self.site);
        let unit = site.unit;
        let mut table = table(&["formula", &format!("TFLOPS a {unit}"), "% of the peak"]);
        for (name, formula) in Formula::NAMES {
            let tflops = speed.tflops(self.config, *formula);
            let share = site.peak_tflops.map_or("unknown".into(), |peak| format!("{:.1}", 100.0 * tflops / peak));
            table.add_row([name.to_string(), digits(tflops), share]);
        }
        let Speed { tokens_per_s_per_rank: each, days, rank_hours } = speed;
        let lasts = match days < 1.0 {
            true => format!("{:.2} hours", 24.0 * days),
            false => format!("{days:.1} days"),
        };
        let (all, steps) = (each * self.mesh.ranks() as f64, self.config.train.steps);
        format!(
            "{each:.0} tokens/s a {unit}, {all:.0} together; {lasts} and {rank_hours:.1} {unit}-hours for {steps} steps\n{}\n",
            aligned(table, 1)
        )
    }

    /// What limits a step that can be.
    fn limits(&self, step: &Step) -> String {
        match self.fits() {
            true => format!("{}\n{}", bottleneck(self.config, self.mesh, step), self.change()),
            false => self.change(),
        }
    }

    fn fits(&self) -> bool {
        self.forecast.bytes() <= self.site.room
    }

    /// Which key to change, as far as that is known.
    fn change(&self) -> String {
        let told = match (&self.change, self.fits()) {
            (Some(Some(change)), true) if change.saves > GAIN => {
                format!("one key gains most, {:.1} %: {}", 100.0 * change.saves, self.changed(&change.found))
            }
            (Some(Some(change)), false) => {
                format!("one key is enough, the fastest that fits: {}", self.changed(&change.found))
            }
            (Some(_), true) => format!(
                "one key alone gains no {} % in the simulation, of parallel.tensor, pipeline and virtual_pipeline, \
                 train.micro_batch_size and recompute",
                100.0 * GAIN
            ),
            _ => return String::new(),
        };
        format!("{told}; --search changes several at once\n")
    }

    fn changed(&self, found: &Found) -> String {
        let (key, most) = (self.config.changes_to(&found.config).join(", "), found.bytes as f64 / GIB);
        format!("{key} ({} a step, {most:.2} GiB)", seconds(found.seconds))
    }

    pub fn json(&self) -> Value {
        let (mesh, site) = (self.mesh, &self.site);
        let memory = |rank: &DryRun| {
            let uses: Map<_, _> = uses(rank).iter().map(|(name, bytes)| (name.to_string(), json!(bytes))).collect();
            json!({ "bytes": rank.usage.reserved, "uses": uses })
        };
        json!({
            "ranks": mesh.ranks(),
            "tensor": mesh.size(Axis::Tensor),
            "pipeline": mesh.size(Axis::Pipeline),
            "data": mesh.size(Axis::Data),
            "settings": settings(self.config, mesh),
            "parameters": flops::parameters(&self.config.model),
            "cluster": site.name,
            "software": site.software,
            "room_bytes": site.room,
            "stages": self.forecast.memory.iter().map(memory).collect::<Vec<_>>(),
            "step": self.forecast.step.as_ref().map(|step| self.step_json(step)),
        })
    }

    fn change_json(&self, Change { found, saves }: &Change) -> Value {
        json!({ "changes": self.config.changes_to(&found.config), "seconds": found.seconds, "saves": saves, "bytes": found.bytes })
    }

    fn step_json(&self, step: &Step) -> Value {
        let speed = Speed::of(self.config, self.mesh, step.seconds);
        let shares: Map<_, _> =
            step.shares.iter().map(|(share, seconds)| (share.name().to_string(), json!(seconds))).collect();
        let formula = |(name, formula): &(&str, Formula)| {
            let tflops = speed.tflops(self.config, *formula);
            (name.to_string(), json!({ "tflops": tflops, "mfu": self.site.peak_tflops.map(|peak| tflops / peak) }))
        };
        let mut told = json!({
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
            told["best_change"] = change.as_ref().map_or(Value::Null, |change| self.change_json(change));
        }
        told
    }
}

/// The simulated step of a rank of each stage.
fn timeline(step: &Step, mesh: &Mesh) -> Timeline {
    let rows = step.tracks().into_iter().map(|(rank, spans)| (Row::of(rank, spans), None));
    Timeline::of(0, mesh.layout(), rows.collect())
}

/// Three digits or more.
fn seconds(x: f64) -> String {
    if x < 10.0 { format!("{x:.3} s") } else { format!("{x:.2} s") }
}

/// Cores have a hundredth of what GPUs have.
fn digits(tflops: f64) -> String {
    if tflops < 1.0 { format!("{tflops:.3}") } else { format!("{tflops:.1}") }
}

/// What a rank's bytes are for.
fn uses(rank: &DryRun) -> [(&'static str, usize); 8] {
    let Held { weights, gradients, optimizer } = rank.held;
    [
        ("weights", weights),
        ("gradients", gradients),
        ("optimizer", optimizer),
        ("activations", rank.kept()),
        ("logits", rank.peak.logits),
        ("workspace", rank.peak.workspace),
        ("communication", rank.peak.communication),
        ("between blocks", rank.usage.reserved - rank.usage.peak),
    ]
}

fn time(step: &Step) -> String {
    let mut table = table(&["a step, mean of the stages", "s", "%"]);
    let mut row = |name: &str, seconds: f64| {
        let percent = 100.0 * seconds / step.seconds;
        table.add_row([name.to_string(), format!("{seconds:.3}"), format!("{percent:.1}")]);
    };
    let shares = Share::ALL.iter().map(|share| (share, step.shares[share]));
    shares.filter(|(_, seconds)| *seconds > 0.0).for_each(|(share, seconds)| row(share.name(), seconds));
    row("together", step.seconds);
    format!("{}\n", aligned(table, 1))
}
