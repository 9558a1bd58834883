//! The pipeline: the stored tokens, their order, and the files that are left when it fails.

use super::super::checkout;
use super::super::idx::IndexedFile;
use super::super::text::Inputs;
use super::super::tokenizer::LONGEST_UNCUT;
use super::*;

fn tokenizer() -> Tokenizer {
    Tokenizer::open(&checkout().join("tests/golden/tokenizers/tokenizer.model")).unwrap()
}

fn inputs(paths: impl IntoIterator<Item = PathBuf>) -> Inputs {
    Inputs { paths: paths.into_iter().collect(), format: None, key: "text".into() }
}

fn job<'a>(tokenizer: &'a Tokenizer, inputs: &'a Inputs, output: PathBuf, workers: usize) -> Job<'a> {
    let (bos, eos) = (tokenizer.bos().ok(), tokenizer.eos().ok());
    Job { records: Records::Texts(inputs), output, tokenizer, bos, eos, skip_bad: false, workers }
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
    let total = [&lines, &text].map(|path| std::fs::metadata(path).unwrap().len()).iter().sum();
    let (tokenizer, inputs) = (tokenizer(), inputs([lines, text]));
    let run = |workers: usize| {
        let output = folder.path().join(format!("out{workers}"));
        let mut calls = 0;
        let done = tokenize(&job(&tokenizer, &inputs, output.clone(), workers), |_| calls += 1).unwrap();
        assert!(calls >= 3, "several chunks of each file");
        assert_eq!((done.documents, done.empty, done.read), (14_001, 1, total));
        (output.with_extension("bin"), output.with_extension("idx"), output)
    };
    let (one, many) = (run(1), run(5));
    assert_eq!(std::fs::read(&one.0).unwrap(), std::fs::read(&many.0).unwrap());
    assert_eq!(std::fs::read(&one.1).unwrap(), std::fs::read(&many.1).unwrap());
    let file = IndexedFile::open(&one.2).unwrap();
    for (i, document) in [(0, &documents[0]), (7_345, &documents[7_345]), (14_000, &documents.concat())] {
        let mut ids = Vec::new();
        file.read(i, 0, file.length(i).unwrap() as usize, &mut ids).unwrap();
        let expected = [vec![1], tokenizer.encode(document).unwrap(), vec![2]].concat();
        assert!(ids == expected, "document {i}");
    }
    let meta = Meta::read(&one.2).unwrap().unwrap();
    assert_eq!((meta.vocab_size, meta.bos), (Some(tokenizer.vocab_size()), Some(1)));
    assert!(meta.unchanged_tokenizer().is_some());
}

#[test]
fn the_first_error_stops_it_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let good = folder.path().join("a.jsonl");
    std::fs::write(&good, "{\"text\": \"some text of a line\"}\n".repeat(60_000) + "{\"text\": 7}\n{\n").unwrap();
    let (tokenizer, inputs) = (tokenizer(), inputs([good]));
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
    let (tokenizer, inputs) = (tokenizer(), inputs([empty]));
    let error = tokenize(&job(&tokenizer, &inputs, folder.path().join("out"), 1), |_| {}).unwrap_err();
    assert!(error.to_string().contains("hold no text"));
}

/// Bad records of every kind, and texts of which a later part is bad, are left out and counted; the others are whole.
#[test]
fn bad_records_are_skipped_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let [lines, bad_text, text] = ["a.jsonl", "b.txt", "c.txt"].map(|name| folder.path().join(name));
    let mut bytes = b"{\"text\": \"one\"}\n{\"text\": \"cut \\ud83d\"}\n\n".to_vec();
    bytes.extend(b"{\"text\": \"caf\xe9\"}\n{\"body\": 1}\n");
    bytes.extend(b"{\"text\": \"two\"}\n[]\n".repeat(20));
    std::fs::write(&lines, bytes).unwrap();
    let half = b"a line\n".repeat(1 << 18);
    std::fs::write(&bad_text, [&half[..], b"\xff\n", &half].concat()).unwrap();
    std::fs::write(&text, "three").unwrap();
    let (tokenizer, inputs) = (tokenizer(), inputs([lines, bad_text, text]));
    let output = folder.path().join("out");
    let mut job = job(&tokenizer, &inputs, output.clone(), 3);
    let error = tokenize(&job, |_| {}).unwrap_err().to_string();
    assert!(error.contains("a.jsonl: line 2: a lone surrogate"), "{error}");
    job.skip_bad = true;
    let done = tokenize(&job, |_| {}).unwrap();
    assert_eq!((done.documents, done.bad, done.first_bad.len()), (22, 24, 10));
    assert!(done.first_bad[1].contains("a.jsonl: line 4, byte 14"), "{}", done.first_bad[1]);
    let file = IndexedFile::open(&output).unwrap();
    assert_eq!(file.tokens().unwrap(), done.tokens);
    let mut ids = Vec::new();
    file.read(21, 0, file.length(21).unwrap() as usize, &mut ids).unwrap();
    assert_eq!(ids, [vec![1], tokenizer.encode("three").unwrap(), vec![2]].concat());
}

/// A document that must be encoded as a whole is bounded; one that may be cut is not.
#[test]
fn long_documents_are_cut_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    let line = |text: &str| format!("{{\"text\": \"{text}\"}}\n");
    let (short, long) = ("ab ".repeat(10), "ab ".repeat(LONGEST_UNCUT / 3 + 1));
    std::fs::write(&path, [line(&short), line(&long), line("cd")].concat()).unwrap();
    let (tokenizer, inputs) = (tokenizer(), inputs([path]));
    let mut job = job(&tokenizer, &inputs, folder.path().join("out"), 2);
    let error = tokenize(&job, |_| {}).unwrap_err().to_string();
    assert!(error.contains("a.jsonl: line 2: a text of 16.0 MiB in which this tokenizer allows no cut"), "{error}");
    job.skip_bad = true;
    assert_eq!(tokenize(&job, |_| {}).unwrap().documents, 2);
    let json = Tokenizer::open(&checkout().join("tests/golden/tokenizers/tokenizer.json")).unwrap();
    job.tokenizer = &json;
    assert_eq!(tokenize(&job, |_| {}).unwrap().documents, 3);
}
