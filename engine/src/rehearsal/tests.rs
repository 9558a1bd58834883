//! The order of all ranks' collectives at many layouts, and what ranks have in common.

use super::*;
use crate::config::Axis;
use crate::cpu::CpuScratch;
use crate::dry::order::{Disorder, check};
use crate::dry::{Event, What};

/// A small model at a layout; `more` is what `--set` would say.
fn config(more: &str) -> Config {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    let text = "[model]\narchitecture = \"llama\"\nhidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 8\n\
         num_attention_heads = 4\nnum_key_value_heads = 2\nvocab_size = 51\nmax_position_embeddings = 64\n\
         rope_theta = 1e4\nrms_norm_eps = 1e-5\n[train]\nseq_length = 16\nglobal_batch_size = 32\nsteps = 9\n\
         [optimizer]\nlr = 1e-3\n[data]\ntrain = [ { prefix = \"none\" } ]\n[checkpoint]\ndir = \"none\"\n";
    std::fs::write(&file, text).unwrap();
    let more: Vec<String> = more.split_whitespace().map(Into::into).collect();
    Config::read(&file, &more).unwrap()
}

fn one(config: &Config, ranks: usize, rank: usize, keep: Keep) -> Rehearsal {
    let mesh = config.mesh(ranks).unwrap();
    rehearse::<f32>(config, &mesh, rank, CpuScratch::<f32>::new(1), keep, 2).unwrap()
}

fn logs(config: &Config, ranks: usize) -> Vec<Log> {
    (0..ranks).map(|rank| one(config, ranks, rank, Keep::Calls).log).collect()
}

#[test]
fn no_layout_can_deadlock() {
    let mut tried = 0;
    for (tp, pp, vpp) in
        [1, 2, 4].into_iter().flat_map(|tp| [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2)].map(|(p, v)| (tp, p, v)))
    {
        for dp in [1, 2] {
            for (n, rest) in [
                "",
                "parallel.distributed_optimizer=false",
                "parallel.sequence_parallel=false model.tie_word_embeddings=true",
                "model.tie_word_embeddings=true train.recompute=full train.eval_interval=1",
            ]
            .into_iter()
            .enumerate()
            {
                let layout =
                    format!("parallel.tensor={tp} parallel.pipeline={pp} parallel.virtual_pipeline={vpp} {rest}");
                let layout = format!("{layout} train.global_batch_size={}", [8, 16][n % 2]);
                let logs = logs(&config(&layout), tp * pp * dp);
                check(&logs).unwrap_or_else(|disorder| panic!("{layout} dp {dp}: {disorder}"));
                tried += logs.iter().any(|log| !log.events.is_empty()) as usize;
            }
        }
    }
    assert!(tried > 100, "{tried} layouts with collectives");
}
