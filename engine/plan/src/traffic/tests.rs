//! The closed form against sums written out by hand, the dry run against the closed form, and the network traffic of
//! each placement.

pub mod closed_form;

use super::*;
use closed_form::Collective;
use engine::config::Recompute;
use engine::cpu::CpuScratch;
use engine::layout::placement::{reorder_ranks, round_robin};
use half::bf16;
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

/// The calls of a rank in bf16, as (operation, kind, bytes).
fn volumes(config: &Config, ranks: usize, rank: usize) -> Vec<(Collective, GroupKind, u64)> {
    let rank_layout = RankLayout::new(config, config.mesh(ranks).unwrap(), rank);
    closed_form::volumes(config, &rank_layout, 2).iter().map(|volume| (volume.op, volume.kind, volume.bytes)).collect()
}

/// [`Sent`] of all ranks in bf16 by the closed form.
fn expected(config: &Config, mesh: &Mesh) -> Vec<Sent> {
    let of_rank = |rank| {
        let mut sent = Sent::new();
        for volume in closed_form::volumes(config, &RankLayout::new(config, mesh.clone(), rank), 2) {
            let n =
                mesh.members(rank, volume.kind, RankLayout::new(config, mesh.clone(), rank).kv_replicas).len() as u64;
            *sent.entry(volume.kind).or_default() += match volume.op {
                Collective::AllGather | Collective::ReduceScatter => volume.bytes * (n - 1) / n,
                Collective::AllReduce => 2 * volume.bytes * (n - 1) / n,
                Collective::Send | Collective::AllToAll => volume.bytes,
            };
        }
        sent
    };
    (0..mesh.ranks()).map(of_rank).collect()
}

fn crossing(config: &Config, mesh: &Mesh, nodes: &[usize]) -> Links {
    let sent = sent::<bf16>(config, mesh, &CpuScratch::<bf16>::new(1)).unwrap();
    links(config, mesh, &sent, nodes)
}

#[test]
fn the_dry_run_counts_what_the_closed_form_says() {
    for parallel in ["tensor = 4\npipeline = 2", "pipeline = 4\nvirtual_pipeline = 2", "distributed_optimizer = false"]
    {
        let config = config(parallel, true);
        let mesh = config.mesh(8).unwrap();
        let mut counted = sent::<bf16>(&config, &mesh, &CpuScratch::<bf16>::new(1)).unwrap();
        counted.iter_mut().for_each(|sent| sent.retain(|_, bytes| *bytes > 0));
        assert_eq!(counted, expected(&config, &mesh), "{parallel}");
    }
}

#[test]
fn one_rank_sends_nothing() {
    assert_eq!(volumes(&config("", true), 1, 0), []);
}

#[test]
fn data_parallel_ranks_scatter_gradients_and_gather_weights() {
    let n = engine::model::flops::parameters(&config("", false).model);
    let expected =
        [(Collective::ReduceScatter, GroupKind::Data, 4 * n), (Collective::AllGather, GroupKind::Optimizer, 2 * n)];
    assert_eq!(volumes(&config("", false), 4, 1), expected);
    let plain = config("distributed_optimizer = false", false);
    assert_eq!(volumes(&plain, 4, 1), [(Collective::AllReduce, GroupKind::Data, 4 * n)]);
    let rounded = volumes(&config("gradient_precision = \"bf16\"", false), 4, 1);
    assert_eq!(
        rounded,
        [(Collective::ReduceScatter, GroupKind::Data, 2 * n), (Collective::AllGather, GroupKind::Optimizer, 2 * n)]
    );
}

/// Per micro-batch 4096 bytes of activations [32, 64] in bf16; per layer, forward: into and out of
/// attention and MLP; backward: dy and x gathered for each, dx scattered.
#[test]
fn tensor_parallel_ranks_gather_and_scatter_rows() {
    let (m, s, statistics) = (8, 32 * 64 * 2, 2 * 32 * 3 * 4);
    let sharded = [
        (Collective::AllGather, GroupKind::Tensor, m * (s * (8 * (2 + 2 + 2) + 1 + 1) + statistics)),
        (Collective::ReduceScatter, GroupKind::Tensor, m * s * (8 * (2 + 2) + 1 + 1)),
        (Collective::AllReduce, GroupKind::Tensor, (8 * 2 + 1) * 64 * 4),
    ];
    assert_eq!(volumes(&config("tensor = 2", false), 2, 0), sharded);
    let held = [
        (Collective::AllGather, GroupKind::Tensor, m * statistics),
        (Collective::AllReduce, GroupKind::Tensor, m * s * (8 * (2 + 2) + 1 + 1)),
    ];
    assert_eq!(volumes(&config("tensor = 2\nsequence_parallel = false", false), 2, 0), held);
    // Four ranks share two key/value heads: k and v of a head, [16, 64] in f32, a layer.
    let shared = volumes(&config("tensor = 4", false), 4, 3);
    assert!(shared.contains(&(Collective::AllReduce, GroupKind::KvHeads, 8 * 2 * 16 * 64 * 4)), "{shared:?}");
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
        [(Collective::AllReduce, GroupKind::Tied, table), (Collective::Send, GroupKind::Activations, message)]
    );
    let both = [(Collective::Send, GroupKind::Activations, message), (Collective::Send, GroupKind::Gradients, message)];
    assert_eq!(volumes(&config, 4, 1), both);
    assert_eq!(
        volumes(&config, 4, 3),
        [(Collective::AllReduce, GroupKind::Tied, table), (Collective::Send, GroupKind::Gradients, message)]
    );
    // Interleaved, the last stage hands its first chunk's output to the first stage.
    let both = self::config("pipeline = 4\nvirtual_pipeline = 2", false);
    assert_eq!(volumes(&both, 4, 0)[0], (Collective::Send, GroupKind::Activations, 2 * message));
    assert_eq!(volumes(&both, 4, 3)[0], (Collective::Send, GroupKind::Activations, message));
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
    let links = crossing(&config, &config.mesh(4).unwrap(), &[0, 0, 1, 1]);
    // Each rank sends 3/4 of the gradients and of the weights to the next: 0 -> 1 and 2 -> 3 inside.
    let each = (4 + 2) * engine::model::flops::parameters(&config.model) * 3 / 4;
    assert_eq!(links.total(), Crossing { inside: 2 * each, network: 2 * each });
    assert_eq!(links.busiest(), each);
}

#[test]
fn an_all_reduce_goes_round_twice_and_gradients_go_back() {
    let plain = config("distributed_optimizer = false", false);
    let network = 2 * 2 * (4 * engine::model::flops::parameters(&plain.model)) / 2;
    let links = crossing(&plain, &plain.mesh(2).unwrap(), &[0, 1]);
    assert_eq!(links.total(), Crossing { inside: 0, network });
    // The first two of three stages share a node: one boundary is inside, one across, in either direction.
    let stages = config("pipeline = 3", false);
    let links = crossing(&stages, &stages.mesh(3).unwrap(), &[0, 0, 1]);
    let message = 8 * 32 * 64 * 2;
    let border = Crossing { inside: message, network: message };
    assert_eq!([GroupKind::Activations, GroupKind::Gradients].map(|kind| links.of(&[kind])), [border, border]);
    assert_eq!(links.busiest(), message);
}

proptest! {
    /// No placement changes the bytes sent; the engine's keeps tensor parallelism, by far the most of a real run, off
    /// the network, and stays the same in whatever order the processes were started.
    #[test]
    fn placement_keeps_tensor_parallelism_inside(
        tensor in 0u32..3, pipeline in 0u32..3, data in 0u32..3, nodes in 1usize..5, turn in 0usize..8,
    ) {
        let (tensor, pipeline, data) = (1 << tensor, 1 << pipeline, 1 << data);
        let ranks = tensor * pipeline * data;
        prop_assume!(ranks % nodes == 0 && (ranks / nodes) % tensor == 0);
        let config = config(&format!("tensor = {tensor}\npipeline = {pipeline}"), true);
        let mesh = config.mesh(ranks).unwrap();
        let started: Vec<usize> = (0..ranks).map(|process| (process + turn) % nodes).collect();
        let placed: Vec<usize> = reorder_ranks(&started, &mesh).iter().map(|&process| started[process]).collect();
        let sent = expected(&config, &mesh);
        let crossing = |nodes: &[usize]| links(&config, &mesh, &sent, nodes);
        let (ours, naive) = (crossing(&placed), crossing(&round_robin(&started)));
        let all = |links: &Links| links.total().inside + links.total().network;
        prop_assert_eq!(all(&ours), all(&naive));
        prop_assert_eq!(ours.of(&[GroupKind::Tensor, GroupKind::KvHeads]).network, 0);
        let in_order: Vec<usize> = (0..ranks).map(|rank| rank * nodes / ranks).collect();
        prop_assert_eq!(ours.total(), crossing(&in_order).total());
    }
}
