//! The state of a run, saved at one layout, loaded at another, and back: every bit is the same.

use super::*;
use crate::config::Config;
use crate::layout::buckets::{Bucket, Part};
use crate::layout::mesh::GroupKind;
use crate::layout::rank_layout::RankLayout;
use proptest::prelude::*;
use std::ops::Range;

const MODEL: &str = "
[model]
architecture = \"llama\"
hidden_size = 16
intermediate_size = 20
num_hidden_layers = 5
num_attention_heads = 4
num_key_value_heads = 2
vocab_size = 23
max_position_embeddings = 16
rope_theta = 10000.0
rms_norm_eps = 1e-5
[train]
seq_length = 8
micro_batch_size = 1
global_batch_size = 24
steps = 1
[optimizer]
lr = 1e-3
[data]
train = [ { prefix = \"GOLDEN\" } ]
[checkpoint]
dir = \"none\"
";
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/mha_odd_vocab/train");

/// With four tensor-parallel ranks, two hold the same key/value head.
fn layout() -> impl Strategy<Value = (Config, usize)> {
    let pipeline = prop_oneof![Just((1, 1)), Just((2, 1)), Just((2, 2)), Just((3, 1)), Just((4, 1))];
    let degrees = (prop_oneof![Just(1), Just(2), Just(4)], pipeline, 1usize..4, any::<bool>());
    degrees.prop_map(|(tp, (pp, chunks), dp, sharded)| {
        let text = format!(
            "{MODEL}[parallel]\ntensor = {tp}\npipeline = {pp}\nvirtual_pipeline = {chunks}\n\
             distributed_optimizer = {sharded}\n"
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text.replace("GOLDEN", GOLDEN)).unwrap();
        (Config::load(&path, &[]).unwrap(), tp * pp * dp)
    })
}

/// One rank's part of the optimizer's state: the buckets, its shard of each, and whether it saves them.
struct Held {
    shards: Vec<(Bucket, Range<usize>)>,
    owns: bool,
}

/// The shards of each kind, bucket after bucket.
type State = Vec<[Vec<f32>; 3]>;

impl Held {
    fn new(config: &Config, ranks: usize, rank: usize) -> Held {
        let rank_layout = RankLayout::new(config, config.mesh(ranks).unwrap(), rank);
        let members = rank_layout.members(GroupKind::Optimizer);
        let at = members.iter().position(|&member| member == rank).unwrap();
        let shards = rank_layout.buckets(config).into_iter().map(|bucket| {
            let range = bucket.shard(at, members.len());
            (bucket, range)
        });
        Held { shards: shards.collect(), owns: config.parallel.distributed_optimizer || rank_layout.dp.0 == 0 }
    }

    fn load(&self, fill: impl Fn(&TensorSpec, StateKind, &Rect, &mut [f32])) -> State {
        let flat = |bucket: &Bucket, range: &Range<usize>, kind| {
            let mut flat = vec![f32::MIN; range.len()];
            for Part { at, tensor, rect, .. } in bucket.parts(range) {
                fill(tensor, kind, &rect, &mut flat[at..at + rect.len()]);
            }
            flat
        };
        self.shards.iter().map(|(bucket, range)| KINDS.map(|kind| flat(bucket, range, kind))).collect()
    }

    fn save(&self, state: &State) -> impl Iterator<Item = Piece> {
        let mut pieces = Vec::new();
        for ((bucket, range), flat) in self.shards.iter().zip(state).filter(|_| self.owns) {
            for Part { at, tensor, rect, .. } in bucket.parts(range).into_iter().filter(|part| part.owned) {
                pieces.extend(KINDS.into_iter().zip(flat).map(|(kind, flat)| {
                    let (name, dims, data) =
                        (tensor.name.clone(), tensor.dims.clone(), flat[at..at + rect.len()].to_vec());
                    Piece { name, dims, rect: rect.clone(), kind, data: data.into() }
                }));
            }
        }
        pieces.into_iter()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    /// Saved at A, loaded at B, saved, loaded at A: every bit of weights and moments survives, whichever ranks hold
    /// the stages, chunks, columns, key/value heads and tied embeddings.
    #[test]
    fn to_another_layout_and_back(a in layout(), b in layout(), tied in any::<bool>()) {
        let [(mut a, a_ranks), (mut b, b_ranks)] = [a, b];
        (a.model.tie_word_embeddings, b.model.tie_word_embeddings) = (tied, tied);
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let made = |held: &Held| held.load(|t, kind, rect, out| out.copy_from_slice(&state(t, kind, rect)));
        let read = |held: &Held, run: &Path| {
            let saved = Saved::latest(run).unwrap().unwrap();
            held.load(|t, kind, rect, out| saved.read(&t.name, kind, rect, out).unwrap())
        };
        on_ranks(a_ranks, |comm| {
            let held = Held::new(&a, a_ranks, comm.rank());
            save(first.path(), comm, &header(1), held.save(&made(&held)), None).unwrap();
        });
        on_ranks(b_ranks, |comm| {
            let held = Held::new(&b, b_ranks, comm.rank());
            save(second.path(), comm, &header(1), held.save(&read(&held, first.path())), None).unwrap();
        });
        for rank in 0..a_ranks {
            let held = Held::new(&a, a_ranks, rank);
            for (had, has) in made(&held).iter().flatten().zip(read(&held, second.path()).iter().flatten()) {
                prop_assert_eq!(bits(had), bits(has), "rank {}", rank);
            }
        }
    }
}
