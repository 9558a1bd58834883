//! Every file of `configs/` is valid: models, clusters and job scripts.

use std::path::{Path, PathBuf};
use std::process::Command;

use engine::config::{Axis, Cluster, Config};

use crate::common::{Case, finish, locally, metrics, set, write_config};

/// The files of a folder with this extension; there must be at least `least`.
#[track_caller]
fn files(folder: &str, extension: &str, least: usize) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let paths = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    assert!(paths.len() >= least, "{} files in {folder}", paths.len());
    paths
}

/// The layouts of the Swallow papers and of LLM-jp's slides: model, parameters in billions, tensor, pipeline, data.
#[test]
fn every_configuration_loads_and_has_its_layout() {
    let layouts = [
        ("swallow-7b", 6.83, 2, 2, 16),
        ("swallow-13b", 13.13, 2, 4, 8),
        ("swallow-70b", 69.16, 8, 8, 4),
        ("swallow-ms-7b", 7.33, 2, 2, 16),
        ("llama-3.1-swallow-8b", 8.03, 4, 1, 32),
        ("llama-3.1-swallow-70b", 70.55, 8, 8, 4),
        ("llm-jp-172b", 172.4, 4, 16, 8),
        ("llm-jp-3-13b", 13.71, 2, 4, 16),
        ("llm-jp-4-8b", 8.59, 4, 2, 16),
        ("llm-jp-13b-v1", 12.86, 4, 4, 6),
        ("qwen2.5-7b", 7.62, 4, 2, 8),
        ("qwen3-8b", 8.19, 4, 4, 4),
        ("gemma-2-9b", 9.24, 8, 2, 4),
        ("demo", 0.00505, 1, 1, 1),
        ("tiny", 0.000429, 1, 1, 1),
    ];
    let mut seen = 0;
    for path in files("configs", "toml", layouts.len()) {
        let config = Config::read(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
        let (p, name) = (&config.parallel, path.file_stem().unwrap().to_str().unwrap());
        let mesh = config.mesh(p.ranks.unwrap_or(p.tensor * p.pipeline)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let Some((_, billions, tensor, pipeline, data)) = layouts.into_iter().find(|row| row.0 == name) else {
            continue;
        };
        seen += 1;
        assert_eq!([Axis::Tensor, Axis::Pipeline, Axis::Data].map(|axis| mesh.size(axis)), [tensor, pipeline, data]);
        let parameters = engine::model::flops::parameters(&config.model) as f64 / 1e9;
        assert!((parameters / billions - 1.0).abs() < 0.01, "{name}: {parameters} billion parameters");
    }
    assert_eq!(seen, layouts.len(), "a file of this table is not there");
}

/// Models of the benchmark beside PyTorch have the sizes of their names, and leave no checkpoint.
#[test]
fn benchmark_models_have_the_sizes_of_their_names() {
    let billions = [("llama-1b", 1.236), ("wide-8b", 4.541)];
    for path in files("configs/bench", "toml", billions.len()) {
        let config = Config::read(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
        let parameters = engine::model::flops::parameters(&config.model) as f64 / 1e9;
        let named = billions.iter().find(|(name, _)| path.ends_with(format!("{name}.toml"))).unwrap();
        assert!((parameters / named.1 - 1.0).abs() < 0.001, "{}: {parameters} billion parameters", named.0);
        assert!(!config.checkpoint.at_end && config.checkpoint.interval == 0);
    }
}

#[test]
fn every_cluster_file_loads() {
    for path in files("configs/clusters", "toml", 4) {
        let cluster = Cluster::load(&path).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(report::peak::bf16_tflops(&cluster.device), Some(cluster.peak_tflops), "{}", cluster.name);
    }
}

#[test]
fn job_scripts_are_bash() {
    for path in files("configs/jobs", "sh", 4) {
        let outcome = finish(Command::new("bash").arg("-n").arg(&path)).succeeded();
        assert_eq!(outcome.stderr, "", "{}", path.display());
    }
}

/// The script passes on every variable on which all ranks must agree, and none that differs between nodes.
#[test]
fn the_mpirun_script_passes_on_what_ranks_must_agree_on() {
    let tmp = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mpirun = tmp.path().join("mpirun");
    std::fs::write(&mpirun, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").unwrap();
    std::fs::set_permissions(&mpirun, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let page = std::fs::read_to_string(root.join("docs/environment.md")).unwrap();
    let table = page.split_once("## Variables on which all ranks must agree").unwrap().1.split_once("\n## ").unwrap().0;
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(" |")).map(|(names, _)| names);
    let names = rows.flat_map(|names| names.split('`').step_by(2)).map(|name| name.replace('*', "X"));
    let agreed: Vec<String> = names.filter(|name| !name.is_empty() && !name.starts_with("OMPI_MCA_")).collect();
    assert!(agreed.len() > 10, "{agreed:?}");
    let mut script = Command::new(root.join("configs/jobs/mpirun.sh"));
    let path = format!("{}:{}", tmp.path().display(), std::env::var("PATH").unwrap());
    script.args(["run.toml", "2"]).env("PATH", path).envs(agreed.iter().map(|name| (name, "1")));
    let outcome = finish(script.env("NCCL_HOSTID", "a").env("CUDA_VISIBLE_DEVICES", "0")).succeeded();
    let passed: Vec<&str> = outcome.stdout.lines().collect();
    let is_passed = |name: &str| passed.windows(2).any(|pair| pair == ["-x", name]);
    let missing: Vec<&String> = agreed.iter().filter(|name| !is_passed(name)).collect();
    assert!(missing.is_empty(), "{missing:?} in {passed:?}");
    assert!(!is_passed("NCCL_HOSTID") && !is_passed("CUDA_VISIBLE_DEVICES"), "{passed:?}");
}

/// The script that all others call: a run, and the same command again, which continues it.
#[test]
fn the_mpirun_script_runs_and_continues() {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    let mut config = Case::open("mha_odd_vocab").config(&run);
    for steps in [2, 3] {
        set(&mut config, "train.steps", steps);
        let config = write_config(tmp.path(), "config.toml", &config);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/jobs/mpirun.sh");
        let mut script = locally(Command::new(script));
        script.env("SWALLOW_ENGINE", env!("CARGO_BIN_EXE_swallow-engine")).env("MPIRUN_FLAGS", "--oversubscribe");
        finish(script.arg(config).arg("2")).succeeded();
        assert_eq!(metrics(&run).len(), steps as usize);
    }
}
