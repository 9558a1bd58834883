//! The differences between two configurations in the keys that a plan may change.

use super::{Config, Named, Parallel};

impl Config {
    /// This configuration with its layers balanced by cost; `None` if they already are.
    pub fn with_layers_by_cost(&self) -> Option<Config> {
        self.parallel.layers.as_ref()?;
        Some(Config { parallel: Parallel { layers: None, ..self.parallel.clone() }, ..self.clone() })
    }

    /// The changes of keys, as lines of a file, that turn this configuration into `to`, which may differ only in keys
    /// that change speed and memory.
    pub fn changes_to(&self, to: &Config) -> Vec<String> {
        let mut all = Vec::new();
        let mut note = |differs: bool, change: String| all.extend(differs.then_some(change));
        let ((t, was), (p, before)) = ((&to.train, &self.train), (&to.parallel, &self.parallel));
        let micro = t.micro_batch_size;
        note(micro != was.micro_batch_size, format!("train.micro_batch_size = {micro}"));
        note(t.recompute != was.recompute, format!("train.recompute = \"{}\"", t.recompute.name()));
        note(p.tensor != before.tensor, format!("parallel.tensor = {}", p.tensor));
        note(p.pipeline != before.pipeline, format!("parallel.pipeline = {}", p.pipeline));
        note(p.expert != before.expert, format!("parallel.expert = {}", p.expert));
        let chunks = p.virtual_pipeline;
        note(chunks != before.virtual_pipeline, format!("parallel.virtual_pipeline = {chunks}"));
        // With one tensor-parallel rank the key has no effect.
        let rows = p.tensor > 1 && before.tensor > 1 && p.sequence_parallel != before.sequence_parallel;
        note(rows, format!("parallel.sequence_parallel = {}", p.sequence_parallel));
        let shared = p.distributed_optimizer;
        note(shared != before.distributed_optimizer, format!("parallel.distributed_optimizer = {shared}"));
        note(p.layers.is_none() && before.layers.is_some(), "no parallel.layers".into());
        all
    }
}
