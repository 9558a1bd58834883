//! `report`, on real runs.

mod browser;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tempfile::TempDir;

use crate::common::{Case, Outcome, Shared, copy, engine, finish, mpirun, set, write_config};

/// A run of 12 steps at two pipeline stages, sampled every third step: a copy of one that all tests share.
struct Run {
    tmp: TempDir,
    _trained: Arc<TempDir>,
}

impl Run {
    fn new() -> Run {
        static TRAINED: Shared = Shared::new();
        let trained = TRAINED.get(|dir| _ = train(dir, "run", &[("parallel.pipeline", 2)]));
        let run = Run { tmp: tempfile::tempdir().unwrap(), _trained: trained.clone() };
        copy(&trained.path().join("run"), &run.dir());
        run
    }

    fn dir(&self) -> PathBuf {
        self.tmp.path().join("run")
    }

    /// Trains another run of the same model, or continues this one.
    fn train(&self, name: &str, keys: &[(&str, i64)]) -> PathBuf {
        train(self.tmp.path(), name, keys)
    }
}

/// Trains run `name` in a folder.
fn train(folder: &Path, name: &str, keys: &[(&str, i64)]) -> PathBuf {
    let dir = folder.join(name);
    let mut config = Case::open("parity").config(&dir);
    for (key, value) in [("train.steps", 12), ("report.interval", 3)].iter().chain(keys) {
        set(&mut config, key, *value);
    }
    let config = write_config(folder, &format!("{name}.toml"), &config);
    finish(mpirun(2).args(["train", "--config"]).arg(config)).succeeded();
    dir
}

fn report(dir: &Path, args: &[&str]) -> Outcome {
    finish(engine().arg("report").arg(dir).args(args))
}

fn read(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

const FILES: [&str; 3] = ["efficiency.json", "efficiency.md", "efficiency.html"];

#[test]
fn a_report_is_complete_and_reproducible() {
    let run = Run::new();
    let outcome = report(&run.dir(), &[]).succeeded();
    for needle in ["tokens/s per rank: **", "efficiency.html", "efficiency.md", "efficiency.json"] {
        assert!(outcome.stdout.contains(needle), "{needle}: {}", outcome.stdout);
    }
    let first = FILES.map(|name| read(&run.dir(), name));
    report(&run.dir(), &[]).succeeded();
    assert_eq!(FILES.map(|name| read(&run.dir(), name)), first);

    let [json, text, html] = first;
    for section in [
        "Setup",
        "Training curves",
        "Pipeline timeline",
        "Time breakdown",
        "Pipeline bubble and exposed communication",
        "Stragglers",
        "Memory",
        "Plan and measurement",
        "TFLOPS and MFU by formula",
    ] {
        assert!(text.contains(&format!("## {section}\n")) && html.contains(&format!(">{section}</h2>")), "{section}");
    }
    assert_eq!(html.matches("<svg ").count(), 8, "six curves, the pipeline, the bars");
    for forbidden in ["<script", "http://", "https://", "url(", "@import"] {
        assert!(!html.contains(forbidden), "{forbidden}");
    }
    let json: Value = serde_json::from_str(&json).unwrap();
    let setup = &json["setup"];
    assert_eq!((&setup["ranks"], &setup["pipeline"], &setup["worker"]), (&2.into(), &2.into(), &"rank".into()));
    assert_eq!(json["done"]["step"], 12);
    assert_eq!((&json["speed"]["first_step"], &json["time"]["samples"]), (&3.into(), &4.into()));
    let bubble = json["time"]["bubble"]["measured"].as_f64().unwrap();
    assert!(bubble > 0.0 && bubble < 1.0, "{bubble}");
    let mfu = "is unknown: set `report.peak_tflops` in the configuration or pass `--peak-tflops N`";
    assert!(text.contains(mfu) && json["formulas"][0]["mfu"].is_null(), "{text}");
}

#[test]
fn a_peak_a_plan_and_a_torn_line_are_reported() {
    let run = Run::new();
    let mut metrics = std::fs::File::options().append(true).open(run.dir().join("metrics.jsonl")).unwrap();
    metrics.write_all(b"{\"step\": 13, \"lo").unwrap();
    let mut timeline: Value = serde_json::from_str(&read(&run.dir(), "timeline.json")).unwrap();
    timeline["seconds"] = 10.0.into();
    let step = serde_json::json!({
        "seconds": 0.5, "tokens_per_s_per_gpu": 100.0, "shares": { "pipeline bubble": 0.1 }, "timeline": timeline,
    });
    let plan =
        serde_json::json!({ "ranks": 2, "tensor": 1, "pipeline": 2, "data": 1, "cluster": "<two>", "step": step });
    std::fs::write(run.dir().join("plan.json"), plan.to_string()).unwrap();
    let page = run.tmp.path().join("page.html");
    let outcome = report(&run.dir(), &["--peak-tflops", "0.5", "--html", page.to_str().unwrap()]).succeeded();
    assert!(outcome.stdout.contains("Note: metrics.jsonl: line 13 was skipped"), "{}", outcome.stdout);
    let (text, html) = (read(&run.dir(), "efficiency.md"), read(run.tmp.path(), "page.html"));
    for needle in ["Planned on &lt;two>, and measured", "A step as planned", "of 0.500 TFLOPS", "| % of peak |"] {
        assert!(text.contains(needle), "{needle}: {text}");
    }
    assert!(html.contains("Planned on &lt;two&gt;") && html.matches("<svg ").count() == 9);
    assert!(!run.dir().join("efficiency.html").exists());
    let json: Value = serde_json::from_str(&read(&run.dir(), "efficiency.json")).unwrap();
    let model = &json["formulas"][0];
    assert_eq!(model["mfu"].as_f64().unwrap(), model["tflops_per_rank"].as_f64().unwrap() / 0.5);
}

#[test]
fn a_run_is_compared_with_another() {
    let run = Run::new();
    let other = run.train("other", &[("report.interval", 0)]);
    report(&run.dir(), &["--against", other.to_str().unwrap()]).succeeded();
    let (text, html) = (read(&run.dir(), "efficiency.md"), read(&run.dir(), "efficiency.html"));
    for needle in ["## Comparison with other", "| loss of step 12 |", "| tokens/s per rank |", "| this / other |"] {
        assert!(text.contains(needle), "{needle}: {text}");
    }
    assert!(!text.contains("differs"), "the same model: {text}");
    assert_eq!(html.matches("<svg ").count(), 10);
    let text = report(&other, &[]).succeeded();
    assert!(!text.stdout.contains("Note"), "{}", text.stdout);
    let text = read(&other, "efficiency.md");
    for needle in ["has no sample of this layout", "There is no `timeline.json`", "`report.interval`"] {
        assert!(text.contains(needle), "{needle}: {text}");
    }
}

/// The same ranks go on with one stage: the report has the speed of the steps since then only, and says that the
/// samples of two stages are left out.
#[test]
fn a_run_at_a_new_layout_is_reported_at_that_one() {
    let run = Run::new();
    run.train("run", &[("parallel.pipeline", 1), ("train.steps", 17), ("report.interval", 0)]);
    let outcome = report(&run.dir(), &[]).succeeded();
    for needle in [
        "Note: 12 steps with other settings than tensor 1, pipeline 1, virtual 1, data 2, ",
        "Note: `timeline.json` is ignored: its layout is tensor 1 x pipeline 2 x data 1, the run's is tensor 1 x ",
    ] {
        assert!(outcome.stdout.contains(needle), "{needle}: {}", outcome.stdout);
    }
    let json: Value = serde_json::from_str(&read(&run.dir(), "efficiency.json")).unwrap();
    assert_eq!((&json["speed"]["first_step"], &json["speed"]["steps"]), (&15.into(), &3.into()));
    assert!(json["time"].is_null(), "the samples are of two stages");
    assert!(!read(&run.dir(), "efficiency.md").contains("There is no `timeline.json`"));
}

/// A validation loss that is too large for any axis.
#[test]
fn a_damaged_line_is_left_out() {
    let run = Run::new();
    let metrics = read(&run.dir(), "metrics.jsonl");
    let mut last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    last["valid_loss"] = 1.75e308.into();
    let huge = last.to_string();
    last["tokens_per_s_per_rank"] = 0.into();
    std::fs::write(run.dir().join("metrics.jsonl"), format!("{metrics}\n{huge}\n{last}\n")).unwrap();
    let outcome = report(&run.dir(), &[]).succeeded();
    let needles = ["validation 1.75e308 at step 12", "Note: metrics.jsonl: line 15 was skipped"];
    assert!(needles.iter().all(|needle| outcome.stdout.contains(needle)), "{}", outcome.stdout);
}

#[test]
fn a_folder_without_a_run_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().to_str().unwrap();
    report(tmp.path(), &[]).refused(2, &[dir, "not a run directory", "config.toml"]);
    let run = Run::new();
    report(&run.dir(), &["--against", dir]).refused(2, &[dir, "not a run directory"]);
    report(&run.dir(), &["--peak-tflops", "0"]).refused(2, &["--peak-tflops", "must be a number above 0"]);
    std::fs::write(run.dir().join("memory.json"), "{").unwrap();
    report(&run.dir(), &[]).refused(2, &["memory.json"]);
    std::fs::write(run.dir().join("metrics.jsonl"), "{\"step\": 1").unwrap();
    report(&run.dir(), &[]).refused(2, &["metrics.jsonl", "no complete step"]);
}
