//! The metrics against their Python references: `tests/golden/make.py` wrote both.

use serde_json::Value as Json;

use crate::metrics::bleu::Counts;
use crate::{Metric, Tokens};

fn golden() -> Json {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/metrics.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The texts and their references, with all that the file says of them.
fn pairs(golden: &Json) -> Vec<(&str, Vec<String>, &Json)> {
    let texts = |row: &Json| serde_json::from_value(row["references"].clone()).unwrap();
    let pairs = golden["pairs"].as_array().unwrap().iter();
    pairs.map(|row| (row["text"].as_str().unwrap(), texts(row), row)).collect()
}

#[track_caller]
fn close(ours: f64, theirs: f64, what: &str) {
    assert!((ours - theirs).abs() <= 1e-9, "{what}: {ours} here, {theirs} in Python");
}

#[test]
fn every_score_is_python_s() {
    let golden = golden();
    let pairs = pairs(&golden);
    assert_eq!(pairs.len(), 500);
    let metrics = [
        (Metric::CharF1, "char_f1", 1.0),
        (Metric::Rouge2(Tokens::Word), "rouge2_word", 1.0),
        (Metric::Rouge2(Tokens::Char), "rouge2_char", 1.0),
        (Metric::Bleu(Tokens::V13a), "bleu_13a", 100.0),
        (Metric::Bleu(Tokens::Char), "bleu_char", 100.0),
    ];
    for (metric, key, unit) in metrics {
        assert_eq!(metric.name(), key);
        for (text, references, row) in &pairs {
            let theirs = row[key].as_f64().unwrap() / unit;
            close(metric.score(text, references), theirs, &format!("{key} of {text:?} and {references:?}"));
        }
        let between = pairs.iter().filter(|(_, _, row)| (0.1..0.9 * unit).contains(&row[key].as_f64().unwrap()));
        assert!(between.count() > 100, "{key} has values between");
    }
}

#[test]
fn corpus_bleu_is_sacrebleu_s() {
    let golden = golden();
    for (name, most) in [("all_references", 3), ("first_reference", 1)] {
        for (tokens, key) in [(Tokens::V13a, "13a"), (Tokens::Char, "char")] {
            let mut sum = Counts::default();
            for (text, references, _) in pairs(&golden) {
                sum.add(&Counts::of(text, &references[..most.min(references.len())], tokens));
            }
            let theirs = golden["corpora"][name][key].as_f64().unwrap() / 100.0;
            close(sum.of_corpus(), theirs, &format!("{name}, {key}"));
        }
    }
}
