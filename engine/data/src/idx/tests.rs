//! Golden bytes (megatron-core's own), and files with every kind of damage.

use std::fs;

use proptest::prelude::*;

use super::super::check::{Limits, check};
use super::super::meta::Meta;
use super::super::writer::{IndexWriter, Written};
use super::*;

/// The bytes that megatron-core writes for the u16 sequences [1, 5, 7, 2] and [1, 9, 2].
const GOLDEN_IDX: &str = "4d4d49444944580000010000000000000008020000000000000003000000000000\
                          0004000000030000000000000000000000\
                          0800000000000000000000000000000001000000000000000200000000000000";
const GOLDEN_BIN: &str = "0100050007000200010009000200";

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn golden(folder: &Path) -> PathBuf {
    let prefix = folder.join("golden");
    fs::write(with_suffix(&prefix, "idx"), hex(GOLDEN_IDX)).unwrap();
    fs::write(with_suffix(&prefix, "bin"), hex(GOLDEN_BIN)).unwrap();
    prefix
}

#[test]
fn the_writer_makes_megatrons_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("new/a.b");
    let mut writer = IndexWriter::create(&prefix, TokenKind::for_vocab(32000)).unwrap();
    writer.push(&[1, 5]).unwrap();
    writer.push(&[7, 2]).unwrap();
    writer.end_document().unwrap();
    writer.push(&[1, 9, 2]).unwrap();
    writer.end_document().unwrap();
    assert!(!with_suffix(&prefix, "bin").exists(), "nothing under the final name before the end");
    assert_eq!(writer.finish().unwrap(), Written { documents: 2, tokens: 7 });
    assert_eq!(fs::read(with_suffix(&prefix, "idx")).unwrap(), hex(GOLDEN_IDX));
    assert_eq!(fs::read(with_suffix(&prefix, "bin")).unwrap(), hex(GOLDEN_BIN));
    assert_eq!(fs::read_dir(folder.path().join("new")).unwrap().count(), 2, "no partial files are left");
}

/// A writer that fails, or loses the race for its prefix, leaves the files that are there as they are.
#[test]
fn a_second_writer_is_refused_and_an_unfinished_one_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("a");
    let mut first = IndexWriter::create(&prefix, TokenKind::U16).unwrap();
    first.push(&[1, 2]).unwrap();
    let error = IndexWriter::create(&prefix, TokenKind::U16).err().unwrap();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("a.bin: another process is writing"), "{error}");
    first.end_document().unwrap();
    first.finish_with(&Meta::default()).unwrap();
    let mut second = IndexWriter::create(&prefix, TokenKind::U16).unwrap();
    second.push(&[9; 1_000_000]).unwrap();
    drop(second);
    let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a.bin", "a.idx", "a.meta.json"]);
    assert_eq!(IndexedFile::open(&prefix).unwrap().tokens().unwrap(), 2);
}

#[test]
fn a_document_is_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("a");
    let mut writer = IndexWriter::create(&prefix, TokenKind::U16).unwrap();
    for (ids, good) in [(vec![1, 2], true), (vec![7; 2_000_000], false), (vec![3], true), (vec![8], false)] {
        writer.push(&ids).unwrap();
        if good { writer.end_document().map(drop) } else { writer.discard_document() }.unwrap();
    }
    assert_eq!(writer.finish().unwrap(), Written { documents: 2, tokens: 3 });
    assert_eq!(fs::read(with_suffix(&prefix, "bin")).unwrap(), [1, 0, 2, 0, 3, 0]);
}

#[test]
fn the_golden_file_reads() {
    let folder = tempfile::tempdir().unwrap();
    let file = IndexedFile::open(&golden(folder.path())).unwrap();
    assert_eq!((file.sequences(), file.documents(), file.tokens().unwrap()), (2, 2, 7));
    let mut out = Vec::new();
    file.read(0, 1, 3, &mut out).unwrap();
    file.read(1, 0, 3, &mut out).unwrap();
    assert_eq!(out, [5, 7, 2, 1, 9, 2]);
    assert!(check(file.prefix(), Limits { vocab_size: Some(10) }).unwrap().findings.is_empty());
    assert_eq!(check(file.prefix(), Limits { vocab_size: Some(9) }).unwrap().findings.len(), 1);
    IndexedFile::open(file.idx().path()).unwrap();
}

#[test]
fn every_integer_kind_reads() {
    let bytes = [1u8, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let read = |kind: TokenKind| kind.tokens(&bytes).collect::<Vec<_>>();
    assert_eq!(read(TokenKind::I64), [1, -2]);
    assert_eq!(read(TokenKind::I32), [1, 0, -2, -1]);
    assert_eq!(read(TokenKind::U16), [1, 0, 0, 0, 0xfffe, 0xffff, 0xffff, 0xffff]);
    assert_eq!(read(TokenKind::I16), [1, 0, 0, 0, -2, -1, -1, -1]);
    assert_eq!(read(TokenKind::U8)[8..10], [254, 255]);
    assert_eq!(read(TokenKind::I8)[8..10], [-2, -1]);
    assert_eq!(TokenKind::for_vocab(65499), TokenKind::U16);
    assert_eq!(TokenKind::for_vocab(65500), TokenKind::I32);
}

/// Opens a golden file with one change; returns the error message.
fn refusal(change: impl FnOnce(&mut Vec<u8>, &mut Vec<u8>)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let prefix = golden(folder.path());
    let (mut idx, mut bin) = (hex(GOLDEN_IDX), hex(GOLDEN_BIN));
    change(&mut idx, &mut bin);
    fs::write(with_suffix(&prefix, "idx"), idx).unwrap();
    fs::write(with_suffix(&prefix, "bin"), bin).unwrap();
    let read_all = |file: IndexedFile| {
        file.tokens()?;
        (0..file.sequences()).try_for_each(|i| file.read(i, 0, file.length(i)? as usize, &mut Vec::new()))
    };
    let error = IndexedFile::open(&prefix).and_then(read_all).expect_err("damaged");
    assert_eq!(error.exit_code(), 2);
    error.to_string()
}

#[test]
fn damage_is_named() {
    assert!(refusal(|idx, _| idx[0] = b'X').contains("not a Megatron .idx"));
    assert!(refusal(|idx, _| idx.truncate(20)).contains("not a Megatron .idx"));
    assert!(refusal(|idx, _| idx[9] = 2).contains("its version is 2"));
    assert!(refusal(|idx, _| idx[17] = 6).contains("dtype code 6"));
    assert!(refusal(|idx, _| idx[18..26].fill(0xff)).contains("truncated or damaged"));
    assert!(refusal(|idx, _| idx.truncate(81)).contains("81 bytes, but 2 sequences and 3 document entries take 82"));
    assert!(refusal(|idx, _| idx[74] = 1).contains("from 0 to 1"));
    assert!(refusal(|_, bin| bin.truncate(12)).contains("holds 6 u16 tokens but its .idx counts 7"));
    assert!(refusal(|_, bin| bin.truncate(13)).contains("are no whole number of u16 tokens"));
    assert!(refusal(|_, bin| bin.clear()).contains("holds 0 u16 tokens"));
    assert!(refusal(|idx, _| idx[37] = 0x80).contains("sequence 0 has a length of -2147483644"));
    assert!(refusal(|idx, _| idx[50] = 200).contains("sequence 1 has 3 tokens at byte 200"));
    assert!(refusal(|idx, _| idx[57] = 0xff).contains("sequence 1"));
}

#[test]
fn missing_files_are_the_users_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let error = IndexedFile::open(&folder.path().join("none")).err().unwrap();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("none.idx"));
}

#[test]
fn check_says_where() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = golden(folder.path());
    let mut idx = hex(GOLDEN_IDX);
    idx[50] = 6;
    fs::write(with_suffix(&prefix, "idx"), idx).unwrap();
    let report = check(&prefix, Limits { vocab_size: None }).unwrap();
    let expected =
        ["sequence 1: its pointer is wrong: byte 6, where byte 8 was expected", "the sequences end at byte 12"];
    assert_eq!(report.findings.len(), 2, "{:?}", report.findings);
    assert!(report.findings.iter().zip(expected).all(|(f, e)| f.starts_with(e)), "{:?}", report.findings);
}

#[test]
fn check_counts_the_findings_that_it_does_not_show() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("a");
    let mut writer = IndexWriter::create(&prefix, TokenKind::U16).unwrap();
    for _ in 0..30 {
        writer.push(&[9]).unwrap();
        writer.end_document().unwrap();
    }
    writer.finish().unwrap();
    let report = check(&prefix, Limits { vocab_size: Some(9) }).unwrap();
    assert_eq!((report.findings.len(), report.count), (21, 30));
    assert_eq!(report.findings[20], "and 10 more findings about ids");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn mutated_files_never_panic(at in 0usize..96, value in any::<u8>(), cut in prop::option::of(0usize..96)) {
        let folder = tempfile::tempdir().unwrap();
        let prefix = golden(folder.path());
        let mut all = [hex(GOLDEN_IDX), hex(GOLDEN_BIN)].concat();
        all[at] = value;
        let (mut idx, mut bin) = (all[..82].to_vec(), all[82..].to_vec());
        if let Some(cut) = cut {
            idx.truncate(cut);
            bin.truncate(cut.saturating_sub(82));
        }
        fs::write(with_suffix(&prefix, "idx"), idx).unwrap();
        fs::write(with_suffix(&prefix, "bin"), bin).unwrap();
        check(&prefix, Limits { vocab_size: Some(100) }).ok();
        if let Ok(file) = IndexedFile::open(&prefix) {
            file.tokens().ok();
            for i in 0..file.sequences() {
                file.read(i, 0, file.length(i).unwrap() as usize, &mut Vec::new()).ok();
            }
        }
    }
}
