//! Tests of the whole way from a task file to a comparison.

mod data_files;
mod golden;
mod scores;
mod shipped;
mod shots;
mod task_files;

use std::path::PathBuf;

use tempfile::TempDir;

use crate::{Bad, Question, Questions, Task};

/// A folder with a task file and data.
pub struct Folder {
    dir: TempDir,
}

/// The keys of a multiple-choice task over `d.jsonl`.
pub const CHOICE: &str = r#"
name = "t"
data = "d.jsonl"
kind = "choice"
prompt = "Q: {{ q }}\nA: "
choices = "c"
answer = "a"
metric = "exact_match"
"#;

/// The keys of a task with free answers over `d.jsonl`.
pub const FREE: &str = r#"
name = "t"
data = "d.jsonl"
kind = "generate"
prompt = "Q: {{ q }}\nA: "
answer = "a"
metric = "exact_match"
stop = ["\n", "Q:"]
max_tokens = 8
"#;

/// Three records for [`CHOICE`].
pub const CHOICES: &str = r#"{"q": "one", "c": ["x", "yy"], "a": 0}
{"q": "two", "c": ["x", "yy", "z"], "a": 2}

{"q": "three", "c": ["語", "x"], "a": 1}
"#;

impl Folder {
    pub fn with(files: &[(&str, &[u8])]) -> Folder {
        let dir = tempfile::tempdir().unwrap();
        for (name, contents) in files {
            std::fs::write(dir.path().join(name), contents).unwrap();
        }
        Folder { dir }
    }

    /// A folder with `t.toml` and `d.jsonl`.
    pub fn of(task: &str, data: &str) -> Folder {
        Folder::with(&[("t.toml", task.as_bytes()), ("d.jsonl", data.as_bytes())])
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn task(&self) -> Task {
        Task::open(&self.path("t.toml")).unwrap_or_else(|e| panic!("{e}"))
    }

    pub fn questions(&self) -> Questions {
        self.task().questions(None, Bad::Refuse).unwrap_or_else(|e| panic!("{e}"))
    }

    /// The message that refuses the task or its data, without the folder.
    pub fn refusal(&self) -> String {
        let questions = Task::open(&self.path("t.toml")).and_then(|task| task.questions(None, Bad::Refuse));
        let error = questions.expect_err("it is refused");
        assert_eq!(error.exit_code(), 2, "{error}");
        self.bare(&error.to_string())
    }

    /// `message` without the folder.
    pub fn bare(&self, message: &str) -> String {
        message.replace(&format!("{}/", self.dir.path().display()), "")
    }
}

/// The question of `task` over one record.
pub fn question(task: &str, record: &str) -> (Task, Question) {
    let folder = Folder::of(task, record);
    (folder.task(), folder.questions().all.remove(0))
}
