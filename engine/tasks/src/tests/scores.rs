//! From a model's answers to scores, summaries and comparisons.

use serde_json::{Value as Json, json};

use super::{CHOICE, FREE, Folder, question};
use crate::against::{compare, sign_test};
use crate::metrics::number::last_number;
use crate::{Answered, Summary, read_answers, write_answers};

fn answered(index: usize, prediction: impl Into<Json>, answer: impl Into<Json>, score: f64) -> Answered {
    Answered { index, prediction: prediction.into(), answer: answer.into(), score }
}

#[test]
fn the_likeliest_choice_is_taken_and_the_first_of_equals() {
    let (task, question) = question(CHOICE, r#"{"q": "x", "c": ["x", "yyyy", "語語"], "a": 1}"#);
    assert_eq!(task.choose(&question, &[-2.0, -1.5, -3.0]), answered(0, 1, 1, 1.0));
    assert_eq!(task.choose(&question, &[-2.0, -2.0, -2.0]), answered(0, 0, 1, 0.0));
    assert_eq!(task.choose(&question, &[f64::NAN, -2.0, f64::NEG_INFINITY]), answered(0, 1, 1, 1.0));
}

/// `acc_norm` of `lm-evaluation-harness` divides by the characters of the choice, not of the space in front of it.
#[test]
fn a_length_is_in_characters_without_the_joining_space() {
    let norm = CHOICE.replace("\"choice\"", "\"choice_norm\"");
    let (task, question) = question(&norm, r#"{"q": "x", "c": [" x", " yyyy", "語語"], "a": 1}"#);
    assert_eq!(task.choose(&question, &[-1.0, -3.9, -2.1]).prediction, 1);
    assert_eq!(task.choose(&question, &[-1.0, -4.0, -2.0]).prediction, 0, "all are equal");
    assert_eq!(task.choose(&question, &[-1.1, -4.3, -2.1]).prediction, 2);
}

#[test]
fn a_text_ends_before_the_first_stop() {
    let (task, question) = question(FREE, r#"{"q": "x", "a": ["yes", "yeah"]}"#);
    assert_eq!(task.judge(&question, " yeah Q:\nno"), answered(0, "yeah", json!(["yes", "yeah"]), 1.0));
    assert_eq!(task.judge(&question, "no\nyes").score, 0.0);
    assert_eq!(task.judge(&question, "\nyes"), answered(0, "", json!(["yes", "yeah"]), 0.0));
    let (task, question) =
        super::question(&FREE.replace("exact_match", "last_number"), r#"{"q": "x", "a": "= 1,000"}"#);
    assert_eq!(task.judge(&question, "999+1=１０００.0。").score, 1.0);
    assert_eq!(task.judge(&question, "none").score, 0.0);
}

#[test]
fn the_last_number_has_one_form_for_each_value() {
    let cases = [
        ("答えは１８です。", Some("18")),
        ("a total of $1,234,567.", Some("1234567")),
        ("12.50 and 007", Some("7")),
        ("it is 12.50.", Some("12.5")),
        ("10-5", Some("5")),
        ("x = -5", Some("-5")),
        ("答えは－3．0", Some("-3")),
        ("(3)-4", Some("4")),
        ("-0.0", Some("0")),
        ("1, 2", Some("2")),
        ("1.2.3", Some("3")),
        ("no number", None),
        ("", None),
    ];
    for (text, number) in cases {
        assert_eq!(last_number(text).as_deref(), number, "{text}");
    }
}

#[test]
fn answers_are_json_lines_in_a_fixed_order_of_keys() {
    let folder = Folder::with(&[("bad.jsonl", b"{\"index\": 0}\n")]);
    let answers = [answered(0, 2, 1, 0.0), answered(4, "語", json!(["a", "b"]), 1.0 / 3.0)];
    let path = folder.path("t.jsonl");
    write_answers(&path, &answers).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().next().unwrap(), r#"{"index":0,"prediction":2,"answer":1,"score":0.0}"#);
    assert_eq!(read_answers(&path).unwrap(), answers);
    let error = read_answers(&folder.path("bad.jsonl")).unwrap_err().to_string();
    assert_eq!(
        folder.bare(&error),
        "bad.jsonl: line 1: missing field `prediction` at line 1 column 12; it must be a file of answers that evaluate \
         wrote"
    );
}

#[test]
fn a_summary_has_the_mean_its_error_and_the_most_frequent_answer() {
    let (task, _) = question(CHOICE, r#"{"q": "x", "c": ["x", "y"], "a": 1}"#);
    let scores = [1.0, 0.0, 1.0, 1.0];
    let answers: Vec<Answered> = (0..4).map(|i| answered(i, [1, 0, 0, 1][i], 1, scores[i])).collect();
    let summary = task.summary(&answers, 2);
    // mean 3/4, sample variance (3/16 * 4) / 3 = 1/4, error sqrt(1/4 / 4) = 1/4
    assert_eq!((summary.score, summary.standard_error), (0.75, Some(0.25)));
    let text = serde_json::to_string(&summary).unwrap();
    assert_eq!(
        text,
        r#"{"task":"t","kind":"choice","metric":"exact_match","questions":4,"skipped":2,"#.to_string()
            + r#""score":0.75,"standard_error":0.25,"most_frequent":{"prediction":1,"share":0.5}}"#
    );
    assert_eq!(serde_json::from_str::<Summary>(&text).unwrap(), summary);
    let one = task.summary(&answers[..1], 0);
    assert_eq!((one.score, one.standard_error), (1.0, None));
}

#[test]
fn a_corpus_has_one_bleu_and_texts_are_grouped_by_their_last_number() {
    let (task, question) = question(
        &FREE.replace("\"exact_match\"", "\"bleu\"\ntokens = \"13a\""),
        r#"{"q": "x", "a": "the cat sat on the mat"}"#,
    );
    let answers = [task.judge(&question, "the cat sat on the mat"), task.judge(&question, "the dog")];
    let summary = task.summary(&answers, 0);
    // 7 of 8 words, 5 of 6, 4 of 4 and 3 of 3 n-grams; 8 words for 12
    let expected = (1.0f64 - 12.0 / 8.0).exp() * (7.0 / 8.0 * 5.0 / 6.0f64).powf(0.25);
    assert!((summary.score - expected).abs() < 1e-12, "{} {expected}", summary.score);
    assert_eq!((summary.standard_error, summary.metric.as_str()), (None, "bleu_13a"));

    let (task, question) = super::question(&FREE.replace("exact_match", "last_number"), r#"{"q": "x", "a": 3}"#);
    let answers = ["1 + 1 = 2", "it is 2", "3"].map(|text| task.judge(&question, text));
    let most = task.summary(&answers, 0).most_frequent.unwrap();
    assert_eq!((most.prediction, most.share), (json!("2"), 2.0 / 3.0));
}

/// Values of `scipy.stats.binomtest(k, n).pvalue`.
#[test]
fn the_sign_test_is_exact_and_two_sided() {
    let cases = [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 5, 1.0),
        (8, 2, 0.109375),
        (2, 8, 0.109375),
        (10, 0, 0.001953125),
        (60, 40, 0.05688793364098089),
        (1200, 1000, 2.1817026407914194e-05),
        (1400, 3000, 2.5195443558632794e-131),
    ];
    for (better, worse, p) in cases {
        let ours = sign_test(better, worse);
        assert!((ours / p - 1.0).abs() < 1e-9, "{better} {worse}: {ours} {p}");
    }
}

#[test]
fn before_and_after_are_compared_question_by_question() {
    let before = [answered(0, 1, 1, 1.0), answered(1, 0, 1, 0.0), answered(2, 0, 2, 0.0), answered(5, 0, 1, 0.0)];
    let after = [answered(5, 1, 1, 1.0), answered(0, 0, 1, 0.0), answered(1, 0, 1, 0.0), answered(2, 1, 2, 0.0)];
    let changes = compare("t", &before, &after).unwrap();
    assert_eq!((changes.same, changes.better, changes.worse, changes.p_value), (2, 1, 1, 1.0));
    assert_eq!(changes.changed.iter().map(|c| c.index).collect::<Vec<_>>(), [0, 2, 5]);
    let last = &changes.changed[2];
    assert_eq!((&last.before, &last.after, last.score_before, last.score_after), (&json!(0), &json!(1), 0.0, 1.0));
}

#[test]
fn answers_to_other_questions_are_refused() {
    let before = [answered(0, 1, 1, 1.0), answered(1, 0, 1, 0.0)];
    let refusal = |after: &[Answered]| compare("t", &before, after).unwrap_err().to_string();
    let remedy = "evaluate both with the same task file, data and limit";
    assert_eq!(refusal(&before[..1]), format!("t: --against has 2 questions and this evaluation 1 question; {remedy}"));
    assert_eq!(
        refusal(&[answered(0, 1, 1, 1.0), answered(2, 0, 1, 0.0)]),
        format!("t: question 1 is in only one of --against and this evaluation; {remedy}")
    );
    assert_eq!(
        refusal(&[answered(0, 1, 1, 1.0), answered(1, 0, 0, 1.0)]),
        format!("t: question 1 has the answer 1 in --against and 0 in this evaluation; {remedy}")
    );
}
