//! Checkpoints saved at one layout and read at any other.

use super::*;
use crate::layout::buckets;
use crate::layout::buckets::{Held, Tie};
use crate::layout::mesh::GroupKind;
use crate::model::param_specs;
use crate::model::param_specs::{ExpertShare, units};
use proptest::prelude::*;

/// Splits a rectangle at random until its parts are small.
fn tile(rect: Rect, choices: &mut impl Iterator<Item = usize>, out: &mut Vec<Rect>) {
    let choice = choices.next().unwrap_or(0);
    let (rows, cols) = (rect.rows.len(), rect.cols.len());
    let at = |range: &std::ops::Range<usize>| range.start + 1 + choice / 4 % (range.len() - 1);
    match choice % 4 {
        1 | 3 if rows > 1 => {
            let at = at(&rect.rows);
            tile(Rect { rows: rect.rows.start..at, cols: rect.cols.clone() }, choices, out);
            tile(Rect { rows: at..rect.rows.end, cols: rect.cols }, choices, out);
        }
        2 if cols > 1 => {
            let at = at(&rect.cols);
            tile(Rect { rows: rect.rows.clone(), cols: rect.cols.start..at }, choices, out);
            tile(Rect { rows: rect.rows, cols: at..rect.cols.end }, choices, out);
        }
        _ => out.push(rect),
    }
}

fn part(whole: [usize; 2], cuts: [usize; 4]) -> Rect {
    let range = |len: usize, a: usize, b: usize| {
        let (a, b) = (a % (len + 1), b % (len + 1));
        a.min(b)..a.max(b)
    };
    Rect { rows: range(whole[0], cuts[0], cuts[1]), cols: range(whole[1], cuts[2], cuts[3]) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_tiling_gives_any_rectangle_back(
        choices in proptest::collection::vec(0usize..1000, 400),
        cuts in proptest::collection::vec(any::<[usize; 4]>(), 8),
        ranks in 1usize..4,
    ) {
        let run = tempfile::tempdir().unwrap();
        let choices = &mut choices.into_iter();
        let mut pieces = Vec::new();
        for tensor in all_tensors(&model()) {
            for kind in KINDS {
                let mut rects = Vec::new();
                tile(Rect::whole(tensor.shape()), choices, &mut rects);
                pieces.extend(rects.into_iter().map(|rect| (tensor.clone(), kind, rect)));
            }
        }
        let dirs = on_ranks(ranks, |comm| {
            let mine = pieces.iter().enumerate().filter(|(i, _)| i % ranks == comm.rank());
            let mine = mine.map(|(_, (tensor, kind, rect))| piece(tensor, *kind, rect.clone()));
            save(run.path(), comm, &header(3), mine, None).unwrap()
        });
        prop_assert!(dirs.iter().all(|dir| *dir == run.path().join("checkpoints/step-00000003")));
        let saved = Saved::latest(run.path()).unwrap().unwrap();
        prop_assert_eq!(saved.header(), header(3));
        saved.verify(&mut |_| ()).unwrap();
        for tensor in all_tensors(&model()) {
            for (kind, cuts) in KINDS.into_iter().cycle().zip(&cuts) {
                let rect = part(tensor.shape(), *cuts);
                let mut out = vec![0.0; rect.len()];
                saved.read(&tensor.name, kind, &rect, &mut out).unwrap();
                prop_assert_eq!(bits(&out), bits(&state(&tensor, kind, &rect)));
            }
        }
    }
}

/// Saves as the trainer does: shards of buckets, on tensor-parallel and data-parallel ranks.
#[test]
fn shards_of_buckets_cover_the_model() {
    for (tp, dp) in [(1, 1), (2, 2), (1, 4), (3, 1)] {
        let run = tempfile::tempdir().unwrap();
        on_ranks(tp * dp, |comm| {
            let (tp_rank, dp_rank) = (comm.rank() % tp, comm.rank() / tp);
            let held = |unit| Held {
                unit,
                tensors: param_specs::tensors(&model(), unit, ExpertShare::ALL),
                tie: Tie::Free,
                reduced_over: GroupKind::Data,
            };
            let held: Vec<Held> = units(&model()).into_iter().map(held).collect();
            let mut pieces = Vec::new();
            for bucket in buckets::plan(&held, (tp_rank, tp), |_| dp, 500) {
                let parts = bucket.parts(&bucket.shard(dp_rank, dp)).into_iter().filter(|part| part.owned);
                pieces.extend(parts.flat_map(|part| KINDS.map(|kind| piece(part.tensor, kind, part.rect.clone()))));
            }
            save(run.path(), comm, &header(1), pieces.into_iter(), None).unwrap();
        });
        assert_holds_the_state(&Saved::latest(run.path()).unwrap().unwrap());
    }
}

#[test]
fn a_full_header_starts_another_file() {
    let run = tempfile::tempdir().unwrap();
    let tensor = TensorSpec { dims: vec![1000, 2], ..all_tensors(&model())[0].clone() };
    let rows = || (0..1000).map(|row| piece(&tensor, StateKind::Master, Rect { rows: row..row + 1, cols: 0..2 }));
    let dir = save(run.path(), &Solo, &header(1), rows(), None).unwrap();
    assert!(dir.join("rank-00000-1.safetensors").exists());
    let saved = Saved::open(&dir).unwrap();
    let mut out = vec![0.0; 2000];
    saved.read(&tensor.name, StateKind::Master, &Rect::whole([1000, 2]), &mut out).unwrap();
    assert_eq!(bits(&out), bits(&state(&tensor, StateKind::Master, &Rect::whole([1000, 2]))));
}

#[test]
fn moments_that_were_not_saved_are_zero() {
    let run = tempfile::tempdir().unwrap();
    let masters = whole_pieces().filter(|piece| piece.kind == StateKind::Master);
    let saved = Saved::open(&save(run.path(), &Solo, &header(0), masters, None).unwrap()).unwrap();
    let mut out = vec![1.0; 12];
    saved.read("model.norm.weight", StateKind::V, &Rect::whole([1, 12]), &mut out).unwrap();
    assert_eq!(out, [0.0; 12]);
}

#[test]
fn gaps_and_overlaps_are_not_saved() {
    let run = tempfile::tempdir().unwrap();
    let tensor = &all_tensors(&model())[0];
    let rect = |rows, cols| piece(tensor, StateKind::Master, Rect { rows, cols });
    let cases = [
        (vec![rect(0..23, 0..11)], "253 of 276 elements"),
        (vec![rect(0..23, 0..12), rect(22..23, 0..1)], "overlap"),
        (vec![rect(0..12, 0..12), rect(11..22, 0..12), rect(22..23, 0..12)], "overlap"),
        (
            vec![rect(0..23, 0..12), piece(tensor, StateKind::M, Rect { rows: 0..2, cols: 0..12 })],
            "m: its pieces hold 24",
        ),
        (vec![piece(tensor, StateKind::M, Rect::whole([23, 12]))], "no master weights"),
        (vec![], "no master weights"),
    ];
    for (pieces, message) in cases {
        let error = save(run.path(), &Solo, &header(1), pieces.into_iter(), None).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        assert!(Saved::latest(run.path()).unwrap().is_none());
        assert_eq!(std::fs::read_dir(run.path().join("checkpoints")).unwrap().count(), 0);
    }
}

#[test]
fn a_larger_model_is_refused() {
    let run = tempfile::tempdir().unwrap();
    let saved = Saved::open(&save_whole(run.path(), 1)).unwrap();
    let rect = Rect { rows: 0..1, cols: 0..13 };
    assert!(
        refusal(saved.read("model.norm.weight", StateKind::M, &rect, &mut [0.0; 13]))
            .contains("model.norm.weight has the shape [12]")
    );
    let rect = Rect { rows: 0..1, cols: 0..1 };
    assert!(
        refusal(saved.read("model.layers.2.x", StateKind::M, &rect, &mut [0.0])).contains("no tensor model.layers.2.x")
    );
}
