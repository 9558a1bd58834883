//! The pipeline: what is stored, in which order, and what is left behind when it fails.

use std::path::Path;

use super::*;
use crate::idx::IndexedFile;

fn tokenizer() -> Tokenizer {
    Tokenizer::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tokenizers/tokenizer.model"))
        .unwrap()
}

fn job<'a>(tokenizer: &'a Tokenizer, inputs: &'a [PathBuf], output: PathBuf, workers: usize) -> Job<'a> {
    Job { inputs, output, tokenizer, key: "text".into(), bos: tokenizer.bos(), eos: tokenizer.eos(), workers }
}

#[test]
fn the_output_is_the_same_with_any_number_of_workers() {
    let folder = tempfile::tempdir().unwrap();
    let (lines, text) = (folder.path().join("a.jsonl"), folder.path().join("b.txt"));
    let documents: Vec<String> =
        (0..14_000).map(|i| format!("Document {i}\n, ") + &"and so on. ".repeat(i % 17)).collect();
    let json = documents.iter().map(|d| serde_json::json!({ "text": d }).to_string() + "\n").collect::<String>();
    std::fs::write(&lines, json + "{\"text\": \"\"}\n").unwrap();
    std::fs::write(&text, documents.concat()).unwrap();
    let (tokenizer, inputs) = (tokenizer(), [lines, text]);
    let run = |workers: usize| {
        let output = folder.path().join(format!("out{workers}"));
        let mut calls = 0;
        let done = tokenize(&job(&tokenizer, &inputs, output.clone(), workers), |_| calls += 1).unwrap();
        assert!(calls >= 3, "several chunks of each file");
        assert_eq!((done.documents, done.empty, done.read), (14_001, 1, done.total));
        (output.with_extension("bin"), output.with_extension("idx"), output)
    };
    let (one, many) = (run(1), run(5));
    assert_eq!(std::fs::read(&one.0).unwrap(), std::fs::read(&many.0).unwrap());
    assert_eq!(std::fs::read(&one.1).unwrap(), std::fs::read(&many.1).unwrap());
    let file = IndexedFile::open(&one.2).unwrap();
    for (i, document) in [(0, &documents[0]), (7_345, &documents[7_345]), (14_000, &documents.concat())] {
        let mut ids = Vec::new();
        file.read(i, 0, file.length(i) as usize, &mut ids).unwrap();
        let expected = [vec![1], tokenizer.encode(document).unwrap(), vec![2]].concat();
        assert!(ids == expected, "document {i}");
    }
    let meta = Meta::read(&one.2).unwrap();
    assert_eq!((meta.vocab_size, meta.bos), (tokenizer.vocab_size(), Some(1)));
    assert!(meta.unchanged_tokenizer().is_some());
}

#[test]
fn the_first_error_stops_it_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let good = folder.path().join("a.jsonl");
    std::fs::write(&good, "{\"text\": \"some text of a line\"}\n".repeat(60_000) + "{\"text\": 7}\n{\n").unwrap();
    let (tokenizer, inputs) = (tokenizer(), [good]);
    let output = folder.path().join("out");
    let error = tokenize(&job(&tokenizer, &inputs, output, 3), |_| {}).unwrap_err().to_string();
    assert!(error.contains("a.jsonl: line 60001: the value of \"text\""), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "only the input is left");
}

#[test]
fn no_text_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("a.txt");
    std::fs::write(&empty, "").unwrap();
    let (tokenizer, inputs) = (tokenizer(), [empty]);
    let error = tokenize(&job(&tokenizer, &inputs, folder.path().join("out"), 1), |_| {}).unwrap_err();
    assert!(error.to_string().contains("hold no text"));
}
