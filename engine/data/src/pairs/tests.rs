//! Documents of pairs, and the two files that pairs come from.

use std::path::Path;

use super::*;

fn nowhere() -> PairSource {
    PairSource::Lines(["a".into(), "b".into()])
}

fn texts(pairs: &Pairs) -> Vec<String> {
    pairs.documents("日本", "Japan").unwrap().into_iter().map(|filled| filled.text).collect()
}

/// The tokens of a document that count in the loss.
fn counted(filled: &Filled) -> Vec<&str> {
    filled.second.iter().map(|bytes| &filled.text[bytes.clone()]).collect()
}

#[test]
fn both_orders_are_documents() {
    assert_eq!(texts(&Pairs::plain(nowhere(), Direction::Both)), ["日本 Japan", "Japan 日本"]);
    assert_eq!(texts(&Pairs::plain(nowhere(), Direction::JaEn)), ["日本 Japan"]);
    let translation = Pairs::translation(nowhere(), Direction::Both);
    assert_eq!(
        texts(&translation),
        [
            "Please translate the following Japanese text into English.\n日本 Japan",
            "Please translate the following English text into Japanese.\nJapan 日本"
        ]
    );
    let filled = translation.documents(" 日本\n", "Japan ").unwrap();
    assert_eq!(filled.iter().map(counted).collect::<Vec<_>>(), [["Japan"], ["日本"]]);
    assert_eq!(texts(&Pairs::plain(nowhere(), Direction::EnJa)), ["Japan 日本"]);
}

#[test]
fn a_template_is_filled_once() {
    let template = "{B}\n<{A}>\n{B} {a}\n";
    let pairs = Pairs::templated(nowhere(), Direction::JaEn, Loss::SecondSide, template).unwrap();
    let filled = pairs.documents("{B}", "b").unwrap().remove(0);
    assert_eq!(filled.text, "b\n<{B}>\nb {a}");
    assert_eq!(filled.second, [0..1, 8..9]);
    assert_eq!(pairs.describe(), "{B}\n<{A}>\n{B} {a}");
    for (template, missing) in [("{A}", "{B}"), ("{B} {C}", "{A}"), ("", "{A}")] {
        let error = Pairs::templated(nowhere(), Direction::JaEn, Loss::SecondSide, template).unwrap_err();
        assert!(error.contains(&format!("has no {missing};")), "{error}");
    }
}

#[test]
fn an_empty_side_is_bad() {
    let pairs = Pairs::plain(nowhere(), Direction::Both);
    assert!(pairs.documents(" \u{3000}", "a").unwrap_err().contains("the first side of the pair is empty"));
    assert!(pairs.documents("あ", "").unwrap_err().contains("the second side of the pair is empty"));
}

fn batches(folder: &Path, first: &[u8], second: &[u8]) -> Result<Vec<[String; 2]>> {
    let paths = ["a.ja", "b.en"].map(|name| folder.join(name));
    std::fs::write(&paths[0], first).unwrap();
    std::fs::write(&paths[1], second).unwrap();
    let files = paths.map(|path| lines_of(vec![path]));
    let mut pairs = Vec::new();
    for batch in Batches::new(&files, &Arc::default()) {
        let batch = batch?;
        assert_eq!(batch.first, pairs.len() as u64 + 1);
        for pair in batch.pairs {
            pairs.push(pair.map_err(Error::user)?);
        }
    }
    Ok(pairs)
}

#[test]
fn lines_of_two_files_belong_together() {
    let folder = tempfile::tempdir().unwrap();
    let pairs = batches(folder.path(), "一\r\n\n三".as_bytes(), b"one\ntwo\nthree\n").unwrap();
    let trimmed: Vec<_> = pairs.iter().map(|pair| pair.each_ref().map(|side| side.trim())).collect();
    assert_eq!(trimmed, [["一", "one"], ["", "two"], ["三", "three"]]);
    // Several chunks, which end at different lines of the two files.
    let lines = |side: &str| (0..40_000).map(|i| format!("{side} {i}\n")).collect::<String>();
    let pairs = batches(folder.path(), lines("a much longer side").as_bytes(), lines("b").as_bytes()).unwrap();
    assert_eq!(pairs.len(), 40_000);
    assert!(
        pairs
            .iter()
            .enumerate()
            .all(|(i, [a, b])| { *a == format!("a much longer side {i}\n") && *b == format!("b {i}\n") })
    );
}

#[test]
fn files_of_different_lengths_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = batches(folder.path(), b"1\n2\n", b"1\n2\n3\n4\n5").unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let error = error.to_string();
    assert!(error.contains("a.ja: has 2 lines, but ") && error.contains("b.en has 5; line i of one"), "{error}");
    let error = batches(folder.path(), b"1\n2\n", b"1\n").unwrap_err().to_string();
    assert!(error.contains("b.en: has 1 lines, but ") && error.contains("a.ja has 2"), "{error}");
}

#[test]
fn a_line_that_is_no_text_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = batches(folder.path(), b"1\n2\n", b"1\n\xff\n").unwrap_err().to_string();
    assert!(error.contains("b.en: line 2, byte 1"), "{error}");
}
