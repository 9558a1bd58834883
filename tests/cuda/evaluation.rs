//! Evaluation on the device: the answers are the CPU's in the same precision, at layouts too, within the planned arena.

use serde_json::json;

use super::{Site, apart, small, with};
use crate::common::{checkout, engine, finish, set, write_config};

const CHOICE: &str = r#"
    name = "colours"
    data = "colours.jsonl"
    kind = "choice"
    prompt = "{{ question }}"
    choices = "choices"
    answer = "label"
    metric = "exact_match"
"#;

const GENERATE: &str = r#"
    name = "facts"
    data = "colours.jsonl"
    kind = "generate"
    prompt = "{{ question }}"
    answer = "choices"
    metric = "char_f1"
    max_tokens = 3
"#;

/// A site with a trained model in `model`, and with two tasks.
fn site() -> (Site, toml::Table) {
    let site = Site::with_fake_cuda();
    let config = small(site.tmp.path());
    let mut on_cpu = with(&config, &[("train.backend", "cpu".into())]);
    set(&mut on_cpu, "checkpoint.dir", site.dir("cpu").to_str().unwrap());
    let on_cpu = write_config(site.tmp.path(), "cpu.toml", &on_cpu);
    finish(engine().args(["train", "--config"]).arg(on_cpu)).succeeded();
    let (run, model) = (site.dir("cpu"), site.dir("model"));
    finish(engine().args(["checkpoint", "export", "--from"]).arg(run).arg("--to").arg(&model)).succeeded();
    let tokenizer = checkout().join("tests/golden/tokenizers/tokenizer.json");
    std::fs::copy(tokenizer, model.join("tokenizer.json")).unwrap();
    let question = |i: usize| json!({ "question": format!("{i} is"), "choices": [" red", " blue", " a"], "label": i });
    let lines: String = (0..3).map(|i| format!("{}\n", question(i))).collect();
    std::fs::write(site.dir("colours.jsonl"), lines).unwrap();
    std::fs::write(site.dir("colours.toml"), CHOICE).unwrap();
    std::fs::write(site.dir("facts.toml"), GENERATE).unwrap();
    (site, config)
}

/// The answers of `evaluate` with these arguments on some ranks.
fn answers(site: &Site, ranks: usize, more: &[&str]) -> [String; 2] {
    let name = more.concat();
    let [model, output] = ["model", &name].map(|name| site.dir(name).display().to_string());
    let tasks = ["colours.toml", "facts.toml"].map(|task| site.dir(task).display().to_string());
    let args = [&["evaluate", "--model", &model, "--output", &output, "--tasks", &tasks[0], &tasks[1]], more].concat();
    finish(&mut site.command(ranks, apart, &args)).succeeded();
    ["colours", "facts"].map(|task| std::fs::read_to_string(site.dir(&name).join(format!("{task}.jsonl"))).unwrap())
}

#[test]
fn answers_are_the_cpus() {
    let (site, _) = site();
    let right = answers(&site, 1, &["--backend", "cpu", "--precision", "bf16"]);
    assert_eq!(right[1].lines().count(), 3);
    assert_eq!(answers(&site, 2, &["--backend", "cuda", "--tensor", "2"]), right);
}

/// The dry run has counted the memory of the tasks, else `planned_is_used` fails.
#[test]
fn a_run_scores_tasks() {
    let (site, config) = site();
    let tasks = vec![site.dir("colours.toml").display().to_string()];
    let tokenizer = site.dir("model/tokenizer.json").display().to_string();
    let more = [
        ("train.steps", 1.into()),
        ("checkpoint.interval", 1.into()),
        ("eval.tasks", tasks.into()),
        ("eval.tokenizer", tokenizer.into()),
    ];
    let left = site.run("scored", 2, &with(&config, &[&more[..], &[("parallel.pipeline", 2.into())]].concat()), apart);
    let score = &left.metrics[0]["tasks"]["colours"]["exact_match"];
    assert!(score.as_f64().is_some_and(|score| (3.0 * score).fract().abs() < 1e-9), "{score}");
}
