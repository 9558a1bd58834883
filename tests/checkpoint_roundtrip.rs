//! A checkpoint that is resumed and saved at one layout after another, and at the first again, is the same to the last
//! bit, optimizer state included.

use data::feed::Feed;
use engine::checkpoint::{Options, Saved, Saver};
use engine::config::Config;
use engine::cpu::Cpu;
use engine::model::init;
use engine::mpi::{Comm, World};
use engine::parity::Layout;
use engine::time::Phase;
use engine::train::clock::Clock;
use engine::train::state;
use engine::train::trainer::Trainer;
use std::path::Path;
use std::rc::Rc;

use crate::common::on_ranks;

#[test]
fn a_checkpoint_is_the_same_after_six_layouts() {
    on_ranks("checkpoint_roundtrip::a_checkpoint_is_the_same_after_six_layouts", 8, |shared| {
        let world = World::start().unwrap();
        assert_eq!(world.comm().size(), 8);
        for model in ["parity", "parity-tied", "parity-experts"] {
            relay(world.comm(), &shared.join(model), &format!("configs/{model}.toml"));
        }
    });
}

/// Trains at one layout, resumes and saves at all others that there are ranks for, and resumes at the first again.
fn relay(comm: &Comm, dir: &Path, model: &str) {
    let config = Config::load(model.as_ref(), &["train.steps=3".to_string()]).unwrap();
    let feed = Feed::open(&config).unwrap();
    // Ranks that share the experts, where there are any.
    let sharing = |ranks: usize| if config.model.experts() > 0 { ranks } else { 1 };
    let whole = Layout { tensor: 2, pipeline: 2, data: 2, expert: sharing(2), sequence_parallel: true, ..Layout::ONE };
    let whole = Layout { distributed_optimizer: true, ..whole };
    let others = [
        Layout { data: 8, expert: sharing(4), distributed_optimizer: true, ..Layout::ONE },
        Layout { tensor: 4, data: 2, expert: sharing(2), ..Layout::ONE },
        Layout { pipeline: 4, data: 2, distributed_optimizer: true, ..Layout::ONE },
        Layout { tensor: 8, sequence_parallel: true, ..Layout::ONE },
        Layout { tensor: 2, virtual_pipeline: 2, ..whole },
    ];
    let mut first = trainer(comm, &config, whole);
    state::load_weights(&mut first, |tensor, rect, out| {
        init::fill(&config.model, config.train.seed, tensor, rect, out);
        Ok(())
    })
    .unwrap();
    first.cast_main_params();
    let step = |trainer: &mut Trainer<Cpu<f32>>| {
        let mut clock = Clock::start(&trainer.b, Phase::Data);
        trainer.step(&feed, &mut clock).unwrap()
    };
    step(&mut first);
    step(&mut first);
    let mut at = dir.join("first");
    save(comm, &first, &at);
    for (i, layout) in others.into_iter().enumerate() {
        let mut trainer = trainer(comm, &config, layout);
        state::resume(&mut trainer, &Saved::latest(&at).unwrap().unwrap()).unwrap();
        at = dir.join(format!("{i}"));
        save(comm, &trainer, &at);
    }
    let resumed = |pieces| {
        let mut back = in_pieces(comm, &config, whole, pieces);
        state::resume(&mut back, &Saved::latest(&at).unwrap().unwrap()).unwrap();
        back
    };
    let (mut back, mut chunked) = (resumed(1), resumed(3));
    assert_eq!((back.step, back.consumed_samples()), (first.step, first.consumed_samples()));
    assert!(bits(&back) == bits(&first), "the state differs");
    back.cast_main_params();
    let after = step(&mut first);
    assert_eq!(step(&mut back), after, "the next step differs");
    assert!(bits(&back) == bits(&first), "the state after the next step differs");

    // With several chunks a collective, a rank holds other rows, and the gradients of norms are summed in another
    // order.
    chunked.cast_main_params();
    let in_chunks = step(&mut chunked);
    assert_eq!((in_chunks.loss, in_chunks.loss_tokens), (after.loss, after.loss_tokens), "the step in pieces differs");
    for (x, y) in values(&chunked).into_iter().zip(values(&back)) {
        assert!((x - y).abs() <= 1e-6 + 1e-4 * y.abs(), "{x} after a step in pieces, {y} after one in one");
    }
}

fn trainer(comm: &Comm, config: &Config, layout: Layout) -> Trainer<Cpu<f32>> {
    in_pieces(comm, config, layout, 1)
}

fn in_pieces(comm: &Comm, config: &Config, layout: Layout, pieces: usize) -> Trainer<Cpu<f32>> {
    let config = layout.config(config).unwrap();
    let mesh = config.mesh(comm.size()).unwrap();
    let b = Cpu::of(Rc::new(comm.split(0, comm.rank())), 1).in_pieces(pieces);
    Trainer::new(b, config, mesh, comm.rank())
}

fn save(comm: &Comm, trainer: &Trainer<Cpu<f32>>, dir: &Path) {
    let mut saver = Saver::new(dir, Options::default(), format!("rank {}", comm.rank()));
    saver.begin(comm, &state::header(trainer, Vec::new()).unwrap(), state::pieces(trainer)).unwrap();
    saver.finish(comm).unwrap();
}

/// The main parameters and moments that this rank holds.
fn values(trainer: &Trainer<Cpu<f32>>) -> Vec<f32> {
    let all = trainer.optim.shards.iter().flat_map(|shard| shard.state.iter().map(|(_, part)| part));
    all.flat_map(|x| trainer.b.download(x)).collect()
}

fn bits(trainer: &Trainer<Cpu<f32>>) -> Vec<u32> {
    let bits: Vec<u32> = values(trainer).into_iter().map(f32::to_bits).collect();
    // A state that was never trained, whose moments are zero, would prove nothing.
    assert!(bits.iter().filter(|&&bits| bits != 0).count() > bits.len() / 2);
    bits
}
