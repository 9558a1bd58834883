//! Rows of units: each token once an epoch, no row too long, the fit, and the order.

use std::path::Path;

use proptest::prelude::*;

use super::super::idx::TokenKind;
use super::super::writer::IndexWriter;
use super::*;

fn file(folder: &Path, lengths: &[usize]) -> IndexedFile {
    let prefix = folder.join("tokens");
    let mut writer = IndexWriter::create(&prefix, TokenKind::I32).unwrap();
    for &length in lengths {
        writer.push(&vec![1; length]).unwrap();
        writer.end_document().unwrap();
    }
    writer.finish().unwrap();
    IndexedFile::open(&prefix).unwrap()
}

/// All rows as (document, offset, count).
fn rows(file: &IndexedFile, order: &PackedOrder) -> Vec<Vec<(u32, u64, usize)>> {
    let row = |k| order.pieces(file, k).unwrap().iter().map(|p| (p.document, p.offset, p.count)).collect();
    (0..order.plan.rows).map(row).collect()
}

#[test]
fn units_go_where_they_fit_best() {
    let dir = tempfile::tempdir().unwrap();
    let file = file(dir.path(), &[6, 7, 0, 3, 25, 2, 4]);
    let order = PackedOrder::new(&file, 0..7, 10, Shuffle::No).unwrap();
    let wanted: [&[(u32, u64, usize)]; 6] = [
        &[(0, 0, 6), (5, 0, 2)],
        // The 3 tokens fit both rows, and this one exactly.
        &[(1, 0, 7), (3, 0, 3)],
        // 25 tokens are three units.
        &[(4, 0, 10)],
        &[(4, 10, 10)],
        &[(4, 20, 5), (6, 0, 4)],
        &[],
    ];
    assert_eq!(rows(&file, &order), wanted[..5]);
    let plan = PackedPlan { documents: 7, cut: 1, tokens: 47, epochs: 1, rows: 5, rows_of_epoch: 5 };
    assert_eq!(order.plan, plan);
    assert!((plan.padding(10) - 0.06).abs() < 1e-12);
    // The rows start over.
    assert_eq!(order.pieces(&file, 7).unwrap(), order.pieces(&file, 2).unwrap());
}

#[test]
fn a_source_without_tokens_has_no_rows() {
    let dir = tempfile::tempdir().unwrap();
    let file = file(dir.path(), &[0, 0]);
    let order = PackedOrder::new(&file, 0..2, 10, Shuffle::Epochs { seed: 1, rows: Some(5) }).unwrap();
    assert_eq!((order.plan.rows, order.plan.tokens), (0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn each_token_is_in_one_row_of_an_epoch(
        lengths in prop::collection::vec(0usize..40, 1..60),
        seq in 1u64..20,
        seed in any::<u32>(),
        wanted in 1u64..200,
    ) {
        prop_assume!(lengths.iter().any(|&length| length > 0));
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path(), &lengths);
        let range = 0..lengths.len() as u32;
        let order = PackedOrder::new(&file, range.clone(), seq, Shuffle::Epochs { seed, rows: Some(wanted) }).unwrap();
        prop_assert!(order.plan.rows >= wanted);
        let rows = rows(&file, &order);
        prop_assert!(rows.iter().all(|row| row.iter().map(|u| u.2 as u64).sum::<u64>() <= seq));
        // Each unit is read once an epoch.
        let mut units: Vec<_> = rows.concat();
        units.sort_unstable();
        let runs: Vec<_> = units.chunk_by(|a, b| a == b).collect();
        prop_assert!(runs.iter().all(|run| run.len() as u64 == order.plan.epochs));
        prop_assert_eq!(runs.iter().map(|run| run[0].2).sum::<usize>(), lengths.iter().sum::<usize>());
        // More rows begin with the same rows.
        let more = PackedOrder::new(&file, range, seq, Shuffle::Epochs { seed, rows: Some(2 * wanted) }).unwrap();
        prop_assert_eq!(order.pieces(&file, wanted - 1).unwrap(), more.pieces(&file, wanted - 1).unwrap());
    }
}
