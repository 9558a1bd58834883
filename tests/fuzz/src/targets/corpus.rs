//! Corpus preparation: documents, rules with their lists, and classifiers.

use std::path::{Path, PathBuf};

use corpus::classify::{Classifier, KeepJob, ScoreJob, keep, score};
use corpus::dedup::{Job as DedupJob, Keep, dedup};
use corpus::documents::Bad;
use corpus::filter::{Job, Rules, filter};
use data::text::{Format, Inputs};
use engine::error::Result;

const MEMORY: usize = 64 << 20;

/// `documents.jsonl` or `documents.txt`, each way that documents are read and written again.
fn inputs() -> Inputs {
    let text = PathBuf::from("documents.txt");
    match text.exists() {
        true => Inputs { paths: vec![text], format: Some(Format::Text), key: "text".into() },
        false => {
            let paths = vec![PathBuf::from("documents.jsonl")];
            Inputs { paths, format: Some(Format::JsonLines), key: "text".into() }
        }
    }
}

/// The documents by the rules of `rules.toml`, whose lists are in files beside it; without their near-duplicates; and
/// by the scores of `model.safetensors`.
pub fn corpus() -> Result<()> {
    let inputs = inputs();
    by_rules(&inputs).and(without_duplicates(&inputs)).and(by_scores(&inputs))
}

fn by_rules(inputs: &Inputs) -> Result<()> {
    let rules = Rules::open(Path::new("rules.toml"))?;
    let (output, bad, workers, memory) = ("kept.jsonl".into(), Bad::Skip, 1, MEMORY);
    filter(&Job { inputs, rules: &rules, output, bad, workers, memory }, |_| ()).map(|_| ())
}

fn without_duplicates(inputs: &Inputs) -> Result<()> {
    let job = DedupJob {
        inputs,
        output: "kept.jsonl".into(),
        keep: Keep::Newest { key: "date".into() },
        threshold: 0.8,
        lines: Some(4),
        bad: Bad::Skip,
        workers: 1,
        memory: MEMORY,
        scratch: ".".into(),
    };
    dedup(&job, |_, _, _| ()).map(|_| ())
}

fn by_scores(inputs: &Inputs) -> Result<()> {
    let (bad, workers, memory, score_key) = (Bad::Skip, 1, MEMORY, "score");
    keep(&KeepJob { inputs, output: "best.jsonl".into(), top: 0.5, score_key, bad, workers, memory }, |_| ())?;
    let classifier = Classifier::open(Path::new("model.safetensors"))?;
    let output = "scored.jsonl".into();
    let job = ScoreJob { inputs, classifier: &classifier, output, score_key, bad, workers, memory };
    score(&job, |_| ()).map(|_| ())
}
