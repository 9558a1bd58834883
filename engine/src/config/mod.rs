//! The configuration: every table is declared once ([`section`]). A text is parsed into a valid [`Config`] once, before
//! anything is built, and no later code has defaults of its own.

mod achieved;
mod changes;
mod check;
mod cluster;
mod data;
mod document;
mod elapsed;
mod evaluation;
mod family;
pub mod hf;
mod layer;
mod layout;
mod load;
mod model;
mod names;
mod near;
mod origins;
mod raw;
mod section;
mod tables;
#[cfg(test)]
mod tests;

pub use achieved::{Achieved, Overlap, Slowdown, Software};
pub use cluster::Cluster;
pub use data::{Data, DataStage, Order, Source, TrainSource, TrainStage, ValidSet};
pub use elapsed::Elapsed;
pub use evaluation::Evaluation;
pub use family::{PackedLayout, TensorNames};
pub use layer::{
    Activation, AttentionKind, Biases, Experts, FeedForward, Layer, LayerType, Mlp, NormKind, RouterWeights,
    SWIGLU_LIMIT,
};
pub use layout::{Ranks, chunk_counts, degrees, ranks_used, samples};
pub use model::{Architecture, LayerTypes, Linear, Llama3, MOST_CHOICES, MOST_EXPERTS, Model, RopeScaling, Yarn};
pub use names::Named;
pub use near::{by_distance, near_multiples, near_pairs};
pub use tables::{
    Axis, BackendKind, Checkpoint, DecayShape, Eval, Load, MOST_RANKS, Nccl, Optimizer, Parallel, Precision, Recompute,
    Report, Schedule, Spike, SpikeAction, Train, Watchdog,
};

use crate::error::{Error, Result};
use origins::Origins;
use section::{Section, all_defaults, need, or, table_text};
use toml::{Table, Value};

/// The complete configuration of a run. Every field is valid and consistent with the others.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub model: Model,
    pub train: Train,
    pub parallel: Parallel,
    pub nccl: Nccl,
    pub optimizer: Optimizer,
    pub data: Data,
    pub spike: Spike,
    pub checkpoint: Checkpoint,
    pub eval: Eval,
    pub watchdog: Watchdog,
    pub report: Report,
}

/// The keys of a table and their other names.
macro_rules! keys {
    ($table:ident) => {
        [$table::KEYS, $table::ALIASES].concat()
    };
}

/// The tables of a file and their keys.
pub fn tables() -> [(&'static str, Vec<&'static str>); 11] {
    [
        ("model", keys!(Model)),
        ("train", keys!(Train)),
        ("parallel", keys!(Parallel)),
        ("nccl", keys!(Nccl)),
        ("optimizer", keys!(Optimizer)),
        ("data", keys!(Data)),
        ("spike", keys!(Spike)),
        ("checkpoint", keys!(Checkpoint)),
        ("eval", keys!(Eval)),
        ("watchdog", keys!(Watchdog)),
        ("report", keys!(Report)),
    ]
}

impl Config {
    /// The text that loads back as this configuration, with every default written out. Keys without a value
    /// (`train.backend`, `checkpoint.keep`, ...) are left out.
    pub fn to_toml(&self) -> String {
        let tables = [
            ("model", self.model.own_entries()),
            ("train", self.train.entries()),
            ("parallel", self.parallel.entries()),
            ("nccl", self.nccl.entries()),
            ("optimizer", self.optimizer.entries()),
            ("data", self.data.entries()),
            ("spike", self.spike.entries()),
            ("checkpoint", self.checkpoint.entries()),
            ("eval", self.eval.entries()),
            ("watchdog", self.watchdog.entries()),
            ("report", self.report.entries()),
        ];
        tables.map(|(name, entries)| table_text(name, &entries)).join("\n")
    }

    /// The keys and values that a run which resumes must share with the checkpoint, apart from its data.
    pub fn identity(&self) -> Vec<(String, String)> {
        [self.model.identity(), self.train.identity()].concat()
    }

    /// Remarks on settings that have no effect, or one that a user may have forgotten, without a final dot.
    pub fn notes(&self) -> Vec<String> {
        let samples = self.train.steps * self.train.global_batch_size as u64;
        let skipped = match self.spike.skipped(samples) {
            0 => None,
            skipped => Some(format!(
                "spike.skip: the targets of {skipped} of the {samples} samples of this run do not count in the loss"
            )),
        };
        let dropout = self.model.hf.as_deref().or(self.train.load.huggingface()).and_then(hf::note);
        self.data.notes(self.train.steps).into_iter().chain(skipped).chain(dropout).collect()
    }

    /// Reads `table` as a valid configuration for these ranks.
    fn read_table(table: Table, ranks: Ranks, at: &Origins) -> Result<Config> {
        refuse_misplaced(&table, at)?;
        let file = Value::Table(table);
        let file = Section::open(&file, "", &tables().map(|(name, _)| name), at)?;
        let model: Model = need("a [model] table").apply(&file.field("model"))?;
        let train: Train = need("a [train] table").apply(&file.field("train"))?;
        train.check(&model, at)?;
        let parallel: Parallel = or(all_defaults()).apply(&file.field("parallel"))?;
        parallel.check(&model, &train, ranks, at)?;
        let nccl = or(all_defaults()).apply(&file.field("nccl"))?;
        let optimizer = file.field("optimizer").section("an [optimizer] table", &keys!(Optimizer))?;
        let optimizer = Optimizer::from_section(&optimizer, train.steps)?;
        optimizer.check(train.steps, at)?;
        let data: Data = need("a [data] table").apply(&file.field("data"))?;
        data.check(at)?;
        if train.eval_interval > 0 && data.valid.is_empty() && data.split[1] == 0.0 {
            let remedy = "there is no validation data; name data.valid, or give data.split a second share";
            return Err(at.bad("train.eval_interval", train.eval_interval, remedy));
        }
        if train.eval_interval > 0 {
            data.check_valid_names(at)?;
        }
        let spike = or(all_defaults()).apply(&file.field("spike"))?;
        let checkpoint: Checkpoint = need("a [checkpoint] table").apply(&file.field("checkpoint"))?;
        let eval = Eval::of_file(&file, checkpoint.interval)?;
        let watchdog = or(all_defaults()).apply(&file.field("watchdog"))?;
        let report = or(all_defaults()).apply(&file.field("report"))?;
        Ok(Config { model, train, parallel, nccl, optimizer, data, spike, checkpoint, eval, watchdog, report })
    }
}

/// Refuses a key that is above the first table header and belongs below one.
fn refuse_misplaced(file: &Table, at: &Origins) -> Result<()> {
    let tables = tables();
    for key in file.keys().filter(|key| tables.iter().all(|(table, _)| table != key)) {
        if let Some((home, _)) = tables.iter().find(|(_, keys)| keys.contains(&key.as_str())) {
            let label = at.label(key);
            return Err(Error::user(format!("{label}: a configuration has no key {key:?}; it belongs to [{home}]")));
        }
    }
    Ok(())
}
