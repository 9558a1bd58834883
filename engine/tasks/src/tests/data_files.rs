//! The forms of data, and records that give no question.

use super::{CHOICE, CHOICES, FREE, Folder};
use crate::{Bad, Form};

/// The message for data, without the end that `--skip-bad` has.
fn refusal(task: &str, data: &str) -> String {
    let message = Folder::of(task, data).refusal();
    message.strip_suffix(", or leave it out with --skip-bad").expect("the flag is named").to_string()
}

#[test]
fn a_record_that_gives_no_question_is_named_with_its_line() {
    let second = |record: &str| refusal(CHOICE, &format!("{}\n{record}\n", CHOICES.lines().next().unwrap()));
    let cases = [
        (r#"{"q": "x", "a": 0}"#, "no key \"c\", which choices reads; the keys are q, a"),
        (r#"{"c": ["x", "y"], "a": 0}"#, "no key \"q\", which prompt reads; the keys are c, a"),
        (r#"{"q": "x", "c": ["x", "y"]}"#, "no key \"a\", which answer reads; the keys are q, c"),
        (r#"{"q": "x", "c": ["x", " "], "a": 0}"#, "choices[1] is empty; give every choice a text"),
        (r#"{"q": "x", "c": ["x"], "a": 0}"#, "choices has 1; a question needs two or more"),
        (r#"{"q": "x", "c": "xy", "a": 0}"#, "choices = \"xy\": must give a list of texts"),
        (r#"{"q": "x", "c": ["x", null], "a": 0}"#, "choices = [\"x\",null]: must give a list of texts"),
        (r#"{"q": "x", "c": ["x", "y"], "a": 2}"#, "answer = 2: must be the place of the right choice, from 0 to 1"),
        (
            r#"{"q": "x", "c": ["x", "y"], "a": "A"}"#,
            "answer = \"A\": must be the place of the right choice, from 0 to 1",
        ),
        (r#"["x"]"#, "not a JSON object; a record is an object with keys"),
    ];
    for (record, fault) in cases {
        assert_eq!(second(record), format!("d.jsonl: line 2: {fault}"));
    }
    let broken = second("{\"q\": ");
    assert!(broken.starts_with("d.jsonl: line 2: EOF while parsing a value"), "{broken}");
}

#[test]
fn a_place_that_a_template_reads_beyond_is_an_error() {
    let task = CHOICE.replace("\"c\"", "[\"{{ c[0] }}\", \"{{ c[5] }}\"]");
    let fault = refusal(&task, CHOICES);
    let start = "d.jsonl: line 1: choices[1] = \"{{ c[5] }}\" fails: undefined value";
    assert!(fault.starts_with(start) && fault.ends_with("; correct it or the data"), "{fault}");
}

#[test]
fn free_answers_are_texts_numbers_or_lists_of_them() {
    let second = |answer: &str| refusal(FREE, &format!("{{\"q\": \"x\", \"a\": {answer}}}"));
    let form = "must be a text, a number or a list of them";
    assert_eq!(second("null"), format!("d.jsonl: line 1: answer = null: {form}"));
    assert_eq!(second("[[1]]"), format!("d.jsonl: line 1: answer = [[1]]: {form}"));
    assert_eq!(second("[]"), "d.jsonl: line 1: answer = []: a right answer is empty; give one");
    assert_eq!(second("[\"a\", \"\"]"), "d.jsonl: line 1: answer = [\"a\",\"\"]: a right answer is empty; give one");
    let number = FREE.replace("exact_match", "last_number");
    let fault = "d.jsonl: line 1: answer = \"none\": last_number finds no number in it; give one";
    assert_eq!(refusal(&number, r#"{"q": "x", "a": "none"}"#), fault);
    let questions = Folder::of(FREE, r#"{"q": "x", "a": [2.5, "b", 7]}"#).questions();
    assert_eq!(questions.all[0].form, Form::Free { answers: ["2.5", "b", "7"].map(String::from).to_vec() });
}

#[test]
fn bad_records_are_left_out_and_named_where_that_is_wanted() {
    let data = [CHOICES.as_bytes(), b"{\"q\": \"\xe8\"}\n{\"q\": 1}\n"].concat();
    let folder = Folder::with(&[("t.toml", CHOICE.as_bytes()), ("d.jsonl", &data)]);
    assert_eq!(
        folder.refusal(),
        "d.jsonl: line 5: not UTF-8; convert the file to UTF-8, or leave it out with --skip-bad"
    );
    let questions = folder.task().questions(None, Bad::Skip).unwrap();
    assert_eq!(questions.all.len(), 3);
    let skipped: Vec<String> = questions.skipped.iter().map(|message| folder.bare(message)).collect();
    assert_eq!(
        skipped,
        [
            "d.jsonl: line 5: not UTF-8; convert the file to UTF-8",
            "d.jsonl: line 6: no key \"a\", which answer reads; the keys are q"
        ]
    );
}

#[test]
fn data_without_a_question_is_refused() {
    assert_eq!(Folder::of(CHOICE, "\n").refusal(), "d.jsonl: it has no records; check the file");
    let folder = Folder::of(CHOICE, "{\"q\": \"x\", \"c\": [], \"a\": 0}\n");
    let error = folder.task().questions(None, Bad::Skip).unwrap_err().to_string();
    assert_eq!(
        folder.bare(&error),
        "d.jsonl: no record gives a question; the first: d.jsonl: line 1: choices has 0; a question needs two or more"
    );
    let folder = Folder::with(&[("t.toml", CHOICE.as_bytes())]);
    assert_eq!(folder.refusal(), "d.jsonl: it does not exist; check the path");
}

#[test]
fn an_array_s_records_know_their_lines() {
    let data = "\u{feff}[\n {\"q\": \"one\", \"c\": [\"x\",\n \"y\"], \"a\": 0},\n {\"q\": \"two\"} , {\"q\": 3}\n]\n";
    assert_eq!(refusal(CHOICE, data), "d.jsonl: line 4, record 1: no key \"a\", which answer reads; the keys are q");
    let broken = |data: &str| Folder::of(CHOICE, data).refusal();
    assert_eq!(broken("[{}\n {}]"), "d.jsonl: line 2: no comma between two records; correct the JSON");
    assert_eq!(broken("[{}\n] x"), "d.jsonl: line 2: text after the end of the array; correct the JSON");
    assert_eq!(broken("[{},\n"), "d.jsonl: line 2: the array does not end; correct the JSON");
    assert_eq!(broken("[{}\n"), "d.jsonl: line 2: the array does not end; correct the JSON");
    let value = broken("[{},\n{\"a\":\n}]");
    assert!(
        value == "d.jsonl: line 2, record 1: expected value at line 2 column 1 of the record; correct the JSON",
        "{value}"
    );
    let deep = broken(&format!("[{}", "[".repeat(100_000)));
    assert!(deep.contains("recursion limit exceeded"), "{deep}");
    let not_utf_8 = Folder::with(&[("t.toml", CHOICE.as_bytes()), ("d.jsonl", b"[\n{\"q\": \"\xe8\"}]")]);
    assert_eq!(not_utf_8.refusal(), "d.jsonl: line 2 is not UTF-8; convert the file to UTF-8");
}

/// A task over `name`, whose prompt shows all that a record has.
fn shown(name: &str, prompt: &str, data: &str) -> Folder {
    let task = FREE
        .replace("d.jsonl", name)
        .replace("Q: {{ q }}\\nA: ", prompt)
        .replace("answer = \"a\"", "answer = \"answers\"");
    Folder::with(&[("t.toml", task.as_bytes()), (name, data.as_bytes())])
}

#[test]
fn squad_is_flattened_to_a_record_a_question() {
    let data = r#"{"version": "1", "data": [{"title": "T", "paragraphs": [{"context": "C", "qas": [
        {"id": "q0", "question": "Q0", "answers": [{"text": "b", "answer_start": 3}, {"text": "a"}, {"text": "b"}]},
        {"id": "q1", "question": "Q1", "answers": []}]}]}]}"#;
    let folder = shown("d.json", "{{ title }}|{{ context }}|{{ question }}", data);
    let questions = folder.task().questions(None, Bad::Skip).unwrap();
    assert_eq!(questions.all.len(), 1);
    assert_eq!(questions.all[0].context, "T|C|Q0");
    assert_eq!(questions.all[0].form, Form::Free { answers: ["b", "a"].map(String::from).to_vec() });
    assert_eq!(
        folder.bare(&questions.skipped[0]),
        "d.json: question q1: answer = []: a right answer is empty; give one"
    );
    let folder = shown("d.json", "{{ question }}", r#"{"data": [{"paragraphs": [{"context": "C"}]}]}"#);
    assert_eq!(folder.refusal(), "d.json: data[0].paragraphs[0] has no array `qas`; SQuAD's form has one there");
}

#[test]
fn niilc_is_flattened_to_a_record_a_question() {
    let question = |id: &str, answers: &str| {
        let answers = answers.split(' ').map(|a| format!("<answer>{a}</answer>")).collect::<String>();
        format!("<question id=\"{id}\">\n<text> T&amp;{id} </text><answers>{answers}</answers><meta/></question>\n")
    };
    let all = [question("1", "a b"), question("2", "-"), question("3", ""), question("4", "c")].concat();
    let folder = shown("d.xml", "{{ id }}: {{ question }}", &format!("<questions>\n{all}</questions>"));
    let questions = folder.questions();
    assert_eq!(questions.all.iter().map(|q| q.context.as_str()).collect::<Vec<_>>(), ["1: T&1", "4: T&4"]);
    assert_eq!(questions.all.iter().map(|q| q.index).collect::<Vec<_>>(), [0, 3], "places in the file");
    assert_eq!(questions.all[0].form, Form::Free { answers: ["a", "b"].map(String::from).to_vec() });

    let refusal = |xml: &str| shown("d.xml", "{{ question }}", xml).refusal();
    let bare = "<questions>\n<question><answers/></question></questions>";
    let fault = "d.xml: line 2: no <text> in this <question>; add it, or leave it out with --skip-bad";
    assert_eq!(refusal(bare), fault);
    assert_eq!(refusal("<a/>"), "d.xml: <a> at the top: must be <questions>, as NIILC's files have it");
    let broken = refusal("<questions>\n<question></questions>");
    assert!(broken.starts_with("d.xml: line 2: ") && broken.ends_with("; correct the XML"), "{broken}");
    let deep = refusal(&format!("<questions>{}", "<a>".repeat(200_000)));
    assert!(deep.starts_with("d.xml: line 1: "), "{deep}");
}

#[test]
fn columns_have_the_names_of_the_task_file() {
    let task = FREE.replace("d.jsonl", "d.tsv").replace("stop =", "columns = [\"q\", \"a\"]\nstop =");
    let folder = Folder::with(&[("t.toml", task.as_bytes()), ("d.tsv", b"one\t5,600\r\ntwo\n")]);
    assert_eq!(
        folder.refusal(),
        "d.tsv: line 2: 1 column where `columns` names 2 (q, a); correct the line or `columns`, or leave it out with \
         --skip-bad"
    );
    let questions = folder.task().questions(None, Bad::Skip).unwrap();
    assert_eq!(questions.all[0].context, "Q: one\nA: ");
    assert_eq!(questions.all[0].form, Form::Free { answers: vec!["5,600".into()] });
}
