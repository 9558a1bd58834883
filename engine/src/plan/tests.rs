//! Steps whose shares theory tells, and the search for a layout. `tests/plan.rs` has what others have published.

use super::estimate::estimate;
use super::search::{Found, Room, SETTLED, as_it_is, candidates, search};
use super::*;
use crate::config::{Cluster, Config};
use crate::cpu::CpuScratch;
use half::bf16;
use std::path::{Path, PathBuf};

fn configs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(name)
}

fn step(name: &str, set: &[&str], cluster: &str) -> Step {
    let set: Vec<String> = set.iter().map(|set| set.to_string()).collect();
    let config = Config::read(&configs(name), &set).unwrap();
    let cluster = Cluster::load(&configs(cluster)).unwrap();
    let mesh = config.mesh(config.parallel.ranks.unwrap()).unwrap();
    let forecast = Forecast::of::<bf16>(&config, &mesh, &cluster, CpuScratch::<bf16>::new(1)).unwrap();
    let step = forecast.step.unwrap();
    let told: f64 = step.shares.values().sum();
    assert!((told - step.seconds).abs() < 1e-6 * step.seconds, "{told} of {} s are told", step.seconds);
    step
}

/// Of stages that do the same and send nothing, waits are (p - 1) / m of the work.
#[test]
fn the_bubble_is_that_of_theory() {
    let set = ["train.micro_batch_size=1", "parallel.pipeline=4", "model.num_hidden_layers=16", "model.vocab_size=64"];
    let set = [&set[..], &["parallel.tensor=1", "parallel.ranks=4", "train.global_batch_size=32"]].concat();
    let step = step("swallow-7b.toml", &set, "clusters/abci-a100-40.toml");
    let bubble = step.shares[&Share::Bubble];
    let work = step.seconds - bubble - step.shares[&Share::Messages];
    assert!((bubble / work / (3.0 / 32.0) - 1.0).abs() < 0.1, "a bubble of {bubble} s beside {work} s");
}

#[test]
fn a_search_finds_a_layout_at_least_as_fast() {
    let config = Config::read(&configs("swallow-13b.toml"), &[]).unwrap();
    let cluster = Cluster::load(&configs("clusters/abci-a100-40.toml")).unwrap();
    let (ranks, scratch) = (config.parallel.ranks.unwrap(), CpuScratch::<bf16>::new(1));
    let (reached, limit) = (cluster.reached.as_ref().unwrap(), 38 << 30);
    let room = Room { ranks, cluster: &cluster, reached, limit, scratch: &scratch };
    let outcome = search::<bf16, _>(&config, &room, &|| ()).unwrap();
    let best = &outcome.found[0];
    assert!(outcome.found.iter().all(|found| found.bytes <= limit && found.seconds >= best.seconds));
    assert!(outcome.possible > 500 && outcome.too_large > 0 && outcome.behind > 0, "{outcome:?}");
    for Found { config, mesh, seconds, .. } in &outcome.found {
        let estimated = estimate(config, mesh, &cluster, reached).seconds;
        assert!((estimated / seconds - 1.0).abs() < 0.08, "{estimated} s by the closed form, {seconds} s simulated");
    }
    let mesh = config.mesh(ranks).unwrap();
    let own = Forecast::of::<bf16>(&config, &mesh, &cluster, scratch.clone()).unwrap().step.unwrap().seconds;
    assert!(best.seconds <= own, "{} s, and {own} s as it is", best.seconds);
    let (_, step) = as_it_is::<bf16, _>(&config, &mesh, &room).unwrap();
    let told: f64 = step.shares.values().sum();
    assert!((step.seconds / own - 1.0).abs() < 0.01 && (told / own - 1.0).abs() < 0.01, "{own} s, {step:?}");
    // What was told of few micro-batches is so of all.
    let whole = Forecast::of::<bf16>(&best.config, &best.mesh, &cluster, scratch).unwrap().step.unwrap().seconds;
    assert!((best.seconds / whole - 1.0).abs() < 0.02, "{} s by a short step, {whole} s", best.seconds);
}

/// Of a small world all layouts can be simulated.
#[test]
fn the_closed_form_leaves_out_nothing_that_is_faster() {
    let set = ["model.num_hidden_layers=8", "train.global_batch_size=32", "parallel.ranks=8"].map(String::from);
    let config = Config::read(&configs("swallow-7b.toml"), &set).unwrap();
    let cluster = Cluster::load(&configs("clusters/abci-a100-40.toml")).unwrap();
    let (reached, scratch) = (cluster.reached.as_ref().unwrap(), CpuScratch::<bf16>::new(1));
    let room = Room { ranks: 8, cluster: &cluster, reached, limit: usize::MAX, scratch: &scratch };
    let outcome = search::<bf16, _>(&config, &room, &|| ()).unwrap();
    let all = candidates(&config, 8, &cluster);
    assert_eq!((all.len(), outcome.too_large, outcome.missed.is_none()), (outcome.possible, 0, true));
    assert!(all.len() > 4 * SETTLED, "{} layouts", all.len());
    let seconds = |config: &Config| {
        let mesh = config.mesh(8).unwrap();
        let seats = Seats::filled(config, &mesh, cluster.gpus_per_node);
        let paper = Paper::of(&cluster, &seats, 2).unwrap();
        run::seconds::<bf16>(config, &mesh, &paper, scratch.clone()).unwrap()
    };
    let least = all.iter().map(seconds).fold(f64::INFINITY, f64::min);
    let found = outcome.found[0].seconds;
    assert!(found <= 1.01 * least, "{found} s was found, {least} s could be");
}
