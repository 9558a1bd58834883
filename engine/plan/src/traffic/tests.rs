//! The closed form against sums written out by hand, and what each mapping sends over the network.

use super::*;
use engine::layout::placement::{dealt, reorder_ranks};
use proptest::prelude::*;

/// Eight layers, hidden 64, vocabulary 512, two kv heads of dimension 16, 8 samples of 32 tokens a step.
fn config(parallel: &str, tied: bool) -> Config {
    let text = format!(
        "[model]\narchitecture = \"llama\"\nhidden_size = 64\nintermediate_size = 128\nnum_hidden_layers = 8\n\
         num_attention_heads = 4\nnum_key_value_heads = 2\nvocab_size = 512\nmax_position_embeddings = 32\n\
         rope_theta = 10000.0\nrms_norm_eps = 1e-5\ntie_word_embeddings = {tied}\n[train]\nseq_length = 32\n\
         global_batch_size = 8\nsteps = 1\n[parallel]\n{parallel}\n[optimizer]\nlr = 1e-3\n\
         [data]\ntrain = [ {{ prefix = \"x\" }} ]\n[checkpoint]\ndir = \"x\"\n"
    );
    Config::from_resolved(&text).unwrap()
}

/// What a rank exchanges in bf16, as (op, kind, bytes).
fn volumes(config: &Config, ranks: usize, rank: usize) -> Vec<(Op, GroupKind, u64)> {
    let rank_layout = RankLayout::new(config, config.mesh(ranks).unwrap(), rank);
    super::volumes(config, &rank_layout, 2).iter().map(|volume| (volume.op, volume.kind, volume.bytes)).collect()
}

#[test]
fn one_rank_sends_nothing() {
    assert_eq!(volumes(&config("", true), 1, 0), []);
}

#[test]
fn data_parallel_ranks_scatter_gradients_and_gather_weights() {
    let n = engine::model::flops::parameters(&config("", false).model);
    let expected = [(Op::ReduceScatter, GroupKind::Data, 4 * n), (Op::AllGather, GroupKind::Optimizer, 2 * n)];
    assert_eq!(volumes(&config("", false), 4, 1), expected);
    let plain = config("distributed_optimizer = false", false);
    assert_eq!(volumes(&plain, 4, 1), [(Op::AllReduce, GroupKind::Data, 4 * n)]);
    let rounded = volumes(&config("gradient_precision = \"bf16\"", false), 4, 1);
    assert_eq!(rounded, [(Op::ReduceScatter, GroupKind::Data, 2 * n), (Op::AllGather, GroupKind::Optimizer, 2 * n)]);
}

/// Per micro-batch 4096 bytes of activations [32, 64] in bf16; per layer, forward: into and out of
/// attention and MLP; backward: dy and x gathered for each, dx scattered.
#[test]
fn tensor_parallel_ranks_gather_and_scatter_rows() {
    let (m, s, statistics) = (8, 32 * 64 * 2, 2 * 32 * 3 * 4);
    let sharded = [
        (Op::AllGather, GroupKind::Tensor, m * (s * (8 * (2 + 2 + 2) + 1 + 1) + statistics)),
        (Op::ReduceScatter, GroupKind::Tensor, m * s * (8 * (2 + 2) + 1 + 1)),
        (Op::AllReduce, GroupKind::Tensor, (8 * 2 + 1) * 64 * 4),
    ];
    assert_eq!(volumes(&config("tensor = 2", false), 2, 0), sharded);
    let held = [
        (Op::AllGather, GroupKind::Tensor, m * statistics),
        (Op::AllReduce, GroupKind::Tensor, m * s * (8 * (2 + 2) + 1 + 1)),
    ];
    assert_eq!(volumes(&config("tensor = 2\nsequence_parallel = false", false), 2, 0), held);
    // Four ranks share two key/value heads: k and v of a head, [16, 64] in f32, a layer.
    let shared = volumes(&config("tensor = 4", false), 4, 3);
    assert!(shared.contains(&(Op::AllReduce, GroupKind::KvHeads, 8 * 2 * 16 * 64 * 4)), "{shared:?}");
}

#[test]
fn full_recomputation_runs_each_layer_forward_again() {
    let mut config = config("tensor = 2", false);
    let before = volumes(&config, 2, 0);
    config.train.recompute = Recompute::Selective;
    assert_eq!(volumes(&config, 2, 0), before);
    config.train.recompute = Recompute::Full;
    let layers_again = 8 * (32 * 64 * 2) * 8 * 2;
    let after = volumes(&config, 2, 0);
    assert_eq!([after[0].2 - before[0].2, after[1].2 - before[1].2], [layers_again, layers_again]);
}

#[test]
fn stages_send_to_their_neighbours_and_share_a_tied_table() {
    let (message, table) = (8 * 32 * 64 * 2, 512 * 64 * 4);
    let config = config("pipeline = 4", true);
    assert_eq!(
        volumes(&config, 4, 0),
        [(Op::AllReduce, GroupKind::Tied, table), (Op::Send, GroupKind::Activations, message)]
    );
    let both = [(Op::Send, GroupKind::Activations, message), (Op::Send, GroupKind::Gradients, message)];
    assert_eq!(volumes(&config, 4, 1), both);
    assert_eq!(
        volumes(&config, 4, 3),
        [(Op::AllReduce, GroupKind::Tied, table), (Op::Send, GroupKind::Gradients, message)]
    );
    // Interleaved, the last stage hands its first chunk's output to the first stage.
    let both = self::config("pipeline = 4\nvirtual_pipeline = 2", false);
    assert_eq!(volumes(&both, 4, 0)[0], (Op::Send, GroupKind::Activations, 2 * message));
    assert_eq!(volumes(&both, 4, 3)[0], (Op::Send, GroupKind::Activations, message));
}

/// Over the ranks of a data-parallel group the first and last stage hold all of the model, and the
/// tied table twice.
#[test]
fn a_tied_table_is_reduced_on_both_stages() {
    for tied in [false, true] {
        let config = config("pipeline = 2", tied);
        let gathered =
            |rank| volumes(&config, 4, rank).iter().find(|volume| volume.1 == GroupKind::Optimizer).unwrap().2;
        let table = if tied { 512 * 64 } else { 0 };
        assert_eq!(gathered(0) + gathered(2), 2 * (engine::model::flops::parameters(&config.model) + table));
    }
}

#[test]
fn a_ring_of_two_nodes_crosses_twice() {
    let config = config("", false);
    let links = crossing(&config, &config.mesh(4).unwrap(), 2, &[0, 0, 1, 1]);
    // Each rank sends 3/4 of the gradients and of the weights to the next: 0 -> 1 and 2 -> 3 inside.
    let each = (4 + 2) * engine::model::flops::parameters(&config.model) * 3 / 4;
    assert_eq!(links.total(), Crossing { inside: 2 * each, network: 2 * each });
    assert_eq!(links.busiest(), each);
}

#[test]
fn an_all_reduce_goes_round_twice_and_gradients_go_back() {
    let plain = config("distributed_optimizer = false", false);
    let network = 2 * 2 * (4 * engine::model::flops::parameters(&plain.model)) / 2;
    let links = crossing(&plain, &plain.mesh(2).unwrap(), 2, &[0, 1]);
    assert_eq!(links.total(), Crossing { inside: 0, network });
    // Of three stages the first two share a node: one border inside, one across, in either direction.
    let stages = config("pipeline = 3", false);
    let links = crossing(&stages, &stages.mesh(3).unwrap(), 2, &[0, 0, 1]);
    let message = 8 * 32 * 64 * 2;
    let border = Crossing { inside: message, network: message };
    assert_eq!([GroupKind::Activations, GroupKind::Gradients].map(|kind| links.of(&[kind])), [border, border]);
    assert_eq!(links.busiest(), message);
}

proptest! {
    /// No mapping changes what is sent; the engine's keeps tensor parallelism, by far the most of a real run, off
    /// the network, and stays the same in whatever order the processes were started.
    #[test]
    fn placement_keeps_tensor_parallelism_inside(tensor in 0u32..3, pipeline in 0u32..3, data in 0u32..3, nodes in 1usize..5, turn in 0usize..8) {
        let (tensor, pipeline, data) = (1 << tensor, 1 << pipeline, 1 << data);
        let ranks = tensor * pipeline * data;
        prop_assume!(ranks % nodes == 0 && (ranks / nodes) % tensor == 0);
        let config = config(&format!("tensor = {tensor}\npipeline = {pipeline}"), true);
        let mesh = config.mesh(ranks).unwrap();
        let started: Vec<usize> = (0..ranks).map(|process| (process + turn) % nodes).collect();
        let placed: Vec<usize> = reorder_ranks(&started, &mesh).iter().map(|&process| started[process]).collect();
        let (ours, naive) = (crossing(&config, &mesh, 2, &placed), crossing(&config, &mesh, 2, &dealt(&started)));
        let all = |links: &Links| links.total().inside + links.total().network;
        prop_assert_eq!(all(&ours), all(&naive));
        prop_assert_eq!(ours.of(&[GroupKind::Tensor, GroupKind::KvHeads]).network, 0);
        let in_order: Vec<usize> = (0..ranks).map(|rank| rank * nodes / ranks).collect();
        prop_assert_eq!(ours.total(), crossing(&config, &mesh, 2, &in_order).total());
    }
}
