//! The tables `[reached]` and `[software]` of a cluster file: the rates that kernels and links achieve, and how the
//! training software uses them. The files cite the source of each number.

use super::check::{need, not_negative, number, size};
use super::names::{Named, choose};
use super::origins::Origins;
use super::raw::{Read, known, optional, table};
use crate::error::Result;
use toml::Value;

/// Achieved rates and latencies.
#[derive(Debug, Clone, PartialEq)]
pub struct Achieved {
    /// Large bf16 matrix products, in TFLOPS.
    pub matmul_tflops: f64,
    /// Causal attention, in TFLOPS over the visible half of the scores: forward, and backward with five products.
    pub attention_tflops: f64,
    pub attention_backward_tflops: f64,
    /// Memory-bound kernels, bytes read plus bytes written.
    pub memory_gb_s: f64,
    /// Memory-bound kernels that achieve another rate: AdamW, RMSNorm's backward pass, and the statistics of the loss.
    pub adamw_gb_s: f64,
    pub rmsnorm_backward_gb_s: f64,
    pub xent_stats_gb_s: f64,
    /// Time from the end of one kernel to the start of the next.
    pub launch_us: f64,
    /// Rings inside a node, per GPU.
    pub ring_gb_s: f64,
    /// Rings over the network, per node.
    pub network_gb_s: f64,
    /// A point-to-point message to another node, per GPU.
    pub message_gb_s: f64,
    /// The bandwidth of one of NCCL's thread blocks (CTAs); infinite where the file does not limit it.
    pub cta_gb_s: f64,
    /// Latency of a call inside a node and over the network.
    pub latency_us: f64,
    pub network_latency_us: f64,
    pub slowdown: Slowdown,
}

/// How much computation slows down while a collective overlaps with it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Slowdown {
    /// It loses this share of the overlapped time.
    Share(f64),
    /// It loses the multiprocessors that NCCL's thread blocks occupy; the value is the number of the GPU's.
    Multiprocessors(usize),
}

/// How the training software uses a cluster. The default is this engine.
#[derive(Debug, Clone, PartialEq)]
pub struct Software {
    pub name: String,
    /// Communication that overlaps with compute.
    pub overlap: Vec<Overlap>,
    /// Traffic multiplier for unfused elementwise ops.
    pub elementwise: f64,
    /// Memory traffic of the loss in bytes per logit; 0: the traffic of this engine's ops.
    pub logit_bytes: f64,
    /// How often the backward pass recomputes the forward pass of attention.
    pub attention_again: f64,
    /// Idle time of each stage in each micro-batch.
    pub wait_ms: f64,
    /// Launch overhead of each layer, forward and backward together.
    pub layer_ms: f64,
    /// Factor on all compute for losses that have no key of their own.
    pub efficiency: f64,
}

/// Communication that can overlap with compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Overlap {
    Tensor,
    Pipeline,
    Data,
}

impl Named for Overlap {
    const NAMES: &'static [(&'static str, Self)] =
        &[("tensor", Overlap::Tensor), ("pipeline", Overlap::Pipeline), ("data", Overlap::Data)];
}

table!(RawReached {
    matmul_tflops: f64,
    attention_tflops: f64,
    attention_backward_tflops: f64,
    memory_gb_s: f64,
    adamw_gb_s: f64,
    rmsnorm_backward_gb_s: f64,
    xent_stats_gb_s: f64,
    launch_us: f64,
    ring_gb_s: f64,
    network_gb_s: f64,
    message_gb_s: f64,
    cta_gb_s: f64,
    latency_us: f64,
    network_latency_us: f64,
    slowdown: f64,
    multiprocessors: u64,
});

table!(RawSoftware {
    name: String,
    overlap: Vec<String>,
    elementwise: f64,
    logit_bytes: f64,
    attention_again: f64,
    wait_ms: f64,
    layer_ms: f64,
    efficiency: f64,
});

impl Default for Software {
    fn default() -> Self {
        Software {
            name: "swallow-engine".into(),
            overlap: Overlap::NAMES.iter().map(|(_, overlap)| *overlap).collect(),
            elementwise: 1.0,
            logit_bytes: 0.0,
            attention_again: 0.0,
            wait_ms: 0.0,
            layer_ms: 0.0,
            efficiency: 1.0,
        }
    }
}

/// Validates `[reached]`. All keys are required, but those of the network only with more than one node, and single
/// memory-bound kernels have the rate of all.
pub(super) fn achieved(raw: RawReached, one_node: bool, at: &Origins) -> Result<Achieved> {
    let positive = |value, key: &str| number(value, |x| x > 0.0, "must be positive", key, at);
    let figure = |value, key: &str, what: &str| positive(need(value, key, what, at)?, key);
    let second = |x: f64| (0.0..=1e6).contains(&x);
    let delay = |value, key: &str| {
        number(need(value, key, "microseconds", at)?, second, "must be microseconds, at most a second", key, at)
    };
    let network = |value: Option<f64>, key: &str, what: &str| match value {
        None if one_node => Ok(f64::INFINITY),
        value => figure(value, key, what),
    };
    let memory = "reached.memory_gb_s";
    let memory_gb_s = figure(raw.memory_gb_s, memory, "GB/s of memory-bound kernels, read plus written")?;
    let kernel = |value: Option<f64>, key: &str| positive(value.unwrap_or(memory_gb_s), key);
    let key = "reached.network_latency_us";
    Ok(Achieved {
        matmul_tflops: figure(raw.matmul_tflops, "reached.matmul_tflops", "TFLOPS of large bf16 products")?,
        attention_tflops: figure(raw.attention_tflops, "reached.attention_tflops", "TFLOPS of causal attention")?,
        attention_backward_tflops: figure(
            raw.attention_backward_tflops,
            "reached.attention_backward_tflops",
            "TFLOPS of the backward pass of causal attention",
        )?,
        memory_gb_s,
        adamw_gb_s: kernel(raw.adamw_gb_s, "reached.adamw_gb_s")?,
        rmsnorm_backward_gb_s: kernel(raw.rmsnorm_backward_gb_s, "reached.rmsnorm_backward_gb_s")?,
        xent_stats_gb_s: kernel(raw.xent_stats_gb_s, "reached.xent_stats_gb_s")?,
        launch_us: delay(raw.launch_us, "reached.launch_us")?,
        ring_gb_s: figure(raw.ring_gb_s, "reached.ring_gb_s", "GB/s of a ring inside a node, per GPU")?,
        network_gb_s: network(raw.network_gb_s, "reached.network_gb_s", "GB/s of rings over the network, per node")?,
        message_gb_s: network(raw.message_gb_s, "reached.message_gb_s", "GB/s of a message to another node")?,
        cta_gb_s: raw.cta_gb_s.map_or(Ok(f64::INFINITY), |value| positive(value, "reached.cta_gb_s"))?,
        latency_us: delay(raw.latency_us, "reached.latency_us")?,
        network_latency_us: if one_node { 0.0 } else { delay(raw.network_latency_us, key)? },
        slowdown: slowdown(raw.slowdown, raw.multiprocessors, at)?,
    })
}

fn slowdown(share_of_time: Option<f64>, multiprocessors: Option<u64>, at: &Origins) -> Result<Slowdown> {
    let key = "reached.multiprocessors";
    match (share_of_time, multiprocessors) {
        (Some(value), None) => Ok(Slowdown::Share(share(value, "reached.slowdown", at)?)),
        (None, Some(number)) => Ok(Slowdown::Multiprocessors(size(number, 1..=4096, key, at)?)),
        (Some(_), Some(number)) => Err(at.bad(key, number, "reached.slowdown says the same; leave one of the two out")),
        (None, None) => Err(at.missing(key, "write the number of a GPU's multiprocessors, or reached.slowdown")),
    }
}

/// Validates `[software]`. The defaults describe this engine.
pub(super) fn software(raw: RawSoftware, at: &Origins) -> Result<Software> {
    let ours = Software::default();
    let delay = |value: Option<f64>, key: &str| not_negative(value.unwrap_or_default(), key, at);
    let overlap = |words: Vec<String>| {
        words.iter().map(|word| choose(Overlap::NAMES, word, "software.overlap", at)).collect::<Result<_>>()
    };
    let efficiency = raw.efficiency.unwrap_or(ours.efficiency);
    Ok(Software {
        name: need(raw.name, "software.name", "name = \"Megatron-LM\"", at)?,
        overlap: raw.overlap.map_or(Ok(ours.overlap), overlap)?,
        elementwise: number(
            raw.elementwise.unwrap_or(ours.elementwise),
            |x| x >= 1.0,
            "must be at least 1",
            "software.elementwise",
            at,
        )?,
        logit_bytes: delay(raw.logit_bytes, "software.logit_bytes")?,
        attention_again: delay(raw.attention_again, "software.attention_again")?,
        wait_ms: delay(raw.wait_ms, "software.wait_ms")?,
        layer_ms: delay(raw.layer_ms, "software.layer_ms")?,
        efficiency: number(efficiency, |x| x > 0.0 && x <= 1.0, "must lie in (0, 1]", "software.efficiency", at)?,
    })
}

/// Refuses an achieved rate above its peak: (key, achieved, peak, key of the peak).
pub(super) fn within(peaks: &[(&str, f64, f64, &str)], at: &Origins) -> Result<()> {
    let over = peaks.iter().find(|(_, achieved, peak, _)| achieved > peak);
    over.map_or(Ok(()), |(key, achieved, peak, of)| {
        Err(at.bad(key, achieved, format!("must be no more than {of}, which is {peak}")))
    })
}

fn share(value: f64, key: &str, at: &Origins) -> Result<f64> {
    number(value, |x| (0.0..1.0).contains(&x), "must lie in [0, 1)", key, at)
}
