//! `evaluate --tasks`: task files -> questions -> tokens -> the model -> answers -> a table and files. The replicas of
//! the model share the questions of each task; rank 0 writes the results.

use std::path::PathBuf;

use engine::backend::Backend;
use engine::error::{Error, Result};
use engine::mpi::{Comm, World};
use engine::train::eval::Scorer;
use tasks::{Answered, Bad, Kind, Question, Questions, Task};

use super::model::{Work, must_be_one_stage};
use super::results::{Results, Scored};
use super::{Args, Opened};
use crate::progress::Count;
use crate::questions::{Asked, Continue, chosen, generated, texts};

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
}

/// A task with all its questions.
struct Loaded {
    task: Task,
    questions: Questions,
}

pub fn run(args: Args, world: &World) -> Result<()> {
    let (comm, flags) = (world.comm(), &args.of_tasks);
    let loaded = comm.agree(load(&args))?;
    let ready = || match comm.rank() {
        0 => Results::begin(&flags.output, &flags.against, loaded.iter().map(|one| &one.task)).map(Some),
        _ => Ok(None),
    };
    let results = comm.agree(ready())?;
    let opened = Opened::on_all_ranks(&args, comm)?;
    let mesh = comm.agree(args.layout.mesh(&opened.model, comm))?;
    let (replica, replicas) = (mesh.replica(comm.rank()), mesh.replicas());
    let share = |one| mine(one, &opened, replica, replicas);
    let mine = comm.agree(loaded.iter().map(share).collect::<Result<Vec<Mine>>>())?;
    let rows = mine.iter().flatten().flat_map(|(_, asked)| asked.rows()).collect();
    let work = Asking { loaded: &loaded, mine: &mine, opened: &opened, comm };
    let scored = args.layout.with_model(&opened, rows, world, work)?;
    match results {
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
        if task.kind == Kind::Generate {
            must_be_one_stage(args.layout.pipeline, &task.name)?;
        }
        let questions = task.questions(flags.limit.map(|n| n as usize), bad)?;
        all.push(Loaded { task, questions });
    }
    Ok(all)
}

/// The questions of a task that this rank's replica is asked.
type Mine<'a> = Vec<(&'a Question, Asked)>;

fn mine<'a>(one: &'a Loaded, opened: &Opened, replica: usize, replicas: usize) -> Result<Mine<'a>> {
    let all = one.questions.all.iter().skip(replica).step_by(replicas);
    all.map(|question| Ok((question, Asked::new(&one.task, question, &opened.encoder)?))).collect()
}

/// Asks all questions, each of one replica. All ranks get all answers.
struct Asking<'a> {
    loaded: &'a [Loaded],
    mine: &'a [Mine<'a>],
    opened: &'a Opened,
    comm: &'a Comm,
}

impl Work for Asking<'_> {
    type Output = Vec<Scored>;

    fn run<B: Backend>(self, mut scorer: Scorer<B>, proceed: Continue<B>) -> Result<Vec<Scored>> {
        let total = self.mine.iter().map(Vec::len).sum::<usize>() as u64;
        let count = (self.comm.rank() == 0).then(|| Count::new("questions", total));
        let mut before = 0;
        let mut scored = Vec::new();
        for (one, mine) in self.loaded.iter().zip(self.mine) {
            let done = |n: usize| count.iter().for_each(|count| count.at((before + n) as u64));
            let answers = self.answers(&mut scorer, proceed, &one.task, mine, done)?;
            before += mine.len();
            let answers = if scorer.answers() { answers } else { Vec::new() };
            let answers = gathered(&answers, self.comm);
            let summary = one.task.summary(&answers, one.questions.skipped.len());
            scored.push(Scored { summary, answers, skipped: one.questions.skipped.clone() });
        }
        count.into_iter().for_each(Count::finish);
        Ok(scored)
    }
}

impl Asking<'_> {
    /// The answers to the questions of a task. `done(n)` is called when about n of them are answered.
    fn answers<B: Backend>(
        &self,
        scorer: &mut Scorer<B>,
        proceed: Continue<B>,
        task: &Task,
        mine: &Mine,
        done: impl Fn(usize),
    ) -> Result<Vec<Answered>> {
        if task.kind == Kind::Generate {
            let mut n = 0;
            return generated(scorer, proceed, (task, &self.opened.encoder), mine, || {
                n += 1;
                done(n);
            });
        }
        let texts = texts(mine.iter().map(|(_, asked)| asked));
        let nats = scorer.log_likelihoods(&texts, |n, total| done(mine.len() * n / total))?;
        Ok(if scorer.answers() { chosen(task, mine, &nats) } else { Vec::new() })
    }
}

/// The answers of all ranks, in the order of the questions.
fn gathered(mine: &[Answered], comm: &Comm) -> Vec<Answered> {
    let bytes = comm.all_gather_bytes(&serde_json::to_vec(mine).expect("answers are JSON"));
    let parts = bytes.iter().map(|bytes| serde_json::from_slice::<Vec<Answered>>(bytes).expect("a rank sent answers"));
    let mut all: Vec<Answered> = parts.flatten().collect();
    all.sort_by_key(|answer| answer.index);
    all
}
