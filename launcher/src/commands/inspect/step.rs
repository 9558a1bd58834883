//! `data inspect --step N --config FILE`: the samples of a step, as a step with a strange loss makes one want to see.
//! Their numbers are those of `spike.skip`.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use data::feed::{Feed, SourceReport, Split};
use data::meta::Meta;
use data::order::Piece;
use data::tokenizer::Tokenizer;
use engine::batch::Samples;
use engine::config::Config;
use engine::error::{Error, Result};

use super::{Inspect, runs, shown};
use crate::output::or_broken_pipe;

pub fn inspect(step: u64, config: &Path, args: &Inspect) -> Result<()> {
    let config = Config::load(config, &args.set)?;
    let steps = config.train.steps;
    if !(1..=steps).contains(&step) {
        return Err(Error::user(format!("--step {step}: the steps of this run are 1 to {steps} (train.steps)")));
    }
    let feed = Feed::open(&config)?;
    let sources = feed.sources().into_iter().filter(|source| source.split == Split::Train).collect();
    let mut view = View { feed: &feed, sources, args, tokenizers: HashMap::new() };
    let batch = config.train.global_batch_size as u64;
    let samples = (step - 1) * batch..step * batch;
    let mut out = std::io::stdout().lock();
    or_broken_pipe(writeln!(out, "step {step} of {steps}: samples {} to {}", samples.start, samples.end - 1))?;
    for sample in samples {
        let text = view.sample(sample)?;
        or_broken_pipe(out.write_all(text.as_bytes()))?;
    }
    Ok(())
}

struct View<'a> {
    feed: &'a Feed,
    /// Those of training, stage after stage.
    sources: Vec<SourceReport>,
    args: &'a Inspect,
    /// Those that were opened, by the prefix of their source.
    tokenizers: HashMap<PathBuf, Option<Tokenizer>>,
}

impl View<'_> {
    fn sample(&mut self, sample: u64) -> Result<String> {
        let (source, pieces) = self.feed.places(Split::Train, sample..sample + 1)?.remove(0);
        let batch = self.feed.micro_batch(Split::Train, sample..sample + 1)?;
        let source = self.sources[source].clone();
        let (counted, all) = (batch.counted(), batch.weights.len());
        let skipped = if self.feed.skips(Split::Train, sample) { ", left out by spike.skip" } else { "" };
        let mut text = format!(
            "\nsample {sample}: {} ({}), {counted} of {all} targets count in the loss{skipped}\n",
            source.name,
            source.prefix.display()
        );
        // A row predicts the token after it, so a token counts as a target by the weight of the row before.
        let weights: Vec<f32> = [0.0].into_iter().chain(batch.weights).collect();
        let ids: Vec<u32> = batch.ids.into_iter().chain(batch.targets.last().copied()).collect();
        let is_masked = counted > 0 && (counted as usize) < all;
        let (mut start, most) = (0, self.args.tokens);
        let tokenizer = self.tokenizer(&source.prefix)?;
        for Piece { document, offset, count } in pieces {
            let n = count.min(most - start.min(most));
            text += &format!("  document {document}, tokens {offset}..{}", offset + count as u64);
            let ids = &ids[start..start + n];
            match (n > 0, is_masked) {
                (false, _) => text += "\n",
                (true, false) => text += &format!(": {}\n", shown(ids, tokenizer)?),
                (true, true) => text += &format!(":\n{}", runs(ids, &weights[start..start + n], tokenizer, "    ")?),
            }
            start += count;
        }
        Ok(text)
    }

    /// The tokenizer of a source: that of `--tokenizer`, or else the one that made the file.
    fn tokenizer(&mut self, prefix: &Path) -> Result<Option<&Tokenizer>> {
        if !self.tokenizers.contains_key(prefix) {
            let meta = Meta::read(prefix)?.unwrap_or_default();
            let path = self.args.tokenizer.as_deref().or_else(|| meta.unchanged_tokenizer());
            self.tokenizers.insert(prefix.to_path_buf(), path.map(Tokenizer::open).transpose()?);
        }
        Ok(self.tokenizers[prefix].as_ref())
    }
}
