//! The layers of each pipeline chunk, balanced by cost.

use crate::config::Model;
use crate::model::flops;
use crate::model::param_specs::{Unit, units};

/// The cost of each part of a model, in any unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Costs {
    pub embedding: f64,
    pub layer: f64,
    pub head: f64,
}

impl Costs {
    /// FLOPs per token at sequence length `seq`. An embedding lookup has none. `layer` is the mean of the model's
    /// layers: [`balanced`] counts layers and takes them as equal.
    pub fn of(model: &Model, seq: usize) -> Self {
        Costs { embedding: 0.0, layer: flops::layer_flops(model, seq), head: flops::head_flops(model) }
    }

    /// The cost of chunk number `chunk` of `chunks` with `layers` layers.
    fn chunk(&self, chunk: usize, chunks: usize, layers: usize) -> f64 {
        let embedding = if chunk == 0 { self.embedding } else { 0.0 };
        let head = if chunk + 1 == chunks { self.head } else { 0.0 };
        layers as f64 * self.layer + embedding + head
    }
}

/// The number of layers of each chunk in pipeline order, at least one each, such that the most expensive chunk is as
/// cheap as possible, then the second, and so on. Among equals a later chunk has more layers, because it holds fewer
/// micro-batches in flight.
pub fn balanced(layers: usize, chunks: usize, costs: &Costs) -> Vec<usize> {
    assert!(chunks > 0 && layers >= chunks, "{layers} layers over {chunks} chunks, each at least one");
    let mut counts = vec![1; chunks];
    // Greedy: each layer goes where it makes the cheapest chunk. Since adding a layer never lowers a cost, this is
    // optimal.
    for _ in chunks..layers {
        let cost = |chunk: usize| costs.chunk(chunk, chunks, counts[chunk] + 1);
        let best = (0..chunks).rev().min_by(|&a, &b| cost(a).total_cmp(&cost(b))).expect("a chunk");
        counts[best] += 1;
    }
    check(&counts, layers);
    counts
}

/// The units of each chunk in pipeline order: the embedding in the first, the head in the last.
pub fn chunks(model: &Model, counts: &[usize]) -> Vec<Vec<Unit>> {
    check(counts, model.num_hidden_layers);
    let mut units = units(model).into_iter();
    let last = counts.len() - 1;
    let ends = |chunk: usize| usize::from(chunk == 0) + usize::from(chunk == last);
    let chunk = |(chunk, &layers): (usize, &usize)| units.by_ref().take(layers + ends(chunk)).collect();
    counts.iter().enumerate().map(chunk).collect()
}

/// One line for the user: the layers of each stage; those of several chunks a stage in parentheses.
pub fn describe(counts: &[usize], stages: usize, costs: &Costs) -> String {
    assert!(counts.len().is_multiple_of(stages), "{} chunks over {stages} stages", counts.len());
    let sum = |words: Vec<String>| words.join(" + ");
    let stage = |stage: usize| {
        let chunks: Vec<_> = counts.iter().skip(stage).step_by(stages).map(usize::to_string).collect();
        if chunks.len() == 1 { sum(chunks) } else { format!("({})", sum(chunks)) }
    };
    let layers: usize = counts.iter().sum();
    let (plural, split) = (if stages == 1 { "" } else { "s" }, sum((0..stages).map(stage).collect()));
    let head = costs.head / costs.layer;
    format!(
        "{layers} layers over {stages} stage{plural} as {split} (the output layer costs as much as {head:.1} layers)"
    )
}

fn check(counts: &[usize], layers: usize) {
    let sum: usize = counts.iter().sum();
    assert_eq!(sum, layers, "chunks of {counts:?} layers are {sum}, the model has {layers}");
    assert!(!counts.is_empty() && !counts.contains(&0), "a chunk without a layer in {counts:?}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn model(layers: usize) -> Model {
        Model {
            hidden_size: 4096,
            intermediate_size: 11008,
            num_hidden_layers: layers,
            num_attention_heads: 32,
            num_key_value_heads: 32,
            head_dim: 128,
            vocab_size: 43176,
            ..Model::tiny()
        }
    }

    /// Every way to distribute `layers`.
    fn ways(layers: usize, chunks: usize) -> Vec<Vec<usize>> {
        if chunks == 1 {
            return vec![vec![layers]];
        }
        let first = |n: usize| ways(layers - n, chunks - 1).into_iter().map(move |rest| [vec![n], rest].concat());
        (1..=layers - (chunks - 1)).flat_map(first).collect()
    }

    /// Costs of all chunks, the most expensive first, then the layers from the first chunk on: less is better.
    fn rank(counts: &[usize], costs: &Costs) -> (Vec<u64>, Vec<usize>) {
        let mut all: Vec<u64> = counts.iter().map(|&layers| layers as u64 * costs.layer as u64).collect();
        all[0] += costs.embedding as u64;
        all[counts.len() - 1] += costs.head as u64;
        all.sort_by_key(|&cost| std::cmp::Reverse(cost));
        (all, counts.to_vec())
    }

    proptest! {
        #[test]
        fn no_other_way_is_better(
            chunks in 1usize..6,
            more in 0usize..9,
            embedding in 0u32..12,
            layer in 1u32..8,
            head in 0u32..60,
        ) {
            let costs = Costs { embedding: embedding.into(), layer: layer.into(), head: head.into() };
            let ours = balanced(chunks + more, chunks, &costs);
            let best = ways(chunks + more, chunks).into_iter().min_by_key(|way| rank(way, &costs)).unwrap();
            prop_assert_eq!(ours, best);
        }

        #[test]
        fn chunks_are_the_model_in_order(counts in proptest::collection::vec(1usize..6, 1..9)) {
            let model = model(counts.iter().sum());
            let chunks = chunks(&model, &counts);
            prop_assert_eq!(chunks.concat(), units(&model));
            prop_assert_eq!(chunks[0][0], Unit::Embedding);
            prop_assert_eq!(chunks[counts.len() - 1].last(), Some(&Unit::Head));
            let layers = |chunk: &Vec<Unit>| chunk.iter().filter(|unit| matches!(unit, Unit::Layer(_))).count();
            prop_assert_eq!(chunks.iter().map(layers).collect::<Vec<_>>(), counts);
        }
    }

    #[test]
    fn a_head_of_two_layers_takes_the_place_of_two() {
        let costs = Costs { embedding: 0.0, layer: 1.0, head: 1.9 };
        let counts = balanced(30, 4, &costs);
        let text = "30 layers over 4 stages as 8 + 8 + 8 + 6 (the output layer costs as much as 1.9 layers)";
        assert_eq!(describe(&counts, 4, &costs), text);
        // If the head costs nothing, the remainder goes to the later stages.
        assert_eq!(balanced(30, 4, &Costs { head: 0.0, ..costs }), [7, 7, 8, 8]);
        // If the head costs more than all layers, its chunk has only the one layer that it must have.
        assert_eq!(balanced(10, 3, &Costs { head: 20.0, ..costs }), [4, 5, 1]);
    }

    #[test]
    fn the_chunks_of_a_stage_are_in_parentheses() {
        let costs = Costs::of(&model(32), 4096);
        let counts = balanced(32, 8, &costs);
        let text = "32 layers over 4 stages as (4 + 4) + (4 + 4) + (4 + 4) + (4 + 4) \
            (the output layer costs as much as 0.8 layers)";
        assert_eq!(describe(&counts, 4, &costs), text);
    }
}
