//! The task files of `configs/tasks`, over the real sets where they are at hand.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::{Bad, Form, Kind, Task};

/// Each task with its metric, its shots, its questions, and where its data is below `shared/data`.
const SHIPPED: [(&str, Kind, &str, usize, usize, &str); 8] = [
    ("gsm8k", Kind::Generate, "last_number", 4, 1319, "gsm8k"),
    ("jcommonsenseqa", Kind::Choice, "exact_match", 4, 1119, "jglue/jcommonsenseqa"),
    ("jemhopqa", Kind::Generate, "char_f1", 4, 120, "jemhopqa"),
    ("jsquad", Kind::Generate, "char_f1", 4, 4442, "jglue/jsquad"),
    ("mgsm_en", Kind::Generate, "last_number", 4, 250, "mgsm"),
    ("mgsm_ja", Kind::Generate, "last_number", 4, 250, "mgsm"),
    ("niilc", Kind::Generate, "char_f1", 4, 198, "niilc"),
    ("openbookqa", Kind::Choice, "exact_match", 8, 500, "openbookqa"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

#[test]
fn every_shipped_task_opens() {
    let folder = root().join("configs/tasks");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let names: Vec<&str> = files.iter().map(|file| file.file_stem().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, SHIPPED.map(|(name, ..)| name));
    for (file, (name, kind, metric, ..)) in files.iter().zip(SHIPPED) {
        let task = Task::open(file).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((task.name.as_str(), task.kind, task.metric.name().as_str()), (name, kind, metric));
    }
}

#[test]
fn shipped_tasks_ask_every_question_of_the_real_sets() {
    let shared = root().join("../shared/data");
    if !shared.exists() {
        println!("skipped: {} does not exist", shared.display());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    for (name, _, _, shots, questions, place) in SHIPPED {
        let file = folder.path().join(format!("{name}.toml"));
        std::fs::copy(root().join(format!("configs/tasks/{name}.toml")), &file).unwrap();
        let link = folder.path().join("data").join(Path::new(place).file_name().unwrap());
        if !link.exists() {
            symlink(shared.join(place), link).unwrap();
        }
        let task = Task::open(&file).unwrap();
        let all = task.questions(None, Bad::Refuse).unwrap_or_else(|e| panic!("{e}")).all;
        assert_eq!(all.len(), questions, "{name}");
        for question in &all {
            let context = format!("{}\n\n", question.context);
            assert_eq!(context.matches(asks(name)).count(), shots + 1, "{name}: {context}");
            let choices = matches!(question.form, Form::Choices { .. });
            assert_eq!(choices, task.kind != Kind::Generate, "{name}");
        }
    }
}

/// What stands once in each prompt, or after each shot and the question.
fn asks(name: &str) -> &'static str {
    match name {
        "mgsm_ja" => "\nステップごとの答え：",
        "mgsm_en" => "\nStep-by-Step Answer:",
        "gsm8k" => "\nAnswer:",
        "openbookqa" => "\n\n",
        _ => "\n回答：",
    }
}
