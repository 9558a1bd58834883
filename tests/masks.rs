//! Loss masks: which targets count in training, in what a resume compares, and masks that do not fit.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;
use toml::Table;

use crate::common::{Case, Outcome, engine, export, finish, metrics, set, write_config};

/// A copy of the golden case with a mask, whose files a test changes.
struct Masked {
    tmp: TempDir,
    config: Table,
}

impl Masked {
    /// Samples of the case's run, and tokens of a sample.
    const SAMPLES: usize = 64;
    const SEQ: usize = 40;

    fn new() -> Masked {
        let (case, tmp) = (Case::open("loss_mask"), tempfile::tempdir().unwrap());
        for name in ["train.bin", "train.idx", "train.mask.bin", "train.meta.json"] {
            std::fs::copy(case.dir.join(name), tmp.path().join(name)).unwrap();
        }
        let mut config = case.config(&tmp.path().join("run"));
        let prefix = tmp.path().join("train").to_str().unwrap().to_string();
        let source = Table::from_iter([("prefix".to_string(), prefix.into())]);
        set(&mut config, "data.train", vec![toml::Value::from(source)]);
        set(&mut config, "train.eval_interval", 0);
        Masked { tmp, config }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = std::fs::read(self.path(name)).unwrap();
        change(&mut bytes);
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// Trains into the directory `run`.
    fn train(&self, run: &str, args: &[&str]) -> Outcome {
        let mut config = self.config.clone();
        set(&mut config, "checkpoint.dir", self.path(run).to_str().unwrap());
        let config = write_config(self.tmp.path(), "config.toml", &config);
        finish(engine().args(["train", "--config"]).arg(config).args(args))
    }

    /// Loss and gradient norm of each step.
    fn figures(&self, run: &str) -> Vec<[Value; 2]> {
        metrics(&self.path(run)).iter().map(|step| ["loss", "grad_norm"].map(|key| step[key].clone())).collect()
    }
}

#[test]
fn each_byte_of_a_mask_decides_over_its_target() {
    let masked = Masked::new();
    masked.change("train.mask.bin", |mask| mask[Masked::SAMPLES * Masked::SEQ] = 0);
    masked.train("first", &[]).succeeded();
    // The run's last target is no input: where it does not count, it changes no bit.
    masked.change("train.bin", |tokens| {
        let id = &mut tokens[2 * Masked::SAMPLES * Masked::SEQ];
        *id = (*id + 1) % 100;
    });
    masked.train("second", &[]).succeeded();
    assert_eq!(masked.figures("first"), masked.figures("second"));
    let weights = |run: &str| export(&masked.path(run), &masked.path(&format!("{run}-hf")));
    assert!(weights("first") == weights("second"), "a target that does not count changed the weights");
    // Where it counts, it changes the last step.
    masked.change("train.mask.bin", |mask| mask[Masked::SAMPLES * Masked::SEQ] = 1);
    masked.train("third", &[]).succeeded();
    let (first, third) = (masked.figures("first"), masked.figures("third"));
    assert_eq!(first[..7], third[..7]);
    assert_ne!(first[7], third[7]);
}

#[test]
fn another_mask_is_refused_at_resume() {
    let masked = Masked::new();
    masked.train("run", &["--set", "train.steps=2"]).succeeded();
    masked.change("train.mask.bin", |mask| mask[1234] ^= 1);
    masked.train("run", &[]).refused(2, &["data.train[0].mask", "--accept-data-change"]);
}

/// A first stage with a mask, and a second one of packed documents with a mask.
fn staged(masked: &Masked) -> Table {
    let prefix = |path: &Path| ("prefix".to_string(), toml::Value::from(path.to_str().unwrap()));
    let first = Table::from_iter([prefix(&masked.path("train"))]);
    let packed = Table::from_iter([prefix(&Case::open("packed").dir.join("train")), ("pack".to_string(), true.into())]);
    let stage = |sources: Table, until: Option<i64>| {
        let until = until.map(|step| ("until_step".to_string(), step.into()));
        let train = ("train".to_string(), toml::Value::from(vec![toml::Value::from(sources)]));
        toml::Value::from(Table::from_iter(until.into_iter().chain([train])))
    };
    let mut config = masked.config.clone();
    config["data"].as_table_mut().unwrap().remove("train");
    set(&mut config, "data.stage", vec![stage(first, Some(3)), stage(packed, None)]);
    set(&mut config, "data.order", "megatron");
    set(&mut config, "checkpoint.interval", 2);
    config
}

/// A run that continues before a stage's border, and one inside packed documents, are the run that was not interrupted.
#[test]
fn a_run_continues_across_stages_of_masked_and_packed_data() {
    let mut masked = Masked::new();
    masked.config = staged(&masked);
    masked.train("whole", &[]).succeeded();
    let shards = |run: &str| {
        let dir = masked.path(run).join("checkpoints/step-00000008");
        std::fs::read(dir.join("rank-00000-0.safetensors")).unwrap()
    };
    for step in ["2", "6"] {
        let run = format!("from-{step}");
        crate::common::copy(&masked.path("whole"), &masked.path(&run));
        masked.train(&run, &["--from-step", step]).succeeded();
        assert_eq!(masked.figures(&run), masked.figures("whole"));
        assert!(shards(&run) == shards("whole"), "the weights differ after step {step}");
    }
    let args = ["--set", "data.stage=[]", "--from-step", "6"];
    masked.train("whole", &args).refused(2, &["data.train"]);
    let stages = masked.config["data"]["stage"].as_array_mut().unwrap();
    stages[1]["train"][0]["pack"] = false.into();
    masked.train("whole", &["--from-step", "6"]).refused(2, &["data.stage[1].train[0].pack", "--accept-data-change"]);
}

#[test]
fn masks_that_do_not_fit_are_refused() {
    let masked = Masked::new();
    let dry = |masked: &Masked| masked.train("run", &["--set", "train.steps=1"]);
    masked.change("train.mask.bin", |mask| mask[77] = 7);
    dry(&masked).refused(2, &["train.mask.bin: byte 77 is 7", "0 and 1 only"]);
    let found = check(&masked.path("train")).refused(2, &["1 finding"]);
    assert!(found.stdout.contains("byte 77 is 7"), "{}", found.stdout);
    masked.change("train.mask.bin", |mask| mask.truncate(99));
    dry(&masked).refused(2, &["data.train[0].prefix", "train.mask.bin: 99 bytes for the ", "one byte a token"]);
    std::fs::remove_file(masked.path("train.mask.bin")).unwrap();
    dry(&masked).refused(2, &["train.mask.bin: no such file", "\"mask\": true"]);
    std::fs::write(masked.path("train.mask.bin"), "").unwrap();
    std::fs::write(masked.path("train.meta.json"), "{}").unwrap();
    dry(&masked).refused(2, &["train.mask.bin: a loss mask that ", "does not mention"]);
}

fn check(prefix: &Path) -> Outcome {
    finish(engine().args(["data", "check"]).arg(prefix))
}
