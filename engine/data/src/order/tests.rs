//! Golden orders, confirmed against megatron-core 0.16.1.

use proptest::prelude::*;

use super::super::idx::TokenKind;
use super::super::writer::IndexWriter;
use super::*;

const LENGTHS: [usize; 6] = [5, 3, 7, 2, 9, 4];

/// Documents of the given lengths; token `t` of document `d` is `100 d + t`.
fn file(folder: &std::path::Path, lengths: &[usize]) -> IndexedFile {
    let prefix = folder.join("tokens");
    let mut writer = IndexWriter::create(&prefix, TokenKind::I32).unwrap();
    for (d, &length) in lengths.iter().enumerate() {
        writer.push(&(0..length as u32).map(|t| 100 * d as u32 + t).collect::<Vec<_>>()).unwrap();
        writer.end_document().unwrap();
    }
    writer.finish().unwrap();
    IndexedFile::open(&prefix).unwrap()
}

fn golden(samples: u64, documents: &[u32], shuffle: &[u32], separate: bool) -> SampleOrder {
    let folder = tempfile::tempdir().unwrap();
    let file = file(folder.path(), &LENGTHS);
    let order = SampleOrder::megatron(&file, 0..6, 4, 1234, Some(samples)).unwrap();
    assert!(matches!(&order.documents, Documents::Shuffled(index) if index == documents), "{:?}", order.documents);
    assert!(matches!(&order.shuffle, Shuffle::Narrow(index) if index == shuffle), "{:?}", order.shuffle);
    assert_eq!(order.plan.separate, separate);
    order
}

#[test]
fn one_epoch() {
    let order = golden(5, &[2, 1, 5, 0, 4, 3], &[5, 0, 3, 4, 2, 6, 1], false);
    let folder = tempfile::tempdir().unwrap();
    let file = file(folder.path(), &LENGTHS);
    let starts: Vec<_> = (0..=7).map(|j| order.locate(&file, 4 * j).unwrap().unwrap()).collect();
    assert_eq!(starts, [(0, 0), (0, 4), (1, 1), (2, 2), (3, 2), (4, 1), (4, 5), (5, 0)]);
    // Sample 0 is the sixth of the stream: document 4 from token 1.
    assert_eq!(order.pieces(&file, 0).unwrap(), [Piece { document: 4, offset: 1, count: 5 }]);
    // Sample 3 is the fifth: document 0 from token 2, then document 4.
    let two = [Piece { document: 0, offset: 2, count: 3 }, Piece { document: 4, offset: 0, count: 2 }];
    assert_eq!(order.pieces(&file, 3).unwrap(), two);
}

#[test]
fn two_epochs_the_last_apart() {
    golden(9, &[2, 1, 5, 0, 4, 3, 0, 4, 3, 2, 5, 1], &[1, 0, 3, 2, 5, 4, 6, 9, 10, 12, 8, 11, 13, 7], true);
}

#[test]
fn two_epochs_together() {
    golden(14, &[1, 2, 5, 2, 3, 4, 1, 0, 4, 5, 0, 3], &[7, 11, 2, 3, 1, 9, 5, 4, 0, 8, 6, 10, 13, 12], false);
}

#[test]
fn a_sample_crosses_empty_and_many_documents() {
    let folder = tempfile::tempdir().unwrap();
    let lengths: Vec<usize> = (0..1000).map(|i| if i % 3 == 0 { 0 } else { i % 5 }).collect();
    let file = file(folder.path(), &lengths);
    let order = SampleOrder::sequential(&file, 0..1000, 150).unwrap();
    let flat: Vec<u32> =
        lengths.iter().enumerate().flat_map(|(d, &n)| (0..n as u32).map(move |t| 100 * d as u32 + t)).collect();
    assert_eq!(order.plan.samples as usize, (flat.len() - 1) / 150);
    for k in 0..order.plan.samples + 3 {
        let mut ids = Vec::new();
        for piece in order.pieces(&file, k).unwrap() {
            file.read(piece.document as usize, piece.offset, piece.count, &mut ids).unwrap();
        }
        let start = (k % order.plan.samples) as usize * 150;
        assert_eq!(ids, flat[start..=start + 150]);
    }
}

#[test]
fn splits_end_at_rounded_shares() {
    assert_eq!(split_range(1000, [949.0, 50.0, 1.0], 0), Some(0..949));
    assert_eq!(split_range(1000, [949.0, 50.0, 1.0], 1), Some(949..999));
    assert_eq!(split_range(5, [0.5, 0.5, 0.0], 0), Some(0..2), "2.5 rounds to even, as Python does");
    assert_eq!(split_range(7, [1.0, 0.0, 0.0], 0), Some(0..7));
    assert_eq!(split_range(7, [1.0, 0.0, 0.0], 1), None);
}

#[test]
fn little_data_for_many_steps_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = file(folder.path(), &[1, 1, 1]);
    let error = SampleOrder::megatron(&file, 0..3, 1 << 20, 1, Some(1 << 30)).unwrap_err();
    assert!(error.to_string().contains("tokens would be read"), "{error}");
}

/// Overwrites the length of sequence `i` in a file that is open.
fn bend(folder: &std::path::Path, i: usize, length: i32) {
    use std::os::unix::fs::FileExt;
    let idx = std::fs::OpenOptions::new().write(true).open(folder.join("tokens.idx")).unwrap();
    idx.write_all_at(&length.to_le_bytes(), 34 + 4 * i as u64).unwrap();
}

/// The tokens of every sample.
fn read_all(order: &SampleOrder, file: &IndexedFile) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for k in 0..order.plan.samples {
        for piece in order.pieces(file, k)? {
            file.read(piece.document as usize, piece.offset, piece.count, &mut ids)?;
        }
    }
    Ok(ids)
}

#[test]
fn a_file_that_changes_under_its_order_is_named() {
    for lengths in [[0; 6], [-1; 6], [i32::MAX; 6], [5, 3, 7, 2, 9, 3], [1, 3, 7, 2, 9, 4]] {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path(), &LENGTHS);
        let orders = [
            // All samples of two epochs.
            SampleOrder::megatron(&file, 0..6, 59, 1234, Some(1)).unwrap(),
            SampleOrder::sequential(&file, 0..6, 29).unwrap(),
        ];
        lengths.into_iter().enumerate().for_each(|(i, length)| bend(folder.path(), i, length));
        for order in orders {
            let error = read_all(&order, &file).expect_err("the lengths are others");
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains("tokens.idx: "), "{lengths:?}: {error}");
        }
    }
}

proptest! {
    #[test]
    fn no_change_to_a_length_is_a_panic(changes in prop::collection::vec((0usize..6, -2i32..40), 1..6)) {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path(), &LENGTHS);
        let order = SampleOrder::megatron(&file, 0..6, 4, 1234, Some(9)).unwrap();
        changes.into_iter().for_each(|(i, length)| bend(folder.path(), i, length));
        if let Ok(ids) = read_all(&order, &file) {
            prop_assert_eq!(ids.len() as u64, 5 * order.plan.samples);
        }
    }
}
