//! A step and its memory in closed form, accurate enough to leave out layouts that cannot be among the best.

use engine::backend::Heads;
use engine::config::{Achieved, Axis, Cluster, Config, Experts, Layer, Model, Overlap, Recompute};
use engine::layout::mesh::Mesh;
use engine::layout::rank_layout::layers_of_chunks;
use engine::layout::split::Costs;
use engine::model::flops;

/// A rough prediction for a layout.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    pub seconds: f64,
    /// Bytes of the first stage.
    pub bytes: f64,
}

/// The estimate is seconds = m busiest + (p - 1) / v mean + gradients + optimizer, with m micro-batches, p stages of v
/// chunks, and `busiest` and `mean` seconds of a micro-batch in a stage.
pub fn estimate(config: &Config, mesh: &Mesh, cluster: &Cluster, r: &Achieved) -> Estimate {
    let p = &config.parallel;
    let (stages, d) = (mesh.size(Axis::Pipeline) as f64, mesh.replicas() as f64);
    let parameters = held(&config.model, p.expert) / (p.tensor as f64 * stages);
    // All data-parallel ranks together have one optimizer state of every parameter, whether or not they share experts.
    let sharded = held(&config.model, 1) / (p.tensor as f64 * stages * d);
    let n_mbs = config.train.global_batch_size as f64 / (config.train.micro_batch_size as f64 * d);
    let bubble = (stages - 1.0) / p.virtual_pipeline as f64;
    let crosses = mesh.ranks() > cluster.gpus_per_node;
    let link = if crosses { r.network_gb_s / cluster.gpus_per_node as f64 } else { r.ring_gb_s } * 1e9;
    // Two thirds of it overlap with compute.
    let gradients = if d > 1.0 { 6.0 * parameters / link / 3.0 } else { 0.0 };
    let optimizer = 30.0 * sharded / (r.adamw_gb_s * 1e9);
    let mean = stage(config, stages, cluster, r);
    let seconds = (n_mbs * imbalance(config, mesh) + bubble) * mean + gradients + optimizer;
    let optimized = if p.distributed_optimizer { sharded } else { parameters };
    Estimate { seconds, bytes: 6.0 * parameters + 12.0 * optimized + activations(config, stages, n_mbs) }
}

/// The work of the busiest stage relative to the mean one.
fn imbalance(config: &Config, mesh: &Mesh) -> f64 {
    let costs = Costs::of(&config.model, config.train.seq_length);
    let (layers, stages) = (layers_of_chunks(config), mesh.size(Axis::Pipeline));
    let last = layers.len() - 1;
    let head = |at| if at == last { costs.head } else { 0.0 };
    let chunks: Vec<f64> = layers.iter().enumerate().map(|(at, n)| *n as f64 * costs.layer + head(at)).collect();
    let stage = |stage: usize| chunks.iter().skip(stage).step_by(stages).sum::<f64>();
    let most = (0..stages).map(stage).fold(0.0, f64::max);
    most * stages as f64 / chunks.iter().sum::<f64>()
}

/// Seconds of a micro-batch in a stage, forward and backward.
fn stage(config: &Config, stages: f64, cluster: &Cluster, r: &Achieved) -> f64 {
    let (model, train) = (&config.model, &config.train);
    let (t, layers, hidden) = (config.parallel.tensor as f64, model.num_hidden_layers as f64, model.hidden_size as f64);
    let tokens = (train.micro_batch_size * train.seq_length) as f64;
    // Full recomputation runs one more forward pass.
    let passes = if train.recompute == Recompute::Full { 4.0 / 3.0 } else { 1.0 };
    let work = passes * layers * flops::layer_flops(model, train.seq_length) + flops::head_flops(model);
    // Attention achieves less than products do, its backward pass has five products instead of the four that count, and
    // gradient sums are read and written.
    let [counted, timed] = products(model, train.seq_length);
    let forward = (3.0 * passes - 2.0) * 2.0 / r.attention_tflops;
    let attention = timed * (forward + 5.0 / r.attention_backward_tflops);
    let slower = (attention - counted * 6.0 * passes / r.matmul_tflops) / 1e12;
    let sums = 4.0 * held(model, config.parallel.expert) / (r.memory_gb_s * 1e9);
    let compute = work * tokens / (r.matmul_tflops * 1e12) + slower * tokens + sums;
    // Norms, rotary and SwiGLU move about 40 h + 16 f bytes a token and layer, and recomputation adds to that.
    let (inner, gated) = (inner(model), model.activation().products() as f64);
    let again = if train.recompute == Recompute::None { 0.0 } else { 8.0 * hidden + (2.0 + 2.0 * gated) * inner };
    let software = &cluster.software;
    let moved = (40.0 * hidden + (4.0 + 6.0 * gated) * inner + again) * tokens * layers * software.elementwise;
    let logits = software.logit_bytes.max(6.0) * tokens * model.vocab_size as f64;
    let elementwise = (moved + logits) / (r.memory_gb_s * 1e9);
    // Ten all-gathers and reduce-scatters of [T, h] a layer, half of their time overlapped.
    let one = 2.0 * tokens * hidden * (t - 1.0) / t / (r.ring_gb_s * 1e9) + r.latency_us / 1e6;
    let exposed = if software.overlap.contains(&Overlap::Tensor) { 5.0 } else { 10.0 };
    let collectives = if t > 1.0 { exposed * layers * one } else { 0.0 } + dispatch(config, tokens, r) * t;
    let host = software.layer_ms / 1e3 * layers + if stages > 1.0 { software.wait_ms / 1e3 * stages } else { 0.0 };
    (((compute + elementwise) / t + host) / software.efficiency + collectives) / stages + messages(config, stages, r)
}

/// The parameters of a replica's part that holds its share of the experts.
fn held(model: &Model, expert: usize) -> f64 {
    let each = |of: Experts| 3.0 * (of.count * model.hidden_size * of.mlp.intermediate_size) as f64;
    let experts: f64 = model.layers().filter_map(|layer| layer.experts()).map(each).sum();
    flops::parameters(model) as f64 - experts * (1.0 - 1.0 / expert as f64)
}

/// The width of the feed-forward layers, or of all experts of a token together; the mean of all layers.
fn inner(model: &Model) -> f64 {
    let width = |layer: Layer| layer.experts().map_or(1, |of| of.per_token) * layer.mlp().intermediate_size;
    model.layers().map(width).sum::<usize>() as f64 / model.num_hidden_layers as f64
}

/// Seconds in which the rows of a micro-batch of all layers are copied, sent to their experts and back, forward and
/// backward: 5 all-to-alls, and about 24 bytes a row and column in memory, 4 more where the rows are taken again.
fn dispatch(config: &Config, tokens: f64, r: &Achieved) -> f64 {
    let (model, ranks) = (&config.model, config.parallel.expert as f64);
    let choices: usize = model.layers().filter_map(|layer| layer.experts()).map(|of| of.per_token).sum();
    let rows = choices as f64 * tokens * model.hidden_size as f64;
    let sent = 5.0 * 2.0 * (ranks - 1.0) / ranks * config.parallel.expert_imbalance / (r.ring_gb_s * 1e9);
    let again = if drops_rows(config) { 4.0 } else { 0.0 };
    rows * (sent + (24.0 + again) / (r.memory_gb_s * 1e9))
}

/// Whether the rows of experts are dropped, and taken again in backward.
fn drops_rows(config: &Config) -> bool {
    config.parallel.expert == 1 && config.train.recompute == Recompute::Selective
}

/// Multiply-adds of `q k^T` of all layers for a token, for the positions that are attended to, twice: those that FLOPs
/// count, and those that take attention's time.
fn products(model: &Model, seq: usize) -> [f64; 2] {
    let heads = Heads::full(model.num_attention_heads, model.num_key_value_heads, model.head_dim, seq);
    let heads = Heads { cap: model.attn_logit_softcapping.map(|cap| cap as f32), ..heads };
    let seen: f64 = model.layers().map(|layer| layer.attention.span(seq) as f64).sum();
    [heads.out_cols(), heads.timed_cols()].map(|cols| cols as f64 * seen)
}

/// The exposed time of a micro-batch's messages: a few percent of their duration, for every chunk.
fn messages(config: &Config, stages: f64, r: &Achieved) -> f64 {
    let (t, p) = (&config.train, &config.parallel);
    let rows = (t.micro_batch_size * t.seq_length) as f64 / p.tensor as f64;
    let one = 2.0 * rows * config.model.hidden_size as f64 / (r.message_gb_s * 1e9);
    if stages > 1.0 { 0.05 * 2.0 * p.virtual_pipeline as f64 * one } else { 0.0 }
}

/// Bytes of the activations of the first stage. It holds as many micro-batches as there are stages, together the
/// activations of all layers for one micro-batch; a little more with several chunks.
fn activations(config: &Config, stages: f64, n_mbs: f64) -> f64 {
    let (model, p) = (&config.model, &config.parallel);
    let rows: f64 = model.layers().map(|layer| kept(config, layer)).sum();
    let tokens = (config.train.micro_batch_size * config.train.seq_length) as f64;
    let chunks = if p.virtual_pipeline > 1 { 1.0 + (stages - 1.0) / (stages * p.virtual_pipeline as f64) } else { 1.0 };
    rows * tokens / p.tensor as f64 * chunks * n_mbs.min(stages) / stages
}

/// Bytes that a layer keeps of a row for its backward pass: its input and the sum after attention, the outputs of both
/// norms, q, k and v, attention's output, the MLP's products and their activation, in bf16; norms after attention and
/// the MLP keep their inputs, norms of heads theirs.
/// With experts the rows that a rank has memory for, their inputs among them, take the place of the MLP's.
fn kept(config: &Config, layer: Layer) -> f64 {
    let (model, recompute) = (&config.model, config.train.recompute);
    let hidden = model.hidden_size;
    let most = if config.parallel.expert == 1 { 1.0 } else { config.parallel.expert_buffer };
    let rows = layer.experts().map_or(0, |of| (of.per_token as f64 * most).ceil() as usize);
    let (inner, inputs) = (layer.mlp().intermediate_size * rows.max(1), rows * hidden);
    let (out, kv) = (model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim);
    let qkv = out + 2 * kv;
    let post_norms = if layer.post_norms { 2 * hidden } else { 0 };
    let inputs = if drops_rows(config) { 0 } else { inputs };
    let always = 2 * hidden + qkv + out + layer.mlp().activation.products() * inner + inputs + post_norms;
    let dropped = 2 * hidden + inner + if layer.head_norms { qkv } else { 0 };
    let elements = match recompute {
        Recompute::None => always + dropped,
        Recompute::Selective => always,
        Recompute::Full => hidden,
    };
    2.0 * elements as f64
}
