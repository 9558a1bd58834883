//! From one layout to another and back: what ranks of a run hold, saved and loaded with every bit.

use super::*;
use crate::inventory::{self, Slot, slots, tensors};
use proptest::prelude::*;
use std::ops::Range;

/// How many ranks share a tensor's heads or columns, the layers, and the optimizer's state.
#[derive(Debug, Clone, Copy)]
struct Layout {
    tp: usize,
    pp: usize,
    /// Chunks of layers a stage.
    chunks: usize,
    dp: usize,
}

/// One rank's flat state: what it holds, in its order, and how much of that is its own to save.
struct Held {
    rects: Vec<(TensorSpec, Rect, Owner)>,
    shard: Range<usize>,
}

#[derive(Clone, Copy, PartialEq)]
enum Owner {
    Me,
    Another,
}

fn model_of_heads(tied: bool) -> Model {
    Model { num_attention_heads: 4, num_key_value_heads: 2, tie_word_embeddings: tied, num_hidden_layers: 5, ..model() }
}

impl Layout {
    fn ranks(self) -> usize {
        self.tp * self.pp * self.dp
    }

    fn held(self, model: &Model, rank: usize) -> Held {
        let (tp, dp, pp) = (rank % self.tp, rank / self.tp % self.dp, rank / self.tp / self.dp);
        let chunks = self.pp * self.chunks;
        let slots = slots(model);
        let mut rects = Vec::new();
        for (at, &slot) in slots.iter().enumerate().filter(|(at, _)| at * chunks / slots.len() % self.pp == pp) {
            for tensor in tensors(model, slot) {
                rects.extend(self.cut(model, tensor, tp));
            }
            // The last stage needs the embedding, too, and the first one saves it.
            if model.tie_word_embeddings && slot == Slot::Head && at * chunks / slots.len() > 0 {
                let embedding = tensors(model, Slot::Embedding).remove(0);
                rects.extend(self.cut(model, embedding, tp).map(|(tensor, rect, _)| (tensor, rect, Owner::Another)));
            }
        }
        let len: usize = rects.iter().map(|(_, rect, _)| rect.len()).sum();
        let each = len.div_ceil(self.dp);
        Held { rects, shard: (dp * each).min(len)..((dp + 1) * each).min(len) }
    }

    /// A tensor-parallel rank's part. With more ranks than kv heads several hold the same head.
    fn cut(self, model: &Model, tensor: TensorSpec, tp: usize) -> Option<(TensorSpec, Rect, Owner)> {
        let copies = self.tp / model.num_key_value_heads;
        let kv = tensor.name.contains("k_proj") || tensor.name.contains("v_proj");
        let (rect, owner) = match (kv && copies > 1, tensor.cut) {
            (true, _) => (tensor.held(tp / copies, model.num_key_value_heads), tp % copies == 0),
            (false, inventory::Cut::Whole) => (tensor.held(tp, self.tp), tp == 0),
            (false, _) => (tensor.held(tp, self.tp), true),
        };
        Some((tensor, rect, if owner { Owner::Me } else { Owner::Another })).filter(|(_, rect, _)| !rect.is_empty())
    }
}

impl Held {
    /// (tensor, rectangle, place in the shard, owner) of every piece of this rank's shard.
    fn pieces(&self) -> Vec<(&TensorSpec, Rect, usize, Owner)> {
        let (mut at, mut out) = (0, Vec::new());
        for (tensor, held, owner) in &self.rects {
            let (start, end) = (at.max(self.shard.start), (at + held.len()).min(self.shard.end));
            if start < end {
                let slices = held.slice(start - at..end - at);
                out.extend(slices.into_iter().map(|(i, r)| (tensor, r, start + i - self.shard.start, *owner)));
            }
            at += held.len();
        }
        out
    }

    fn load(&self, fill: impl Fn(&TensorSpec, Kind, &Rect, &mut [f32])) -> [Vec<f32>; 3] {
        KINDS.map(|kind| {
            let mut flat = vec![f32::MIN; self.shard.len()];
            for (tensor, rect, at, _) in self.pieces() {
                fill(tensor, kind, &rect, &mut flat[at..at + rect.len()]);
            }
            flat
        })
    }

    fn save<'a>(&'a self, state: &'a [Vec<f32>; 3]) -> impl Iterator<Item = Piece> + 'a {
        let mine = self.pieces().into_iter().filter(|(.., owner)| *owner == Owner::Me);
        mine.flat_map(move |(tensor, rect, at, _)| {
            let (name, dims) = (tensor.name.clone(), tensor.dims.clone());
            KINDS.into_iter().zip(state).map(move |(kind, flat)| Piece {
                name: name.clone(),
                dims: dims.clone(),
                kind,
                data: flat[at..at + rect.len()].to_vec(),
                rect: rect.clone(),
            })
        })
    }
}

fn layout() -> impl Strategy<Value = Layout> {
    let powers = |n| prop_oneof![Just(1usize), Just(2), Just(n)];
    (powers(4), prop_oneof![1usize..4, Just(4)], 1usize..3, 1usize..4)
        .prop_map(|(tp, pp, chunks, dp)| Layout { tp, pp, chunks, dp })
        .prop_filter("few enough threads", |layout| layout.ranks() <= 24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    /// Saved at A, loaded at B, saved, loaded at A: every bit of weights and moments, whoever holds them.
    #[test]
    fn to_another_layout_and_back(a in layout(), b in layout(), tied in any::<bool>()) {
        let model = model_of_heads(tied);
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let read = |saved: &Saved, t: &TensorSpec, kind, rect: &Rect, out: &mut [f32]| {
            saved.read(&t.name, kind, rect, out).unwrap();
        };
        on_ranks(a.ranks(), |comm| {
            let held = a.held(&model, comm.rank());
            let flat = held.load(|t, kind, rect, out| out.copy_from_slice(&state(t, kind, rect)));
            save(first.path(), comm, &header(1), held.save(&flat), None).unwrap();
        });
        on_ranks(b.ranks(), |comm| {
            let saved = Saved::latest(first.path()).unwrap().unwrap();
            let held = b.held(&model, comm.rank());
            let flat = held.load(|t, kind, rect, out| read(&saved, t, kind, rect, out));
            save(second.path(), comm, &header(1), held.save(&flat), None).unwrap();
        });
        let saved = Saved::latest(second.path()).unwrap().unwrap();
        for rank in 0..a.ranks() {
            let held = a.held(&model, rank);
            let had = held.load(|t, kind, rect, out| out.copy_from_slice(&state(t, kind, rect)));
            let has = held.load(|t, kind, rect, out| read(&saved, t, kind, rect, out));
            for (had, has) in had.iter().zip(&has) {
                prop_assert_eq!(bits(had), bits(has), "rank {}", rank);
            }
        }
    }
}
