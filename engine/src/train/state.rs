//! The state of a run between the device and what keeps it: masters and moments as rectangles of
//! the true tensors, and what a resumed run must have in common with the one that it continues.

use crate::backend::Backend;
use crate::checkpoint::{Data, Header, Piece, Position, Saved, StateKind};
use crate::config::{Config, Model};
use crate::error::Result;
use crate::layout::buckets::Part;
use crate::layout::rank_layout::RankLayout;
use crate::model::param_specs::TensorSpec;
use crate::model::rect::Rect;
use crate::train::optim::{Ownership, STATE};
use crate::train::trainer::Trainer;

/// Fills the last argument with a rectangle of a tensor, row-major.
type Read<'a> = dyn FnMut(&TensorSpec, &Rect, &mut [f32]) -> Result<()> + 'a;

/// Fills this rank's masters from `read(tensor, rectangle, out)`.
///
/// No other rank takes part, so one that fails can be told of: [`Trainer::cast_main_params`] makes weights
/// of the masters once all ranks have agreed that they have theirs.
pub fn load_weights<B: Backend>(
    trainer: &mut Trainer<B>,
    mut read: impl FnMut(&TensorSpec, &Rect, &mut [f32]) -> Result<()>,
) -> Result<()> {
    fill(trainer, StateKind::Master, &mut read)
}

/// Continues where a checkpoint was taken; [`Trainer::cast_main_params`] follows here, too.
pub fn resume<B: Backend>(trainer: &mut Trainer<B>, saved: &Saved) -> Result<()> {
    for kind in STATE {
        fill(trainer, kind, &mut |tensor, rect, out| saved.read(&tensor.name, kind, rect, out))?;
    }
    trainer.step = saved.header().position.step;
    Ok(())
}

/// The pieces that this rank answers for; their copies are on the way.
pub fn pieces<B: Backend>(trainer: &Trainer<B>) -> impl Iterator<Item = Piece> + '_ {
    let mine = trainer.optim.ownership == Ownership::Owner;
    let shards = trainer.optim.shards.iter().zip(&trainer.layout.buckets).filter(move |_| mine);
    shards.flat_map(move |(shard, bucket)| shard.state.iter().map(move |part| (shard, bucket, part))).flat_map(
        move |(shard, bucket, (kind, state))| {
            let piece = move |Part { at, tensor, rect, .. }: Part| {
                let data = Data::coming(trainer.b.copy_to_host_async(&state.view(at, rect.len(), 1)));
                Piece { name: tensor.name.clone(), dims: tensor.dims.clone(), rect, kind: *kind, data }
            };
            bucket.parts(&shard.range).into_iter().filter(|part| part.owned).map(piece)
        },
    )
}

/// Bytes that all [`pieces`] of the rank at `rank_layout` take together; none where the run makes no checkpoint.
pub fn copy_bytes(config: &Config, rank_layout: &RankLayout) -> usize {
    let c = &config.checkpoint;
    let some = c.at_end || (1..=config.train.steps).contains(&c.interval);
    if some { STATE.len() * size_of::<f32>() * rank_layout.saved(config) } else { 0 }
}

/// Whether a checkpoint follows this step.
pub fn is_saved(config: &Config, step: u64) -> bool {
    is_due(config, step) || (config.checkpoint.at_end && step == config.train.steps)
}

/// Whether it follows by the interval.
pub fn is_due(config: &Config, step: u64) -> bool {
    let interval = config.checkpoint.interval;
    interval > 0 && step.is_multiple_of(interval)
}

/// What goes into the manifest; `data` is the fingerprint of the samples.
pub fn header<B: Backend>(trainer: &Trainer<B>, data: Vec<(String, String)>) -> Header {
    let position = Position { step: trainer.step, consumed_samples: trainer.consumed_samples() };
    Header { position, config: trainer.config.to_toml(), identity: identity(&trainer.config, data) }
}

/// What a resumed run must share with the one before: the model, the length and number of samples
/// of a step, the seed, and (`data`) what the samples are made of.
pub fn identity(config: &Config, data: Vec<(String, String)>) -> Vec<(String, String)> {
    let t = &config.train;
    let train = [
        ("train.seq_length", t.seq_length.to_string()),
        ("train.global_batch_size", t.global_batch_size.to_string()),
        ("train.seed", t.seed.to_string()),
    ];
    let mut all = model_identity(&config.model);
    all.extend(train.map(|(key, value)| (key.to_string(), value)));
    all.extend(data);
    all
}

/// The model's part of the identity: all that an imported checkpoint has.
pub fn model_identity(m: &Model) -> Vec<(String, String)> {
    [
        ("model.architecture", format!("{:?}", m.architecture).to_lowercase()),
        ("model.hidden_size", m.hidden_size.to_string()),
        ("model.intermediate_size", m.intermediate_size.to_string()),
        ("model.num_hidden_layers", m.num_hidden_layers.to_string()),
        ("model.num_attention_heads", m.num_attention_heads.to_string()),
        ("model.num_key_value_heads", m.num_key_value_heads.to_string()),
        ("model.head_dim", m.head_dim.to_string()),
        ("model.vocab_size", m.vocab_size.to_string()),
        ("model.max_position_embeddings", m.max_position_embeddings.to_string()),
        ("model.rope_theta", m.rope_theta.to_string()),
        ("model.rope_scaling", format!("{:?}", m.rope_scaling)),
        ("model.rms_norm_eps", m.rms_norm_eps.to_string()),
        ("model.tie_word_embeddings", m.tie_word_embeddings.to_string()),
    ]
    .map(|(key, value)| (key.to_string(), value))
    .into()
}

fn fill<B: Backend>(trainer: &mut Trainer<B>, kind: StateKind, read: &mut Read) -> Result<()> {
    let layout = trainer.layout.clone();
    for (shard, bucket) in trainer.optim.shards.iter_mut().zip(&layout.buckets) {
        let mut host = vec![0.0; shard.range.len()];
        for Part { at, tensor, rect, .. } in bucket.parts(&shard.range) {
            read(tensor, &rect, &mut host[at..at + rect.len()])?;
        }
        let (_, part) =
            shard.state.iter_mut().find(|(name, _)| *name == kind).expect("a part of the optimizer's state");
        trainer.b.write(&host, part);
    }
    Ok(())
}
