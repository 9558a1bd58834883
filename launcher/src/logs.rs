//! The files that rank 0 writes about a run: `config.toml`, `metrics.jsonl`, TensorBoard's event files. Also shows
//! the progress of the steps to the user.

use crate::expert_load::ExpertLoad;
use crate::ideal::Ideal;
use crate::informative::Informative;
use crate::progress::Progress;
use crate::run_dir::{RunDir, replace};
use crate::validation::{Evaluated, Validation};
use engine::config::Config;
use engine::error::{Result, counted};
use engine::flight::Recorder as FlightRecorder;
use engine::layout::mesh::Mesh;
use engine::model::flops::Formula;
use engine::retry::Retry;
use engine::train::trainer::StepStats;
use report::peak;
use report::records::jsonl::Lines;
use report::records::metrics::{self, LoadRecord, MetricsLog, SpikeRecord, StepRecord};
use report::records::settings::settings;
use report::records::tensorboard::EventLog;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The name of the metrics in the run's directory.
pub const METRICS: &str = "metrics.jsonl";

/// The open logs of a run. Only rank 0 has them.
pub struct Logs {
    /// Held as long as the logs are written: a second run in the directory would tear them.
    _dir: RunDir,
    metrics: MetricsLog,
    /// For the metrics, without which no step is complete.
    retry: Retry,
    /// Notes each of its attempts, so that a disk which refuses them for a while is no hang.
    flight: Arc<FlightRecorder>,
    experts: Option<ExpertLoad>,
    events: Option<EventLog>,
    events_file: Informative,
    pub progress: Progress,
    recorder: Recorder,
    warned_of_slow_save: bool,
}

impl Logs {
    /// Opens the logs of a run that continues after `step`, on ranks whose device is called `device`, where a step
    /// ideally takes as long as `ideal`.
    pub fn open(
        dir: RunDir,
        config: &Config,
        mesh: &Mesh,
        (device, ideal): (&str, Option<Ideal>),
        step: u64,
        (retry, flight): (Retry, Arc<FlightRecorder>),
    ) -> Result<Logs> {
        let path = &config.checkpoint.dir;
        let opening = retry.of("logs");
        opening.run(|| replace(&path.join("config.toml"), config.to_toml().as_bytes()))?;
        let progress = Progress::new(config.train.steps, step + 1);
        if let Some(warning) = missing_metrics(&path.join(METRICS), step) {
            progress.warn(&warning);
        }
        if let Some(warning) = ideal.as_ref().and_then(|ideal| ideal.warning(device)) {
            progress.warn(&warning);
        }
        let mut events_file = Informative::default();
        let (events, warning) = events_file.check(EventLog::create(path, step + 1));
        warning.into_iter().for_each(|warning| progress.warn(&warning));
        Ok(Logs {
            _dir: dir,
            metrics: opening.run(|| MetricsLog::open(&path.join(METRICS)))?,
            experts: opening.run(|| ExpertLoad::open(config))?,
            retry,
            flight,
            events,
            events_file,
            progress,
            recorder: Recorder::new(config, mesh, device, ideal),
            warned_of_slow_save: false,
        })
    }

    /// Writes a step: its results, its time in seconds and by phase, and what was evaluated after it.
    pub fn append(
        &mut self,
        step: u64,
        results: &StepStats,
        seconds: f64,
        phases: BTreeMap<String, f64>,
        evaluated: Evaluated,
    ) -> Result<()> {
        let recorded = self.recorder.record(step, results, seconds);
        let mut record = StepRecord { parts: phases, tasks: evaluated.tasks, ..recorded };
        if let Some(Validation { loss, sets }) = evaluated.validation {
            (record.valid_loss, record.valid) = (Some(loss), sets);
        }
        let append = || {
            self.flight.tick();
            self.metrics.append(&record)
        };
        self.retry.of(&format!("metrics of step {step}")).run(append)?;
        if let Some(events) = &mut self.events {
            let warning = self.events_file.check(events.append(&record)).1;
            warning.into_iter().for_each(|warning| self.progress.warn(&warning));
        }
        self.progress.step(&record);
        if let (Some(load), Some(stats)) = (&mut self.experts, &results.experts) {
            let warning = load.step(step, stats);
            self.warn_of_experts(warning);
        }
        if let Some(spike) = record.spike {
            let what = if record.skipped { "; it updated nothing" } else { "" };
            self.progress.warn(&format!(
                "step {step}: the {} is a spike (loss {:.4}, gradient norm {:.2}){what}; `data inspect --step {step}` \
                 shows its samples",
                spike.name(),
                record.loss,
                record.grad_norm
            ));
        }
        Ok(())
    }

    /// Writes what is left, and ends the progress bar.
    pub fn finish(&mut self) {
        let warning = self.experts.as_mut().map_or(Ok(None), ExpertLoad::end);
        self.warn_of_experts(warning);
        self.progress.finish();
    }

    /// The file only informs: a disk error must not end the run.
    fn warn_of_experts(&mut self, warning: Result<Option<String>>) {
        let warning = warning.unwrap_or_else(|e| Some(e.to_string()));
        warning.into_iter().for_each(|warning| self.progress.warn(&warning));
    }

    /// Warns, once per run, that training waits for the disk.
    pub fn warn_of_slow_save(&mut self, step: u64, interval: u64) {
        if !std::mem::replace(&mut self.warned_of_slow_save, true) {
            self.progress.warn(&format!(
                "step {step}: the previous checkpoint or export is not yet on the disk, and training waits for it; \
                 the disk is slower than checkpoint.interval = {interval}"
            ));
        }
    }
}

/// Computes the figures of a step from the constants of the run.
struct Recorder {
    ranks: f64,
    /// Layers of the model.
    layers: usize,
    samples_per_step: u64,
    tokens_per_step: f64,
    /// The settings that a step's time depends on.
    settings: String,
    /// FLOPs per token by the formulas `model` and `full`.
    flops: [f64; 2],
    /// The peak TFLOPS of a rank's device; `None` where it is not known.
    peak: Option<f64>,
    ideal: Option<Ideal>,
}

impl Recorder {
    fn new(config: &Config, mesh: &Mesh, device: &str, ideal: Option<Ideal>) -> Recorder {
        let t = &config.train;
        let flops = |formula: Formula| formula.per_token(&config.model, t.seq_length, t.recompute);
        Recorder {
            ranks: mesh.ranks() as f64,
            layers: config.model.num_hidden_layers,
            samples_per_step: t.global_batch_size as u64,
            tokens_per_step: (t.global_batch_size * t.seq_length) as f64,
            settings: settings(config, mesh),
            flops: [Formula::Model, Formula::Full].map(flops),
            peak: config.report.peak_tflops.or_else(|| peak::bf16_tflops(device)),
            ideal,
        }
    }

    fn record(&self, step: u64, results: &StepStats, seconds: f64) -> StepRecord {
        let per_s = self.tokens_per_step / seconds;
        let per_rank = per_s / self.ranks;
        let [tflops_model, tflops_full] = self.flops.map(|flops| per_rank * flops / 1e12);
        let mfu = |tflops: f64| self.peak.map(|peak| tflops / peak);
        StepRecord {
            step,
            loss: results.loss,
            z_loss: results.z_loss,
            grad_norm: results.grad_norm,
            lr: results.lr,
            tokens: self.tokens_per_step as u64,
            loss_tokens: Some(results.loss_tokens),
            consumed_samples: step * self.samples_per_step,
            step_time_s: seconds,
            tokens_per_s: per_s,
            tokens_per_s_per_rank: per_rank,
            tflops_model,
            tflops_full,
            mfu_model: mfu(tflops_model),
            mfu_full: mfu(tflops_full),
            sol: self.ideal.as_ref().map(|ideal| ideal.seconds / seconds),
            settings: self.settings.clone(),
            spike: SpikeRecord::of(results.judgement),
            skipped: results.skipped,
            aux_loss: results.experts.as_ref().map(|experts| experts.aux_loss),
            router_z_loss: results.experts.as_ref().map(|experts| experts.router_z_loss),
            expert_load: results.experts.as_ref().and_then(|experts| LoadRecord::of(&experts.load, self.layers)),
            expert_rounds: results.experts.as_ref().map(|experts| experts.further_rounds),
            ..Default::default()
        }
    }
}
/// A warning where the metrics of a run that continues after `step` lack lines of earlier steps.
fn missing_metrics(path: &Path, step: u64) -> Option<String> {
    // A file that cannot be read is an error of the line that is appended next.
    let nothing = Lines { records: vec![], skipped: vec![] };
    // A device, such as /dev/full, may be read without end.
    let lines = if step > 0 && path.is_file() { metrics::read(path).ok()? } else { nothing };
    let missing = lines.missing(step);
    if missing.is_empty() {
        return None;
    }
    let listed = missing.iter().take(5).map(|steps| match (steps.start(), steps.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first} to {last}"),
    });
    let more = if missing.len() > 5 { ", ..." } else { "" };
    let damaged = match lines.skipped.len() {
        0 => String::new(),
        damaged => format!("; the file has {}", counted(damaged, "damaged line")),
    };
    let steps: u64 = missing.iter().map(|steps| steps.end() - steps.start() + 1).sum();
    Some(format!(
        "{}: {steps} of the {step} steps before this start are missing (step {}{more}){damaged}; reports leave them \
         out",
        path.display(),
        listed.collect::<Vec<_>>().join(", ")
    ))
}
