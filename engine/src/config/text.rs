//! The configuration as a complete TOML text: every default written out, so that it loads back as it is.

use super::names::Named;
use super::{Config, Data, Load, Model, Optimizer, Parallel, RopeScaling, Schedule, Source, Train};
use std::path::Path;
use toml::{Table, Value};

impl Config {
    /// What has no value (`train.backend`, `checkpoint.keep`, ...) is left out.
    pub fn to_toml(&self) -> String {
        let mut out = Text(String::new());
        out.model(&self.model);
        out.train(&self.train);
        out.parallel(&self.parallel);
        out.optimizer(&self.optimizer);
        out.data(&self.data);
        out.table("checkpoint");
        out.put("dir", path(&self.checkpoint.dir));
        out.put("interval", whole(self.checkpoint.interval));
        out.put("at_end", self.checkpoint.at_end);
        out.put_some("keep", self.checkpoint.keep.map(count));
        out.table("report");
        out.put_some("peak_tflops", self.report.peak_tflops);
        out.put_some("interval", self.report.interval.map(whole));
        out.0
    }
}

impl Model {
    /// The `[model]` table alone; [`Model::from_toml`] reads it back.
    pub fn to_toml(&self) -> String {
        let mut out = Text(String::new());
        out.model(self);
        out.0
    }
}

struct Text(String);

impl Text {
    fn table(&mut self, name: &str) {
        let gap = if self.0.is_empty() { "" } else { "\n" };
        self.0 += &format!("{gap}[{name}]\n");
    }

    fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.0 += &format!("{key} = {}\n", value.into());
    }

    fn put_some(&mut self, key: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }

    fn model(&mut self, m: &Model) {
        self.table("model");
        self.put_some("hf", m.hf.as_deref().map(path));
        self.put("architecture", m.architecture.name());
        self.put("hidden_size", count(m.hidden_size));
        self.put("intermediate_size", count(m.intermediate_size));
        self.put("num_hidden_layers", count(m.num_hidden_layers));
        self.put("num_attention_heads", count(m.num_attention_heads));
        self.put("num_key_value_heads", count(m.num_key_value_heads));
        self.put("head_dim", count(m.head_dim));
        self.put("vocab_size", count(m.vocab_size));
        self.put("max_position_embeddings", count(m.max_position_embeddings));
        self.put("rope_theta", m.rope_theta);
        self.put("rope_scaling", rope_scaling(m.rope_scaling));
        self.put("rms_norm_eps", m.rms_norm_eps);
        self.put("tie_word_embeddings", m.tie_word_embeddings);
        self.put("initializer_range", m.initializer_range);
    }

    fn train(&mut self, t: &Train) {
        self.table("train");
        self.put_some("backend", t.backend.map(Named::name));
        self.put_some("precision", t.precision.map(Named::name));
        self.put("seq_length", count(t.seq_length));
        self.put("micro_batch_size", count(t.micro_batch_size));
        self.put("global_batch_size", count(t.global_batch_size));
        self.put("steps", whole(t.steps));
        self.put("seed", t.seed);
        self.put("recompute", t.recompute.name());
        match &t.load {
            Load::Random => self.put("load", "random"),
            Load::HuggingFace(dir) => self.put("load", format!("hf:{}", path(dir))),
        }
        self.put("z_loss", t.z_loss);
        self.put("eval_interval", whole(t.eval_interval));
        self.put("eval_steps", whole(t.eval_steps));
    }

    fn parallel(&mut self, p: &Parallel) {
        self.table("parallel");
        self.put("tensor", count(p.tensor));
        self.put("pipeline", count(p.pipeline));
        self.put("context", count(p.context));
        self.put("expert", count(p.expert));
        self.put("virtual_pipeline", count(p.virtual_pipeline));
        self.put_some("layers", p.layers.as_ref().map(|layers| layers.iter().map(|&n| count(n)).collect::<Vec<_>>()));
        self.put("sequence_parallel", p.sequence_parallel);
        self.put("distributed_optimizer", p.distributed_optimizer);
        self.put("gradient_precision", p.gradient_precision.name());
        self.put("order", p.order.map(Named::name).join("-"));
        self.put_some("ranks", p.ranks.map(count));
    }

    fn optimizer(&mut self, o: &Optimizer) {
        self.table("optimizer");
        self.put("lr", o.lr);
        self.put("min_lr", o.min_lr);
        match o.schedule {
            Schedule::Cosine => self.put("schedule", "cosine"),
            Schedule::Linear => self.put("schedule", "linear"),
            Schedule::Constant => self.put("schedule", "constant"),
            Schedule::Wsd { decay_steps, shape } => {
                self.put("schedule", "wsd");
                self.put("decay_steps", whole(decay_steps));
                self.put("decay_shape", shape.name());
            }
        }
        self.put("warmup_steps", whole(o.warmup_steps));
        self.put("betas", o.betas.to_vec());
        self.put("eps", o.eps);
        self.put("weight_decay", o.weight_decay);
        self.put("clip_grad", o.clip_grad);
    }

    fn data(&mut self, d: &Data) {
        self.table("data");
        self.put("train", sources(&d.train));
        self.put("valid", sources(&d.valid));
        self.put("split", d.split.map(|share| share.to_string()).join(","));
        self.put("order", d.order.name());
        self.put("mask_document_boundaries", d.mask_document_boundaries);
        self.put("allow_mixed_tokenizers", d.allow_mixed_tokenizers);
    }
}

fn rope_scaling(scaling: RopeScaling) -> Table {
    match scaling {
        RopeScaling::Default => Table::from_iter([("rope_type".to_string(), Value::from("default"))]),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let mut table = Table::new();
            table.insert("rope_type".into(), "llama3".into());
            table.insert("factor".into(), factor.into());
            table.insert("low_freq_factor".into(), low_freq_factor.into());
            table.insert("high_freq_factor".into(), high_freq_factor.into());
            table.insert("original_max_position_embeddings".into(), count(original_max_position_embeddings));
            table
        }
    }
}

fn sources(sources: &[Source]) -> Vec<Value> {
    let table = |source: &Source| {
        let mut table = Table::from_iter([("prefix".to_string(), Value::from(path(&source.prefix)))]);
        table.extend(source.weight.map(|weight| ("weight".to_string(), weight.into())));
        table.into()
    };
    sources.iter().map(table).collect()
}

fn count(n: usize) -> Value {
    whole(n as u64)
}

/// Every number came out of a TOML text or is smaller than what did.
fn whole(n: u64) -> Value {
    i64::try_from(n).expect("a validated number fits TOML").into()
}

/// Every path came out of a TOML text.
fn path(path: &Path) -> String {
    path.to_str().expect("a validated path is UTF-8").to_string()
}
