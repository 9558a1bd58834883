//! Whole deduplications of small inputs.

mod brute_force;
mod planted;

use std::fs;
use std::path::Path;

use serde_json::json;

use super::*;
use crate::documents::Bad;

/// A folder with an input, and what is made of it.
struct Case {
    folder: tempfile::TempDir,
    inputs: Inputs,
}

impl Case {
    /// An input file of these lines.
    fn of_lines<S: AsRef<str>>(lines: impl IntoIterator<Item = S>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("in.jsonl");
        fs::write(&path, lines.into_iter().map(|line| format!("{}\n", line.as_ref())).collect::<String>()).unwrap();
        fs::create_dir(folder.path().join("scratch")).unwrap();
        Self { folder, inputs: Inputs { paths: vec![path], format: None, key: "text".into() } }
    }

    /// An input file of records with these texts.
    fn of_texts<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> Self {
        Self::of_lines(texts.into_iter().map(|text| json!({ "text": text.as_ref() }).to_string()))
    }

    fn job(&self) -> Job<'_> {
        Job {
            inputs: &self.inputs,
            output: self.path("out.jsonl"),
            keep: Keep::First,
            threshold: 0.8,
            lines: None,
            bad: Bad::Refuse,
            workers: 2,
            memory: 100 << 20,
            scratch: self.path("scratch"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn output(&self) -> String {
        fs::read_to_string(self.path("out.jsonl")).unwrap()
    }

    /// The strings under a key in the output.
    fn written(&self, key: &str) -> Vec<String> {
        let string =
            |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()[key].as_str().unwrap().into();
        self.output().lines().map(string).collect()
    }
}

fn run(job: &Job) -> Done {
    dedup(job, |_, _, _| {}).unwrap()
}

fn error(job: &Job) -> String {
    let error = dedup(job, |_, _, _| {}).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    error.to_string()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Text of so many characters that no other `seed` has a 5-gram of.
fn text(seed: u32, characters: u32) -> String {
    let start = 0x4e00 + seed * 400;
    (0..characters).map(|n| char::from_u32(start + n % 400).unwrap()).collect()
}

#[test]
fn the_output_depends_neither_on_workers_nor_on_memory() {
    let case = Case::of_texts(planted::documents(11, 1200, 150));
    let outcome = |workers, bytes| {
        let job = Job { workers, lines: Some(10), keep: Keep::Longest, ..case.job() };
        let done = within(&job, Budget { bytes }, |_, _, _| {}).unwrap();
        (case.output(), Done { spilled: 0, ..done.clone() }, done.spilled)
    };
    let (output, done, spilled) = outcome(1, 100 << 20);
    assert!(done.clusters > 50 && done.removed_lines > 50, "{} clusters, {} lines", done.clusters, done.removed_lines);
    assert!(done.drops.rules[0].documents > 100);
    for (workers, bytes) in
        [(2, 100 << 20), (5, 100 << 20), (1, 32 << 10), (2, 32 << 10), (5, 40 << 10), (2, 300 << 10)]
    {
        let (other_output, other_done, other_spilled) = outcome(workers, bytes);
        assert!(other_output == output && other_done == done, "{workers} workers, {bytes} bytes");
        assert!(
            bytes > 1 << 20 || other_spilled > spilled + 16 * 21 * 1200,
            "sorted on the disk: {other_spilled} bytes"
        );
    }
}

#[test]
fn the_first_the_longest_or_the_newest_document_stays() {
    let (a, b) = (text(0, 300), text(1, 300));
    let longer = |text: &str, end: &str| text.to_string() + end;
    let record = |id: &str, date: &str, version: f64, text: String| {
        json!({ "id": id, "date": date, "version": version, "text": text }).to_string()
    };
    let case = Case::of_lines([
        record("a1", "2024-01-01", 2.0, a.clone()),
        record("b1", "2024-03-01", 1.0, longer(&b, "終わり")),
        record("a2", "2023-12-31", 10.0, longer(&a, "続き")),
        record("other", "2020-01-01", 0.0, text(2, 300)),
        record("a3", "2024-01-01", 10.0, longer(&a, "結末")),
        record("b2", "2024-04-01", 1.0, b.clone()),
    ]);
    let newest = |key: &str| Keep::Newest { key: key.into() };
    for (keep, ids) in [
        (Keep::First, ["a1", "b1", "other"]),
        (Keep::Longest, ["b1", "a2", "other"]),
        (newest("date"), ["a1", "other", "b2"]),
        (newest("version"), ["b1", "a2", "other"]),
    ] {
        let done = run(&Job { keep: keep.clone(), ..case.job() });
        assert_eq!(case.written("id"), ids, "{keep:?}");
        assert_eq!((done.clusters, done.drops.kept, done.drops.rules[0].documents), (2, 3, 3));
    }
}

#[test]
fn a_record_without_the_newest_key_is_bad() {
    let case = Case::of_lines([
        json!({ "text": text(0, 50), "date": "2024" }).to_string(),
        json!({ "text": text(1, 50) }).to_string(),
        json!({ "text": text(2, 50), "date": null }).to_string(),
    ]);
    let job = Job { keep: Keep::Newest { key: "date".into() }, ..case.job() };
    assert!(error(&job).contains("in.jsonl: line 2: no key \"date\" (it has \"text\"); --keep"), "{}", error(&job));
    let done = run(&Job { bad: Bad::Skip, ..job });
    assert_eq!((done.skipped.count, done.drops.skipped, done.drops.documents), (2, 2, 1));
    assert!(done.skipped.first[1].contains("in.jsonl: line 3: the value of \"date\" is null"), "{:?}", done.skipped);
    let (text_file, scratch) = (case.path("a.txt"), case.path("scratch"));
    fs::write(&text_file, "plain").unwrap();
    let inputs = Inputs { paths: vec![text_file], format: None, key: "text".into() };
    let job = Job { inputs: &inputs, keep: Keep::Newest { key: "date".into() }, ..case.job() };
    assert!(error(&job).contains("a.txt: line 1: a text file has no key \"date\""), "{}", error(&job));
    assert!(names(&scratch).is_empty());
}

#[test]
fn strings_and_numbers_under_the_newest_key_are_refused() {
    // The two kinds are in different batches.
    let filler = "x".repeat(200_000);
    let case = Case::of_lines([
        json!({ "text": filler, "date": "2024" }).to_string(),
        json!({ "text": filler, "date": "2025" }).to_string(),
        json!({ "text": filler, "date": 2026 }).to_string(),
    ]);
    let error = error(&Job { keep: Keep::Newest { key: "date".into() }, ..case.job() });
    let place = |line: u32| format!("{}: line {line}", case.path("in.jsonl").display());
    let (string, number) = (place(1), place(3));
    assert!(
        error.starts_with(&format!("{string}: the value of \"date\" is a string, but at {number} it is")),
        "{error}"
    );
}

#[test]
fn repeated_lines_are_removed_from_documents_that_stay() {
    let own = |n: u32| text(10 + n, 60);
    let case = Case::of_texts([
        format!("{}\nこの行は繰り返される。\n短い\nこの行は繰り返される。", own(0)),
        format!("短い\r\nこの行は繰り返される。\r\n{}", own(1)),
        // A near duplicate of the first one; a line of its own is not seen by those after it.
        format!("{}\nこの行は繰り返される。\n短い\nこの行は繰り返される。\n一つだけの行はこれ", own(0)),
        "この行は繰り返される。\n\n この行は繰り返される。".to_string(),
        "一つだけの行はこれ\n".to_string(),
        " \n".to_string(),
        format!("{}\n\n", own(1)),
    ]);
    let done = run(&Job { lines: Some(9), ..case.job() });
    let expected = [
        format!("{}\nこの行は繰り返される。\n短い", own(0)),
        format!("短い\r\n{}", own(1)),
        "\n この行は繰り返される。".to_string(),
        "一つだけの行はこれ\n".to_string(),
        " \n".to_string(),
    ];
    assert_eq!(case.written("text"), expected);
    assert_eq!((done.removed_lines, done.clusters), (4, 1));
    let [near, lines] = done.drops.rules.as_slice() else { panic!("two rules") };
    assert_eq!((near.documents, lines.documents), (1, 1));
    assert_eq!((lines.name.as_str(), lines.examples[0].line), ("repeated_lines", 7));
    assert_eq!(lines.examples[0].value.as_deref(), Some("1 line repeated"));
    let without = run(&case.job());
    assert_eq!((without.removed_lines, without.drops.kept, without.drops.rules.len()), (0, 6, 1));
}

#[test]
fn drops_name_what_stays_and_count_characters() {
    let case = Case::of_texts([text(0, 300), text(1, 250), text(0, 301) + "𠮟", text(0, 300)]);
    let mut phases = Vec::new();
    let done = dedup(&case.job(), |phase, done, of| phases.push((phase, done, of))).unwrap();
    let drops = &done.drops;
    assert_eq!((drops.documents, drops.characters, drops.kept, drops.kept_characters), (4, 1152, 2, 550));
    let rule = &drops.rules[0];
    assert_eq!((rule.name.as_str(), rule.documents, rule.characters), ("near_duplicate", 2, 602));
    let place = format!("{}: line 1", case.path("in.jsonl").display());
    for (example, line) in rule.examples.iter().zip([3, 4]) {
        assert_eq!((example.line, example.value.as_deref()), (line, Some(place.as_str())));
        assert_eq!(example.text, text(0, 200));
    }
    let size = fs::metadata(case.path("in.jsonl")).unwrap().len();
    let comparing = [1, 84].map(|done| (Phase::Comparing, done, 84));
    assert_eq!(phases, [(Phase::Reading, size, size), comparing[0], comparing[1], (Phase::Writing, 4, 4)]);
    assert!(done.spilled > 0);
}

#[test]
fn records_are_written_byte_for_byte() {
    let lines = [
        r#"{ "text" : "\u3042いう", "n": 1.50 ,"x":[ ]}"#.to_string(),
        format!("{{\"z\": \"{}\\n\", \"text\": \"plain\", \"a\": 12345678901234567890123}}", "z".repeat(40_000)),
        r#"{"text": "\ud842\udfb7\/"}"#.to_string(),
    ];
    let case = Case::of_lines([&lines[0], "", "  \r", &(lines[1].clone() + "\r"), &lines[2]]);
    run(&case.job());
    assert_eq!(case.output(), lines.join("\n") + "\n");
    let job = Job { lines: Some(1), ..case.job() };
    run(&job);
    assert_eq!(case.output(), lines.join("\n") + "\n", "no line is repeated");
}

#[test]
fn tiny_documents_and_text_files_are_documents() {
    let mut case = Case::of_texts(["", "a", "", "b", "あ", "a", "😀", "😀😀😀😀", "abcde", "abcdef", "abcde"]);
    for (name, text) in [("c.txt", "a"), ("d.txt", ""), ("e.txt", "new\r\nlines\"")] {
        fs::write(case.path(name), text).unwrap();
        let path = case.path(name);
        case.inputs.paths.push(path);
    }
    let done = run(&case.job());
    assert_eq!(case.written("text"), ["", "a", "b", "あ", "😀", "😀😀😀😀", "abcde", "abcdef", "new\r\nlines\""]);
    assert_eq!((done.drops.documents, done.drops.kept, done.clusters), (14, 9, 3));
}

#[test]
fn no_document_makes_an_empty_output() {
    let case = Case::of_lines(["", " "]);
    let done = run(&Job { lines: Some(5), keep: Keep::Longest, ..case.job() });
    assert_eq!((case.output().as_str(), done.drops.documents, done.clusters), ("", 0, 0));
}

#[test]
fn thousands_of_copies_are_one_cluster() {
    let case = Case::of_texts((0..10_000).map(|n| if n % 1000 == 0 { text(n / 1000, 50) } else { "同じ文書".into() }));
    let done = run(&case.job());
    assert_eq!((done.clusters, done.drops.kept), (1, 11));
    assert_eq!(done.drops.rules[0].documents, 9_989);
}

#[test]
fn settings_without_a_meaning_are_refused_and_leave_nothing() {
    let case = Case::of_texts(["a"]);
    for (job, what) in [
        (Job { threshold: 0.0, ..case.job() }, "--threshold 0: near duplicates are found by a Jaccard"),
        (Job { threshold: 1.01, ..case.job() }, "--threshold 1.01: "),
        (Job { threshold: f64::NAN, ..case.job() }, "--threshold NaN: "),
        (Job { lines: Some(0), ..case.job() }, "--lines 0: "),
        (Job { memory: 1 << 20, ..case.job() }, "--memory: 1 MB is too little for 2 workers"),
        (Job { scratch: case.path("none"), ..case.job() }, "none: it does not exist; "),
        (Job { output: case.path("out.txt"), ..case.job() }, "out.txt: "),
    ] {
        let error = error(&job);
        assert!(error.contains(what), "{error}");
    }
    assert_eq!(names(case.folder.path()), ["in.jsonl", "scratch"]);
}

#[test]
fn an_error_leaves_neither_an_output_nor_temporary_files() {
    let good = (0..3000).map(|n| json!({ "text": text(n % 40, 100 + n / 40) }).to_string());
    let case = Case::of_lines(good.chain(["no JSON".into()]));
    let job = Job { lines: Some(5), ..case.job() };
    let error = within(&job, Budget { bytes: 32 << 10 }, |_, _, _| {}).unwrap_err().to_string();
    assert!(error.contains("in.jsonl: line 3001: is not a JSON object"), "{error}");
    assert_eq!(names(case.folder.path()), ["in.jsonl", "scratch"]);
    assert!(names(&case.path("scratch")).is_empty());
    let done = run(&Job { bad: Bad::Skip, ..job });
    assert_eq!((done.skipped.count, done.drops.skipped), (1, 1));
    assert!(names(&case.path("scratch")).is_empty());
}
