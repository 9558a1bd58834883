//! `data classify`: a linear classifier of texts: train it, score documents, keep the best.

use std::io::Write;
use std::path::PathBuf;

use clap::Subcommand;
use corpus::classify::{Classifier, KeepJob, ScoreJob, Step, TrainJob, keep, score, train};
use corpus::drops::Drops;
use engine::error::Result;

use super::dedup::share;
use super::documents::{Documents, Work, bytes, finish, warn_of_bad};
use crate::commands::texts::TextFlags;
use crate::output::or_broken_pipe;
use crate::progress;

pub const HELP: &str = "\
A linear classifier over hashed character n-grams, as fastText's are: train it on documents of two kinds, add its score
to each document of a corpus, and keep the share with the highest scores.

Examples:
  swallow-engine data classify train --positive educational.jsonl --negative web.jsonl --output edu.safetensors
  swallow-engine data classify score edu.safetensors --input kept.jsonl.zst --output scored.jsonl.zst
  swallow-engine data classify keep --top 0.1 --input scored.jsonl.zst --output best.jsonl.zst";

#[derive(clap::Args, Debug)]
pub struct Classify {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Learn from documents of two kinds
    Train(Train),
    /// Add the score of each document, from 0 to 1
    Score(Score),
    /// Write the share of the documents with the highest scores
    Keep(Keep),
}

#[derive(clap::Args, Debug)]
struct Train {
    /// Documents that shall score high
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    positive: Vec<PathBuf>,
    /// Documents that shall score low
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    negative: Vec<PathBuf>,
    #[command(flatten)]
    texts: TextFlags,
    /// The classifier to write
    #[arg(long, value_name = "FILE.safetensors")]
    output: PathBuf,
    #[command(flatten)]
    work: Work,
}

#[derive(clap::Args, Debug)]
struct Score {
    /// The classifier
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    documents: Documents,
    /// The key to write the score under
    #[arg(long, value_name = "KEY", default_value = "score")]
    score_key: String,
    /// Memory for documents that are being read
    #[arg(long, value_name = "SIZE", default_value = "64MB", value_parser = bytes)]
    memory: usize,
}

#[derive(clap::Args, Debug)]
struct Keep {
    /// The share of the documents to keep, above 0, at most 1
    #[arg(long, value_name = "SHARE", value_parser = share)]
    top: f64,
    #[command(flatten)]
    documents: Documents,
    /// The key of the scores
    #[arg(long, value_name = "KEY", default_value = "score")]
    score_key: String,
    /// Write what was dropped, with examples, into this file (.json), and a page beside it (.html)
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
    /// Memory for documents that are being read; beside it a document costs 4 bytes
    #[arg(long, value_name = "SIZE", default_value = "64MB", value_parser = bytes)]
    memory: usize,
}

pub fn run(args: Classify) -> Result<()> {
    match args.command {
        Command::Train(args) => run_train(args),
        Command::Score(args) => run_score(args),
        Command::Keep(args) => run_keep(args),
    }
}

fn run_train(args: Train) -> Result<()> {
    let (positive, negative) = (args.texts.clone().inputs(args.positive), args.texts.inputs(args.negative));
    let total = positive.check()? + negative.check()?;
    let (bad, workers) = (args.work.bad(), args.work.workers());
    let job = TrainJob { positive: &positive, negative: &negative, output: args.output.clone(), bad, workers };
    let mut shown = Training { total, reading: None, training: None };
    let trained = train(&job, |step| shown.at(step))?;
    shown.training.into_iter().for_each(progress::Count::finish);
    warn_of_bad(&trained.skipped);
    or_broken_pipe(writeln!(
        std::io::stdout(),
        "{}: trained on {} positive and {} negative documents; of {} held out, {:.2} % are told apart (AUC {:.4})",
        args.output.display(),
        trained.positive,
        trained.negative,
        trained.held_out,
        100.0 * trained.accuracy,
        trained.auc
    ))
}

/// The progress of a training: first of reading, then of learning.
struct Training {
    /// Bytes of the inputs.
    total: u64,
    reading: Option<progress::Bytes>,
    training: Option<progress::Count>,
}

impl Training {
    fn at(&mut self, step: Step) {
        match step {
            Step::Reading(read) => {
                let bar = || progress::Bytes::new("classify: reading", self.total);
                self.reading.get_or_insert_with(bar).at(read);
            }
            Step::Training { done, of } => {
                self.reading.take().into_iter().for_each(progress::Bytes::finish);
                self.training.get_or_insert_with(|| progress::Count::new("classify: training", of)).at(done);
            }
        }
    }
}

fn run_score(args: Score) -> Result<()> {
    let classifier = Classifier::open(&args.model)?;
    let (inputs, total) = args.documents.inputs()?;
    let work = &args.documents.work;
    let job = ScoreJob {
        inputs: &inputs,
        classifier: &classifier,
        output: args.documents.output.clone(),
        score_key: &args.score_key,
        bad: work.bad(),
        workers: work.workers(),
        memory: args.memory,
    };
    let progress = progress::Bytes::new("classify: scoring", total);
    let scored = score(&job, |read| progress.at(read))?;
    if total > 0 {
        progress.finish();
    }
    warn_of_bad(&scored.skipped);
    let output = job.output.display();
    or_broken_pipe(writeln!(std::io::stdout(), "{output}: {} documents with a score", scored.documents))
}

fn run_keep(args: Keep) -> Result<()> {
    args.report.as_deref().map_or(Ok(()), Drops::check)?;
    let (inputs, total) = args.documents.inputs()?;
    let work = &args.documents.work;
    let job = KeepJob {
        inputs: &inputs,
        output: args.documents.output.clone(),
        top: args.top,
        score_key: &args.score_key,
        bad: work.bad(),
        workers: work.workers(),
        memory: args.memory,
    };
    // The inputs are read twice.
    let progress = progress::Bytes::new("classify: keeping", 2 * total);
    let kept = keep(&job, |read| progress.at(read))?;
    progress.finish();
    warn_of_bad(&kept.skipped);
    finish(&kept.drops, &job.output, args.report.as_deref())
}
