//! Steps whose shares theory tells, and the search for a layout. `tests/plan.rs` has what others have published.

use super::change::beside_it;
use super::estimate::estimate;
use super::search::{Found, Room, SETTLED, Why, as_it_is, candidates, memory, of_many, search};
use super::*;
use engine::config::{Cluster, Config};
use engine::cpu::CpuScratch;
use half::bf16;
use std::path::{Path, PathBuf};

fn configs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs").join(name)
}

fn step(name: &str, set: &[&str], cluster: &str) -> Step {
    let set: Vec<String> = set.iter().map(|set| set.to_string()).collect();
    let config = Config::read(&configs(name), &set).unwrap();
    let cluster = Cluster::load(&configs(cluster)).unwrap();
    let mesh = config.mesh(config.parallel.ranks.unwrap()).unwrap();
    let forecast = Forecast::of::<bf16>(&config, &mesh, &cluster, CpuScratch::<bf16>::new(1), &|| ()).unwrap();
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
    let left = |why| outcome.left_for(why).count();
    assert!(outcome.possible() > 500 && left(Why::TooLarge) > 0 && left(Why::Behind) > 0, "{outcome:?}");
    assert!(outcome.left_for(Why::TooLarge).all(|left| left.bytes > limit), "{outcome:?}");
    for Found { config, mesh, seconds, .. } in &outcome.found {
        let estimated = estimate(config, mesh, &cluster, reached).seconds;
        assert!((estimated / seconds - 1.0).abs() < 0.08, "{estimated} s by the closed form, {seconds} s simulated");
    }
    let mesh = config.mesh(ranks).unwrap();
    let own = Forecast::of::<bf16>(&config, &mesh, &cluster, scratch.clone(), &|| ()).unwrap().step.unwrap().seconds;
    assert!(best.seconds <= own, "{} s, and {own} s as it is", best.seconds);
    let (_, step) = as_it_is::<bf16, _>(&config, &mesh, &room).unwrap();
    let told: f64 = step.shares.values().sum();
    assert!((step.seconds / own - 1.0).abs() < 0.01 && (told / own - 1.0).abs() < 0.01, "{own} s, {step:?}");
    // What was told of few micro-batches is so of all.
    let whole =
        Forecast::of::<bf16>(&best.config, &best.mesh, &cluster, scratch, &|| ()).unwrap().step.unwrap().seconds;
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
    assert_eq!((all.len(), outcome.left_for(Why::TooLarge).count()), (outcome.possible(), 0));
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

/// Of all layouts that differ in one key, each simulated.
#[test]
fn the_best_change_of_one_key_is_found() {
    let set = ["model.num_hidden_layers=8", "train.global_batch_size=32", "parallel.ranks=8", "parallel.pipeline=4"];
    let config = Config::read(&configs("swallow-7b.toml"), &set.map(String::from)).unwrap();
    let cluster = Cluster::load(&configs("clusters/abci-a100-40.toml")).unwrap();
    let (reached, scratch) = (cluster.reached.as_ref().unwrap(), CpuScratch::<bf16>::new(1));
    let room = Room { ranks: 8, cluster: &cluster, reached, limit: usize::MAX, scratch: &scratch };
    let change = |config: &Config| best_change::<bf16, _>(config, &config.mesh(8).unwrap(), &room).unwrap();
    let Change { found, saves } = change(&config).unwrap();
    let seconds = |config: &Config| of_many::<bf16, _>(config, &config.mesh(8).unwrap(), &room).unwrap();
    let all = beside_it(&config, &room);
    let least = all.iter().map(seconds).fold(f64::INFINITY, f64::min);
    assert_eq!((config.changes_to(&found.config).len(), all.len() > 5), (1, true), "{} are beside it", all.len());
    assert!(found.seconds <= 1.001 * least, "{} s was found, {least} s could be", found.seconds);
    assert!((saves - (1.0 - found.seconds / seconds(&config))).abs() < 1e-9 && saves > 0.0, "saves {saves}");
    let mut by_hand = config.clone();
    by_hand.parallel.layers = Some(vec![5, 1, 1, 1]);
    assert_eq!(by_hand.changes_to(&change(&by_hand).unwrap().found.config), ["no parallel.layers"]);
    // Where the fastest do not fit, it is the fastest of those that do.
    let bytes = |other: &Config| memory::<bf16, _>(other, &other.mesh(8).unwrap(), &scratch).unwrap();
    let mut sizes: Vec<usize> = all.iter().map(bytes).collect();
    sizes.sort();
    for limit in [sizes[0], sizes[sizes.len() / 2]] {
        let room = Room { limit, ..room };
        let fitting = all.iter().filter(|other| bytes(other) <= limit);
        let least = fitting.map(seconds).fold(f64::INFINITY, f64::min);
        let found = best_change::<bf16, _>(&config, &config.mesh(8).unwrap(), &room).unwrap().unwrap().found;
        assert!(found.bytes <= limit && found.seconds <= 1.001 * least, "{found:?}: {least} s could be");
    }
    // Change by change to where none gains.
    let mut at = found.config;
    for _ in 0..10 {
        match change(&at) {
            Some(better) if better.saves > 0.0 => at = better.found.config,
            _ => return,
        }
    }
    panic!("each of ten changes gained something, at last {at:?}");
}

#[test]
fn a_bubble_of_uneven_stages_is_not_laid_on_few_micro_batches() {
    let told = |set: &[&str]| {
        let set: Vec<String> = set.iter().map(|set| set.to_string()).collect();
        let config = Config::read(&configs("swallow-7b.toml"), &set).unwrap();
        let (cluster, ranks) = (Cluster::load(&configs("clusters/abci-a100-40.toml")).unwrap(), 8);
        let mesh = config.mesh(ranks).unwrap();
        let scratch = CpuScratch::<bf16>::new(1);
        let step = Forecast::of::<bf16>(&config, &mesh, &cluster, scratch, &|| ()).unwrap().step.unwrap();
        bottleneck(&config, &mesh, &step)
    };
    let layout = ["parallel.tensor=1", "parallel.pipeline=8", "parallel.ranks=8", "train.micro_batch_size=1"];
    let many = told(&[&layout[..], &["train.global_batch_size=64"]].concat());
    assert!(many.contains("most of that is that stages are uneven, the busiest computing 1."), "{many}");
    let few = told(&[&layout[..], &["train.global_batch_size=8"]].concat());
    assert!(
        few.contains("; more chunks a stage (parallel.virtual_pipeline) or a larger train.global_batch_size, of more"),
        "{few}"
    );
    let odd = told(&[&layout[..], &["train.global_batch_size=9"]].concat());
    assert!(odd.contains(" %; a larger train.global_batch_size, of more"), "stages do not divide 9: {odd}");
}
