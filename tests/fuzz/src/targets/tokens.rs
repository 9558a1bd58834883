//! Token files: `.bin`, `.idx`, masks and what was noted of them.

use data::check::{Limits, check};
use data::feed::{Feed, Split};
use data::idx::IndexedFile;
use engine::batch::Samples;
use engine::config::Config;
use engine::error::{Error, Result};
use std::path::Path;

/// `text.idx`, `text.bin`, and where they are there `text.mask.bin` and `text.meta.json`.
pub fn token_files() -> Result<()> {
    let prefix = Path::new("text");
    let file = IndexedFile::open(prefix)?;
    let report = check(prefix, Limits { vocab_size: Some(1 << 16) })?;
    let (mut ids, mut weights) = (Vec::new(), Vec::new());
    for i in 0..file.sequences().min(64) {
        let count = file.length(i).unwrap_or(0).min(1 << 16) as usize;
        let _ = file.read(i, 0, count, &mut ids).and_then(|()| file.read_weights(i, 0, count, &mut weights));
    }
    let _ = (file.tokens(), file.lengths(), file.meta().map(|meta| (meta.to_json(), meta.identity())));
    match report.findings.is_empty() {
        true => Ok(()),
        false => Err(Error::user(report.findings.join("; "))),
    }
}

/// The samples of a whole run, by `config.toml`.
pub fn feed() -> Result<()> {
    let config = Config::load(Path::new("config.toml"), &[])?;
    let mut feed = Feed::open(&config)?;
    feed.check_tokenizers(&config.train.load)?;
    feed.set_piece_bytes(feed.read_piece_bytes(&[]));
    let _ = (feed.fingerprint(0), feed.epochs(), feed.sources(), feed.totals());
    feed.largest_id(0, 1)?;
    let valid = (0..feed.valid_names().len()).map(Split::Valid);
    for split in valid.chain([Split::Train]) {
        let samples = feed.samples(split);
        feed.places(split, 0..samples)?;
        let batch = feed.micro_batch(split, 0..samples)?;
        feed.text_bytes(split, &batch);
        assert_eq!(batch.ids.len() as u64, samples * config.train.seq_length as u64, "ids of {samples} samples");
        let known = |id: &u32| (*id as usize) < config.model.vocab_size;
        assert!(batch.ids.iter().chain(&batch.targets).all(known), "an id outside the vocabulary");
    }
    Ok(())
}
