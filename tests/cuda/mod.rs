//! The CUDA backend through the program itself: compared with PyTorch, with one rank, with itself under other stream
//! delays, and with its memory plan; and its messages when something breaks. The device is the fake one; with
//! CUDA_TESTS_ON=device the golden runs, layouts and continued runs use a real one, which all ranks share.

mod choice;
mod copies;
mod evaluation;
mod families;
mod faults;
mod golden;
mod graph;
mod layouts;
mod machines;
mod resume;
mod stream_delays;
mod survey;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use toml::Table;

use crate::common::{
    FakeCuda, Tensors, export, fake_cuda, finish, metrics, mpirun_alone, program, set, write_config, write_tokens,
};

/// Environment variables of a process.
type Vars = Vec<(&'static str, String)>;

/// A folder for runs, and the fake libraries unless the device is real.
struct Site {
    tmp: TempDir,
    fake_cuda: Option<FakeCuda>,
}

/// Whether the device is a real one.
fn on_device() -> bool {
    std::env::var("CUDA_TESTS_ON").is_ok_and(|on| on == "device")
}

impl Site {
    /// A site with the device of CUDA_TESTS_ON.
    fn new() -> Site {
        Site { tmp: tempfile::tempdir().unwrap(), fake_cuda: (!on_device()).then(fake_cuda) }
    }

    /// A site with the fake device, whatever CUDA_TESTS_ON says.
    fn with_fake_cuda() -> Site {
        Site { tmp: tempfile::tempdir().unwrap(), fake_cuda: Some(fake_cuda()) }
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }

    /// The program with `args` on `ranks` ranks; `vars` are the variables of each rank.
    fn command(&self, ranks: usize, vars: impl Fn(usize) -> Vars, args: &[&str]) -> Command {
        let mut command = mpirun_alone();
        for rank in 0..ranks {
            let vars = vars(rank).into_iter().map(|(name, value)| format!("{name}={value}"));
            command.args([":"].iter().skip(usize::from(rank == 0))).args(["-n", "1", "env"]).args(vars);
            command.arg(program()).args(args);
        }
        if let Some(fake_cuda) = &self.fake_cuda {
            fake_cuda.on(&mut command);
        }
        command
    }

    /// Training as run `name`, with its configuration beside it.
    fn train(&self, name: &str, ranks: usize, config: &Table, vars: impl Fn(usize) -> Vars, more: &[&str]) -> Command {
        let mut config = config.clone();
        set(&mut config, "checkpoint.dir", self.dir(name).to_str().unwrap());
        let config = write_config(self.tmp.path(), &format!("{name}.toml"), &config);
        let args = [&["train", "--config", config.to_str().unwrap()], more].concat();
        self.command(ranks, vars, &args)
    }

    /// Trains to the end, and returns the results.
    #[track_caller]
    fn run(&self, name: &str, ranks: usize, config: &Table, vars: impl Fn(usize) -> Vars) -> Left {
        finish(&mut self.train(name, ranks, config, vars, &[])).succeeded();
        self.left(name)
    }

    #[track_caller]
    fn left(&self, name: &str) -> Left {
        let run = self.dir(name);
        let left = Left { metrics: metrics(&run), weights: export(&run, &self.dir(&format!("{name}-hf"))) };
        planned_is_used(&run);
        left
    }
}

/// Gives each rank a host name of its own, so that NCCL lets all of them share one device.
fn apart(rank: usize) -> Vars {
    vec![("NCCL_HOSTID", format!("host{rank}"))]
}

/// The same, with settings of the fake device where it is in use.
fn apart_and(more: &[(&'static str, &str)]) -> impl Fn(usize) -> Vars {
    let more: Vars = more.iter().filter(|_| !on_device()).map(|(name, value)| (*name, value.to_string())).collect();
    move |rank| apart(rank).into_iter().chain(more.clone()).collect()
}

/// The results of a run.
#[derive(Debug, PartialEq)]
struct Left {
    metrics: Vec<Value>,
    weights: Tensors,
}

impl Left {
    /// The metrics of every step and the last weights must be those of `other`, bit for bit.
    #[track_caller]
    fn is_exactly(&self, other: &Left, why: &str) {
        assert_eq!(self.metrics.len(), other.metrics.len(), "{why}: steps");
        for (a, b) in self.metrics.iter().zip(&other.metrics) {
            for key in ["step", "loss", "z_loss", "grad_norm", "lr", "tokens"] {
                assert_eq!(a[key], b[key], "{why}: {key} of step {}", a["step"]);
            }
        }
        for (name, weights) in &self.weights {
            assert!(weights == &other.weights[name], "{why}: {name} differs");
        }
    }
}

/// By `memory.json`, every rank must have used exactly the blocks that were planned for it, and the libraries no more
/// memory than was left to them.
#[track_caller]
fn planned_is_used(run: &Path) {
    let memory: Value = serde_json::from_str(&std::fs::read_to_string(run.join("memory.json")).unwrap()).unwrap();
    for rank in memory["ranks"].as_array().unwrap() {
        assert!(rank["used"]["peak_bytes"].as_u64().unwrap() > 0, "{rank}");
        for key in ["peak_bytes", "reserved_bytes", "checkpoint_copy_bytes"] {
            assert_eq!(rank["planned"][key], rank["used"][key], "{key}: {rank}");
        }
        let others = |when: &str| rank[when]["others_bytes"].as_u64().unwrap();
        assert!(others("used") <= others("planned"), "{rank}");
    }
}

/// The settings that give a small model experts.
fn experts() -> [(&'static str, toml::Value); 3] {
    [
        ("model.architecture", "mixtral".into()),
        ("model.num_local_experts", 4.into()),
        ("model.num_experts_per_tok", 2.into()),
    ]
}

/// A model for every kind of layout and for the kernels, with data in `dir` that it can learn. Its embeddings are large
/// enough that a checkpoint copies them on the stream beside the compute stream.
fn small(dir: &Path) -> Table {
    let text = r#"
        [model]
        architecture = "llama"
        hidden_size = 128
        intermediate_size = 96
        num_hidden_layers = 2
        num_attention_heads = 2
        num_key_value_heads = 2
        head_dim = 64
        vocab_size = 1031
        max_position_embeddings = 64
        rope_theta = 10000.0
        rms_norm_eps = 1e-5
        tie_word_embeddings = false
        [train]
        backend = "cuda"
        precision = "bf16"
        seq_length = 24
        micro_batch_size = 1
        global_batch_size = 4
        steps = 3
        [optimizer]
        lr = 3e-3
        min_lr = 1e-4
        warmup_steps = 2
        [data]
        order = "sequential"
    "#;
    write_tokens(&dir.join("small"), &[chain(8192, 1031)]);
    let mut config: Table = toml::from_str(text).unwrap();
    let source = Table::from_iter([("prefix".to_string(), dir.join("small").to_str().unwrap().into())]);
    set(&mut config, "data.train", vec![toml::Value::from(source)]);
    config
}

/// Tokens that can be learned: three of four follow from the previous one.
fn chain(count: usize, vocabulary: u32) -> Vec<u32> {
    let (mut noise, mut id) = (1u32, 0);
    let next = || {
        noise = noise.wrapping_mul(1664525).wrapping_add(1013904223);
        id = if noise >> 30 == 0 { noise >> 8 } else { 7 * id + 3 } % vocabulary;
        id
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// A configuration with more settings.
fn with(config: &Table, more: &[(&str, toml::Value)]) -> Table {
    let mut config = config.clone();
    more.iter().for_each(|(key, value)| set(&mut config, key, value.clone()));
    config
}
