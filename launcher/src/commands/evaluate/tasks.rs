//! `evaluate --tasks`: task files -> questions -> tokens -> the model -> answers -> a table and files. Ranks share the
//! questions of each task; rank 0 writes the results.

use std::path::PathBuf;

use engine::backend::CachedAttention;
use engine::cpu::{Cpu, cores};
use engine::error::{Error, Result};
use engine::mpi::{Comm, World};
use engine::train::eval::Scorer;
use half::bf16;
use tasks::{Answered, Bad, Question, Questions, Task};

use super::questions::{Asked, answers};
use super::results::{Results, Scored};
use super::{Args, Opened};
use crate::progress::Count;

#[derive(clap::Args)]
pub struct Flags {
    /// Ask only the first N questions of each task
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), requires = "tasks")]
    limit: Option<u64>,
    /// Write NAME.jsonl, the answer to each question, and summary.json into this folder
    #[arg(long, value_name = "DIR", requires = "tasks")]
    output: Option<PathBuf>,
    /// Compare with the answers in this folder, the --output of an earlier evaluation: what changed, and a sign test
    #[arg(long, value_name = "DIR", requires = "tasks")]
    against: Option<PathBuf>,
    /// Leave out records of which no question can be made, and count them
    #[arg(long, requires = "tasks")]
    skip_bad: bool,
    /// Precision of weights and activations
    #[arg(long, value_enum, value_name = "PRECISION", default_value_t = Precision::F32, requires = "tasks")]
    precision: Precision,
}

#[derive(clap::ValueEnum, Clone, Copy)]
enum Precision {
    F32,
    Bf16,
}

/// A task with all its questions.
struct Loaded {
    task: Task,
    questions: Questions,
}

pub fn run(args: Args, world: &World) -> Result<()> {
    let (comm, flags) = (world.comm(), &args.of_tasks);
    let threads = cores::share(comm).threads;
    let loaded = comm.agree(load(&args))?;
    let ready = || match comm.rank() {
        0 => Results::begin(&flags.output, &flags.against, loaded.iter().map(|one| &one.task)).map(Some),
        _ => Ok(None),
    };
    let earlier = comm.agree(ready())?;
    let opened = Opened::on_all_ranks(&args, comm)?;
    let scored = match flags.precision {
        Precision::F32 => ask(Cpu::<f32>::new(threads), &loaded, &opened, comm)?,
        Precision::Bf16 => ask(Cpu::<bf16>::new(threads), &loaded, &opened, comm)?,
    };
    match earlier {
        Some(results) => results.finish(&scored),
        None => Ok(()),
    }
}

fn load(args: &Args) -> Result<Vec<Loaded>> {
    let flags = &args.of_tasks;
    let bad = if flags.skip_bad { Bad::Skip } else { Bad::Refuse };
    let mut all: Vec<Loaded> = Vec::new();
    for path in &args.tasks {
        let task = Task::open(path)?;
        if all.iter().any(|one| one.task.name == task.name) {
            let name = &task.name;
            return Err(Error::user(format!("--tasks {}: a second task with name = \"{name}\"", path.display())));
        }
        let questions = task.questions(flags.limit.map(|n| n as usize), bad)?;
        all.push(Loaded { task, questions });
    }
    Ok(all)
}

/// The questions of a task that this rank asks.
type Mine<'a> = Vec<(&'a Question, Asked)>;

/// Asks all questions, each on one rank. Collective; all ranks get all answers.
fn ask<B: CachedAttention>(b: B, loaded: &[Loaded], opened: &Opened, comm: &Comm) -> Result<Vec<Scored>> {
    let ready = || -> Result<_> {
        let mine = loaded.iter().map(|one| mine(one, opened, comm)).collect::<Result<Vec<Mine>>>()?;
        let longest = mine.iter().flatten().map(|(_, asked)| asked.positions()).max().unwrap_or(1);
        let scorer = Scorer::new(b, &opened.model, longest, |tensor, rect, out| {
            opened.weights.read_parameter(tensor, rect, out)
        })?;
        Ok((mine, scorer))
    };
    let (mine, mut scorer) = comm.agree(ready())?;
    let total = mine.iter().map(Vec::len).sum::<usize>() as u64;
    let count = (comm.rank() == 0).then(|| Count::new("questions", total));
    let done = || count.iter().for_each(Count::one);
    let mut scored = Vec::new();
    for (one, mine) in loaded.iter().zip(&mine) {
        let answers = comm.agree(answers(&mut scorer, (&one.task, opened), mine, done))?;
        let answers = gathered(&answers, comm);
        let summary = one.task.summary(&answers, one.questions.skipped.len());
        scored.push(Scored { summary, answers, skipped: one.questions.skipped.clone() });
    }
    count.into_iter().for_each(Count::finish);
    Ok(scored)
}

fn mine<'a>(one: &'a Loaded, opened: &Opened, comm: &Comm) -> Result<Mine<'a>> {
    let all = one.questions.all.iter().skip(comm.rank()).step_by(comm.size());
    all.map(|question| Ok((question, Asked::new(&one.task, question, opened)?))).collect()
}

/// The answers of all ranks, in the order of the questions.
fn gathered(mine: &[Answered], comm: &Comm) -> Vec<Answered> {
    let bytes = comm.all_gather_bytes(&serde_json::to_vec(mine).expect("answers are JSON"));
    let parts = bytes.iter().map(|bytes| serde_json::from_slice::<Vec<Answered>>(bytes).expect("a rank sent answers"));
    let mut all: Vec<Answered> = parts.flatten().collect();
    all.sort_by_key(|answer| answer.index);
    all
}
