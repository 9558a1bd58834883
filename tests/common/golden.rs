//! The golden cases (`tests/golden`): the engine's inputs, and PyTorch's results.

use std::path::{Path, PathBuf};

use serde_json::Value;
use toml::{Table, Value as Toml};

use super::checkout;

/// The golden cases of models without experts.
pub const CASES: [&str; 20] = [
    "mha_odd_vocab",
    "gqa_masked",
    "llama3_rope",
    "tied_z_loss",
    "head_dim_64",
    "head_dim_128",
    "parity",
    "parity_tied",
    "loss_mask",
    "packed",
    "window",
    "window_packed",
    "yarn",
    "rope_linear",
    "biased",
    "qwen2",
    "qwen3",
    "gemma2",
    "gpt2",
    "two_stages",
];

/// The golden cases of models with experts.
pub const EXPERT_CASES: [&str; 4] = ["mixtral", "qwen3_moe", "qwen3_moe_norm", "gpt_oss"];

/// A folder of `tests/golden`.
pub struct Case {
    pub dir: PathBuf,
    expected: Value,
}

impl Case {
    pub fn open(name: &str) -> Case {
        let dir = checkout().join("tests/golden").join(name);
        let text = std::fs::read_to_string(dir.join("expected.json")).unwrap();
        Case { dir, expected: serde_json::from_str(&text).unwrap() }
    }

    /// PyTorch's loss, gradient norm and learning rate of each step.
    pub fn steps(&self) -> &[Value] {
        self.expected["steps"].as_array().unwrap()
    }

    /// PyTorch's runs in bf16, for the cases that have some: each with its `steps`, and in `weights` the distance of
    /// its last weights from the f32 reference, as a fraction of the distance trained.
    pub fn in_bf16(&self) -> &[Value] {
        self.expected["expected_bf16"].as_array().unwrap()
    }

    /// The engine's configuration for this case, in f32 on the CPU, with `run` as the run's directory.
    pub fn config(&self, run: &Path) -> Table {
        let mut config: Table = serde_json::from_value(self.expected["config"].clone()).unwrap();
        let path = |name: &str| Toml::from(self.dir.join(name).to_str().unwrap());
        let pack = Toml::from(self.expected["pack"] == true);
        let keys = |name: &str| [("prefix".to_string(), path(name)), ("pack".to_string(), pack.clone())];
        let source = |name: &str| Toml::from(vec![Toml::from(Table::from_iter(keys(name)))]);
        set(&mut config, "model.hf", path("init"));
        set(&mut config, "train.load", format!("hf:{}", self.dir.join("init").display()));
        set(&mut config, "train.backend", "cpu");
        set(&mut config, "train.precision", "f32");
        let data = config["data"].as_table_mut().unwrap();
        if data.contains_key("stage") {
            self.find(data);
        } else {
            set(&mut config, "data.train", source("train"));
            if self.dir.join("valid.idx").exists() {
                set(&mut config, "data.valid", source("valid"));
            }
        }
        set(&mut config, "checkpoint.dir", run.to_str().unwrap());
        config
    }

    /// Puts the case's folder before the prefix of every source in the stages and among the validation sets.
    fn find(&self, data: &mut Table) {
        let place = |sources: &mut Toml| {
            for source in sources.as_array_mut().unwrap() {
                let path = self.dir.join(source["prefix"].as_str().unwrap());
                source["prefix"] = path.to_str().unwrap().into();
            }
        };
        data["stage"].as_array_mut().unwrap().iter_mut().for_each(|stage| place(&mut stage["train"]));
        place(&mut data["valid"]);
    }
}

/// Sets `section.key`.
pub fn set(config: &mut Table, key: &str, value: impl Into<Toml>) {
    let (section, key) = key.split_once('.').unwrap();
    let table = config.entry(section).or_insert_with(|| Table::new().into());
    table.as_table_mut().unwrap().insert(key.to_string(), value.into());
}

/// Writes `config` as `name` into `dir`.
pub fn write_config(dir: &Path, name: &str, config: &Table) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, toml::to_string(config).unwrap()).unwrap();
    path
}
