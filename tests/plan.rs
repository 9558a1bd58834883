//! `plan`: what the program predicts for runs on clusters that are not at hand.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::common::{Outcome, engine, finish};

fn plan(config: &str, cluster: &str, args: &[&str]) -> Command {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let mut command = engine();
    command.arg("plan").arg("--config").arg(configs.join(config));
    command.arg("--cluster").arg(configs.join("clusters").join(cluster)).args(args);
    command
}

/// The run itself would be refused only at its start, after it has waited in the queue of a cluster.
#[test]
fn a_plan_refuses_what_the_run_would_refuse() {
    let with = |set: &[&str]| {
        let args: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
        finish(&mut plan("swallow-7b.toml", "abci-a100-40.toml", &args))
    };
    let needles = ["ABCI (A): NCCL's calls may take 92 of the GPU's 108 multiprocessors at once", "[nccl]"];
    with(&["nccl.tensor_ctas=32", "nccl.data_ctas=24"]).refused(2, &needles);
    with(&["nccl.pipeline_ctas=5"]).refused(2, &["nccl.pipeline_ctas = 5", "a power of two"]);
    with(&["report.cluster=\"nothing.toml\""]).refused(2, &["report.cluster", "nothing.toml"]);
}

#[test]
fn a_plan_has_every_section() {
    let tmp = tempfile::tempdir().unwrap();
    let trace = tmp.path().join("step.json");
    let args = ["--set", "train.global_batch_size=64", "--trace", trace.to_str().unwrap()];
    let outcome = finish(&mut plan("swallow-7b.toml", "abci-a100-40.toml", &args)).succeeded();
    let text = outcome.stdout;
    for needle in [
        "64 GPUs on 8 nodes, tensor 2 x pipeline 2 x data 16, 4 micro-batches of 1 x 4096 tokens a step",
        "matmul",
        "pipeline bubble",
        "total",
        "tokens/s a GPU",
        "GPU-hours for 25000 steps",
        "swallow2023",
        "paper-totals",
        "hardware",
        "beside matmul and attention, ",
        "--search changes several keys at once",
    ] {
        assert!(text.contains(needle), "{needle}: {text}");
    }
    let trace: Value = serde_json::from_slice(&std::fs::read(trace).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let names = |name: &str| events.iter().filter(|event| event["name"] == name).count();
    assert_eq!(
        (names("forward of micro-batch 3"), names("the head")),
        (2, 4),
        "rows of both stages; the head's gradient is made in its forward"
    );
}

/// The planned TFLOPS of a GPU, by the formula of this name.
fn tflops(config: &str, cluster: &str, args: &[&str], formula: &str) -> f64 {
    let outcome = finish(&mut plan(config, cluster, &[&["--json"], args].concat())).succeeded();
    let json: Value = serde_json::from_str(&outcome.stdout).unwrap();
    json["step"]["formulas"][formula]["tflops"].as_f64().unwrap()
}

/// A row of Megatron-LM's table: 48 replicas, sequences of 4096, a vocabulary of 131072, heads of 128 elements.
struct Row {
    hidden: usize,
    layers: usize,
    tensor: usize,
    pipeline: usize,
    published: f64,
    /// This and the next two values are not in the table, but assumed.
    chunks: usize,
    micro_batch: usize,
    batch: usize,
}

impl Row {
    fn config(&self, dir: &Path) -> PathBuf {
        let Row { hidden, layers, tensor, pipeline, chunks, micro_batch, batch, .. } = *self;
        let (heads, rows, ranks) = (hidden / 128, tensor > 1, 48 * tensor * pipeline);
        let ffn = hidden * 8 / 3 / 64 * 64;
        let text = format!(
            "[model]\narchitecture = \"llama\"\nhidden_size = {hidden}\nintermediate_size = {ffn}\n\
             num_hidden_layers = {layers}\nnum_attention_heads = {heads}\nnum_key_value_heads = {heads}\n\
             vocab_size = 131072\nmax_position_embeddings = 4096\nrope_theta = 10000.0\nrms_norm_eps = 1e-5\n\
             [train]\nseq_length = 4096\nmicro_batch_size = {micro_batch}\nglobal_batch_size = {batch}\nsteps = 100\n\
             recompute = \"selective\"\n\
             [parallel]\ntensor = {tensor}\npipeline = {pipeline}\nvirtual_pipeline = {chunks}\n\
             sequence_parallel = {rows}\nranks = {ranks}\n\
             [optimizer]\nlr = 1e-4\nschedule = \"constant\"\n\
             [data]\ntrain = [{{ prefix = \"none\" }}]\n[checkpoint]\ndir = \"none\"\n"
        );
        let path = dir.join(format!("{hidden}-{layers}.toml"));
        std::fs::write(&path, text).unwrap();
        path
    }
}

mod exhaustive {
    use super::*;

    /// Table 7 of the Swallow paper (arXiv 2404.17790), its layouts with evenly divided layers, by one set of
    /// constants; and Llama 3.1 Swallow.
    #[test]
    fn published_results_of_swallow() {
        for (config, layers, published) in [
            ("swallow-7b.toml", "parallel.layers=[16,16]", 134.0),
            ("swallow-13b.toml", "parallel.layers=[10,10,10,10]", 143.0),
            ("swallow-70b.toml", "parallel.layers=[10,10,10,10,10,10,10,10]", 158.0),
        ] {
            let args = ["--set", layers, "--set", "train.recompute=none"];
            let found = tflops(config, "abci-a100-40-2023.toml", &args, "swallow2023");
            assert!((found / published - 1.0).abs() < 0.05, "{config}: {found:.1}, published {published}");
        }
        let found = tflops("llama-3.1-swallow-8b.toml", "abci-a100-40-2024.toml", &[], "full");
        assert!((found / 184.9 - 1.0).abs() < 0.07, "{found:.1}, published 184.9");
    }

    /// The page of measurements has what the program prints for this engine's own runs.
    #[test]
    fn the_simulated_column_is_the_program_s() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/measurements.md");
        let page = std::fs::read_to_string(page).unwrap();
        for (config, run) in [("swallow-7b", "7B"), ("swallow-13b", "13B"), ("swallow-70b", "70B")] {
            let outcome = finish(&mut plan(&format!("{config}.toml"), "abci-a100-40.toml", &["--json"])).succeeded();
            let json: Value = serde_json::from_str(&outcome.stdout).unwrap();
            let per_s = json["step"]["tokens_per_s_per_gpu"].as_f64().unwrap().round() as u64;
            let per_s = if per_s < 1000 { per_s.to_string() } else { format!("{},{:03}", per_s / 1000, per_s % 1000) };
            let mfu = |formula: &str| 100.0 * json["step"]["formulas"][formula]["mfu"].as_f64().unwrap();
            let cell = format!("| {per_s}, {:.0} %, {:.0} % |", mfu("model"), mfu("full"));
            let row = page.lines().find(|line| line.starts_with(&format!("| Swallow {run}, "))).unwrap();
            assert!(row.ends_with(&cell), "{row}\nbut {cell}");
        }
    }

    /// Weak scaling on H100 by Megatron-LM's README of 2024: tensor and pipeline degrees as published, shapes of the
    /// published sizes. The largest has 16,384 columns and more layers instead of 18,432 columns, which RMSNorm's
    /// kernel does not take.
    #[test]
    fn published_results_of_megatron() {
        let row = |hidden, layers, (tensor, pipeline), published, (chunks, micro_batch, batch)| Row {
            hidden,
            layers,
            tensor,
            pipeline,
            published,
            chunks,
            micro_batch,
            batch,
        };
        let rows = [
            row(2048, 24, (1, 1), 409.0, (1, 2, 1536)),
            row(4096, 30, (2, 1), 466.0, (1, 2, 1536)),
            row(6144, 32, (4, 1), 489.0, (1, 2, 1536)),
            row(8192, 36, (8, 1), 460.0, (1, 2, 1536)),
            row(8192, 84, (8, 2), 420.0, (1, 2, 1536)),
            row(12288, 96, (8, 6), 433.0, (4, 1, 1440)),
            row(16384, 96, (8, 8), 474.0, (6, 1, 1536)),
            row(16384, 144, (8, 16), 460.0, (9, 1, 1536)),
        ];
        let tmp = tempfile::tempdir().unwrap();
        for row in rows {
            let config = row.config(tmp.path());
            // An absolute path replaces `configs/`.
            let found = tflops(config.to_str().unwrap(), "dgx-h100-megatron.toml", &[], "model");
            let Row { hidden, layers, published, .. } = row;
            assert!((found / published - 1.0).abs() < 0.1, "{hidden} x {layers}: {found:.1}, published {published}");
        }
    }
}

/// `--json` has the same numbers, and the bytes of the dry run.
#[test]
fn json_has_the_bytes_of_the_dry_run() {
    let args = ["--set", "train.global_batch_size=64", "--json"];
    let outcome = finish(&mut plan("swallow-7b.toml", "abci-a100-40.toml", &args)).succeeded();
    let json: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let sum: f64 = json["step"]["shares"].as_object().unwrap().values().map(|s| s.as_f64().unwrap()).sum();
    assert!((sum / json["step"]["seconds"].as_f64().unwrap() - 1.0).abs() < 1e-9, "{json}");
    for stage in json["stages"].as_array().unwrap() {
        let uses: u64 = stage["uses"].as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap()).sum();
        assert_eq!(Some(uses), stage["bytes"].as_u64(), "{stage}");
    }
    let gib = json["stages"][0]["bytes"].as_f64().unwrap() / (1u64 << 30) as f64;
    let mut dry = engine();
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    dry.arg("train").arg("--config").arg(configs.join("swallow-7b.toml")).arg("--dry-run");
    dry.arg("--cluster").arg(configs.join("clusters/abci-a100-40.toml")).args(["--set", "train.global_batch_size=64"]);
    let dry = finish(&mut dry).succeeded().stdout;
    assert!(dry.contains(&format!("an arena of {gib:.2} GiB")), "{gib}: {dry}");
}

#[test]
fn what_does_not_fit_is_refused_with_what_does() {
    let args = ["--set", "train.micro_batch_size=16", "--set", "train.recompute=none"];
    let outcome = finish(&mut plan("swallow-7b.toml", "abci-a100-40.toml", &args));
    assert!(outcome.stdout.contains("GiB are missing"), "{}", outcome.stdout);
    outcome.refused(2, &["this run needs ", "what fits on 64 ranks: train.micro_batch_size = "]);
}

#[test]
fn a_search_ranks_layouts() {
    let outcome = finish(&mut plan("swallow-7b.toml", "abci-a100-40.toml", &["--search", "--json"])).succeeded();
    let json: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let seconds: Vec<f64> = json["found"].as_array().unwrap().iter().map(|f| f["seconds"].as_f64().unwrap()).collect();
    assert!(seconds.len() > 5 && seconds.is_sorted(), "{seconds:?}");
    let (room, left) = (json["room_bytes"].as_u64().unwrap(), json["left"].as_array().unwrap());
    let bytes = |left: &&Value| left["bytes"].as_u64().unwrap();
    let (large, behind): (Vec<&Value>, Vec<&Value>) = left.iter().partition(|left| left["why"] == "too large");
    assert!(large.iter().all(|left| bytes(left) > room) && behind.iter().all(|left| bytes(left) <= room), "{left:?}");
    assert!(!large.is_empty() && !behind.is_empty(), "{left:?}");
    let text = finish(&mut plan("swallow-7b.toml", "abci-a100-40.toml", &["--search"])).succeeded().stdout;
    for needle in ["layouts are valid", "need more than 38.50 GiB", "the configuration as it is: tensor 2, pipeline 2"]
    {
        assert!(text.contains(needle), "{needle}: {text}");
    }
}

/// The rates that `tests/gpu.sh` writes: of a device alone, and in place of a cluster file's.
#[test]
fn a_device_s_own_rates_are_planned_with() {
    let tmp = tempfile::tempdir().unwrap();
    let rates = tmp.path().join("rates.json");
    let write = |device: &str, matmul: f64| {
        let rates_of = json!({
            "matmul_tflops": matmul,
            "attention_tflops": 400.0,
            "attention_backward_tflops": 300.0,
            "memory_gb_s": 3000.0,
        });
        let file = json!({ "device": device, "memory_gib": 139.7, "rates": rates_of, "steps": { "wide-8b-2": 1.6 } });
        std::fs::write(&rates, file.to_string()).unwrap();
    };
    let alone = |args: &[&str]| {
        let mut command = engine();
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/bench/wide-8b.toml");
        command.arg("plan").arg("--config").arg(config).args(["--calibrate", rates.to_str().unwrap()]).args(args);
        finish(&mut command)
    };
    let matmul = |outcome: Outcome| {
        let json: Value = serde_json::from_str(&outcome.succeeded().stdout).unwrap();
        (json["step"]["shares"]["matmul"].as_f64().unwrap(), json["cluster"].clone())
    };
    let calibrated = |config: &str, cluster: &str, args: &[&str]| {
        finish(&mut plan(config, cluster, &[&["--calibrate", rates.to_str().unwrap()], args].concat()))
    };
    write("NVIDIA H200", 600.0);
    let (slow, name) = matmul(alone(&["--json"]));
    assert_eq!(name, "one NVIDIA H200");
    write("NVIDIA H200", 800.0);
    let (fast, _) = matmul(alone(&["--json"]));
    assert!((1.2..1.34).contains(&(slow / fast)), "{slow} s and {fast} s");
    let (beside, name) = matmul(calibrated("bench/wide-8b.toml", "h200.toml", &["--json"]));
    assert!((beside / fast - 1.0).abs() < 0.05 && name == "one H200", "{beside} s of {name}");
    calibrated("bench/wide-8b.toml", "h200.toml", &["--search"]).succeeded();

    let two = ["--set", "parallel.tensor=2"];
    alone(&two).refused(2, &["--calibrate ", "no links, and this run has 2 ranks; give --cluster FILE too"]);
    calibrated("bench/wide-8b.toml", "dgx-h100.toml", &[])
        .refused(2, &["it was measured on \"NVIDIA H200\", and the cluster has \"NVIDIA H100 80GB HBM3\""]);
    write("an unknown device", 800.0);
    alone(&[]).refused(2, &["the peak of \"an unknown device\" is not known; give --cluster FILE too"]);
    write("NVIDIA H200", -1.0);
    alone(&[]).refused(2, &["rates.matmul_tflops = -1; benches/rates.py writes such a file"]);
    std::fs::write(&rates, "{\"ops\": []}").unwrap();
    let profile = calibrated("bench/wide-8b.toml", "h200.toml", &[]);
    profile.refused(2, &["it is the profile of a CPU", "leave --cluster out"]);
}

#[test]
fn mistakes() {
    let few = ["--ranks", "1024"];
    finish(&mut plan("swallow-7b.toml", "abci-a100-40.toml", &few))
        .refused(2, &["1024 ranks take 128 nodes", "has 120"]);
    let tmp = tempfile::tempdir().unwrap();
    let bare = tmp.path().join("bare.toml");
    let cluster = "[cluster]\nname = \"bare\"\ngpus_per_node = 8\ndevice = \"NVIDIA A100-SXM4-40GB\"\n\
        memory_gib = 39.5\npeak_tflops = 312.0\npcie_gb_s = 31.5\nnetwork_gb_s = 100.0\n";
    std::fs::write(&bare, cluster).unwrap();
    let bare = bare.to_str().unwrap();
    finish(&mut plan("swallow-7b.toml", bare, &["--search"])).refused(2, &["--search needs its [reached] table"]);
    let text = finish(&mut plan("swallow-7b.toml", bare, &["--set", "train.global_batch_size=64"])).succeeded().stdout;
    assert!(text.contains("has no [reached] table") && text.contains("maximum "), "{text}");
}
