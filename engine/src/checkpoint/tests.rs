//! Helpers of the checkpoint tests: a small model, states to save, ranks as threads.

mod beside;
mod crashes;
mod damage;
mod disks;
mod exports;
mod huggingface;
mod layouts;
mod newest;
mod not_finite;
mod packed;
mod roundtrip;

use super::*;
use crate::config::Model;
use crate::error::Error;
use crate::model::param_specs::{TensorSpec, all_tensors};
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

const KINDS: [StateKind; 3] = [StateKind::Master, StateKind::M, StateKind::V];

fn model() -> Model {
    Model::tiny()
}

fn header(step: u64) -> Header {
    Header {
        position: Position { step, consumed_samples: step * 8 },
        config: "[model]\nvocab_size = 23\n".into(),
        identity: vec![("model.vocab_size".into(), "23".into())],
        accepted: AcceptedSteps { losses: vec![2.5, 2.25], grad_norms: vec![1.0, 0.5] },
    }
}

/// The indices of a rectangle's elements in a matrix of this width.
pub(super) fn elements(rect: &Rect, width: usize) -> impl Iterator<Item = usize> {
    let cols = rect.cols.clone();
    rect.rows.clone().flat_map(move |row| cols.clone().map(move |col| row * width + col))
}

/// The state of a tensor: random bits of finite numbers, in bf16 too, since others are refused.
fn state(tensor: &TensorSpec, kind: StateKind, rect: &Rect) -> Vec<f32> {
    let mut hash = blake3::Hasher::new();
    let mut bytes = vec![0; tensor.len() * 4];
    hash.update(tensor.name.as_bytes()).update(kind.name().as_bytes()).finalize_xof().fill(&mut bytes);
    let places = elements(rect, tensor.shape()[1]).map(|at| at * 4);
    let values = places.map(|at| f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()));
    let is_small = |x: f32| x.is_finite() && x.abs() < 1e38;
    let finite = |x: f32| if is_small(x) { x } else { f32::from_bits(x.to_bits() >> 2) };
    values.map(finite).collect()
}

fn piece(tensor: &TensorSpec, kind: StateKind, rect: Rect) -> Piece {
    let data = state(tensor, kind, &rect);
    Piece { name: tensor.name.clone(), dims: tensor.dims.clone(), rect, kind, data: data.into() }
}

/// All states of the model, each tensor in one piece.
fn whole_pieces() -> impl Iterator<Item = Piece> {
    let tensors = all_tensors(&model()).into_iter();
    tensors.flat_map(|t| KINDS.map(|kind| piece(&t, kind, Rect::whole(t.shape()))))
}

/// Saves and waits for the save.
fn save(
    run: &Path,
    comm: &impl Exchange,
    header: &Header,
    pieces: impl Iterator<Item = Piece>,
    keep: Option<usize>,
) -> crate::error::Result<std::path::PathBuf> {
    saver(run, comm, keep).save(comm, header, pieces.map(Ok))
}

fn saver(run: &Path, comm: &impl Exchange, keep: Option<usize>) -> Saver {
    saver_with(run, comm, Options { retention: keeping(keep), ..Options::default() })
}

fn saver_with(run: &Path, comm: &impl Exchange, options: Options) -> Saver {
    Saver::new(run, options, format!("rank {} on a test", comm.rank()))
}

fn keeping(keep: Option<usize>) -> Retention {
    Retention { keep, keep_every: 0 }
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

/// The message of an error that is the user's mistake.
fn refusal<T>(result: crate::error::Result<T>) -> String {
    match result {
        Err(Error::User(what)) => what,
        Err(Error::Run(what) | Error::Disk(what)) => panic!("a failed run: {what}"),
        Ok(_) => panic!("it was accepted"),
    }
}

fn wait_until(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(60), "nothing happened for a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A rank that runs as a thread.
struct Threads<'a> {
    rank: usize,
    meeting: &'a Meeting,
}

/// The buffer through which threads exchange bytes: the bytes of each, and how many threads have arrived and left so
/// far.
struct Meeting {
    bytes: Mutex<(Vec<Vec<u8>>, usize)>,
    changed: Condvar,
}

impl Meeting {
    /// Counts this rank and waits for the other ranks of its round, with a limit in case one panicked.
    fn wait(&self, mut bytes: MutexGuard<(Vec<Vec<u8>>, usize)>) {
        let ranks = bytes.0.len();
        let all = bytes.1 / ranks * ranks + ranks;
        bytes.1 += 1;
        self.changed.notify_all();
        let waited = self.changed.wait_timeout_while(bytes, Duration::from_secs(60), |bytes| bytes.1 < all).unwrap();
        assert!(!waited.1.timed_out(), "another rank did not arrive");
    }
}

impl Exchange for Threads<'_> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.meeting.bytes.lock().unwrap().0.len()
    }

    fn all_gather_bytes(&self, mine: &[u8]) -> Vec<Vec<u8>> {
        let mut bytes = self.meeting.bytes.lock().unwrap();
        bytes.0[self.rank] = mine.to_vec();
        self.meeting.wait(bytes);
        let bytes = self.meeting.bytes.lock().unwrap();
        let all = bytes.0.clone();
        self.meeting.wait(bytes);
        all
    }
}

/// The results of `work` on each of several ranks.
fn on_ranks<T: Send>(ranks: usize, work: impl Fn(&Threads) -> T + Sync) -> Vec<T> {
    let meeting = Meeting { bytes: Mutex::new((vec![Vec::new(); ranks], 0)), changed: Condvar::new() };
    std::thread::scope(|scope| {
        let start = |rank| {
            let (work, meeting) = (&work, &meeting);
            scope.spawn(move || work(&Threads { rank, meeting }))
        };
        let threads: Vec<_> = (0..ranks).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
