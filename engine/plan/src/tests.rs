//! Steps whose shares follow from theory, and the search for a layout. `tests/plan.rs` compares with published numbers.

use super::advice::one_key_away;
use super::estimate::estimate;
use super::search::{Candidate, Reason, SIMULATED, SearchSpace, candidates, search};
use super::*;
use engine::config::{Cluster, Config};
use engine::cpu::CpuScratch;
use engine::time::TimeCategory;
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
    let forecast = Forecast::of::<bf16>(&config, &mesh, &cluster, &CpuScratch::<bf16>::new(1), &|| ()).unwrap();
    let step = forecast.step.unwrap();
    let sum: f64 = step.shares.values().sum();
    assert!((sum - step.seconds).abs() < 1e-6 * step.seconds, "the shares of {} s add up to {sum}", step.seconds);
    step
}

/// NCCL's thread blocks slow a step down where it computes beside them, and where they are few; not its computation.
#[test]
fn the_ideal_step_does_not_depend_on_nccl() {
    let with = |ctas: &str| {
        let set = ["model.num_hidden_layers=4", "train.global_batch_size=64", &format!("nccl.tensor_ctas={ctas}")];
        step("swallow-7b.toml", &set, "clusters/abci-a100-40.toml")
    };
    let [one, some, many] = ["1", "16", "32"].map(with);
    assert!(some.seconds < one.seconds && some.seconds < many.seconds, "{} {}", one.seconds, many.seconds);
    for other in [&one, &many] {
        assert!((other.ideal() / some.ideal() - 1.0).abs() < 1e-9, "{} s and {} s", other.ideal(), some.ideal());
    }
}

/// With equal stages and negligible messages, waits are (p - 1) / m of the work.
#[test]
fn the_bubble_is_that_of_theory() {
    let set = ["train.micro_batch_size=1", "parallel.pipeline=4", "model.num_hidden_layers=16", "model.vocab_size=64"];
    let set = [&set[..], &["parallel.tensor=1", "parallel.ranks=4", "train.global_batch_size=32"]].concat();
    let step = step("swallow-7b.toml", &set, "clusters/abci-a100-40.toml");
    let bubble = step.shares[&TimeCategory::Bubble];
    let work = step.seconds - bubble - step.shares[&TimeCategory::Messages];
    assert!((bubble / work / (3.0 / 32.0) - 1.0).abs() < 0.1, "a bubble of {bubble} s beside {work} s");
}

/// The ideal step of each of four stages is a quarter of one rank's, whatever the bubble and the messages between them.
#[test]
fn the_ideal_step_has_neither_bubble_nor_communication() {
    let set = ["train.micro_batch_size=1", "model.num_hidden_layers=16", "train.global_batch_size=8"];
    let ideal = |layout: [&str; 3]| {
        let step = step("swallow-7b.toml", &[&set[..], &layout].concat(), "clusters/abci-a100-40.toml");
        assert!(step.ideal() < step.seconds, "{step:?}");
        (step.ideal(), step.shares[&TimeCategory::Bubble])
    };
    let (one, _) = ideal(["parallel.pipeline=1", "parallel.tensor=1", "parallel.ranks=1"]);
    let (four, bubble) = ideal(["parallel.pipeline=4", "parallel.tensor=1", "parallel.ranks=4"]);
    assert!((one / four / 4.0 - 1.0).abs() < 0.02, "{one} s on one rank, {four} s on each of four stages");
    assert!(bubble > 0.2 * four, "a bubble of {bubble} s");
}

#[test]
fn a_search_finds_a_layout_at_least_as_fast() {
    let config = Config::read(&configs("swallow-13b.toml"), &[]).unwrap();
    let cluster = Cluster::load(&configs("clusters/abci-a100-40.toml")).unwrap();
    let (ranks, scratch) = (config.parallel.ranks.unwrap(), CpuScratch::<bf16>::new(1));
    let (achieved, limit) = (cluster.achieved.as_ref().unwrap(), 38 << 30);
    let space = SearchSpace { ranks, cluster: &cluster, achieved, limit, scratch: &scratch };
    let outcome = search::<bf16, _>(&config, &space, &|| ()).unwrap();
    let best = &outcome.simulated[0];
    assert!(outcome.simulated.iter().all(|one| one.bytes <= limit && one.seconds >= best.seconds));
    let rejected = |reason| outcome.rejected_for(reason).count();
    assert!(outcome.valid() > 500 && rejected(Reason::TooLarge) > 0 && rejected(Reason::Slower) > 0, "{outcome:?}");
    assert!(outcome.rejected_for(Reason::TooLarge).all(|one| one.bytes > limit), "{outcome:?}");
    for Candidate { config, mesh, seconds, .. } in &outcome.simulated {
        let estimated = estimate(config, mesh, &cluster, achieved).seconds;
        assert!((estimated / seconds - 1.0).abs() < 0.08, "{estimated} s by the closed form, {seconds} s simulated");
    }
    let mesh = config.mesh(ranks).unwrap();
    let own = Forecast::of::<bf16>(&config, &mesh, &cluster, &scratch, &|| ()).unwrap().step.unwrap().seconds;
    assert!(best.seconds <= own, "{} s, and {own} s as it is", best.seconds);
    let (_, step) = space.as_it_is::<bf16>(&config, &mesh).unwrap();
    let sum: f64 = step.shares.values().sum();
    assert!((step.seconds / own - 1.0).abs() < 0.01 && (sum / own - 1.0).abs() < 0.01, "{own} s, {step:?}");
    // The extrapolation of a short step is right.
    let whole = Forecast::of::<bf16>(&best.config, &best.mesh, &cluster, &scratch, &|| ()).unwrap();
    let whole = whole.step.unwrap().seconds;
    assert!((best.seconds / whole - 1.0).abs() < 0.02, "{} s by a short step, {whole} s", best.seconds);
}

/// The closed form knows the layers of other families: windows, soft-caps, MLPs without a gate, norms of heads,
/// experts.
#[test]
fn the_closed_form_is_near_for_every_family() {
    let scratch = CpuScratch::<bf16>::new(1);
    // With experts that several ranks share, too.
    let mixtral = ["train.micro_batch_size=1", "parallel.expert=8", "parallel.tensor=1", "parallel.virtual_pipeline=1"];
    let two_stages = ["parallel.pipeline=2", "parallel.virtual_pipeline=1", "parallel.layers=[26, 22]"];
    let qwen = [&["parallel.expert=8"][..], &two_stages].concat();
    for (name, on, set) in [
        ("swallow-ms-7b", "abci-a100-40", &[][..]),
        ("qwen3-8b", "abci-a100-40", &[]),
        ("gemma-2-9b", "abci-a100-40", &[]),
        ("llm-jp-13b-v1", "abci-a100-40", &[]),
        ("swallow-mx-8x7b", "dgx-a100-80", &mixtral),
        ("qwen3-30b-a3b", "dgx-a100-80", &qwen),
        ("qwen3-30b-a3b", "dgx-a100-80", &two_stages),
    ] {
        let cluster = Cluster::load(&configs(&format!("clusters/{on}.toml"))).unwrap();
        let achieved = cluster.achieved.as_ref().unwrap();
        let set: Vec<String> = set.iter().map(|key| key.to_string()).collect();
        let config = Config::read(&configs(&format!("{name}.toml")), &set).unwrap();
        let ranks = config.parallel.ranks.unwrap();
        let mesh = config.mesh(ranks).unwrap();
        let space = SearchSpace { ranks, cluster: &cluster, achieved, limit: usize::MAX, scratch: &scratch };
        let (one, _) = space.as_it_is::<bf16>(&config, &mesh).unwrap();
        let near = estimate(&config, &mesh, &cluster, achieved);
        println!(
            "{name}: {} s, simulated {} s; {} bytes, planned {}",
            near.seconds, one.seconds, near.bytes, one.bytes
        );
        assert!(
            (near.seconds / one.seconds - 1.0).abs() < 0.1,
            "{name}: {} s, simulated {} s",
            near.seconds,
            one.seconds
        );
        // It leaves out the logits and buffers, so that no layout that fits is left out.
        let part = near.bytes / one.bytes as f64;
        assert!((0.75..1.0).contains(&part), "{name}: {} bytes, planned {}", near.bytes, one.bytes);
    }
}

/// On few ranks all layouts can be simulated.
#[test]
fn the_closed_form_leaves_out_nothing_that_is_faster() {
    let set = ["model.num_hidden_layers=8", "train.global_batch_size=32", "parallel.ranks=8"].map(String::from);
    let config = Config::read(&configs("swallow-7b.toml"), &set).unwrap();
    let cluster = Cluster::load(&configs("clusters/abci-a100-40.toml")).unwrap();
    let (achieved, scratch) = (cluster.achieved.as_ref().unwrap(), CpuScratch::<bf16>::new(1));
    let space = SearchSpace { ranks: 8, cluster: &cluster, achieved, limit: usize::MAX, scratch: &scratch };
    let outcome = search::<bf16, _>(&config, &space, &|| ()).unwrap();
    let all = candidates(&config, 8, &cluster);
    assert_eq!((all.len(), outcome.rejected_for(Reason::TooLarge).count()), (outcome.valid(), 0));
    assert!(all.len() > 4 * SIMULATED, "{} layouts", all.len());
    let seconds = |config: &Config| {
        let mesh = config.mesh(8).unwrap();
        let map = NodeMap::filled(config, &mesh, cluster.gpus_per_node);
        let costs = AnalyticCosts::of(&cluster, config, &map, 2).unwrap();
        run::seconds::<bf16>(config, &mesh, &costs, &scratch).unwrap()
    };
    let least = all.iter().map(seconds).fold(f64::INFINITY, f64::min);
    let found = outcome.simulated[0].seconds;
    assert!(found <= 1.01 * least, "{found} s was found, {least} s could be");
}

/// Among all configurations that differ in one key, each simulated.
#[test]
fn the_best_change_of_one_key_is_found() {
    let set = ["model.num_hidden_layers=8", "train.global_batch_size=32", "parallel.ranks=8", "parallel.pipeline=4"];
    let config = Config::read(&configs("swallow-7b.toml"), &set.map(String::from)).unwrap();
    let cluster = Cluster::load(&configs("clusters/abci-a100-40.toml")).unwrap();
    let (achieved, scratch) = (cluster.achieved.as_ref().unwrap(), CpuScratch::<bf16>::new(1));
    let space = SearchSpace { ranks: 8, cluster: &cluster, achieved, limit: usize::MAX, scratch: &scratch };
    let change = |config: &Config| best_change::<bf16, _>(config, &config.mesh(8).unwrap(), &space).unwrap();
    let Change { to, saves } = change(&config).unwrap();
    let seconds = |config: &Config| space.seconds::<bf16>(config, &config.mesh(8).unwrap()).unwrap();
    let all = one_key_away(&config, &space);
    let least = all.iter().map(seconds).fold(f64::INFINITY, f64::min);
    assert_eq!((config.changes_to(&to.config).len(), all.len() > 5), (1, true), "{} are one key away", all.len());
    assert!(to.seconds <= 1.001 * least, "{} s was found, {least} s could be", to.seconds);
    assert!((saves - (1.0 - to.seconds / seconds(&config))).abs() < 1e-9 && saves > 0.0, "saves {saves}");
    let mut by_hand = config.clone();
    by_hand.parallel.layers = Some(vec![5, 1, 1, 1]);
    assert_eq!(by_hand.changes_to(&change(&by_hand).unwrap().to.config), ["no parallel.layers"]);
    // If the fastest do not fit, the fastest of those that do is found.
    let bytes = |other: &Config| space.bytes::<bf16>(other, &other.mesh(8).unwrap()).unwrap();
    let mut sizes: Vec<usize> = all.iter().map(bytes).collect();
    sizes.sort();
    for limit in [sizes[0], sizes[sizes.len() / 2]] {
        let tight = SearchSpace { limit, ..space };
        let fitting = all.iter().filter(|other| bytes(other) <= limit);
        let least = fitting.map(seconds).fold(f64::INFINITY, f64::min);
        let to = best_change::<bf16, _>(&config, &config.mesh(8).unwrap(), &tight).unwrap().unwrap().to;
        assert!(to.bytes <= limit && to.seconds <= 1.001 * least, "{to:?}: {least} s could be");
    }
    // One change after another ends where none gains.
    let mut at = to.config;
    for _ in 0..10 {
        match change(&at) {
            Some(better) if better.saves > 0.0 => at = better.to.config,
            _ => return,
        }
    }
    panic!("each of ten changes gained something, at last {at:?}");
}

#[test]
fn a_bubble_of_uneven_stages_is_not_blamed_on_few_micro_batches() {
    let advice = |set: &[&str]| {
        let set: Vec<String> = set.iter().map(|set| set.to_string()).collect();
        let config = Config::read(&configs("swallow-7b.toml"), &set).unwrap();
        let (cluster, ranks) = (Cluster::load(&configs("clusters/abci-a100-40.toml")).unwrap(), 8);
        let mesh = config.mesh(ranks).unwrap();
        let scratch = CpuScratch::<bf16>::new(1);
        let step = Forecast::of::<bf16>(&config, &mesh, &cluster, &scratch, &|| ()).unwrap().step.unwrap();
        bottleneck(&config, &mesh, &step)
    };
    let layout = ["parallel.tensor=1", "parallel.pipeline=8", "parallel.ranks=8", "train.micro_batch_size=1"];
    let many = advice(&[&layout[..], &["train.global_batch_size=64"]].concat());
    assert!(many.contains("most of it comes from uneven stages, the busiest computing 1."), "{many}");
    let few = advice(&[&layout[..], &["train.global_batch_size=8"]].concat());
    let wanted = "; more chunks a stage (parallel.virtual_pipeline) or a larger train.global_batch_size, with more";
    assert!(few.contains(wanted), "{few}");
    let odd = advice(&[&layout[..], &["train.global_batch_size=9"]].concat());
    assert!(odd.contains(" %; a larger train.global_batch_size, with more"), "stages do not divide 9: {odd}");
}
