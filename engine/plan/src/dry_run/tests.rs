//! All ranks of many layouts: the order of their collectives, the closed form of their traffic, and the classes of
//! equal ranks.

mod arena;
mod deadlocks;
mod order;

use super::*;
use crate::traffic::tests::closed_form::{Collective, volumes};
use engine::backend::Op;
use engine::config::ranks_used;
use engine::cpu::CpuScratch;
use engine::dry::{LogEntry, Operation};
use engine::layout::mesh::GroupKind;
use half::bf16;
use order::{Disorder, check};
use std::collections::BTreeMap;

/// Eight layers, two kv heads, an odd vocabulary.
fn config(train: &str, parallel: &str, tied: bool) -> Config {
    config_of("architecture = \"llama\"", train, parallel, tied)
}

/// The same with these keys of `[model]`.
fn config_of(model: &str, train: &str, parallel: &str, tied: bool) -> Config {
    let text = format!(
        "[model]\n{model}\nhidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 8\n\
         num_attention_heads = 4\nnum_key_value_heads = 2\nvocab_size = 51\nmax_position_embeddings = 32\n\
         rope_theta = 10000.0\nrms_norm_eps = 1e-5\ntie_word_embeddings = {tied}\n[train]\nseq_length = 16\n\
         steps = 9\n{train}\n[parallel]\n{parallel}\n[optimizer]\nlr = 1e-3\n\
         [data]\ntrain = [ {{ prefix = \"x\" }} ]\nsplit = \"9,1,0\"\n[checkpoint]\ndir = \"x\"\n"
    );
    Config::from_resolved(&text).unwrap()
}

fn one(config: &Config, ranks: usize, rank: usize, keep: Keep, steps: u64) -> DryRun {
    let mesh = config.mesh(ranks).unwrap();
    run_rank::<bf16>(config, &mesh, rank, CpuScratch::<bf16>::new(1), keep, steps).unwrap()
}

/// Two steps of every rank.
fn logs(config: &Config, ranks: usize) -> Vec<Log> {
    (0..ranks).map(|rank| one(config, ranks, rank, Keep::Calls, 2).log).collect()
}

/// A config, the number of its ranks, and its name.
fn layouts() -> Vec<(Config, usize, String)> {
    let mut all = Vec::new();
    let pipelines = [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2)];
    for (tp, (pp, vpp)) in [1, 2, 4].into_iter().flat_map(|tp| pipelines.map(|pipeline| (tp, pipeline))) {
        for dp in [1, 2] {
            let base = format!("tensor = {tp}\npipeline = {pp}\nvirtual_pipeline = {vpp}\n");
            for (train, parallel, tied) in [
                ("global_batch_size = 16", "", false),
                ("global_batch_size = 8", "distributed_optimizer = false", false),
                ("global_batch_size = 8", "sequence_parallel = false", true),
                ("global_batch_size = 16\nrecompute = \"full\"\neval_interval = 1", "", true),
            ] {
                let name = format!("{base}{parallel} dp {dp}, tied {tied}, {train}").replace('\n', " ");
                all.push((config(train, &format!("{base}{parallel}"), tied), tp * pp * dp, name));
            }
        }
    }
    all.extend(shared_experts());
    all
}

/// Layouts of a model with eight experts, two of them for each token, whose first layer has none.
fn shared_experts() -> Vec<(Config, usize, String)> {
    let model = "architecture = \"qwen3_moe\"\nmoe_intermediate_size = 16\nnum_local_experts = 8\n\
                 num_experts_per_tok = 2\nmlp_only_layers = [0]\nrouter_aux_loss_coef = 0.1\n";
    let layouts = [(1, 1, 1, 2, 1), (1, 1, 1, 4, 2), (2, 1, 1, 2, 2), (1, 2, 2, 2, 1), (2, 2, 1, 4, 1)];
    let with = |(tp, pp, vpp, ep, more): (usize, usize, usize, usize, usize)| {
        let parallel = format!("tensor = {tp}\npipeline = {pp}\nvirtual_pipeline = {vpp}\nexpert = {ep}\n");
        let recompute = if more > 1 { "recompute = \"full\"" } else { "" };
        let optimizer = if vpp > 1 { "distributed_optimizer = false" } else { "" };
        let train = format!("global_batch_size = 16\n{recompute}");
        let config = config_of(model, &train, &format!("{parallel}{optimizer}"), false);
        (config, tp * pp * ep * more, format!("experts: {parallel}").replace('\n', " "))
    };
    layouts.into_iter().map(with).collect()
}

#[test]
fn no_layout_can_deadlock() {
    for (config, ranks, name) in layouts() {
        let logs = logs(&config, ranks);
        assert!(ranks == 1 || logs.iter().all(|log| !log.events.is_empty()), "{name}");
        check(&logs).unwrap_or_else(|disorder| panic!("{name}: {disorder}"));
    }
}

/// The models of `configs/`, each on the ranks that it is meant for. Twice as many micro-batches as stages: a pipeline
/// fills, runs and empties.
#[test]
fn no_configuration_of_the_project_can_deadlock_exhaustive() {
    let configs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let paths = std::fs::read_dir(configs).unwrap().map(|entry| entry.unwrap().path());
    let mut most = 0;
    for path in paths.filter(|path| path.extension().is_some_and(|e| e == "toml")) {
        let config = Config::read(&path, &[]).unwrap();
        let p = &config.parallel;
        let ranks = p.ranks.unwrap_or(ranks_used(p));
        let least = config.train.micro_batch_size * config.mesh(ranks).unwrap().replicas();
        let short = with_batch(&config, config.train.global_batch_size.min(2 * p.pipeline * least));
        let log = |rank| one(&short, ranks, rank, Keep::Calls, 1).log;
        let logs: Vec<Log> = (0..ranks).into_par_iter().map(log).collect();
        check(&logs).unwrap_or_else(|disorder| panic!("{}: {disorder}", path.display()));
        most = most.max(ranks);
    }
    assert_eq!(most, 512, "the largest of them is not there");
}

/// Bytes of the calls of the second step, by kind and operation.
fn moved(config: &Config, ranks: usize, rank: usize) -> BTreeMap<(GroupKind, Collective), u64> {
    let of = |steps| {
        let mut moved = BTreeMap::<(GroupKind, Collective), u64>::new();
        for event in one(config, ranks, rank, Keep::Calls, steps).log.events {
            let LogEntry::Start(call) = event else { continue };
            let op = match call.what {
                Operation::AllReduce => Collective::AllReduce,
                Operation::AllGather => Collective::AllGather,
                Operation::ReduceScatter => Collective::ReduceScatter,
                Operation::Send(_) => Collective::Send,
                Operation::Receive(_) => continue,
                Operation::AllToAll => Collective::AllToAll,
            };
            if call.kind != GroupKind::World {
                *moved.entry((call.kind, op)).or_default() += call.bytes as u64;
            }
        }
        moved
    };
    let first = of(1);
    of(2).into_iter().map(|(key, bytes)| (key, bytes - first[&key])).collect()
}

#[test]
fn a_step_moves_what_the_closed_form_says() {
    for (mut config, ranks, name) in layouts() {
        config.train.eval_interval = 0;
        for rank in [0, ranks / 2, ranks - 1] {
            let rank_layout = RankLayout::new(&config, config.mesh(ranks).unwrap(), rank);
            let closed = volumes(&config, &rank_layout, size_of::<bf16>() as u64);
            let closed = BTreeMap::from_iter(closed.iter().map(|volume| ((volume.kind, volume.op), volume.bytes)));
            assert_eq!(moved(&config, ranks, rank), closed, "rank {rank} of {name}");
        }
    }
}

#[test]
fn ranks_of_a_class_are_equal_and_classes_are_all_ranks() {
    for (config, ranks, name) in layouts() {
        let classes = classes(&config.mesh(ranks).unwrap());
        let mut all = classes.concat();
        all.sort_unstable();
        assert_eq!(all, Vec::from_iter(0..ranks), "{name}");
        for class in classes {
            let first = one(&config, ranks, class[0], Keep::Totals, 1);
            for &rank in &class[1..] {
                let other = one(&config, ranks, rank, Keep::Totals, 1);
                let of = |mut r: DryRun| {
                    // The part of a shard that this rank counts in the norm may be one range or several.
                    r.step.ops.remove(&Op::SumSquares);
                    (r.usage, r.held, r.step)
                };
                assert_eq!(of(first.clone()), of(other), "ranks {} and {rank} of {name}", class[0]);
            }
        }
    }
}

#[test]
fn a_short_step_needs_as_much_as_a_long_one() {
    for (pipeline, recompute) in [(1, "none"), (2, "selective"), (4, "full")] {
        for vpp in [1, 2].into_iter().take(pipeline) {
            let train = format!("global_batch_size = 96\nrecompute = \"{recompute}\"");
            let layout = format!("tensor = 2\npipeline = {pipeline}\nvirtual_pipeline = {vpp}");
            let (long, ranks) = (config(&train, &layout, false), 4 * pipeline);
            let short = shortened(&long, &long.mesh(ranks).unwrap());
            assert!(short.train.global_batch_size < 96);
            for rank in 0..ranks {
                let usage = |config| one(config, ranks, rank, Keep::Totals, 1).usage;
                assert_eq!(usage(&long), usage(&short), "rank {rank} of {ranks}, {layout}");
            }
        }
    }
}

#[test]
fn the_counts_of_a_step_follow_from_the_two_shortest() {
    for (mut config, ranks, name) in layouts() {
        config.train.global_batch_size = 96;
        config.train.eval_interval = 1;
        let mesh = config.mesh(ranks).unwrap();
        assert!(shortened(&config, &mesh) != config, "{name}");
        for class in classes(&mesh) {
            let whole = one(&config, ranks, class[0], Keep::Totals, 1);
            let short = dry_run_step::<bf16>(&config, &mesh, class[0], CpuScratch::<bf16>::new(1)).unwrap();
            let of = |r: &DryRun| (r.usage, r.held, r.step.clone());
            assert_eq!(of(&short), of(&whole), "rank {} of {name}", class[0]);
            assert!(short.log.totals.ops[&Op::Adamw] == whole.log.totals.ops[&Op::Adamw], "a step as well");
            assert!(short.log.totals.ops[&Op::Attention] < whole.log.totals.ops[&Op::Attention], "and not a long one");
        }
    }
}

/// Four tensor-parallel ranks, two of them a kv head.
fn four() -> Vec<Log> {
    logs(&config("global_batch_size = 4", "tensor = 4", false), 4)
}

/// The indices of the first all-reduce over the ranks of a kv head, and of the next over all tensor-parallel ranks.
fn two_calls(log: &Log) -> [usize; 2] {
    let of = |kind, from: usize| {
        let is = |event: &LogEntry| match event {
            LogEntry::Start(call) => call.kind == kind && call.what == Operation::AllReduce,
            _ => false,
        };
        from + log.events[from..].iter().position(is).unwrap()
    };
    let first = of(GroupKind::KvHeads, 0);
    [first, of(GroupKind::Tensor, first)]
}

#[test]
fn two_calls_swapped_on_one_rank_are_a_cycle() {
    for rank in 0..4 {
        let mut logs = four();
        let [a, b] = two_calls(&logs[rank]);
        logs[rank].events.swap(a, b);
        let Err(Disorder::Cycle(steps)) = check(&logs) else { panic!("rank {rank}: {:?}", check(&logs)) };
        assert!(steps.iter().any(|step| step.starts_with(&format!("rank {rank} "))), "{steps:?}");
    }
}

#[test]
fn a_rank_that_skips_a_call_is_named() {
    for rank in 0..4 {
        let mut logs = four();
        let [at, _] = two_calls(&logs[rank]);
        let number = logs[rank].events[..at].iter().filter(|event| matches!(event, LogEntry::Start(_))).count();
        let events = std::mem::take(&mut logs[rank].events);
        let without = events.into_iter().enumerate().filter_map(|(i, event)| match event {
            LogEntry::Start(_) if i == at => None,
            LogEntry::Wait(n) if n == number => None,
            LogEntry::Wait(n) if n > number => Some(LogEntry::Wait(n - 1)),
            event => Some(event),
        });
        logs[rank].events = without.collect();
        let Err(Disorder::Missing(what)) = check(&logs) else { panic!("rank {rank}: {:?}", check(&logs)) };
        assert!(what.starts_with(&format!("rank {rank} never makes call 1 of the KvHeads group")), "{what}");
    }
}

#[test]
fn calls_that_differ_between_ranks_are_named() {
    let mut logs = four();
    let [_, at] = two_calls(&logs[2]);
    let LogEntry::Start(call) = &mut logs[2].events[at] else { unreachable!("a call") };
    call.bytes += 4;
    let Err(Disorder::Unlike(what)) = check(&logs) else { panic!("{:?}", check(&logs)) };
    assert!(what.contains("on rank 2"), "{what}");
}
