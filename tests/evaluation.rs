//! `evaluate --tasks`: questions of task files, answered by a model, shared by ranks, compared with earlier answers.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::common::{Case, Outcome, checkout, engine, finish, metrics, mpirun, set, write_config};

/// A folder with a tiny model, its tokenizer, and tasks.
struct Desk(tempfile::TempDir);

const CHOICE: &str = r#"
    name = "colours"
    data = "colours.jsonl"
    kind = "choice_norm"
    prompt = "{{ question }}"
    choices = "choices"
    answer = "label"
    metric = "exact_match"
"#;

const GENERATE: &str = r#"
    name = "facts"
    data = "facts.jsonl"
    shots = { data = "facts.jsonl", first = 1 }
    kind = "generate"
    prompt = "Q: {{ q }}\nA: "
    answer = "a"
    metric = "char_f1"
    stop = ["\n"]
    max_tokens = 5
"#;

impl Desk {
    fn new() -> Desk {
        let desk = Desk(tempfile::tempdir().unwrap());
        std::fs::create_dir(desk.path("model")).unwrap();
        for file in Case::open("parity").dir.join("init").read_dir().unwrap().map(|e| e.unwrap()) {
            std::fs::copy(file.path(), desk.path("model").join(file.file_name())).unwrap();
        }
        let tokenizer = checkout().join("tests/golden/tokenizers/tokenizer.json");
        std::fs::copy(tokenizer, desk.path("model/tokenizer.json")).unwrap();
        let colours = [" red", " blue", " a"];
        let colour = |i: usize| json!({ "question": format!("{i} is"), "choices": colours, "label": i % 3 });
        let fact = |i: usize| json!({ "q": format!("{i}?"), "a": [format!("{i}"), "one"] });
        let lines = |of: &dyn Fn(usize) -> Value| (0..7).map(|i| format!("{}\n", of(i))).collect::<String>();
        desk.write("colours.jsonl", &lines(&colour));
        desk.write("facts.jsonl", &lines(&fact));
        desk.write("colours.toml", CHOICE);
        desk.write("facts.toml", GENERATE);
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn evaluate(&self, mut command: Command, tasks: &[&str], more: &[&str]) -> Outcome {
        command.arg("evaluate").arg("--model").arg(self.path("model")).arg("--tasks");
        command.args(tasks.iter().map(|task| self.path(task))).current_dir(self.0.path()).args(more);
        finish(&mut command)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }
}

#[test]
fn ranks_share_the_questions() {
    let desk = Desk::new();
    let both = ["colours.toml", "facts.toml"];
    let said = desk.evaluate(engine(), &both, &["--output", "one"]).succeeded().stdout;
    assert!(said.contains("colours") && said.contains("exact_match") && said.contains("char_f1"), "{said}");
    desk.evaluate(mpirun(2), &both, &["--output", "two"]).succeeded();
    for file in ["colours.jsonl", "facts.jsonl", "summary.json"] {
        assert_eq!(desk.read(&format!("one/{file}")), desk.read(&format!("two/{file}")), "{file}");
    }
    let answers: Vec<Value> =
        desk.read("one/facts.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // The first record is the shot.
    assert_eq!(answers.iter().map(|answer| answer["index"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(answers[0]["answer"], json!(["1", "one"]));
    let summary: Value = serde_json::from_str(&desk.read("one/summary.json")).unwrap();
    assert_eq!((&summary["tasks"][0]["questions"], &summary["tasks"][1]["questions"]), (&json!(7), &json!(6)));
    assert!(summary["tasks"][0]["most_frequent"]["share"].as_f64().unwrap() > 0.3, "{summary}");
    desk.evaluate(engine(), &both, &["--output", "bf16", "--precision", "bf16", "--limit", "2"]).succeeded();
    assert_eq!(desk.read("bf16/colours.jsonl").lines().count(), 2);
}

/// Tensor-parallel ranks and stages share a model, and what is left of the ranks shares the questions.
#[test]
fn a_layout_changes_no_answer() {
    let desk = Desk::new();
    let (both, choices) = (["colours.toml", "facts.toml"], ["colours.toml"]);
    desk.evaluate(engine(), &both, &["--output", "one"]).succeeded();
    let two = ["--tensor", "2", "--output", "two"];
    desk.evaluate(mpirun(4), &both, &two).succeeded();
    let four = ["--tensor", "2", "--pipeline", "2", "--output", "four"];
    desk.evaluate(mpirun(4), &choices, &four).succeeded();
    for file in ["two/colours.jsonl", "two/facts.jsonl", "four/colours.jsonl"] {
        assert_eq!(desk.read(file), desk.read(&format!("one/{}", file.split_once('/').unwrap().1)), "{file}");
    }
    let staged = ["--pipeline", "2"];
    desk.evaluate(mpirun(2), &both, &staged).refused(2, &["--pipeline 2", "task facts generates text", "--tensor"]);
    desk.evaluate(mpirun(3), &choices, &["--tensor", "3"]).refused(2, &["--tensor = 3"]);
    desk.evaluate(mpirun(3), &choices, &["--tensor", "2"]).refused(2, &["3", "2"]);
    let cuda = ["--backend", "cuda"];
    desk.evaluate(engine(), &choices, &cuda).refused(2, &["--backend", "no"]);
}

#[test]
fn answers_are_compared_with_earlier_ones() {
    let desk = Desk::new();
    desk.evaluate(engine(), &["colours.toml"], &["--output", "before"]).succeeded();
    let said = desk.evaluate(engine(), &["colours.toml"], &["--against", "before"]).succeeded().stdout;
    assert!(said.contains("of 7 questions 0 are better, 0 worse, 7 score the same"), "{said}");
    // Every answer was another, and all but those that are right now were wrong as well.
    let other = |line: &str| {
        let mut answer: Value = serde_json::from_str(line).unwrap();
        answer["prediction"] = json!((answer["prediction"].as_u64().unwrap() + 1) % 3);
        answer["score"] = json!(f64::from(u8::from(answer["prediction"] == answer["answer"])));
        format!("{answer}\n")
    };
    let before = desk.read("before/colours.jsonl");
    let right = |text: &str| text.lines().filter(|line| line.contains("\"score\":1.0")).count();
    let changed: String = before.lines().map(other).collect();
    desk.write("before/colours.jsonl", &changed);
    let said = desk.evaluate(engine(), &["colours.toml"], &["--against", "before"]).succeeded().stdout;
    let expected = format!("of 7 questions {} are better, {} worse", right(&before), right(&changed));
    assert!(said.contains(&expected) && said.contains("question 6: "), "{expected}: {said}");
    let fewer = ["--against", "before", "--limit", "3"];
    desk.evaluate(engine(), &["colours.toml"], &fewer).refused(2, &["colours", "--against has 7 questions"]);
    let again = ["--output", "before"];
    desk.evaluate(engine(), &["colours.toml"], &again).refused(2, &["before/colours.jsonl: exists already"]);
}

#[test]
fn mistakes_in_tasks_are_named() {
    let desk = Desk::new();
    desk.write("bad.jsonl", &(desk.read("colours.jsonl") + "{\"question\": \"8 is\", \"label\": 1}\n"));
    desk.write("bad.toml", &CHOICE.replace("colours", "bad"));
    desk.evaluate(engine(), &["bad.toml"], &[]).refused(2, &["bad.jsonl", "line 8", "choices"]);
    let said = desk.evaluate(engine(), &["bad.toml"], &["--skip-bad", "--output", "out"]).succeeded();
    let summary = desk.read("out/summary.json");
    assert!(said.stderr.contains("line 8") && summary.contains("\"skipped\": 1"), "{}\n{summary}", said.stderr);
    desk.write("metric.toml", &CHOICE.replace("exact_match", "char_f1"));
    desk.evaluate(engine(), &["metric.toml"], &[]).refused(2, &["metric.toml", "char_f1", "exact_match"]);
    desk.write("long.toml", &GENERATE.replace("max_tokens = 5", "max_tokens = 32"));
    desk.evaluate(engine(), &["long.toml"], &[]).refused(2, &["max_tokens = 32", "positions, 32"]);
    let twice = ["colours.toml", "colours.toml"];
    desk.evaluate(mpirun(2), &twice, &[]).refused(2, &["a second task with name = \"colours\""]);
    desk.evaluate(engine(), &["none.toml"], &[]).refused(2, &["none.toml: it does not exist"]);
    desk.evaluate(engine(), &["colours.toml"], &["--text", "a.txt"]).refused(2, &["--tasks", "--text"]);
    desk.evaluate(engine(), &["colours.toml"], &["--key", "body"]).refused(2, &["--key", "belongs to --text"]);
}

/// A run scores its tasks as `evaluate` scores its export, at any layout.
#[test]
fn a_run_scores_tasks_while_it_trains() {
    let desk = Desk::new();
    let layouts: [(usize, &[(&str, i64)]); 3] =
        [(1, &[]), (2, &[]), (4, &[("parallel.tensor", 2), ("parallel.pipeline", 2)])];
    for (i, (ranks, layout)) in layouts.into_iter().enumerate() {
        let run = desk.path(&format!("run-{i}"));
        let mut config = Case::open("parity").config(&run);
        layout.iter().for_each(|(key, degree)| set(&mut config, key, *degree));
        for (key, steps) in [("train.steps", 4), ("checkpoint.interval", 2), ("checkpoint.export_interval", 2)] {
            set(&mut config, key, steps);
        }
        set(&mut config, "train.load", format!("hf:{}", desk.path("model").display()));
        set(&mut config, "eval.tasks", vec![desk.path("colours.toml").display().to_string()]);
        let config = write_config(desk.0.path(), "run.toml", &config);
        finish(mpirun(ranks).args(["train", "--config"]).arg(&config)).succeeded();
        let scored: Vec<Value> = metrics(&run).iter().map(|step| step["tasks"].clone()).collect();
        assert_eq!((&scored[0], &scored[2]), (&Value::Null, &Value::Null));
        for step in [2, 4] {
            let export = run.join(format!("exports/step-{step:08}"));
            let output = desk.path(&format!("scores-{i}-{step}"));
            let mut command = engine();
            command.args(["evaluate", "--model"]).arg(&export).arg("--tasks").arg(desk.path("colours.toml"));
            finish(command.arg("--output").arg(&output)).succeeded();
            let summary = std::fs::read_to_string(output.join("summary.json")).unwrap();
            let summary: Value = serde_json::from_str(&summary).unwrap();
            let right = json!({ "colours": { "exact_match": summary["tasks"][0]["score"] } });
            assert_eq!(scored[step - 1], right, "step {step}, {ranks} ranks");
        }
        finish(engine().arg("report").arg(&run)).succeeded();
        let report = std::fs::read_to_string(run.join("efficiency.md")).unwrap();
        assert!(report.contains("Scores of the tasks"), "{report}");
    }
}

#[test]
fn a_run_refuses_tasks_that_it_cannot_score() {
    let desk = Desk::new();
    let refused = |key: &str, value: toml::Value, why: &[&str]| {
        let mut config = Case::open("parity").config(&desk.path("run"));
        set(&mut config, "checkpoint.interval", 2);
        set(&mut config, "train.load", format!("hf:{}", desk.path("model").display()));
        set(&mut config, "eval.tasks", vec![desk.path("colours.toml").display().to_string()]);
        set(&mut config, key, value);
        let config = write_config(desk.0.path(), "run.toml", &config);
        finish(mpirun(2).args(["train", "--config"]).arg(&config)).refused(2, why);
    };
    let facts = vec![desk.path("facts.toml").display().to_string()];
    refused("eval.tasks", facts.into(), &["eval.tasks[0]", "generates text", "`evaluate`"]);
    let twice = vec![desk.path("colours.toml").display().to_string(); 2];
    refused("eval.tasks", twice.into(), &["eval.tasks[1]", "a second task with name = \"colours\""]);
    refused("eval.tokenizer", "none.model".into(), &["none.model"]);
    std::fs::remove_file(desk.path("model/tokenizer.json")).unwrap();
    refused("eval.limit", 5.into(), &["eval.tokenizer"]);
}

/// The author's greedy text of a real model begins with nothing but BOS. The file is not part of the project.
#[test]
fn greedy_text_is_the_published_one() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/stories260K");
    let Ok(greedy) = std::fs::read_to_string(data.join("greedy.txt")) else {
        return println!("skipped: no {}", data.join("greedy.txt").display());
    };
    let desk = Desk::new();
    desk.write("nothing.jsonl", &format!("{}\n", json!({ "text": "" })));
    desk.write(
        "nothing.toml",
        "name = \"nothing\"\ndata = \"nothing.jsonl\"\nkind = \"generate\"\nprompt = \"{{ text }}\"\n\
         answer = \"['x']\"\nmetric = \"char_f1\"\nmax_tokens = 200\n",
    );
    let mut command = engine();
    command.args(["evaluate", "--model"]).arg(data.join("hf")).arg("--tasks").arg(desk.path("nothing.toml"));
    finish(command.arg("--output").arg(desk.path("out"))).succeeded();
    let answer: Value = serde_json::from_str(desk.read("out/nothing.jsonl").trim_end()).unwrap();
    let text = answer["prediction"].as_str().unwrap();
    assert!(text.len() > 400 && greedy.trim_start().starts_with(text), "{text}\n{greedy}");
}
