//! Moves a run's state between the backend and checkpoints: master weights and moments as rectangles of the unpadded
//! tensors. It also lists the settings that a resumed run must share with the run that it continues.

use crate::backend::{Acc, Backend};
use crate::checkpoint::{Data, Header, Piece, Position, Saved, StateKind};
use crate::config::{Config, Model};
use crate::error::Result;
use crate::layout::buckets::Part;
use crate::layout::rank_layout::RankLayout;
use crate::model::param_specs::TensorSpec;
use crate::model::rect::Rect;
use crate::train::optim::{Ownership, Shard};
use crate::train::trainer::Trainer;

/// Fills its last argument with a rectangle of a tensor, row-major.
type Read<'a> = dyn FnMut(&TensorSpec, &Rect, &mut [f32]) -> Result<()> + 'a;

const KINDS: [StateKind; 3] = [StateKind::Master, StateKind::M, StateKind::V];

/// Fills this rank's master weights from `read(tensor, rectangle, out)`.
///
/// Not collective, so that a rank may fail. Once all ranks have agreed that none did, [`Trainer::cast_main_params`] makes the
/// weights from the master weights.
pub fn load_weights<B: Backend>(
    trainer: &mut Trainer<B>,
    mut read: impl FnMut(&TensorSpec, &Rect, &mut [f32]) -> Result<()>,
) -> Result<()> {
    fill(trainer, StateKind::Master, &mut read)
}

/// Restores the state and the step of a checkpoint. Not collective; [`Trainer::cast_main_params`] follows here, too.
pub fn resume<B: Backend>(trainer: &mut Trainer<B>, saved: &Saved) -> Result<()> {
    for kind in KINDS {
        fill(trainer, kind, &mut |tensor, rect, out| saved.read(&tensor.name, kind, rect, out))?;
    }
    trainer.step = saved.header().position.step;
    Ok(())
}

/// The pieces that this rank owns, with their copies to the host started.
pub fn pieces<B: Backend>(trainer: &Trainer<B>) -> impl Iterator<Item = Piece> + '_ {
    let mine = trainer.optim.ownership == Ownership::Owner;
    let shards = trainer.optim.shards.iter().zip(&trainer.layout.buckets).filter(move |_| mine);
    shards.flat_map(move |(shard, bucket)| KINDS.into_iter().map(move |kind| (shard, bucket, kind))).flat_map(
        move |(shard, bucket, kind)| {
            let piece = move |Part { at, tensor, rect, .. }: Part| {
                let data = Data::pending(trainer.b.copy_to_host_async(&part(shard, kind).view(at, rect.len(), 1)));
                Piece { name: tensor.name.clone(), dims: tensor.dims.clone(), rect, kind, data }
            };
            bucket.parts(&shard.range).into_iter().filter(|part| part.owned).map(piece)
        },
    )
}

/// Bytes of all [`pieces`] of the rank at `rank_layout`; 0 where the run makes no checkpoint.
pub fn copy_bytes(config: &Config, rank_layout: &RankLayout) -> usize {
    let c = &config.checkpoint;
    let saves = c.at_end || (1..=config.train.steps).contains(&c.interval);
    if saves { KINDS.len() * size_of::<f32>() * rank_layout.saved(config) } else { 0 }
}

/// Whether a checkpoint follows this step.
pub fn is_saved(config: &Config, step: u64) -> bool {
    is_due(config, step) || (config.checkpoint.at_end && step == config.train.steps)
}

/// Whether it follows by `checkpoint.interval`.
pub fn is_due(config: &Config, step: u64) -> bool {
    let interval = config.checkpoint.interval;
    interval > 0 && step.is_multiple_of(interval)
}

/// The manifest's record of this run; `data` is the fingerprint of the samples.
pub fn header<B: Backend>(trainer: &Trainer<B>, data: Vec<(String, String)>) -> Header {
    let position = Position { step: trainer.step, consumed_samples: trainer.consumed_samples() };
    Header { position, config: trainer.config.to_toml(), identity: identity(&trainer.config, data) }
}

/// The settings that a resumed run must share with the run before: the model, the length and number of samples of a
/// step, the seed, and (`data`) the fingerprint of the samples.
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

/// The model's part of the identity; an imported checkpoint has no other part.
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
        trainer.b.write(&host, part_mut(shard, kind));
    }
    Ok(())
}

fn part<B: Backend>(shard: &Shard<B>, kind: StateKind) -> &Acc<B> {
    match kind {
        StateKind::Master => &shard.master,
        StateKind::M => &shard.m,
        StateKind::V => &shard.v,
    }
}

fn part_mut<B: Backend>(shard: &mut Shard<B>, kind: StateKind) -> &mut Acc<B> {
    match kind {
        StateKind::Master => &mut shard.master,
        StateKind::M => &mut shard.m,
        StateKind::V => &mut shard.v,
    }
}
