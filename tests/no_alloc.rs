//! After the first step, training takes no memory from the system; and from the first it takes what the
//! dry run says, to the byte: on every rank of many layouts, scratch of ops included.
//!
//! MPI is started once a process, so that this one starts `mpirun` with itself.

use engine::backend::Backend;
use engine::batch::Blank;
use engine::config::Config;
use engine::cpu::{Cpu, CpuScratch, Float};
use engine::dry::Keep;
use engine::model::init;
use engine::mpi::World;
use engine::time::Phase;
use engine::train::clock::Clock;
use engine::train::state;
use engine::train::trainer::Trainer;
use half::bf16;
use plan::dry_run::rehearse;
use std::process::Command;
use std::rc::Rc;

#[test]
fn on_one_two_four_and_eight_ranks() {
    [1, 2, 4, 8].into_iter().for_each(under_mpirun);
}

#[track_caller]
fn under_mpirun(ranks: usize) {
    let mut command = Command::new("mpirun");
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.args(["--oversubscribe", "-n", &ranks.to_string()]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", "every_layout", "--nocapture"]);
    let outcome = command.output().unwrap();
    assert!(
        outcome.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&outcome.stdout),
        String::from_utf8_lossy(&outcome.stderr)
    );
}

/// What each rank of the test above does; outside of mpirun there is nothing to do.
#[test]
fn every_layout() {
    if std::env::var_os("OMPI_COMM_WORLD_SIZE").is_none() {
        return;
    }
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

/// The layouts of so many ranks; data-parallel ranks are what is left.
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

/// The length, the batch and the intermediate size. On one rank also those at which ops take other scratch:
/// more rows than one chunk of logits, a product deeper than a strip.
fn sizes(ranks: usize, case: usize) -> (&'static str, usize) {
    match case {
        1 if ranks == 1 => ("seq_length = 128\nmicro_batch_size = 33\nglobal_batch_size = 33", 48),
        2 if ranks == 1 => ("seq_length = 16\nglobal_batch_size = 8", 4200),
        _ => ("seq_length = 16\nglobal_batch_size = 8", 48),
    }
}

/// An odd vocabulary, layers that do not divide, fewer kv heads than the most tensor-parallel ranks.
fn config(parallel: &str, train: &str, intermediate: usize, tied: bool) -> Config {
    let text = format!(
        "[model]\narchitecture = \"llama\"\nhidden_size = 32\nintermediate_size = {intermediate}\nnum_hidden_layers = 5\n\
         num_attention_heads = 4\nnum_key_value_heads = 2\nvocab_size = 51\nmax_position_embeddings = 128\n\
         rope_theta = 10000.0\nrms_norm_eps = 1e-5\ntie_word_embeddings = {tied}\n[train]\nsteps = 5\n\
         eval_interval = 1\neval_steps = 1\n{train}\n[parallel]\n{parallel}\n[optimizer]\nlr = 1e-3\n\
         [data]\ntrain = [ {{ prefix = \"x\" }} ]\nsplit = \"9,1,0\"\n[checkpoint]\ndir = \"x\"\n"
    );
    Config::from_resolved(&text).unwrap()
}

/// Trains three steps and validates after each.
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
    let blank = Blank(config.train.seq_length);
    let usages = [(); 3].map(|()| {
        let report = {
            let mut clock = Clock::start(&trainer.b, Phase::Data);
            trainer.step(&blank, &mut clock).unwrap()
        };
        assert!(report.loss.is_finite(), "{what}: {report:?}");
        trainer.validate(&blank).unwrap();
        trainer.b.usage()
    });
    assert!(usages[0].allocations > 0);
    assert_eq!(usages, [usages[0]; 3], "{what}: a later step takes other blocks");
    let dry = rehearse::<A>(config, &mesh, rank, CpuScratch::<A>::new(threads), Keep::Totals, 1).unwrap();
    assert_eq!(dry.usage, usages[0], "{what}: the dry run and the run");
}
