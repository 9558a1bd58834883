//! `PREFIX.meta.json`: which tokenizer made a token file. Only a convenience (`data inspect` decodes with it, an
//! exported checkpoint can take the tokenizer along): a token file without one, such as Megatron's own, is whole.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::idx::with_suffix;
use super::tokenize::Job;
use engine::error::{Error, Result};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The tokenizer's file, as an absolute path.
    pub tokenizer: String,
    /// Its BLAKE3 hash.
    pub blake3: String,
    pub vocab_size: usize,
    /// The ids put before and after every document.
    pub bos: Option<u32>,
    pub eos: Option<u32>,
}

impl Meta {
    pub fn of(job: &Job) -> Result<Self> {
        let path = job.tokenizer.path();
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        Ok(Self {
            tokenizer: std::fs::canonicalize(path).map_err(|e| Error::io(path, e))?.to_string_lossy().into_owned(),
            blake3: blake3::hash(&bytes).to_hex().to_string(),
            vocab_size: job.tokenizer.vocab_size(),
            bos: job.bos,
            eos: job.eos,
        })
    }

    pub fn write(&self, prefix: &Path) -> Result<()> {
        let (path, partial) = (with_suffix(prefix, "meta.json"), with_suffix(prefix, "meta.json.partial"));
        let text = serde_json::to_string_pretty(self).expect("strings and numbers are JSON");
        std::fs::write(&partial, text + "\n").map_err(|e| Error::io(&partial, e))?;
        std::fs::rename(&partial, &path).map_err(|e| Error::io(&path, e))
    }

    /// `None` where there is none, or where it cannot be read: nothing depends on it.
    pub fn read(prefix: &Path) -> Option<Self> {
        let bytes = std::fs::read(with_suffix(prefix, "meta.json")).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// The tokenizer's path, if the file is still there and still the same.
    pub fn unchanged_tokenizer(&self) -> Option<&Path> {
        let bytes = std::fs::read(&self.tokenizer).ok()?;
        (blake3::hash(&bytes).to_hex().as_str() == self.blake3).then_some(Path::new(&self.tokenizer))
    }
}
