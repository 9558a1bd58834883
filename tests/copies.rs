//! One flipped bit in what several ranks hold is found, with the tensor and the rank, wherever copies are.

use engine::backend::Backend;
use engine::batch::Blank;
use engine::checkpoint::StateKind;
use engine::config::Config;
use engine::cpu::Cpu;
use engine::model::init;
use engine::mpi::{World, host};
use engine::time::Phase;
use engine::train::clock::Clock;
use engine::train::trainer::Trainer;
use engine::train::{copies, state};
use half::bf16;
use std::rc::Rc;

use crate::common::on_ranks;

/// Layouts of four ranks, a tensor that several of them hold, a rank that holds it, and how many do.
const CASES: [(&str, bool, &str, usize, usize); 4] = [
    // Data-parallel ranks without a distributed optimizer hold everything.
    ("distributed_optimizer = false", false, "model.layers.1.mlp.down_proj.weight", 2, 4),
    // Tensor-parallel ranks hold the norms, and here pairs of them a key/value head.
    ("tensor = 4", false, "model.norm.weight", 3, 4),
    ("tensor = 4", false, "model.layers.0.self_attn.k_proj.weight", 1, 2),
    // Both ends of the pipeline hold a tied table.
    ("tensor = 2\npipeline = 2", true, "model.embed_tokens.weight", 2, 2),
];

#[test]
fn a_flipped_bit_in_one_copy_is_found() {
    on_ranks("copies::a_flipped_bit_in_one_copy_is_found", 4, |_| {
        let world = World::start().unwrap();
        for (layout, tied, tensor, rank, holders) in CASES {
            let mut trainer = trained(&world, layout, tied);
            copies::must_be_equal(&mut trainer, world.comm()).unwrap();
            if world.comm().rank() == rank {
                flip(&mut trainer, tensor);
            }
            let error = copies::must_be_equal(&mut trainer, world.comm()).unwrap_err();
            let what = error.to_string();
            assert_eq!(error.exit_code(), 1);
            assert!(what.starts_with(&format!("step 1: the second moments of {tensor} (rows ")), "{what}");
            let ranks = what.split(" are not the same on all ranks: ").nth(1).unwrap();
            let of_flipped = format!("rank {rank} ({})", host());
            match holders {
                2 => assert!(ranks.contains(&of_flipped), "{what}"),
                _ => assert!(ranks.starts_with(&format!("{of_flipped} has other numbers than ranks 0 ")), "{what}"),
            }
        }
    });
}

/// A trainer after one step.
fn trained(world: &World, layout: &str, tied: bool) -> Trainer<Cpu<bf16>> {
    let text = format!(
        "[model]\narchitecture = \"llama\"\nhidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 2\n\
         num_attention_heads = 4\nnum_key_value_heads = 2\nvocab_size = 51\nmax_position_embeddings = 128\n\
         rope_theta = 10000.0\nrms_norm_eps = 1e-5\ntie_word_embeddings = {tied}\n\
         [train]\nsteps = 5\nseq_length = 16\nglobal_batch_size = 8\n[parallel]\n{layout}\n[optimizer]\nlr = 1e-3\n\
         [data]\ntrain = [ {{ prefix = \"x\" }} ]\n[checkpoint]\ndir = \"x\"\n"
    );
    let config = Config::from_resolved(&text).unwrap();
    let (comm, rank) = (world.comm(), world.comm().rank());
    let b = Cpu::of(Rc::new(comm.split(0, rank)), 1);
    let mut trainer = Trainer::new(b, config.clone(), config.mesh(comm.size()).unwrap(), rank);
    let fill = |tensor: &_, rect: &_, out: &mut [f32]| {
        init::fill(&config.model, config.train.seed, tensor, rect, out);
        Ok(())
    };
    state::load_weights(&mut trainer, fill).unwrap();
    trainer.cast_main_params();
    let mut clock = Clock::start(&trainer.b, Phase::Data);
    trainer.step(&Blank(16), &mut clock).unwrap();
    trainer
}

/// Flips the lowest bit of an element of a tensor's second moments.
fn flip(trainer: &mut Trainer<Cpu<bf16>>, tensor: &str) {
    let layout = trainer.layout.clone();
    for (shard, bucket) in trainer.optim.shards.iter_mut().zip(&layout.buckets) {
        let parts = bucket.parts(&shard.range);
        let Some(part) = parts.iter().find(|part| part.tensor.name == tensor) else { continue };
        let (_, v) = shard.state.iter_mut().find(|(kind, _)| *kind == StateKind::V).unwrap();
        let mut values = trainer.b.wait_host(trainer.b.copy_to_host_async(v)).unwrap();
        let value = &mut values[part.at + part.rect.len() / 2];
        *value = f32::from_bits(value.to_bits() ^ 1);
        return trainer.b.write(&values, v);
    }
    panic!("rank {} holds no {tensor}", trainer.rank_layout.rank);
}
