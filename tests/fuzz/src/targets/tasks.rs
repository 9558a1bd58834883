//! Evaluation tasks: task files, their data in every form, and earlier answers.

use std::path::Path;

use engine::error::Result;
use tasks::{Bad, Task, read_answers};

/// `task.toml` with the data that it names, and `answers.jsonl`.
pub fn tasks() -> Result<()> {
    let task = Task::open(Path::new("task.toml"))?;
    let skipping = task.questions(None, Bad::Skip);
    let all = task.questions(Some(50), Bad::Refuse);
    for question in skipping.iter().flat_map(|questions| &questions.all).take(3) {
        match question.choices() {
            0 => _ = task.judge(question, "4年\n120 年, -3.5"),
            n => _ = task.choose(question, &vec![-1.5; n]),
        }
    }
    let answers = read_answers(Path::new("answers.jsonl"))?;
    tasks::against::compare(&task.name, &answers, &answers)?;
    skipping.and(all).map(|_| ())
}
