//! What the tests of checkpoints share: a small model, states to save, several ranks in threads.

mod crashes;
mod damage;
mod huggingface;
mod layouts;

use super::*;
use crate::config::{Architecture, Model, RopeScaling};
use crate::error::Error;
use crate::inventory::{TensorSpec, all_tensors};
use std::path::Path;
use std::sync::{Barrier, Mutex};

const KINDS: [Kind; 3] = [Kind::Master, Kind::M, Kind::V];

fn model() -> Model {
    Model {
        architecture: Architecture::Llama,
        hidden_size: 12,
        intermediate_size: 20,
        num_hidden_layers: 2,
        num_attention_heads: 3,
        num_key_value_heads: 1,
        head_dim: 4,
        vocab_size: 23,
        max_position_embeddings: 16,
        rope_theta: 10000.0,
        rope_scaling: RopeScaling::Default,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: false,
        initializer_range: 0.02,
        hf: None,
    }
}

fn header(step: u64) -> Header {
    Header {
        position: Position { step, consumed_samples: step * 8 },
        config: "[model]\nvocab_size = 23\n".into(),
        identity: vec![("model.vocab_size".into(), "23".into())],
    }
}

/// The state of a tensor: bits that no arithmetic would leave alone, among them NaNs.
fn state(tensor: &TensorSpec, kind: Kind, rect: &Rect) -> Vec<f32> {
    let mut hash = blake3::Hasher::new();
    let mut bytes = vec![0; tensor.len() * 4];
    hash.update(tensor.name.as_bytes()).update(kind.name().as_bytes()).finalize_xof().fill(&mut bytes);
    let width = tensor.shape()[1];
    let places = rect.rows.clone().flat_map(|row| rect.cols.clone().map(move |col| (row * width + col) * 4));
    places.map(|at| f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())).collect()
}

fn piece(tensor: &TensorSpec, kind: Kind, rect: Rect) -> Piece {
    let data = state(tensor, kind, &rect);
    Piece { name: tensor.name.clone(), dims: tensor.dims.clone(), rect, kind, data }
}

/// All states of the model, whole.
fn whole_pieces() -> impl Iterator<Item = Piece> {
    let tensors = all_tensors(&model()).into_iter();
    tensors.flat_map(|t| KINDS.map(|kind| piece(&t, kind, Rect::whole(t.shape()))))
}

fn save_whole(run: &Path, step: u64) -> std::path::PathBuf {
    save(run, &Solo, &header(step), whole_pieces(), None).unwrap()
}

fn assert_holds_the_state(saved: &Saved) {
    for tensor in all_tensors(&model()) {
        for kind in KINDS {
            let rect = Rect::whole(tensor.shape());
            let mut out = vec![0.0; tensor.len()];
            saved.read(&tensor.name, kind, &rect, &mut out).unwrap();
            assert_eq!(bits(&out), bits(&state(&tensor, kind, &rect)), "{} {kind:?}", tensor.name);
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The message of an error that is the user's to mend.
fn refusal<T>(result: crate::error::Result<T>) -> String {
    match result {
        Err(Error::User(what)) => what,
        Err(Error::Run(what)) => panic!("not a refusal: {what}"),
        Ok(_) => panic!("it was accepted"),
    }
}

/// Ranks as threads.
struct Threads<'a> {
    rank: usize,
    shared: &'a (Mutex<Vec<Vec<u8>>>, Barrier),
}

impl Exchange for Threads<'_> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.shared.0.lock().unwrap().len()
    }

    fn all_gather_bytes(&self, mine: &[u8]) -> Vec<Vec<u8>> {
        let (bytes, barrier) = self.shared;
        bytes.lock().unwrap()[self.rank] = mine.to_vec();
        barrier.wait();
        let all = bytes.lock().unwrap().clone();
        barrier.wait();
        all
    }
}

/// What `work` gives on each of several ranks.
fn on_ranks<T: Send>(ranks: usize, work: impl Fn(&Threads) -> T + Sync) -> Vec<T> {
    let shared = (Mutex::new(vec![Vec::new(); ranks]), Barrier::new(ranks));
    std::thread::scope(|scope| {
        let start = |rank| {
            let (work, shared) = (&work, &shared);
            scope.spawn(move || work(&Threads { rank, shared }))
        };
        let threads: Vec<_> = (0..ranks).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
