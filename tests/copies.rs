//! Numbers of one rank that are not what they should be: one flipped bit of a copy, and a NaN, are found with the
//! tensor or layer and the rank.

use engine::backend::{Backend, Judgement, Origin};
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
                let flip = |x: f32| f32::from_bits(x.to_bits() ^ 1);
                change(&mut trainer, tensor, StateKind::V, flip);
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

/// Changes an element of a tensor's state on this rank.
fn change(trainer: &mut Trainer<Cpu<bf16>>, tensor: &str, kind: StateKind, change: impl Fn(f32) -> f32) {
    let layout = trainer.layout.clone();
    for (shard, bucket) in trainer.optim.shards.iter_mut().zip(&layout.buckets) {
        let parts = bucket.parts(&shard.range);
        let Some(part) = parts.iter().find(|part| part.tensor.name == tensor) else { continue };
        let (_, state) = shard.state.iter_mut().find(|(of, _)| *of == kind).unwrap();
        let mut values = trainer.b.wait_host(trainer.b.copy_to_host_async(state)).unwrap();
        let value = &mut values[part.at + part.rect.len() / 2];
        *value = change(*value);
        return trainer.b.write(&values, state);
    }
    panic!("rank {} holds no {tensor}", trainer.rank_layout.rank);
}

/// A collective spreads it to the other rank, where it comes up later in the same layer.
#[test]
fn a_nan_of_one_rank_is_traced_to_its_layer_and_rank() {
    on_ranks("copies::a_nan_of_one_rank_is_traced_to_its_layer_and_rank", 4, |_| {
        let world = World::start().unwrap();
        let comm = world.comm();
        let mut trainer = trained(&world, "tensor = 2\npipeline = 2", false);
        if comm.rank() == 3 {
            change(&mut trainer, "model.layers.1.mlp.down_proj.weight", StateKind::Master, |_| f32::NAN);
        }
        trainer.cast_main_params();
        let mut clock = Clock::start(&trainer.b, Phase::Data);
        let results = trainer.step(&Blank(16), &mut clock).unwrap();
        assert_eq!(results.judgement, Judgement::NotFinite);
        let weights = trainer.weights_not_finite().unwrap();
        assert_eq!(weights.is_some(), comm.rank() == 3, "{weights:?}");
        let origin = trainer.origin_of(2, &Blank(16)).unwrap();
        let all = comm.all_gather_bytes(&serde_json::to_vec(&origin).unwrap());
        let all: Vec<Option<Origin>> = all.iter().map(|bytes| serde_json::from_slice(bytes).unwrap()).collect();
        let first = (0..4).filter(|&rank| all[rank].is_some()).min_by_key(|&rank| all[rank].clone()).unwrap();
        let what = &all[first].as_ref().unwrap().what;
        assert_eq!((first, what.as_str()), (3, "matmul_nt in layer 1, forward of micro-batch 0"), "{all:?}");
    });
}
