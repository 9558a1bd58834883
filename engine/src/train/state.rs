//! Moves a run's state between the backend and checkpoints: master weights and moments as rectangles of the unpadded
//! tensors. It also lists the settings that a resumed run must share with the run that it continues.

use crate::backend::Backend;
use crate::checkpoint::{Data, Header, Piece, Position, Saved, StateKind};
use crate::config::{Config, Model};
use crate::error::Result;
use crate::layout::buckets::Part;
use crate::layout::rank_layout::RankLayout;
use crate::model::param_specs::TensorSpec;
use crate::model::rect::Rect;
use crate::train::optim::STATE;
use crate::train::trainer::Trainer;

/// Fills its last argument with a rectangle of a tensor, row-major.
type Read<'a> = dyn FnMut(&TensorSpec, &Rect, &mut [f32]) -> Result<()> + 'a;

/// Fills this rank's master weights from `read(tensor, rectangle, out)`.
///
/// Not collective, so that a rank may fail. Once all ranks have agreed that none did, [`Trainer::cast_main_params`]
/// makes the weights from the master weights.
pub fn load_weights<B: Backend>(
    trainer: &mut Trainer<B>,
    mut read: impl FnMut(&TensorSpec, &Rect, &mut [f32]) -> Result<()>,
) -> Result<()> {
    fill(trainer, StateKind::Master, &mut read)
}

/// Restores the state and the step of a checkpoint. Not collective; call [`Trainer::cast_main_params`] afterwards, as
/// for [`load_weights`].
pub fn resume<B: Backend>(trainer: &mut Trainer<B>, saved: &Saved) -> Result<()> {
    for kind in STATE {
        fill(trainer, kind, &mut |tensor, rect, out| saved.read(&tensor.name, kind, rect, out))?;
    }
    let Header { position, accepted, .. } = saved.header();
    trainer.step = position.step;
    trainer.set_accepted_steps(&accepted);
    Ok(())
}

/// The pieces that this rank owns, with their copies to the host started.
pub fn pieces<B: Backend>(trainer: &Trainer<B>) -> impl Iterator<Item = Piece> + '_ {
    let shards = trainer.optim.shards.iter().zip(&trainer.layout.buckets).filter(|(shard, _)| shard.owned);
    shards.flat_map(move |(shard, bucket)| shard.state.iter().map(move |part| (shard, bucket, part))).flat_map(
        move |(shard, bucket, (kind, state))| {
            let piece = move |Part { at, tensor, rect, .. }: Part| {
                let copy = trainer.b.copy_to_host_async(&state.view(at, rect.len(), 1));
                let data = Data::finite(copy, tensor.name.clone(), *kind, rect.clone());
                Piece { name: tensor.name.clone(), dims: tensor.dims.clone(), rect, kind: *kind, data }
            };
            bucket.parts(&shard.range).into_iter().filter(|part| part.owned).map(piece)
        },
    )
}

/// Bytes of all [`pieces`] of the rank at `rank_layout`; 0 if the run makes no checkpoint.
pub fn copy_bytes(config: &Config, rank_layout: &RankLayout) -> usize {
    if saves(config) { STATE.len() * size_of::<f32>() * rank_layout.saved(config) } else { 0 }
}

/// Whether the run makes checkpoints. Where it does not, it does not save when it is stopped, either.
pub fn saves(config: &Config) -> bool {
    let c = &config.checkpoint;
    c.at_end || (1..=config.train.steps).contains(&c.interval)
}

/// Whether a checkpoint follows this step.
pub fn is_saved(config: &Config, step: u64) -> bool {
    is_due(config, step) || (config.checkpoint.at_end && step == config.train.steps)
}

/// Whether `checkpoint.interval` demands a checkpoint after this step.
pub fn is_due(config: &Config, step: u64) -> bool {
    let interval = config.checkpoint.interval;
    interval > 0 && step.is_multiple_of(interval)
}

/// The manifest's record of this run; `data` is the fingerprint of the samples.
pub fn header<B: Backend>(trainer: &Trainer<B>, data: Vec<(String, String)>) -> Result<Header> {
    let position = Position { step: trainer.step, consumed_samples: trainer.consumed_samples() };
    let (config, identity) = (trainer.config.to_toml(), identity(&trainer.config, data));
    Ok(Header { position, config, identity, accepted: trainer.accepted_steps()? })
}

/// The keys and values that a resumed run must share with the one before: the model, the length and number of samples
/// of a step, the seed, and (`data`) the fingerprint of the samples. A new key needs a default, which is used for older
/// checkpoints (see [`saved_identity`]); a key of `data` is left out if it has its default.
pub fn identity(config: &Config, data: Vec<(String, String)>) -> Vec<(String, String)> {
    [config.identity(), data].concat()
}

/// The identity of a checkpoint. If an older program with fewer keys wrote its configuration, the missing keys get
/// today's defaults, which are what the older program did.
pub fn saved_identity(header: &Header) -> Vec<(String, String)> {
    let file = || "manifest.json, config".to_string();
    let today = match Config::from_resolved(&header.config) {
        Ok(config) => config.identity(),
        // An imported checkpoint has only a model.
        Err(_) => Model::from_toml(file(), &header.config).map_or(vec![], |model| model.identity()),
    };
    let section = |key: &str| key.split('.').next().unwrap_or_default().to_string();
    let lacks = |key: &str| header.identity.iter().all(|(known, _)| known != key);
    let states = |key: &str| header.identity.iter().any(|(known, _)| section(known) == section(key));
    let defaults = today.into_iter().filter(|(key, _)| states(key) && lacks(key));
    header.identity.iter().cloned().chain(defaults).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{AcceptedSteps, compare};

    const TEXT: &str = "[model]\narchitecture = \"llama\"\nhidden_size = 64\nintermediate_size = 172\n\
        num_hidden_layers = 5\nnum_attention_heads = 8\nnum_key_value_heads = 4\nvocab_size = 512\n\
        max_position_embeddings = 512\nrope_theta = 10000.0\nrms_norm_eps = 1e-5\n\
        [train]\nseq_length = 128\nglobal_batch_size = 12\nsteps = 100\n[optimizer]\nlr = 1e-3\n\
        [data]\ntrain = [ { prefix = \"text\" } ]\n[checkpoint]\ndir = \"run\"\n";

    fn keys(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    /// Every checkpoint on a disk has these keys and spellings, which must not change.
    #[test]
    fn the_identity_keeps_its_keys_and_spelling() {
        let llama3 = "[model.rope_scaling]\nrope_type = \"llama3\"\nfactor = 8\nlow_freq_factor = 1.0\n\
            high_freq_factor = 4.0\noriginal_max_position_embeddings = 8192\n";
        let scaled = "Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, \
            original_max_position_embeddings: 8192 }";
        for (more, scaling) in [("", "Default"), (llama3, scaled)] {
            let config = Config::from_resolved(&format!("{TEXT}{more}")).unwrap();
            let want = keys(&[
                ("model.architecture", "llama"),
                ("model.hidden_size", "64"),
                ("model.intermediate_size", "172"),
                ("model.num_hidden_layers", "5"),
                ("model.num_attention_heads", "8"),
                ("model.num_key_value_heads", "4"),
                ("model.head_dim", "8"),
                ("model.vocab_size", "512"),
                ("model.max_position_embeddings", "512"),
                ("model.rope_theta", "10000"),
                ("model.rope_scaling", scaling),
                ("model.attention_bias", "false"),
                ("model.mlp_bias", "false"),
                ("model.use_sliding_window", "false"),
                ("model.sliding_window", "none"),
                ("model.max_window_layers", "28"),
                ("model.layer_types", "none"),
                ("model.rms_norm_eps", "0.00001"),
                ("model.layer_norm_epsilon", "none"),
                ("model.attn_logit_softcapping", "none"),
                ("model.final_logit_softcapping", "none"),
                ("model.query_pre_attn_scalar", "none"),
                ("model.embedding_scale", "1"),
                ("model.num_local_experts", "0"),
                ("model.num_experts_per_tok", "0"),
                ("model.moe_intermediate_size", "0"),
                ("model.norm_topk_prob", "false"),
                ("model.decoder_sparse_step", "1"),
                ("model.mlp_only_layers", "[]"),
                ("model.tie_word_embeddings", "false"),
                ("train.seq_length", "128"),
                ("train.global_batch_size", "12"),
                ("train.seed", "1234"),
                ("data.order", "megatron"),
            ]);
            assert_eq!(identity(&config, keys(&[("data.order", "megatron")])), want);
        }
    }

    /// A checkpoint of a program that did not have two of today's keys.
    #[test]
    fn keys_that_an_older_checkpoint_lacks_count_as_their_defaults() {
        let config = Config::from_resolved(TEXT).unwrap();
        let older = |config: &Config, text: String| {
            let mut identity = config.identity();
            identity.retain(|(key, _)| key != "model.tie_word_embeddings" && key != "train.seed");
            let (position, accepted) = (Position { step: 5, consumed_samples: 60 }, AcceptedSteps::default());
            Header { position, config: text, identity, accepted }
        };
        let saved = saved_identity(&older(&config, TEXT.to_string()));
        assert_eq!(compare(&saved, &config.identity()), []);
        let mut other = config.clone();
        (other.model.tie_word_embeddings, other.train.seed) = (true, 5);
        let differences: Vec<String> = compare(&saved, &other.identity()).iter().map(|d| d.to_string()).collect();
        assert_eq!(
            differences,
            ["model.tie_word_embeddings: was false, is now true", "train.seed: was 1234, is now 5"]
        );
        // An imported checkpoint has only a model, and the run chooses the rest.
        let mut imported = older(&config, config.model.to_toml());
        imported.identity.retain(|(key, _)| key.starts_with("model."));
        let saved = saved_identity(&imported);
        assert_eq!(saved.len(), config.model.identity().len());
        assert_eq!(compare(&saved, &config.identity()), []);
        assert_eq!(compare(&saved, &other.identity()).len(), 1);
    }
}
