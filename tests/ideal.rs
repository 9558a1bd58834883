//! `sol` in the metrics: the planner's ideal time as a share of the step's, with a cluster file in `report.cluster`.

use std::path::{Path, PathBuf};

use toml::Table;

use crate::common::{Case, Outcome, engine, finish, metrics, mpirun, set, write_config};

/// A machine with launches of a millisecond, beside which the rates hardly count for a small model.
fn cluster_file(dir: &Path, launch_us: f64) -> PathBuf {
    let text = format!(
        "[cluster]\nname = \"a test\"\nnodes = 1\ngpus_per_node = 8\ndevice = \"a GPU\"\nmemory_gib = 8.0\n\
         peak_tflops = 1.0\npcie_gb_s = 10.0\n\
         [reached]\nmatmul_tflops = 1.0\nattention_tflops = 1.0\nattention_backward_tflops = 1.0\nmemory_gb_s = 100.0\n\
         launch_us = {launch_us:.1}\nring_gb_s = 1.0\nlatency_us = 15.0\nslowdown = 0.0\n"
    );
    let path = dir.join("cluster.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// A run of four steps with a cluster file that is called `cluster`.
fn config(dir: &Path, cluster: &Path) -> Table {
    let mut config = Case::open("parity").config(&dir.join("run"));
    set(&mut config, "train.steps", 4);
    set(&mut config, "report.cluster", cluster.to_str().unwrap());
    config
}

fn train(dir: &Path, ranks: usize, config: &Table) -> Outcome {
    let path = write_config(dir, "run.toml", config);
    finish(mpirun(ranks).arg("train").arg("--config").arg(path))
}

/// The ideal seconds of a step, which are the same for each.
fn ideal(run: &Path) -> f64 {
    let steps = metrics(run);
    let ideal = |step: &serde_json::Value| step["sol"].as_f64().unwrap() * step["step_time_s"].as_f64().unwrap();
    let first = ideal(&steps[0]);
    assert!(steps.iter().all(|step| (ideal(step) / first - 1.0).abs() < 1e-9) && first > 0.0, "{steps:?}");
    first
}

/// Two stages share the work, and neither their messages nor their bubble is part of the ideal.
#[test]
fn the_ideal_time_is_shared_out_over_the_ranks() {
    let seconds = [1, 2].map(|ranks| {
        let tmp = tempfile::tempdir().unwrap();
        let mut config = config(tmp.path(), &cluster_file(tmp.path(), 1000.0));
        set(&mut config, "parallel.pipeline", ranks);
        let outcome = train(tmp.path(), ranks as usize, &config).succeeded();
        let warning = "describes \"a GPU\", and this run is on ";
        assert_eq!(outcome.stderr.matches(warning).count(), 1, "{}", outcome.stderr);
        let run = tmp.path().join("run");
        let efficiency = finish(engine().arg("report").arg(&run)).succeeded();
        let page = std::fs::read_to_string(run.join("efficiency.md")).unwrap();
        assert!(page.contains("ideal time"), "{}\n{page}", efficiency.stdout);
        ideal(&run)
    });
    let [one, two] = seconds;
    assert!((one / two / 2.0 - 1.0).abs() < 0.05, "{one} s on one rank, {two} s on each of two stages");
}

#[test]
fn without_a_cluster_file_there_is_no_ideal_time() {
    let tmp = tempfile::tempdir().unwrap();
    let mut config = config(tmp.path(), Path::new("none"));
    config["report"].as_table_mut().unwrap().remove("cluster");
    train(tmp.path(), 1, &config).succeeded();
    assert!(metrics(&tmp.path().join("run")).iter().all(|step| step.get("sol").is_none()));
}

#[test]
fn a_cluster_file_that_cannot_be_used_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let refused = |cluster: &Path, needles: &[&str]| {
        train(tmp.path(), 2, &config(tmp.path(), cluster)).refused(2, needles);
        assert!(!tmp.path().join("run").exists(), "nothing was begun");
    };
    let missing = tmp.path().join("none.toml");
    refused(&missing, &["report.cluster = ", "none.toml: ", "name a TOML file that can be read"]);
    let path = cluster_file(tmp.path(), 3.0);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.split("[reached]").next().unwrap()).unwrap();
    refused(&path, &["report.cluster = ", "cluster.toml: it has no [reached] table", "leave the key out"]);
    std::fs::write(&path, text.replace("slowdown", "slowness")).unwrap();
    refused(&path, &["cluster.toml line ", "reached.slowness"]);
}
