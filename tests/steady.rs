//! After the first step, training takes no memory from the system.

use engine::checkpoint::HuggingFace;
use engine::clock::{Clock, Phase};
use engine::config::Config;
use engine::cpu::Cpu;
use engine::data::feed::Feed;
use engine::mpi::World;
use engine::state;
use engine::trainer::Trainer;
use std::rc::Rc;

const CASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/gqa_masked");

#[test]
fn nothing_is_allocated_after_the_first_step() {
    let world = World::start().unwrap();
    let run = tempfile::tempdir().unwrap();
    let text = format!(
        "[model]\nhf = \"{CASE}/init\"\n[train]\nbackend = \"cpu\"\nseq_length = 32\nmicro_batch_size = 2\n\
         global_batch_size = 8\nsteps = 5\n[optimizer]\nlr = 1e-3\n[data]\ntrain = [ {{ prefix = \"{CASE}/train\" }} ]\n\
         order = \"sequential\"\n[checkpoint]\ndir = \"{}\"\n",
        run.path().display()
    );
    let file = run.path().join("config.toml");
    std::fs::write(&file, text).unwrap();
    for recompute in ["none", "selective", "full"] {
        let config = Config::load(&file, &[format!("train.recompute={recompute}")]).unwrap();
        let weights = HuggingFace::open(format!("{CASE}/init").as_ref(), &config.model).unwrap();
        let feed = Feed::open(&config).unwrap();
        let mesh = config.mesh(world.comm().size()).unwrap();
        let ranks = Rc::new(world.comm().split(0, world.comm().rank()));
        let mut trainer = Trainer::new(Cpu::<f32>::of(ranks, 2), config, mesh, world.comm().rank());
        state::load_weights(&mut trainer, |tensor, rect, out| weights.read(&tensor.name, rect, out)).unwrap();
        trainer.publish();
        trainer.step(&feed, &mut Clock::start(Phase::Data)).unwrap();
        let after_one = trainer.b.usage();
        for _ in 0..3 {
            trainer.step(&feed, &mut Clock::start(Phase::Data)).unwrap();
        }
        let after_four = trainer.b.usage();
        assert!(after_one.allocations > 0);
        assert_eq!(after_four.allocations, after_one.allocations, "{recompute}: blocks taken from the system");
        assert_eq!(after_four.in_use, after_one.in_use, "{recompute}: a step leaves blocks behind");
    }
}
