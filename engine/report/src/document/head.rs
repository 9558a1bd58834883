//! The head of the report: the setup of the run and the numbers that matter most.

use super::number::{count, counted, digits, fixed, large, percent, whole};
use super::{Block, Headline, Section};
use crate::efficiency::Efficiency;

pub fn lead(e: &Efficiency) -> String {
    let s = &e.setup;
    let device = s.device.as_deref().unwrap_or("an unknown device");
    let hosts = s.hosts.map_or(String::new(), |hosts| format!(", {}", counted(hosts as u64, "host")));
    let ranks = counted(s.ranks as u64, s.worker);
    format!("Llama with {} parameters on {device}: {ranks}{hosts}", large(s.parameters as f64))
}

pub fn headlines(e: &Efficiency) -> Vec<Headline> {
    let (speed, worker) = (&e.speed, e.setup.worker);
    let tokens = Headline {
        label: format!("tokens/s per {worker}"),
        value: count(speed.tokens_per_s_per_rank),
        detail: format!("{} in total", count(speed.tokens_per_s)),
    };
    let validation =
        e.done.valid_loss.map(|(step, loss)| format!("; validation {} at step {}", fixed(loss, 3), whole(step)));
    let loss = Headline {
        label: "loss".into(),
        value: fixed(e.done.loss, 3),
        detail: format!("at step {}{}", whole(e.done.step), validation.unwrap_or_default()),
    };
    let [first, last] = [speed.first_step, speed.last_step].map(whole);
    let time = Headline {
        label: "step time, s".into(),
        value: digits(speed.step_s, 3),
        detail: match speed.steps {
            1 => format!("step {first} alone"),
            n => format!("median of {}, {first} to {last}", counted(n as u64, "step")),
        },
    };
    vec![tokens, utilization(e), loss, time]
}

/// MFU, or the achieved TFLOPS where the peak is unknown.
fn utilization(e: &Efficiency) -> Headline {
    let model = e.formula("model");
    let achieved = tflops(model.tflops_per_rank);
    match (model.mfu, e.peak.tflops) {
        (Some(mfu), Some(peak)) => Headline {
            label: "MFU".into(),
            value: percent(mfu),
            detail: format!("formula `model`: {achieved} of {} TFLOPS", tflops(peak)),
        },
        _ => Headline {
            label: format!("TFLOPS per {}", e.setup.worker),
            value: achieved,
            detail: "formula `model`; the peak is unknown".into(),
        },
    }
}

/// Three digits, or one decimal.
pub fn tflops(x: f64) -> String {
    if x >= 10.0 { fixed(x, 1) } else { digits(x, 3) }
}

pub fn setup(e: &Efficiency) -> Section {
    let s = &e.setup;
    let model = format!(
        "{}, hidden size {}, vocabulary size {}",
        counted(s.layers as u64, "layer"),
        count(s.hidden as f64),
        count(s.vocabulary as f64)
    );
    let layout = format!("tensor {} x pipeline {} x data {}", s.tensor, s.pipeline, s.data);
    let layout = match s.virtual_pipeline {
        1 => layout,
        chunks => format!("{layout}, {chunks} virtual stages"),
    };
    let batch = format!(
        "{} of {}: {} of {} per replica",
        counted(s.global_batch_size as u64, "sequence"),
        counted(s.seq_length as u64, "token"),
        counted(s.micro_batches as u64, "micro-batch"),
        s.micro_batch_size
    );
    let progress =
        format!("step {} of {}, {} tokens", whole(e.done.step), whole(e.done.of_steps), large(e.done.tokens as f64));
    let mut facts = vec![
        ("model", model),
        ("layout", layout),
        ("global batch", batch),
        ("recompute", s.recompute.to_string()),
        ("precision", s.precision.clone().unwrap_or("unknown".into())),
        ("progress", progress),
    ];
    let ideal = |sol| format!("{} of the step's, without bubble and exposed communication", percent(sol));
    facts.extend(e.speed.sol.map(|sol| ("ideal time", ideal(sol))));
    let mut blocks = vec![Block::Facts(facts)];
    if e.peak.tflops.is_none() {
        blocks.push(Block::Note(sentence(&e.peak.source)));
    }
    Section::new("run", "Setup", blocks)
}

/// `text` with its first letter in upper case.
pub fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}
