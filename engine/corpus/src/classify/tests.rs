//! The three commands on files: what is learned, the classifier's file, scores in records, and the choice by score.

use std::fs;
use std::path::{Path, PathBuf};

use data::text::Inputs;
use engine::error::Result;
use safetensors::tensor::{Dtype, TensorView, serialize};

use super::features::BUCKETS;
use super::*;
use crate::documents::Bad;
use crate::drops::Drops;

fn inputs(paths: impl IntoIterator<Item = PathBuf>) -> Inputs {
    Inputs { paths: paths.into_iter().collect(), format: None, key: "text".into() }
}

/// JSON lines of documents of a kind: texts about the sea or about mountains, with words of both.
fn write_documents(path: &Path, topic: &str, count: usize) {
    let text = |i: usize| format!("文書{i}。{topic}の話である。{}と{}。", ["春", "夏", "秋"][i % 3], i * 7919 % 1009);
    let lines = (0..count).map(|i| format!("{{\"id\": {i}, \"text\": \"{}\"}}\n", text(i)));
    fs::write(path, lines.collect::<String>()).unwrap();
}

/// A classifier of 230 and 170 documents in a folder.
fn train_in(folder: &Path, workers: usize) -> (PathBuf, Trained, Vec<Step>) {
    let [positive, negative] = ["sea.jsonl", "mountains.jsonl"].map(|name| folder.join(name));
    write_documents(&positive, "海", 230);
    write_documents(&negative, "山", 170);
    let output = folder.join(format!("new/{workers}.safetensors"));
    let (positive, negative) = (inputs([positive]), inputs([negative]));
    let job = TrainJob { positive: &positive, negative: &negative, output: output.clone(), bad: Bad::Refuse, workers };
    let mut steps = Vec::new();
    let trained = train(&job, |step| steps.push(step)).unwrap();
    (output, trained, steps)
}

#[test]
fn a_classifier_learns_and_does_not_depend_on_the_workers() {
    let folder = tempfile::tempdir().unwrap();
    let (path, trained, steps) = train_in(folder.path(), 1);
    assert_eq!((trained.positive, trained.negative, trained.held_out), (230, 170, 40));
    assert_eq!((trained.accuracy, trained.auc), (1.0, 1.0));
    let done = |step: &Step| matches!(step, Step::Training { done, of } if done == of && *of == 5 * 360);
    assert!(steps.last().is_some_and(done) && matches!(steps[0], Step::Reading(1..)), "{steps:?}");
    let bytes = fs::read(&path).unwrap();
    for workers in [2, 5] {
        assert!(fs::read(train_in(folder.path(), workers).0).unwrap() == bytes, "{workers} workers");
    }
    let classifier = Classifier::open(&path).unwrap();
    let (sea, mountains) = (classifier.score("海の話"), classifier.score("山の話"));
    assert!(sea > 0.6 && mountains < 0.4, "{sea} {mountains}");
    for text in ["", " \n", "ascii", &"長い".repeat(50_000)] {
        assert!((0.0..=1.0).contains(&classifier.score(text)), "{text}");
    }
    assert_eq!(classifier.score("THE  sea\n\n"), classifier.score("the sea "));
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let [few, many] = ["few.jsonl", "many.jsonl"].map(|name| folder.path().join(name));
    write_documents(&few, "海", 9);
    write_documents(&many, "山", 50);
    fs::write(folder.path().join("bad.jsonl"), "{\"body\": 1}\n".repeat(3) + &fs::read_to_string(&many).unwrap())
        .unwrap();
    let error = |positive: &str, negative: &str, output: &str| {
        let [positive, negative] = [positive, negative].map(|name| inputs([folder.path().join(name)]));
        let output = folder.path().join(output);
        let job = TrainJob { positive: &positive, negative: &negative, output, bad: Bad::Refuse, workers: 2 };
        train(&job, |_| ()).unwrap_err().to_string()
    };
    let message = error("few.jsonl", "many.jsonl", "a.safetensors");
    assert!(message.contains("few.jsonl: 9 positive documents; at least 10 are needed"), "{message}");
    let message = error("many.jsonl", "few.jsonl", "a.safetensors");
    assert!(message.contains("few.jsonl: 9 negative documents"), "{message}");
    let message = error("many.jsonl", "bad.jsonl", "a.safetensors");
    assert!(message.contains("bad.jsonl: line 1: no key \"text\""), "{message}");
    let message = error("many.jsonl", "many.jsonl", "a.bin");
    assert!(message.contains("a.bin: the classifier's name must end in .safetensors"), "{message}");
    let [positive, negative] = [many, folder.path().join("bad.jsonl")].map(|path| inputs([path]));
    let output = folder.path().join("a.safetensors");
    let job = TrainJob { positive: &positive, negative: &negative, output, bad: Bad::Skip, workers: 2 };
    let trained = train(&job, |_| ()).unwrap();
    assert_eq!((trained.negative, trained.skipped.count), (50, 3));
    assert_eq!(trained.auc, 0.5, "the two classes are the same documents");
}

/// A classifier whose weights tell `あ` from `い`.
fn classifier() -> Classifier {
    let mut classifier = Classifier::zero();
    for (text, weight) in [("あ", 1.5), ("い", -1.5)] {
        let features = super::features::Features::of(text);
        classifier.weights[features.values[0].0 as usize] = weight;
    }
    classifier.bias = 0.25;
    classifier
}

#[test]
fn the_score_is_the_logistic_function_of_the_weights() {
    // The one feature has the value 1.
    let expected = |product: f64| (1.0 / (1.0 + (-(product + 0.25)).exp())) as f32;
    let found = ["あ", "い", "う"].map(|text| classifier().score(text));
    assert_eq!(found, [1.5, -1.5, 0.0].map(expected));
}

#[test]
fn a_file_that_is_no_classifier_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    classifier().write(&path).unwrap();
    assert_eq!(Classifier::open(&path).unwrap(), classifier());
    let good = fs::read(&path).unwrap();
    let header = |changed: &str, to: &str| {
        let text = String::from_utf8_lossy(&good[8..1024]).into_owned();
        assert!(text.contains(changed), "{changed} in {text}");
        let at = 8 + text.find(changed).unwrap();
        let mut bytes = good.clone();
        bytes[at..at + changed.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    let view = |bytes| TensorView::new(Dtype::F32, vec![1], bytes).unwrap();
    let other = serialize([("weights", view(&[0; 4]))], None).unwrap();
    let mut nan = good.clone();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    for (bytes, expected) in [
        (b"{}".to_vec(), "it is not a whole safetensors file"),
        (good[..good.len() - 1].to_vec(), "it is not a whole safetensors file"),
        (other, "its metadata has no key \"classifier\""),
        (
            header("\\\"version\\\":1", "\\\"version\\\":2"),
            "version 2; \"swallow-engine linear classifier\", 1 is read",
        ),
        (header("linear class", "square class"), "it has the format \"swallow-engine square classifier\""),
        (header("1048576,", "1048577,"), "([1, 4], 1048577, 20000)"),
        (header("\"weights\"", "\"weighty\""), "it has no tensor \"weights\""),
        (nan, "has the value NaN"),
        (vec![0; 6 << 20], "it has 6291456 bytes, and a classifier has at most"),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = Classifier::open(&path).unwrap_err();
        let message = error.to_string();
        assert_eq!(error.exit_code(), 2, "{message}");
        assert!(message.contains("a.safetensors: is not a classifier of `data classify train`: "), "{message}");
        assert!(message.contains(expected), "{expected}: {message}");
    }
    let absent = Classifier::open(&folder.path().join("b.safetensors")).unwrap_err().to_string();
    assert!(absent.contains("it does not exist"), "{absent}");
}

#[test]
fn a_classifier_of_another_shape_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let short = Classifier { weights: vec![0.0; BUCKETS - 1], ..classifier() };
    short.write(&path).unwrap();
    let message = Classifier::open(&path).unwrap_err().to_string();
    assert!(message.contains("\"weights\" is F32 of the shape [1048575]; F32 of [1048576] is expected"), "{message}");
}

fn score_into(inputs: &Inputs, output: &Path, score_key: &str, bad: Bad, workers: usize) -> Result<Scored> {
    let classifier = classifier();
    let output = output.to_path_buf();
    score(&ScoreJob { inputs, classifier: &classifier, output, score_key, bad, workers, memory: 1 << 20 }, |_| ())
}

#[test]
fn a_score_is_added_or_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let [lines, text, output] = ["a.jsonl", "b.txt", "out.jsonl"].map(|name| folder.path().join(name));
    let records = "{\"text\": \"あ\", \"n\": 1.0}\n{\"score\": \"old\", \"text\":\"い\" }\r\n{}\n{\"text\": \"\"}\n";
    fs::write(&lines, records).unwrap();
    fs::write(&text, "あ\n").unwrap();
    let inputs = inputs([lines, text]);
    let error = score_into(&inputs, &output, "score", Bad::Refuse, 1).unwrap_err().to_string();
    assert!(error.contains("a.jsonl: line 3: no key \"text\"") && !output.exists(), "{error}");
    let error = score_into(&inputs, &output, "text", Bad::Skip, 1).unwrap_err().to_string();
    assert!(error.contains("\"text\" is the key of the text"), "{error}");
    let scored = score_into(&inputs, &output, "score", Bad::Skip, 2).unwrap();
    let scores = ["あ", "い", "", "あ\n"].map(|text| classifier().score(text));
    let [a, i, nothing, line] = scores.map(|score| format!("{score:?}"));
    let expected = format!(
        "{{\"text\": \"あ\", \"n\": 1.0, \"score\": {a}}}\n{{\"score\": {i}, \"text\":\"い\" }}\n\
         {{\"text\": \"\", \"score\": {nothing}}}\n{{\"text\": \"あ\\n\", \"score\": {line}}}\n"
    );
    assert_eq!(fs::read_to_string(&output).unwrap(), expected);
    assert_eq!((scored.documents, scored.skipped.count), (4, 1));
    let mean = scores.iter().map(|&score| f64::from(score)).sum::<f64>() / 4.0;
    assert!((scored.mean - mean).abs() < 1e-12, "{} {mean}", scored.mean);
    let read_back: Vec<f32> = expected
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|record| record["score"].as_f64().unwrap() as f32)
        .collect();
    assert_eq!(read_back, scores, "the digits tell one f32 from all others");
}

#[test]
fn scores_are_the_same_with_any_number_of_workers() {
    let folder = tempfile::tempdir().unwrap();
    let lines = folder.path().join("a.jsonl");
    write_documents(&lines, "あい", 6000);
    let inputs = inputs([lines]);
    let written = [1, 2, 5].map(|workers| {
        let output = folder.path().join(format!("{workers}.jsonl"));
        assert_eq!(score_into(&inputs, &output, "score", Bad::Refuse, workers).unwrap().documents, 6000);
        fs::read(&output).unwrap()
    });
    assert!(written[0] == written[1] && written[0] == written[2]);
}

fn keep_into(inputs: &Inputs, output: &Path, top: f64, bad: Bad, workers: usize) -> Result<Kept> {
    let output = output.to_path_buf();
    keep(&KeepJob { inputs, output, top, score_key: "score", bad, workers, memory: 1 << 20 }, |_| ())
}

/// Against sorting all records, with many equal scores.
#[test]
fn the_best_documents_stay_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let [lines, output] = ["a.jsonl", "out.jsonl"].map(|name| folder.path().join(name));
    let scores: Vec<i64> = (0..5000).map(|i| i * i * 7919 % 97 - 48).collect();
    let padding = "字".repeat(60);
    let record =
        |(i, score): (usize, &i64)| format!("{{\"id\": {i}, \"text\": \"{padding}\", \"score\": {score}e-2}}\n");
    let records: Vec<String> = scores.iter().enumerate().map(record).collect();
    fs::write(&lines, records.concat()).unwrap();
    let inputs = inputs([lines]);
    let mut best: Vec<usize> = (0..scores.len()).collect();
    best.sort_by_key(|&i| (-scores[i], i));
    for (top, count, workers) in [(0.1, 500, 1), (0.1, 500, 2), (0.1, 500, 5), (1.0, 5000, 2), (1e-9, 1, 2)] {
        let kept = keep_into(&inputs, &output, top, Bad::Refuse, workers).unwrap();
        let mut expected = best[..count].to_vec();
        expected.sort_unstable();
        let expected: String = expected.iter().map(|&i| records[i].as_str()).collect();
        assert!(fs::read_to_string(&output).unwrap() == expected, "{top} with {workers} workers");
        let threshold = scores[best[count - 1]] as f32 / 100.0;
        assert_eq!(kept.threshold, Some(threshold));
        let Drops { kept, documents, rules, .. } = kept.drops;
        assert_eq!((kept, documents, rules[0].documents), (count as u64, 5000, 5000 - count as u64));
        assert_eq!(rules[0].threshold, Some(format!("below {threshold:?}")));
        let first = (0..5000).find(|i| !best[..count].contains(i)).map(|i| (i as u64 + 1, scores[i] as f32 / 100.0));
        let found = rules[0].examples.first().map(|e| (e.line, e.value.as_ref().unwrap().parse().unwrap()));
        assert_eq!(found, first);
    }
}

#[test]
fn records_without_a_score_are_bad() {
    let folder = tempfile::tempdir().unwrap();
    let [lines, text, output] = ["a.jsonl", "b.txt", "out.jsonl"].map(|name| folder.path().join(name));
    let records = "{\"text\": \"a\", \"score\": 0.5}\n{\"text\": \"b\"}\n{\"text\": \"c\", \"score\": NaN}\n\
                   {\"text\": \"d\", \"score\": \"1\"}\n{\"text\": \"e\", \"score\": 1e99}\n\
                   {\"text\": \"f\", \"score\": 1}\n";
    fs::write(&lines, records).unwrap();
    fs::write(&text, "text").unwrap();
    let inputs = inputs([lines, text]);
    let error = keep_into(&inputs, &output, 0.5, Bad::Refuse, 1).unwrap_err().to_string();
    assert!(error.contains("a.jsonl: line 2: no key \"score\"; score the documents first"), "{error}");
    let kept = keep_into(&inputs, &output, 0.5, Bad::Skip, 2).unwrap();
    assert_eq!(fs::read_to_string(&output).unwrap(), "{\"text\": \"f\", \"score\": 1}\n");
    assert_eq!((kept.skipped.count, kept.drops.skipped, kept.drops.documents), (5, 5, 2));
    let messages = kept.skipped.first.join("\n");
    for part in
        ["line 3: the value of \"score\" must be a number that is finite", "b.txt: line 1: a text file has no scores"]
    {
        assert!(messages.contains(part), "{part} in {messages}");
    }
}

#[test]
fn what_cannot_be_kept_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let [lines, output] = ["a.jsonl", "out.jsonl"].map(|name| folder.path().join(name));
    fs::write(&lines, "").unwrap();
    let file = inputs([lines]);
    for top in [0.0, -0.1, 1.1, f64::NAN] {
        let error = keep_into(&file, &output, top, Bad::Refuse, 1).unwrap_err().to_string();
        assert!(error.contains("must be above 0 and at most 1"), "{error}");
    }
    let error = keep_into(&inputs(["-".into()]), &output, 0.1, Bad::Refuse, 1).unwrap_err().to_string();
    assert!(error.contains("-: a pipe can be read only once"), "{error}");
    let kept = keep_into(&file, &output, 0.1, Bad::Refuse, 1).unwrap();
    assert_eq!((kept.threshold, kept.drops.documents, fs::read(&output).unwrap().len()), (None, 0, 0));
}
