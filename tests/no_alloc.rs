//! After the first step, training allocates no memory from the system; and from the first step on it allocates what the
//! dry run says, to the byte: on every rank of many layouts, scratch of ops included.

use engine::backend::Backend;
use engine::batch::Blank;
use engine::config::Config;
use engine::cpu::{Cpu, CpuScratch, Float};
use engine::dry::Keep;
use engine::model::init;
use engine::mpi::World;
use engine::time::Phase;
use engine::train::clock::Clock;
use engine::train::copies;
use engine::train::state;
use engine::train::trainer::Trainer;
use half::bf16;
use plan::dry_run::run_rank;
use std::rc::Rc;

use crate::common::on_ranks;

#[test]
fn on_one_rank() {
    on_ranks("no_alloc::on_one_rank", 1, |_| every_layout());
}

#[test]
fn on_two_ranks() {
    on_ranks("no_alloc::on_two_ranks", 2, |_| every_layout());
}

mod exhaustive {
    use super::*;

    #[test]
    fn on_four_ranks() {
        on_ranks("no_alloc::exhaustive::on_four_ranks", 4, |_| every_layout());
    }

    #[test]
    fn on_eight_ranks() {
        on_ranks("no_alloc::exhaustive::on_eight_ranks", 8, |_| every_layout());
    }
}

/// The body of each rank.
fn every_layout() {
    let world = World::start().unwrap();
    let ranks = world.comm().size();
    for (n, layout) in layouts(ranks).iter().enumerate() {
        for (i, train) in ["none", "selective", "full"].into_iter().enumerate() {
            let tied = (n + i) % 2 == 1;
            let (sizes, intermediate) = sizes(ranks, i);
            let config = config(layout, &format!("recompute = \"{train}\"\n{sizes}"), intermediate, tied);
            hold::<f32>(&world, &config, 1 + (n + i) % 2);
            hold::<bf16>(&world, &config, 2 - (n + i) % 2);
        }
    }
}

/// The layouts of this many ranks; those that tensor and pipeline leave over are data parallel.
fn layouts(ranks: usize) -> Vec<&'static str> {
    let apart = "distributed_optimizer = false";
    let held = "tensor = 2\nsequence_parallel = false";
    let interleaved = "pipeline = 2\nvirtual_pipeline = 2";
    let both = "tensor = 2\npipeline = 2";
    let both_interleaved = "tensor = 2\npipeline = 2\nvirtual_pipeline = 2";
    match ranks {
        1 => vec![""],
        2 => vec!["", apart, "tensor = 2", held, "pipeline = 2", interleaved],
        4 => vec!["tensor = 4", both, both_interleaved, "pipeline = 4", held, interleaved, "tensor = 2", apart],
        8 => vec![both, both_interleaved, "tensor = 4\npipeline = 2", "tensor = 4", "pipeline = 4"],
        other => panic!("no layouts of {other} ranks"),
    }
}

/// Sequence length, batch, and intermediate size. One rank also has sizes at which ops take other scratch: more rows
/// than one chunk of logits, a product deeper than a strip.
fn sizes(ranks: usize, case: usize) -> (&'static str, usize) {
    match case {
        1 if ranks == 1 => ("seq_length = 128\nmicro_batch_size = 33\nglobal_batch_size = 33", 48),
        2 if ranks == 1 => ("seq_length = 16\nglobal_batch_size = 8", 4200),
        _ => ("seq_length = 16\nglobal_batch_size = 8", 48),
    }
}

/// A model with an odd vocabulary, layers that do not divide evenly, and fewer kv heads than tensor-parallel ranks.
fn config(parallel: &str, train: &str, intermediate: usize, tied: bool) -> Config {
    let text = format!(
        "[model]\narchitecture = \"llama\"\nhidden_size = 32\nintermediate_size = {intermediate}\n\
         num_hidden_layers = 5\nnum_attention_heads = 4\nnum_key_value_heads = 2\nvocab_size = 51\n\
         max_position_embeddings = 128\nrope_theta = 10000.0\nrms_norm_eps = 1e-5\ntie_word_embeddings = {tied}\n\
         [train]\nsteps = 5\neval_interval = 1\neval_steps = 1\n{train}\n\
         [parallel]\n{parallel}\n[optimizer]\nlr = 1e-3\n\
         [data]\ntrain = [ {{ prefix = \"x\" }} ]\nsplit = \"9,1,0\"\n[checkpoint]\ndir = \"x\"\n"
    );
    Config::from_resolved(&text).unwrap()
}

/// Trains three steps; validates, and compares what several ranks hold, after each.
fn hold<A: Float>(world: &World, config: &Config, threads: usize) {
    let (comm, rank) = (world.comm(), world.comm().rank());
    let (mesh, what) = (config.mesh(comm.size()).unwrap(), format!("rank {rank}, {threads} threads, {config:?}"));
    let b = Cpu::<A>::of(Rc::new(comm.split(0, rank)), threads);
    let mut trainer = Trainer::new(b, config.clone(), mesh.clone(), rank);
    let (model, seed) = (config.model.clone(), config.train.seed);
    let fill = |tensor: &_, rect: &_, out: &mut [f32]| {
        init::fill(&model, seed, tensor, rect, out);
        Ok(())
    };
    state::load_weights(&mut trainer, fill).unwrap();
    trainer.cast_main_params();
    copies::must_be_equal(&mut trainer, comm).unwrap();
    let blank = Blank(config.train.seq_length);
    let usages = [(); 3].map(|()| {
        let report = {
            let mut clock = Clock::start(&trainer.b, Phase::Data);
            trainer.step(&blank, &mut clock).unwrap()
        };
        assert!(report.loss.is_finite(), "{what}: {report:?}");
        trainer.validate(&blank, 0).unwrap();
        copies::must_be_equal(&mut trainer, comm).unwrap();
        trainer.b.usage()
    });
    assert!(usages[0].allocations > 0);
    assert_eq!(usages, [usages[0]; 3], "{what}: a later step takes other blocks");
    let dry = run_rank::<A>(config, &mesh, rank, CpuScratch::<A>::new(threads), Keep::Totals, 1).unwrap();
    assert_eq!(dry.usage, usages[0], "{what}: the dry run and the run");
}
