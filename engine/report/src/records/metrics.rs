//! `metrics.jsonl`: one JSON object per step.

use super::jsonl::{LAST_STEP, Lines, Log, Record};
use engine::backend::Judgement;
use engine::config::MOST_RANKS;
use engine::error::Result;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The metrics of a step. JSON has no NaN: a number that is not finite is written as `null` and read back as NaN.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct StepRecord {
    /// The first step is 1.
    pub step: u64,
    /// Nats per counted target, without the z-loss; 0 where none counts.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    /// Coefficient times the mean of log(Z)^2.
    #[serde(deserialize_with = "number_or_null")]
    pub z_loss: f64,
    /// L2 norm of the whole gradient, before clipping.
    #[serde(deserialize_with = "number_or_null")]
    pub grad_norm: f64,
    /// The learning rate used in this step.
    pub lr: f64,
    /// Positions of this step, over all ranks.
    pub tokens: u64,
    /// The targets among them that count in the loss. Older versions of this engine wrote none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_tokens: Option<u64>,
    /// Samples of all steps up to this one.
    pub consumed_samples: u64,
    pub step_time_s: f64,
    pub tokens_per_s: f64,
    pub tokens_per_s_per_rank: f64,
    /// TFLOPS per rank by the formulas `model` and `full` (`flops.rs`).
    pub tflops_model: f64,
    pub tflops_full: f64,
    /// The same as a fraction of the device's peak; `None` where the peak is unknown.
    pub mfu_model: Option<f64>,
    pub mfu_full: Option<f64>,
    /// The planner's time of the step's computation alone, divided by the step's time; only where the run has a
    /// cluster file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sol: Option<f64>,
    /// The settings that its time depends on (`settings.rs`), which may change when a run resumes. Older versions of
    /// this engine wrote none.
    #[serde(default)]
    pub settings: String,
    /// The value that was a spike, if one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spike: Option<SpikeRecord>,
    /// Whether the step updated nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// The load-balancing loss of the routers, without its coefficient; `None` for a model without experts, as are the
    /// next three.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aux_loss: Option<f64>,
    /// The mean of log(sum exp)^2 of the routers' logits, without its coefficient.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router_z_loss: Option<f64>,
    /// How evenly the experts were chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert_load: Option<LoadRecord>,
    /// Rounds that layers with experts needed beyond the first one of each micro-batch: the rows of a rank did not fit
    /// `parallel.expert_buffer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert_rounds: Option<u64>,
    /// Seconds of rank 0 by [`engine::time::Phase::key`]; each is a key of the line's object.
    #[serde(flatten)]
    pub parts: BTreeMap<String, f64>,
    /// Nats per counted target of all validation sets, where the step was followed by a validation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_loss: Option<f64>,
    /// The loss on each validation set, by its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub valid: BTreeMap<String, SetRecord>,
    /// The scores of tasks from 0 to 1, by the task's name and the metric's, where tasks followed the step.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tasks: BTreeMap<String, BTreeMap<String, f64>>,
}

/// The value of a step that lies far above those of the steps before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpikeRecord {
    Loss,
    GradNorm,
}

impl SpikeRecord {
    pub fn of(judgement: Judgement) -> Option<SpikeRecord> {
        match judgement {
            Judgement::LossSpike => Some(SpikeRecord::Loss),
            Judgement::NormSpike => Some(SpikeRecord::GradNorm),
            Judgement::Accepted | Judgement::NotFinite => None,
        }
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            SpikeRecord::Loss => "loss",
            SpikeRecord::GradNorm => "gradient norm",
        }
    }
}

/// How evenly the experts were chosen in a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LoadRecord {
    /// The choices of the expert that is chosen most, divided by the mean of its layer's experts; of the layer where
    /// this is largest.
    pub max_over_mean: f64,
    /// That layer, counted from 0.
    pub layer: usize,
    /// The entropy of the choices divided by that of even ones; the mean over the layers with experts.
    pub entropy: f64,
}

impl LoadRecord {
    /// Computes the figures from the number of choices of each expert in each layer, `[L, E]`. Layers without experts
    /// have zeros.
    pub fn of(load: &[u64], layers: usize) -> Option<LoadRecord> {
        let experts = load.len() / layers.max(1);
        let with_experts = load.chunks(experts.max(1)).enumerate().filter(|(_, load)| load.iter().any(|&n| n > 0));
        let each: Vec<(usize, f64, f64)> = with_experts
            .map(|(layer, load)| {
                let total = load.iter().sum::<u64>() as f64;
                let most = load.iter().copied().max().unwrap_or_default() as f64;
                (layer, most * experts as f64 / total, entropy(load, total))
            })
            .collect();
        let &(layer, max_over_mean, _) = each.iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
        let entropy = each.iter().map(|(_, _, entropy)| entropy).sum::<f64>() / each.len() as f64;
        Some(LoadRecord { max_over_mean, layer, entropy })
    }
}

/// The entropy of shares `load / total`, divided by the largest that as many shares can have.
fn entropy(load: &[u64], total: f64) -> f64 {
    let of = |&n: &u64| if n == 0 { 0.0 } else { -(n as f64 / total) * (n as f64 / total).ln() };
    if load.len() < 2 { 1.0 } else { load.iter().map(of).sum::<f64>() / (load.len() as f64).ln() }
}

/// The loss on one validation set.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SetRecord {
    /// Nats per counted target; NaN where none counts.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    /// Bits per byte of the text that the counted targets stand for; `None` where the tokenizer is unknown.
    pub bits_per_byte: Option<f64>,
    /// The targets that count in the loss, over all ranks.
    pub loss_tokens: u64,
}

fn number_or_null<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(from)?.unwrap_or(f64::NAN))
}

impl StepRecord {
    /// The number of ranks, from the throughput of all and of one.
    pub fn ranks(&self) -> usize {
        (self.tokens_per_s / self.tokens_per_s_per_rank).round() as usize
    }
}

impl Record for StepRecord {
    fn step(&self) -> u64 {
        self.step
    }

    /// A step takes time and has ranks; its loss may be any number.
    fn is_sound(&self) -> bool {
        let speeds = [self.step_time_s, self.tokens_per_s, self.tokens_per_s_per_rank];
        let ranks = 1..=MOST_RANKS as usize;
        self.step <= LAST_STEP && speeds.iter().all(|x| x.is_finite() && *x > 0.0) && ranks.contains(&self.ranks())
    }
}

/// `metrics.jsonl` open for appending, on rank 0.
pub type MetricsLog = Log<StepRecord>;

pub fn read(path: &Path) -> Result<Lines<StepRecord>> {
    super::jsonl::read(path)
}

/// The newest steps, as many as the end of the file has.
pub fn read_last(path: &Path) -> Result<Vec<StepRecord>> {
    super::jsonl::read_last(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two layers with experts around one without.
    #[test]
    fn the_load_of_the_most_uneven_layer() {
        let load = LoadRecord::of(&[2, 2, 2, 2, 0, 0, 0, 0, 8, 0, 0, 0], 3).unwrap();
        assert_eq!((load.max_over_mean, load.layer, load.entropy), (4.0, 2, 0.5));
        let one = LoadRecord::of(&[5], 1).unwrap();
        assert_eq!((one.max_over_mean, one.entropy), (1.0, 1.0));
        assert_eq!(LoadRecord::of(&[0; 4], 2), None);
        assert_eq!(LoadRecord::of(&[], 2), None);
    }

    fn record(step: u64, loss: f64) -> StepRecord {
        StepRecord {
            step,
            loss,
            lr: 1e-4,
            loss_tokens: Some(60),
            step_time_s: 0.5,
            tokens_per_s: 200.0,
            tokens_per_s_per_rank: 100.0,
            settings: "tensor 2".into(),
            parts: BTreeMap::from([("data_s".into(), 0.5)]),
            ..Default::default()
        }
    }

    #[test]
    fn a_line_has_the_promised_keys() {
        let mut r = record(3, 2.5);
        let keys = |r: &StepRecord| {
            let value = serde_json::to_value(r).unwrap();
            value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ")
        };
        let promised = "step loss z_loss grad_norm lr tokens loss_tokens consumed_samples step_time_s tokens_per_s \
                        tokens_per_s_per_rank tflops_model tflops_full mfu_model mfu_full settings data_s";
        assert_eq!(keys(&r), promised);
        r.sol = Some(0.5);
        let promised = promised.replace("mfu_full", "mfu_full sol");
        assert_eq!(keys(&r), promised);
        r.valid_loss = Some(2.0);
        assert_eq!(keys(&r), format!("{promised} valid_loss"));
        r.valid.insert("ja".into(), SetRecord { loss: 2.5, bits_per_byte: None, loss_tokens: 7 });
        assert_eq!(keys(&r), format!("{promised} valid_loss valid"));
        let value = serde_json::to_value(&r).unwrap();
        assert_eq!(value["valid"]["ja"].to_string(), r#"{"loss":2.5,"bits_per_byte":null,"loss_tokens":7}"#);
        assert_eq!(serde_json::from_value::<StepRecord>(value).unwrap(), r);
        r.tasks.insert("jcq".into(), BTreeMap::from([("exact_match".into(), 0.25)]));
        assert_eq!(keys(&r), format!("{promised} valid_loss valid tasks"));
        let value = serde_json::to_value(&r).unwrap();
        assert_eq!(value["tasks"].to_string(), r#"{"jcq":{"exact_match":0.25}}"#);
        assert_eq!(serde_json::from_value::<StepRecord>(value).unwrap(), r);
    }

    #[test]
    fn numbers_keep_every_digit() {
        for loss in [0.1 + 0.2, f64::from(1.2664_f32), 5e-324, 1.0 / 3.0, 123456789.12345679] {
            let line = serde_json::to_string(&record(1, loss)).unwrap();
            let text = line.split("\"loss\":").nth(1).unwrap().split(',').next().unwrap();
            assert_eq!(text.parse::<f64>().unwrap().to_bits(), loss.to_bits(), "{line}");
        }
    }

    #[test]
    fn a_resumed_run_overwrites_steps_and_cuts_torn_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path).unwrap();
        for step in 1..=3 {
            log.append(&record(step, step as f64)).unwrap();
        }
        drop(log);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 20]).unwrap();

        let mut log = MetricsLog::open(&path).unwrap();
        log.append(&record(2, 20.0)).unwrap();
        log.append(&record(4, f64::NAN)).unwrap();
        drop(MetricsLog::open(&path).unwrap());

        let Lines { records, skipped } = read(&path).unwrap();
        assert!(skipped.is_empty(), "{skipped:?}");
        assert_eq!(records.iter().map(|r| r.step).collect::<Vec<_>>(), [1, 2, 4]);
        assert_eq!(records[1], record(2, 20.0));
        assert!(records[2].loss.is_nan());
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 4);
        assert!(text.contains("\"loss\":null") && text.ends_with('\n'));
    }

    #[test]
    fn a_run_that_continues_from_an_earlier_step_abandons_the_later_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path).unwrap();
        for (step, loss) in [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (2, 20.0), (3, 30.0)] {
            log.append(&record(step, loss)).unwrap();
        }
        let records = read(&path).unwrap().records;
        assert_eq!(records, [record(1, 1.0), record(2, 20.0), record(3, 30.0)]);
    }

    #[test]
    fn a_whole_line_without_its_newline_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        std::fs::write(&path, serde_json::to_vec(&record(1, 2.0)).unwrap()).unwrap();
        MetricsLog::open(&path).unwrap().append(&record(2, 1.0)).unwrap();
        assert_eq!(read(&path).unwrap(), Lines { records: vec![record(1, 2.0), record(2, 1.0)], skipped: vec![] });
    }

    #[test]
    fn lines_without_a_speed_are_skipped_and_blank_ones_are_not() {
        let line = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut line = serde_json::to_value(record(1, 2.0)).unwrap();
            change(&mut line);
            format!("{line}\n")
        };
        let mut lines = vec!["\n".to_string(), "  \r\n".into()];
        for key in ["step_time_s", "tokens_per_s", "tokens_per_s_per_rank"] {
            lines.extend([0.0, -1.0].map(|x| line(&|of| of[key] = x.into())));
        }
        lines.push(line(&|of| of["tokens_per_s"] = 1e300.into()));
        lines.push(line(&|of| of["step"] = u64::MAX.into()));
        lines.push(line(&|of| _ = of.as_object_mut().unwrap().remove("settings")));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        std::fs::write(&path, lines.concat()).unwrap();
        let Lines { records, skipped } = read(&path).unwrap();
        assert_eq!(skipped, [3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(records, [StepRecord { settings: String::new(), ..record(1, 2.0) }], "a line of an older version");
    }

    #[test]
    fn missing_steps_are_ranges() {
        let missing = |steps: &[u64], last| {
            let records = steps.iter().map(|&step| record(step, 1.0)).collect();
            Lines { records, skipped: vec![] }.missing(last)
        };
        assert_eq!(missing(&[1, 2, 3], 3), []);
        assert_eq!(missing(&[2, 5, 6, 9], 7), [1..=1, 3..=4, 7..=7]);
        assert_eq!(missing(&[], 4), [1..=4]);
        assert_eq!(missing(&[], 0), []);
    }

    #[test]
    fn a_path_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = MetricsLog::open(dir.path()).err().unwrap();
        assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
}
