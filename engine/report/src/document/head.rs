//! What ran, and the figures that matter most.

use super::number::{count, counted, digits, fixed, large, percent, whole};
use super::{Block, Headline, Section};
use crate::efficiency::Efficiency;

pub fn lead(e: &Efficiency) -> String {
    let s = &e.setup;
    let device = s.device.as_deref().unwrap_or("a device that is not written down");
    let hosts = s.hosts.map_or(String::new(), |hosts| format!(" of {}", counted(hosts as u64, "host")));
    let ranks = counted(s.ranks as u64, s.worker);
    format!("A Llama of {} parameters on {device}, {ranks}{hosts}", large(s.parameters as f64))
}

pub fn headlines(e: &Efficiency) -> Vec<Headline> {
    let (speed, model) = (&e.speed, e.formula("model"));
    let new = |label: String, value: String, of: String| Headline { label, value, of };
    let efficiency = match (model.mfu, e.peak.tflops) {
        (Some(mfu), Some(peak)) => {
            let of = format!("formula `model`, {} of {} TFLOPS", tflops(model.tflops_per_rank), tflops(peak));
            new("MFU".into(), percent(mfu), of)
        }
        _ => {
            let label = format!("TFLOPS a {}", e.setup.worker);
            new(label, tflops(model.tflops_per_rank), "formula `model`; the peak is not known".into())
        }
    };
    let validation = e
        .done
        .valid_loss
        .map_or(String::new(), |(step, loss)| format!("; validation {} at step {}", fixed(loss, 3), whole(step)));
    vec![
        new(
            format!("tokens/s a {}", e.setup.worker),
            count(speed.tokens_per_s_per_rank),
            format!("{} together", count(speed.tokens_per_s)),
        ),
        efficiency,
        new("loss now".into(), fixed(e.done.loss, 3), format!("at step {}{validation}", whole(e.done.step))),
        new(
            "seconds a step".into(),
            digits(speed.step_s, 3),
            match speed.steps {
                1 => format!("of step {} alone", whole(speed.first_step)),
                n => format!(
                    "median of {} of steps {} to {}",
                    whole(n as u64),
                    whole(speed.first_step),
                    whole(speed.last_step)
                ),
            },
        ),
    ]
}

/// Three digits, or one decimal.
pub fn tflops(x: f64) -> String {
    if x >= 10.0 { fixed(x, 1) } else { digits(x, 3) }
}

pub fn setup(e: &Efficiency) -> Section {
    let s = &e.setup;
    let layout = format!("tensor {} x pipeline {} x data {}", s.tensor, s.pipeline, s.data);
    let layout = match s.virtual_pipeline {
        1 => layout,
        chunks => format!("{layout}, {chunks} virtual stages"),
    };
    let batch = format!(
        "{} of {} a step: {} of {} a replica",
        counted(s.global_batch_size as u64, "sequence"),
        counted(s.seq_length as u64, "token"),
        counted(s.micro_batches as u64, "micro-batch"),
        s.micro_batch_size
    );
    let facts = vec![
        (
            "model",
            format!(
                "{}, hidden size {}, vocabulary {}",
                counted(s.layers as u64, "layer"),
                count(s.hidden as f64),
                count(s.vocabulary as f64)
            ),
        ),
        ("layout", layout),
        ("batch", batch),
        ("recompute", s.recompute.to_string()),
        ("precision", s.precision.clone().unwrap_or("not written down".into())),
        (
            "done",
            format!(
                "{} of {}, {} tokens",
                whole(e.done.step),
                counted(e.done.of_steps, "step"),
                large(e.done.tokens as f64)
            ),
        ),
    ];
    let mut blocks = vec![Block::Facts(facts)];
    if e.peak.tflops.is_none() {
        blocks.push(Block::Note(sentence(&e.peak.source)));
    }
    Section::new("run", "The run", blocks)
}

/// Begins with a capital.
pub fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}
