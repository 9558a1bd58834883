//! `[eval]`: the tasks that a run scores while it trains, at its own layout.
//!
//! Rank 0 reads the task files and encodes the questions for all ranks. The replicas of the model share the questions;
//! rank 0 gets the log-likelihoods and makes the scores of them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use data::tokenizer::{ControlTokens, Tokenizer};
use engine::backend::Backend;
use engine::config::Config;
use engine::error::{Error, Result};
use engine::layout::rank_layout::RankLayout;
use engine::mpi::Comm;
use engine::train::likelihood::{Packed, Text};
use engine::train::trainer::{Trainer, shape};
use tasks::{Bad, Kind, Questions, Task};

use crate::questions::{Asked, Encoder};

/// By the name of a task, its score by the name of the metric.
pub type Scores = BTreeMap<String, BTreeMap<String, f64>>;

/// The tasks of a run.
pub struct Tasks {
    /// For each task, this replica's texts, as many micro-batches on every rank.
    packed: Vec<Packed>,
    /// What rank 0 makes the scores of.
    asked: AllAsked,
    replica: usize,
    replicas: usize,
}

/// The choices of a question: their ids, and the index of the first token that is scored.
type Choices = Vec<(Vec<u32>, usize)>;

impl Tasks {
    /// `None` where the configuration names no tasks. Collective.
    pub fn open(config: &Config, rank_layout: &RankLayout, comm: &Comm) -> Result<Option<Tasks>> {
        if config.eval.interval == 0 {
            return Ok(None);
        }
        let mut asked = Vec::new();
        let encoded = comm.on_first(|| {
            let (tasks, choices) = read(config)?;
            asked = tasks;
            Ok(serde_json::to_vec(&choices).expect("numbers are JSON"))
        })?;
        let choices: Vec<Vec<Choices>> = serde_json::from_slice(&encoded).expect("rank 0 sent numbers");
        let (replica, replicas) = rank_layout.dp;
        let mut packed = Vec::new();
        for questions in &choices {
            let mine = questions.iter().skip(replica).step_by(replicas).flatten();
            let texts: Vec<Text> = mine.map(|(ids, from)| Text { ids: ids.clone(), from: *from }).collect();
            let mut task = Packed::new(&texts, shape(config));
            // Ranks that share experts run the same number of micro-batches.
            task.pad(comm.max(task.batches.len() as u64) as usize, shape(config));
            packed.push(task);
        }
        Ok(Some(Tasks { packed, asked, replica, replicas }))
    }

    /// The scores of the model as it is now, on rank 0; nothing on the others. Collective.
    pub fn score<B: Backend>(&self, trainer: &mut Trainer<B>, comm: &Comm) -> Result<Scores> {
        let mut scores = Scores::new();
        for (i, packed) in self.packed.iter().enumerate() {
            let nats = trainer.log_likelihoods(packed)?;
            let nats = if trainer.rank_layout.tp.0 == 0 { nats } else { Vec::new() };
            let sent = serde_json::to_vec(&(self.replica, nats)).expect("numbers are JSON");
            let all = comm.all_gather_bytes(&sent);
            let Some((task, questions)) = self.asked.get(i) else { continue };
            let parts = all.iter().map(|part| serde_json::from_slice(part).expect("a rank sent numbers"));
            let score = score(task, questions, parts, self.replicas);
            scores.insert(task.name.clone(), BTreeMap::from([(task.metric.name(), score)]));
        }
        Ok(scores)
    }
}

/// The score of a task, from the log-likelihoods that each rank has, with the number of its replica. Ranks that have
/// none sent an empty list.
fn score(task: &Task, questions: &Questions, parts: impl Iterator<Item = (usize, Vec<f64>)>, replicas: usize) -> f64 {
    let mut by_replica = vec![Vec::new(); replicas];
    for (replica, nats) in parts.filter(|(_, nats)| !nats.is_empty()) {
        by_replica[replica] = nats;
    }
    let mut rest: Vec<&[f64]> = by_replica.iter().map(Vec::as_slice).collect();
    let mut answers = Vec::new();
    for (i, question) in questions.all.iter().enumerate() {
        let (own, others) = rest[i % replicas].split_at(question.choices());
        rest[i % replicas] = others;
        answers.push(task.choose(question, own));
    }
    task.summary(&answers, 0).score
}

/// Tasks with their questions.
type AllAsked = Vec<(Task, Questions)>;

/// The tasks, and the tokens of each choice of each question.
fn read(config: &Config) -> Result<(AllAsked, Vec<Vec<Choices>>)> {
    let encoder = encoder(config)?;
    let (mut asked, mut choices): (AllAsked, Vec<Vec<Choices>>) = Default::default();
    for (i, path) in config.eval.tasks.iter().enumerate() {
        let named = |what: &str| Error::user(format!("eval.tasks[{i}] = {:?}: {what}", path.display().to_string()));
        let task = Task::open(path)?;
        if task.kind == Kind::Generate {
            return Err(named("the task generates text, which `evaluate` does on an export; name tasks with choices"));
        }
        if asked.iter().any(|(other, _)| other.name == task.name) {
            return Err(named(&format!("a second task with name = \"{}\"", task.name)));
        }
        let questions = task.questions(config.eval.limit, Bad::Refuse)?;
        let of = |question| match Asked::new(&task, question, &encoder)? {
            Asked::Choices(texts) => Ok(texts.into_iter().map(|Text { ids, from }| (ids, from)).collect()),
            Asked::Prompt(..) => unreachable!("tasks that generate are refused"),
        };
        choices.push(questions.all.iter().map(of).collect::<Result<_>>()?);
        asked.push((task, questions));
    }
    Ok((asked, choices))
}

/// The tokenizer of the model that is trained. A text has at most as many tokens as a sample.
fn encoder(config: &Config) -> Result<Encoder> {
    let of_model = config.train.load.huggingface().map(PathBuf::from);
    let source = config.checkpoint.dir.join("source");
    let path = match &config.eval.tokenizer {
        Some(path) => path.clone(),
        None => of_model.into_iter().find(|dir| dir.is_dir()).unwrap_or(source),
    };
    let remedy = |what| format!("eval.tokenizer: {what}; eval.tokenizer names a tokenizer.model or tokenizer.json");
    let open = Tokenizer::open_with(&path, ControlTokens::Text);
    let tokenizer = open.map_err(|error| match config.eval.tokenizer {
        Some(_) => error,
        None => error.map(remedy),
    })?;
    Ok(Encoder { tokenizer, positions: config.train.seq_length, vocab_size: config.model.vocab_size })
}
