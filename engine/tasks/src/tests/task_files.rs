//! What a task file may not say.

use super::{CHOICE, CHOICES, FREE, Folder};

/// The message for a task file in which `old` is replaced by `new`.
fn refusal(task: &str, old: &str, new: &str) -> String {
    assert!(task.contains(old), "{old}");
    Folder::of(&task.replace(old, new), CHOICES).refusal()
}

#[test]
fn unknown_and_missing_keys_are_named() {
    assert_eq!(
        refusal(CHOICE, "metric =", "metrik ="),
        "t.toml: a task has no key \"metrik\"; did you mean \"metric\"?"
    );
    let known = "name, data, columns, shots, kind, instruction, prompt, choices, answer, separator, metric, tokens, \
                 stop, max_tokens";
    assert_eq!(
        refusal(CHOICE, "name =", "zzzzzzzz =").replace(known, "ALL"),
        "t.toml: a task has no key \"zzzzzzzz\"; known keys are ALL"
    );
    assert_eq!(refusal(CHOICE, "name = \"t\"", ""), "t.toml: name is missing: write a name for the task");
    assert_eq!(
        refusal(CHOICE, "data = \"d.jsonl\"", ""),
        "t.toml: data is missing: write the path of its data, from this file's folder"
    );
    assert_eq!(
        refusal(CHOICE, "kind = \"choice\"", ""),
        "t.toml: kind is missing: write \"choice\", \"choice_norm\" or \"generate\""
    );
    assert_eq!(
        refusal(CHOICE, "metric = \"exact_match\"", ""),
        "t.toml: metric is missing: write one of exact_match, char_f1, rouge2, bleu, last_number"
    );
    assert_eq!(
        refusal(CHOICE, "choices = \"c\"", ""),
        "t.toml: choices is missing: write an array of templates, or an expression that gives a list"
    );
    assert_eq!(
        refusal(FREE, "max_tokens = 8", ""),
        "t.toml: max_tokens is missing: write the most tokens of an answer"
    );
}

#[test]
fn values_must_be_what_they_are_for() {
    assert_eq!(
        refusal(CHOICE, "\"choice\"", "\"choise\""),
        "t.toml: kind = \"choise\": must be one of choice, choice_norm, generate; did you mean \"choice\"?"
    );
    assert_eq!(refusal(CHOICE, "\"d.jsonl\"", "3"), "t.toml: data = 3: must be a text in quotes");
    assert_eq!(
        refusal(CHOICE, "\"t\"", "\"a/b\""),
        "t.toml: name = \"a/b\": must be of letters, digits, _, - and ., since files are named after it"
    );
    assert_eq!(
        refusal(FREE, "max_tokens = 8", "max_tokens = 0"),
        "t.toml: max_tokens = 0: must be a whole number of at least 1"
    );
    assert_eq!(
        refusal(FREE, r#"["\n", "Q:"]"#, r#"["a", ""]"#),
        "t.toml: stop = [\"a\", \"\"]: stop[1] is empty; write a text or leave it out"
    );
    assert_eq!(
        refusal(CHOICE, "\"c\"", "[\"{{ q }}\"]"),
        "t.toml: choices = [\"{{ q }}\"]: a question needs two or more; add templates"
    );
    assert_eq!(refusal(CHOICE, "name =", "name"), "t.toml: line 2: key with no value, expected `=`; correct the TOML");
}

#[test]
fn keys_must_go_together() {
    assert_eq!(
        refusal(CHOICE, "\"exact_match\"", "\"char_f1\""),
        "t.toml: metric = \"char_f1\": kind = \"choice\" has no text to score; write \"exact_match\""
    );
    let stop = CHOICE.to_string() + "stop = [\"x\"]\n";
    let unused = "only kind = \"generate\" makes text; remove it";
    assert_eq!(Folder::of(&stop, CHOICES).refusal(), format!("t.toml: stop = [\"x\"]: {unused}"));
    assert_eq!(
        refusal(FREE, "max_tokens = 8", "max_tokens = 8\nchoices = \"c\""),
        "t.toml: choices = \"c\": kind = \"generate\" has none; remove it"
    );
    assert_eq!(refusal(FREE, "\"exact_match\"", "\"rouge2\""), "t.toml: tokens is missing: write \"word\" or \"char\"");
    assert_eq!(
        refusal(FREE, "\"exact_match\"", "\"bleu\"\ntokens = \"word\""),
        "t.toml: tokens = \"word\": bleu has no such tokens; write \"13a\" or \"char\""
    );
    assert_eq!(
        refusal(FREE, "\"exact_match\"", "\"exact_match\"\ntokens = \"char\""),
        "t.toml: tokens = \"char\": only rouge2 and bleu count tokens; remove it"
    );
    assert_eq!(
        refusal(FREE, "d.jsonl", "d.tsv"),
        "t.toml: columns is missing: write the names of the columns of the .tsv file"
    );
    assert_eq!(
        refusal(FREE, "stop =", "columns = [\"q\"]\nstop ="),
        "t.toml: columns = [\"q\"]: only data in a .tsv file has columns; remove it"
    );
}

#[test]
fn templates_must_be_templates() {
    let prompt = refusal(CHOICE, "{{ q }}", "{{ q }");
    assert!(prompt.starts_with("t.toml: prompt = ") && prompt.ends_with("; correct the template"), "{prompt}");
    let answer = refusal(CHOICE, "\"a\"", "\"a +\"");
    assert!(answer.starts_with("t.toml: answer = \"a +\": syntax error"), "{answer}");
    let choices = refusal(CHOICE, "\"c\"", "[\"{{ x }}\", \"{% if %}\"]");
    assert!(choices.starts_with("t.toml: choices = ") && choices.ends_with("; correct it"), "{choices}");
}

#[test]
fn a_task_file_that_is_not_utf_8_is_named_with_its_line() {
    let folder = Folder::with(&[("t.toml", b"name = \"t\"\ndata = \"\xe8\xaa\"\n")]);
    assert_eq!(folder.refusal(), "t.toml: line 2 is not UTF-8; convert the file to UTF-8");
}
