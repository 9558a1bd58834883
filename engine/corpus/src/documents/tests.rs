//! Documents against what was written: lines, text files, bad records, and lines of JSON made of them.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::*;

type Read = std::result::Result<Document, String>;

fn inputs(paths: impl IntoIterator<Item = PathBuf>) -> Inputs {
    Inputs { paths: paths.into_iter().collect(), format: None, key: "text".into() }
}

/// Writes a file and reads its documents.
fn documents_of(name: &str, bytes: &[u8]) -> Vec<Read> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let read = Arc::new(AtomicU64::new(0));
    let inputs = inputs([path]);
    let documents = batches(&inputs, read.clone()).flat_map(|batch| batch.unwrap().documents("text")).collect();
    assert_eq!(read.load(Ordering::Relaxed), bytes.len() as u64);
    documents
}

#[test]
fn records_keep_their_lines_without_line_ends() {
    let bytes = "\u{feff}{\"text\": \"一\"}\r\n\n  \n\u{feff}{\"n\": NaN, \"text\": \"𠮟\\n\"}\n{\"text\": \"\"}";
    let documents: Vec<Document> = documents_of("a.jsonl", bytes.as_bytes()).into_iter().map(Read::unwrap).collect();
    let found: Vec<_> = documents.iter().map(|d| (d.text.as_str(), d.record.as_deref().unwrap(), d.line)).collect();
    let expected = [
        ("一", "{\"text\": \"一\"}", 1),
        ("𠮟\n", "{\"n\": NaN, \"text\": \"𠮟\\n\"}", 4),
        ("", "{\"text\": \"\"}", 5),
    ];
    assert_eq!(found, expected);
    assert!(documents[1].place().ends_with("a.jsonl: line 4"), "{}", documents[1].place());
}

#[test]
fn bad_records_are_messages_in_their_place() {
    let bytes = b"{\"text\": \"a\"}\n{\"body\": 1}\n{\"text\": \"\xe9\"}\n{\"text\": \"b\"}\n";
    let documents = documents_of("a.jsonl", bytes);
    assert_eq!(documents.len(), 4);
    for (document, place) in [(&documents[1], "a.jsonl: line 2: no key"), (&documents[2], "a.jsonl: line 3, byte 11")] {
        let error = document.as_ref().unwrap_err();
        assert!(error.contains(place), "{error}");
    }
    assert_eq!(documents[3].as_ref().unwrap().text, "b");
    assert!(documents_of("a.jsonl", b"").is_empty());
}

/// A text file is one document, also where its characters are cut by the reader's chunks.
#[test]
fn a_text_file_is_one_document() {
    for text in ["", "a", "一行目\r\n\n二行目\n", &"長い𠮟".repeat(100_000)] {
        let documents = documents_of("a.txt", text.as_bytes());
        assert_eq!(documents.len(), 1);
        let document = documents[0].as_ref().unwrap();
        assert!(document.text == text && document.record.is_none() && document.line == 1);
    }
    let half = "行\n".repeat(100_000);
    let documents = documents_of("a.txt", &[half.as_bytes(), b"\xff", half.as_bytes()].concat());
    assert_eq!(documents.len(), 1);
    assert!(documents[0].as_ref().unwrap_err().contains("a.txt: line 100001, byte 1"));
}

/// What comes after the file that is too long is read.
#[test]
fn a_text_file_that_is_too_long_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let [long, short] = ["long.txt", "short.txt"].map(|name| folder.path().join(name));
    std::fs::write(&long, vec![b'x'; LONGEST_LINE + 1]).unwrap();
    std::fs::write(&short, "short").unwrap();
    let inputs = inputs([long, short]);
    let all: Vec<Batch> = batches(&inputs, Arc::default()).map(Result::unwrap).collect();
    assert_eq!(all.len(), 2);
    assert!(all[0].size() < 1000, "{} bytes of a document that is not used", all[0].size());
    let error = all[0].documents("text")[0].as_ref().unwrap_err().clone();
    assert!(error.contains("long.txt: line 1: the file is one document, and longer than 64 MiB"), "{error}");
    assert_eq!(all[1].documents("text")[0].as_ref().unwrap().text, "short");
}

#[test]
fn a_line_that_is_too_long_is_a_bad_record() {
    let long =
        [&b"{\"text\": \"a\"}\n{\"text\": \""[..], &vec![b'x'; LONGEST_LINE], b"\"}\n{\"text\": \"b\"}\n"].concat();
    let documents = documents_of("a.jsonl", &long);
    assert_eq!(documents.len(), 3);
    assert!(documents[1].as_ref().unwrap_err().contains("line 2 is longer than 64 MiB"));
    assert_eq!(documents[2].as_ref().unwrap().text, "b");
}

#[test]
fn batches_are_small() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    std::fs::write(&path, "{\"text\": \"a line\"}\n".repeat(100_000)).unwrap();
    let sizes: Vec<usize> = batches(&inputs([path]), Arc::default()).map(|batch| batch.unwrap().size()).collect();
    assert!(sizes.iter().all(|&size| size <= 257 << 10), "{sizes:?}");
    assert_eq!(sizes.iter().sum::<usize>(), 1_900_000);
}

#[test]
fn a_document_becomes_a_line_of_json() {
    let document = |text: &str, record: Option<&str>| Document {
        text: text.into(),
        record: record.map(String::from),
        file: Path::new("a").into(),
        line: 3,
    };
    let record = "{\"id\": 1.0, \"text\": \"\\u3042\", \"url\": null }";
    assert_eq!(document("あ", Some(record)).as_json("text", "あ").unwrap(), record);
    let changed = "{\"id\": 1.0, \"text\": \"\\\"\\n語\", \"url\": null }";
    assert_eq!(document("あ", Some(record)).as_json("text", "\"\n語").unwrap(), changed);
    assert_eq!(document("あ", None).as_json("body", "a\\b").unwrap(), "{\"body\": \"a\\\\b\"}");
    let error = document("あ", Some("[]")).as_json("text", "い").unwrap_err();
    assert_eq!(error, "a: line 3: is not a JSON object");
}

#[test]
fn bad_records_end_the_command_or_are_counted() {
    let mut skipped = Skipped::default();
    for i in 0..25 {
        Bad::Skip.record(format!("a: line {i}"), &mut skipped).unwrap();
    }
    assert_eq!((skipped.count, skipped.first.len(), skipped.first[9].as_str()), (25, 10, "a: line 9"));
    let error = Bad::Refuse.record("a: line 1: bad".into(), &mut skipped).unwrap_err();
    assert_eq!((error.exit_code(), error.to_string().as_str()), (2, "a: line 1: bad"));
}
