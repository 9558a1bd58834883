//! Every fault of a layout is detected and named.

use super::assemble::assemble;
use super::compare::{Reference, Run, outcome};
use super::{Layout, Outcome};
use crate::config::Config;
use crate::layout::mesh::GroupKind;
use crate::layout::rank_layout::RankLayout;
use crate::model::init;
use crate::model::param_specs::all_tensors;
use crate::model::rect::Rect;

const EIGHT: Layout = Layout { tensor: 4, pipeline: 2, ..Layout::ONE };

/// A tied model with two layers, four heads, two key/value heads and an odd vocabulary.
fn config(layout: Layout) -> Config {
    let text = "[model]\narchitecture = \"llama\"\nhidden_size = 16\nintermediate_size = 8\nnum_hidden_layers = 2\n\
         num_attention_heads = 4\nnum_key_value_heads = 2\nvocab_size = 31\nmax_position_embeddings = 32\n\
         rope_theta = 10000.0\nrms_norm_eps = 1e-5\ntie_word_embeddings = true\n[train]\nseq_length = 32\n\
         global_batch_size = 8\nsteps = 2\n[optimizer]\nlr = 1e-3\n[data]\ntrain = [ { prefix = \"x\" } ]\n\
         [checkpoint]\ndir = \"x\"\n";
    layout.config(&Config::from_resolved(text).unwrap()).unwrap()
}

/// The initial weights of `seed` as each rank holds them.
fn masters(config: &Config, ranks: usize, seed: u32) -> Vec<Vec<f32>> {
    let mesh = config.mesh(ranks).unwrap();
    let rank = |rank| {
        let rank_layout = RankLayout::new(config, mesh.clone(), rank);
        let members = rank_layout.members(GroupKind::Optimizer);
        let me = members.iter().position(|&member| member == rank).unwrap();
        let shard = |bucket: crate::layout::buckets::Bucket| {
            let shard = bucket.shard(me, members.len());
            let mut values = vec![0.0; shard.len()];
            for part in bucket.parts(&shard) {
                init::fill(&config.model, seed, part.tensor, &part.rect, &mut values[part.at..][..part.rect.len()]);
            }
            values
        };
        rank_layout.buckets(config).into_iter().flat_map(shard).collect()
    };
    (0..ranks).map(rank).collect()
}

fn runs(config: &Config, ranks: usize, seed: u32) -> Vec<Run> {
    let masters = masters(config, ranks, seed).into_iter();
    masters.map(|masters| Run { steps: vec![[3.0, 1.0], [2.0, 0.5]], masters }).collect()
}

/// The outcome of eight ranks that trained exactly as one rank did, after `change` was applied to them.
fn outcome_after(change: impl Fn(&mut [Run])) -> Outcome {
    let (one, eight) = (config(Layout::ONE), config(EIGHT));
    let whole = |seed| {
        let masters = masters(&one, 1, seed);
        assemble(&one, &one.mesh(1).unwrap(), &[&masters[0]]).values
    };
    let reference = Reference { steps: runs(&one, 1, 2).remove(0).steps, first: whole(1), last: whole(2) };
    let mut runs = runs(&eight, 8, 2);
    change(&mut runs);
    outcome(&eight, &eight.mesh(8).unwrap(), &runs, &reference)
}

#[test]
fn shards_make_the_whole_tensors() {
    for layout in [Layout { data: 2, distributed_optimizer: true, ..EIGHT }, EIGHT, Layout { data: 4, ..Layout::ONE }] {
        let config = config(layout);
        let masters = masters(&config, layout.ranks(), 5);
        let masters: Vec<&[f32]> = masters.iter().map(Vec::as_slice).collect();
        let held = assemble(&config, &config.mesh(layout.ranks()).unwrap(), &masters);
        assert_eq!(held.fault, None);
        for (spec, got) in all_tensors(&config.model).iter().zip(held.values) {
            let mut want = vec![0.0; spec.len()];
            init::fill(&config.model, 5, spec, &Rect::whole(spec.shape()), &mut want);
            assert_eq!(got, want, "{}", spec.name);
        }
    }
}

#[test]
fn agreement_has_no_faults() {
    assert_eq!(outcome_after(|_| ()), Outcome { loss: 0.0, grad_norm: 0.0, weights: 0.0, faults: Vec::new() });
}

#[test]
fn a_wrong_loss_is_named_by_its_step() {
    let all = |runs: &mut [Run]| runs.iter_mut().for_each(|run| run.steps[1][0] *= 1.0 + 2e-5);
    assert_eq!(outcome_after(all).faults, ["loss from step 2"]);
    let nan = |runs: &mut [Run]| runs.iter_mut().for_each(|run| run.steps[0][1] = f64::NAN);
    assert_eq!(
        (outcome_after(nan).faults, outcome_after(nan).grad_norm),
        (vec!["gradient norm from step 1".to_string()], f64::INFINITY)
    );
    let within = |runs: &mut [Run]| runs[0].steps[1][0] *= 1.0 + 1e-9;
    assert_eq!(outcome_after(within).faults, ["loss on rank 1 differs from rank 0's"]);
}

#[test]
fn copies_that_drifted_apart_are_named_with_their_ranks() {
    // Flips the last bit of the last element on the last rank of the first stage: the second norm of layer 0.
    let norm = |runs: &mut [Run]| {
        let last = runs[3].masters.last_mut().unwrap();
        *last = f32::from_bits(last.to_bits() ^ 1);
    };
    assert_eq!(
        outcome_after(norm).faults,
        ["model.layers.0.post_attention_layernorm.weight differs between ranks 0 and 3"]
    );
    let both = |runs: &mut [Run]| {
        norm(runs);
        // The element 16 before it is the last of the first norm.
        let at = runs[3].masters.len() - 17;
        runs[3].masters[at] += 1e-6;
    };
    let first = "model.layers.0.input_layernorm.weight differs between ranks 0 and 3 (and 1 more)";
    assert_eq!(outcome_after(both).faults, [first]);
    // The first element of the last stage belongs to the tied embedding, which the first stage holds too.
    let tied = |runs: &mut [Run]| runs[4].masters[0] += 1e-6;
    let faults = outcome_after(tied).faults;
    assert!(faults.iter().any(|fault| fault.ends_with("differs between ranks 0 and 4")), "{faults:?}");
}

#[test]
fn weights_that_went_elsewhere_are_counted() {
    let scaled = |runs: &mut [Run]| runs.iter_mut().flat_map(|run| &mut run.masters).for_each(|w| *w *= 1.01);
    let outcome = outcome_after(scaled);
    assert!(outcome.weights > 1e-3 && outcome.faults.len() == 1, "{outcome:?}");
    assert!(
        outcome.faults[0].starts_with("weights of ") && outcome.faults[0].contains(", worst model."),
        "{outcome:?}"
    );
}
