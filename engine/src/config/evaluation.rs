//! The configuration of an evaluation, which trains nothing: a model, its layout, and the shape of a micro-batch.

use super::{Config, Model, Ranks};
use crate::config::document::Document;
use crate::error::Result;

/// How a model is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evaluation {
    /// Tensor-parallel ranks.
    pub tensor: usize,
    /// Pipeline stages.
    pub pipeline: usize,
    /// Sequences of a micro-batch.
    pub sequences: usize,
    /// Rows of a sequence.
    pub seq: usize,
}

impl Evaluation {
    pub fn on_one_rank(seq: usize) -> Evaluation {
        Evaluation { tensor: 1, pipeline: 1, sequences: 1, seq }
    }
}

impl Config {
    /// A configuration for `ranks` ranks. It trains one step on no data, and its keys are checked as those of a file
    /// are: the error names `parallel.tensor` and so on.
    ///
    /// Rows are not sharded outside of tensor-parallel regions, so that any number of them can be computed, and no
    /// state of an optimizer is sharded.
    pub fn of_evaluation(model: &Model, of: &Evaluation, ranks: usize) -> Result<Config> {
        let Evaluation { tensor, pipeline, sequences, seq } = of;
        let replicas = (ranks / (tensor * pipeline).max(1)).max(1);
        let text = format!(
            "{}\n[train]\nseq_length = {seq}\nmicro_batch_size = {sequences}\n\
             global_batch_size = {}\nsteps = 1\n\
             [parallel]\ntensor = {tensor}\npipeline = {pipeline}\nsequence_parallel = false\n\
             distributed_optimizer = false\n\
             [optimizer]\nlr = 1e-5\n[data]\ntrain = [ {{ prefix = \"none\" }} ]\n[checkpoint]\ndir = \"none\"\n",
            model.to_toml(),
            sequences * replicas
        );
        let Document { table, origins } = Document::parse("the evaluation".into(), &text)?;
        let config = Config::read_table(table, Ranks::AtHand(ranks), &origins)?;
        Ok(Config { model: model.clone(), ..config })
    }
}
