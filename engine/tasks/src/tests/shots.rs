//! Shots, contexts and choices as they are rendered.

use super::{CHOICE, CHOICES, FREE, Folder};
use crate::{Bad, Form};

fn with(task: &str, keys: &str) -> String {
    task.to_string() + keys
}

#[test]
fn a_context_is_instruction_shots_and_prompt_as_they_are_written() {
    let keys =
        "instruction = \"Choose.\\n\"\nseparator = \"\\n--\\n\"\n[[shots]]\nq = \"s\"\nc = [\"no\", \"yes\"]\na = 1\n";
    let questions = Folder::of(&with(CHOICE, keys), CHOICES).questions();
    assert_eq!(questions.all.len(), 3);
    assert_eq!(questions.all[0].context, "Choose.\nQ: s\nA: yes\n--\nQ: one\nA: ");
    let continuations = ["x", "yy", "z"].map(String::from).to_vec();
    assert_eq!(questions.all[1].form, Form::Choices { continuations, answer: 2 });
    assert_eq!(questions.all.iter().map(|q| q.index).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn the_first_records_of_the_same_file_are_not_asked() {
    let keys = "shots = { data = \"./d.jsonl\", first = 2 }\n";
    let questions = Folder::of(&with(CHOICE, keys), CHOICES).questions();
    assert_eq!(questions.all.len(), 1);
    assert_eq!(questions.all[0].context, "Q: one\nA: x\n\nQ: two\nA: z\n\nQ: three\nA: ");
    assert_eq!(questions.all[0].index, 2);
}

#[test]
fn the_first_records_of_another_file_are_shots_with_their_first_answer() {
    let task = with(FREE, "shots = { data = \"train.json\", first = 1 }\n");
    let train = br#"[{"q": "s", "a": ["first", "second"]}, {"q": "r", "a": "x"}]"#;
    let files: [(&str, &[u8]); 3] =
        [("t.toml", task.as_bytes()), ("d.jsonl", br#"{"q": "one", "a": 18}"#), ("train.json", train)];
    let questions = Folder::with(&files).questions();
    assert_eq!(questions.all[0].context, "Q: s\nA: first\n\nQ: one\nA: ");
    assert_eq!(questions.all[0].form, Form::Free { answers: vec!["18".into()] });
}

#[test]
fn choices_may_be_templates() {
    let task = CHOICE.replace("\"c\"", "[\" {{ c[0] }}\", \" {{ c[1] }}!\"]");
    let questions = Folder::of(&task, r#"{"q": "one", "c": ["x", "y"], "a": 1}"#).questions();
    let continuations = [" x", " y!"].map(String::from).to_vec();
    assert_eq!(questions.all[0].form, Form::Choices { continuations, answer: 1 });
}

#[test]
fn shots_that_are_the_question_itself_are_refused() {
    let task = with(CHOICE, "[[shots]]\nq = \"two\"\nc = [\"n\", \"m\"]\na = 1\n");
    let folder = Folder::of(&task, CHOICES);
    let fault = "d.jsonl: line 2: shots[0] of t.toml is this question itself; take another shot";
    assert_eq!(folder.refusal(), format!("{fault}, or leave it out with --skip-bad"));
    let questions = folder.task().questions(None, Bad::Skip).unwrap();
    assert_eq!(questions.all.len(), 2);
    assert_eq!(questions.skipped.iter().map(|s| folder.bare(s)).collect::<Vec<_>>(), [fault]);
}

#[test]
fn shots_must_exist_and_be_good() {
    let refusal = |keys: &str| Folder::of(&with(CHOICE, keys), CHOICES).refusal();
    assert_eq!(
        refusal("shots = { data = \"d.jsonl\", first = 4 }"),
        "t.toml: shots.first = 4: d.jsonl has 3 records; write at most that"
    );
    assert_eq!(
        refusal("shots = { data = \"d.jsonl\", first = 3 }"),
        "d.jsonl: no question is left beside 3 shots; take fewer shots, or other data"
    );
    let form = "must be an array of records, or { data = \"PATH\", first = N }";
    assert_eq!(refusal("shots = 4"), format!("t.toml: shots = 4: {form}"));
    assert_eq!(
        refusal("shots = { data = \"d.jsonl\", first = 0 }"),
        format!("t.toml: shots = {{ data = \"d.jsonl\", first = 0 }}: {form}")
    );
    assert_eq!(
        refusal("shots = { data = \"d.jsonl\", last = 1 }"),
        format!("t.toml: shots = {{ data = \"d.jsonl\", last = 1 }}: it has no key \"last\"; it {form}")
    );
    assert_eq!(refusal("shots = [3]"), "t.toml: shots[0] = 3: must be a table with the keys of a record");
    assert_eq!(refusal("shots = { data = \"x.jsonl\", first = 1 }"), "x.jsonl: it does not exist; check the path");
    assert_eq!(
        refusal("[[shots]]\nq = \"s\"\nc = [\"a\", \"b\"]\na = 2\n"),
        "t.toml: shots[0]: answer = 2: must be the place of the right choice, from 0 to 1"
    );
    assert_eq!(
        refusal("[[shots]]\na = 2\nq = \"s\"\n"),
        "t.toml: shots[0]: no key \"c\", which choices reads; the keys are a, q"
    );
}

#[test]
fn a_limit_takes_the_first_good_ones() {
    let folder = Folder::of(CHOICE, &CHOICES.replacen("0}", "7}", 1));
    let task = folder.task();
    assert_eq!(
        folder.bare(&task.questions(Some(0), Bad::Refuse).unwrap_err().to_string()),
        "t.toml: --limit = 0: leaves no question; ask at least one"
    );
    let questions = task.questions(Some(1), Bad::Skip).unwrap();
    assert_eq!((questions.all[0].index, questions.all.len(), questions.skipped.len()), (1, 1, 1));
}
