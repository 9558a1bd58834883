//! The results of tasks: a table, files, and the comparison with an earlier evaluation.

use std::io::Write;
use std::path::{Path, PathBuf};

use engine::error::{Error, Result, counted};
use serde_json::json;
use tasks::against::{Changes, compare};
use tasks::{Answered, Summary, Task, read_answers, write_answers};

use crate::output::{or_broken_pipe, say};
use crate::table::render;

/// Changed questions that are printed, of each task; the files have all.
const SHOWN: usize = 10;
/// Characters of an answer that are printed.
const WIDTH: usize = 40;

/// A task's answers and their summary.
pub struct Scored {
    pub summary: Summary,
    pub answers: Vec<Answered>,
    /// The records of which no question could be made.
    pub skipped: Vec<String>,
}

/// Where results go, and what they are compared with.
pub struct Results {
    output: Option<PathBuf>,
    /// The answers of the earlier evaluation, by task.
    earlier: Option<Vec<Vec<Answered>>>,
}

impl Results {
    /// Reads the earlier answers and makes the folder, so that mistakes in paths are found before the questions are
    /// asked. Files of another evaluation are not overwritten.
    pub fn begin<'a>(
        output: &Option<PathBuf>,
        against: &Option<PathBuf>,
        tasks: impl Iterator<Item = &'a Task> + Clone,
    ) -> Result<Results> {
        let names = tasks.map(|task| task.name.as_str());
        let read = |dir: &PathBuf| names.clone().map(|name| read_answers(&answers_file(dir, name))).collect();
        let earlier = against.as_ref().map(read).transpose()?;
        if let Some(dir) = output {
            let files = names.map(|name| answers_file(dir, name)).chain([dir.join(SUMMARY)]);
            if let Some(file) = files.into_iter().find(|file| file.exists()) {
                let file = file.display();
                return Err(Error::user(format!("{file}: exists already; name another --output, or remove it")));
            }
            std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        }
        Ok(Results { output: output.clone(), earlier })
    }

    /// Writes and prints everything.
    pub fn finish(self, scored: &[Scored]) -> Result<()> {
        let changes = self.changes(scored)?;
        if let Some(dir) = &self.output {
            write(dir, scored, &changes)?;
        }
        scored.iter().flat_map(|one| &one.skipped).for_each(|what| say!("left out: {what}"));
        let text = table(scored) + &changes.iter().map(|(name, changes)| changed(name, changes)).collect::<String>();
        or_broken_pipe(std::io::stdout().write_all(text.as_bytes()))
    }

    fn changes(&self, scored: &[Scored]) -> Result<Vec<(String, Changes)>> {
        let both = self.earlier.iter().flatten().zip(scored);
        both.map(|(before, one)| {
            let name = one.summary.task.clone();
            let changes = compare(&name, before, &one.answers)?;
            Ok((name, changes))
        })
        .collect()
    }
}

const SUMMARY: &str = "summary.json";

fn answers_file(dir: &Path, task: &str) -> PathBuf {
    dir.join(format!("{task}.jsonl"))
}

fn write(dir: &Path, scored: &[Scored], changes: &[(String, Changes)]) -> Result<()> {
    for one in scored {
        write_answers(&answers_file(dir, &one.summary.task), &one.answers)?;
    }
    let summaries: Vec<&Summary> = scored.iter().map(|one| &one.summary).collect();
    let mut summary = json!({ "tasks": summaries });
    if !changes.is_empty() {
        let named = changes.iter().map(|(name, changes)| (name.clone(), json!(changes)));
        summary["against"] = named.collect::<serde_json::Map<_, _>>().into();
    }
    let path = dir.join(SUMMARY);
    std::fs::write(&path, format!("{summary:#}\n")).map_err(|e| Error::io(&path, e))
}

fn table(scored: &[Scored]) -> String {
    let header = ["task", "metric", "questions", "score", "standard error", "most frequent answer", "its share"];
    let percent = |x: f64| format!("{:.2} %", 100.0 * x);
    let row = |one: &Scored| {
        let s = &one.summary;
        let (answer, share) = match &s.most_frequent {
            Some(most) => (short(&most.prediction), percent(most.share)),
            None => (String::new(), String::new()),
        };
        let error = s.standard_error.map(percent).unwrap_or_default();
        vec![s.task.clone(), s.metric.clone(), s.questions.to_string(), percent(s.score), error, answer, share]
    };
    render(&header, 2, scored.iter().map(row))
}

/// What changed in a task, question by question.
fn changed(name: &str, changes: &Changes) -> String {
    let Changes { same, better, worse, changed, p_value } = changes;
    let all = counted(same + better + worse, "question");
    let mut text = format!(
        "{name}: of {all} {better} are better, {worse} worse, {same} score the same; a split at least as uneven has \
         the probability {p_value:.3} if the models are equally good (sign test)\n"
    );
    for change in changed.iter().take(SHOWN) {
        let (answer, before, after) = (short(&change.answer), short(&change.before), short(&change.after));
        let (old, new) = (change.score_before, change.score_after);
        text += &format!("  question {}: {before} ({old:.2}) -> {after} ({new:.2}); right: {answer}\n", change.index);
    }
    if changed.len() > SHOWN {
        text += &format!("  and {} more in {SUMMARY}\n", changed.len() - SHOWN);
    }
    text
}

/// An answer on one line.
fn short(value: &serde_json::Value) -> String {
    let text =
        value.as_str().map_or_else(|| value.to_string(), |text| text.split_whitespace().collect::<Vec<_>>().join(" "));
    match text.char_indices().nth(WIDTH) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
