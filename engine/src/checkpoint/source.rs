//! `source/` in a run's directory: what the run knows of the Hugging Face model that it came from
//! besides the weights. An export takes the fields of `config.json` that the engine does not use
//! from it, and hands its tokenizer on.

use super::directory;
use crate::error::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.json";
/// What stands beside the weights and is handed on as it is.
const FILES: [&str; 11] = [
    "generation_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
];

fn place(run: &Path) -> PathBuf {
    run.join("source")
}

/// The files that an export hands on.
pub fn handed_on(run: &Path) -> Vec<PathBuf> {
    FILES.iter().map(|name| place(run).join(name)).filter(|path| path.is_file()).collect()
}

/// The source's `config.json`, if the run has one.
pub fn config(run: &Path) -> Result<Option<serde_json::Map<String, serde_json::Value>>> {
    let path = place(run).join(CONFIG);
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let fields = serde_json::from_slice(&text);
    fields.map(Some).map_err(|e| Error::user(format!("{}: not a JSON object: {e}", path.display())))
}

/// Copies configuration and tokenizer from a Hugging Face directory into the run's `source/`, all
/// or none, in place of what is there. Rank 0 alone.
pub fn keep(from: &Path, run: &Path) -> Result<()> {
    let names = [CONFIG].into_iter().chain(FILES);
    keep_files(names.map(|name| from.join(name)), run)
}

/// Copies the tokenizer that made the data, and what stands with it, for a run that came from no
/// Hugging Face model. A file that is not named as Hugging Face does is left where it is.
pub fn keep_tokenizer(tokenizer: &Path, run: &Path) -> Result<()> {
    let known = tokenizer.file_name().is_some_and(|name| FILES.iter().any(|known| name == *known));
    let Some(dir) = tokenizer.parent().filter(|_| known) else {
        return Ok(());
    };
    let belongs = FILES.into_iter().filter(|name| name.contains("token"));
    keep_files(belongs.map(|name| dir.join(name)), run)
}

fn keep_files(files: impl Iterator<Item = PathBuf>, run: &Path) -> Result<()> {
    let dir = place(run);
    let temporary = directory::temporary(&dir);
    directory::create_anew(&temporary)?;
    copy(&files.filter(|path| path.is_file()).collect::<Vec<_>>(), &temporary)?;
    directory::publish(&dir)
}

/// Copies files, each under its own name, and flushes them.
pub(super) fn copy(files: &[PathBuf], to: &Path) -> Result<()> {
    files.iter().try_for_each(|from| {
        let bytes = fs::read(from).map_err(|e| Error::io(from, e))?;
        directory::write(&to.join(from.file_name().expect("a file has a name")), &bytes)
    })
}
