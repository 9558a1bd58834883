//! `source/` in a run's directory: `config.json` and tokenizer of the Hugging Face model that the run started from.
//! An export takes from it the fields of `config.json` that the engine does not use, the tokenizer's files, and the
//! form of the experts: those of a model that came packed are exported packed.

use super::directory;
use crate::error::{Error, Result};
use crate::model::stored::Form;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.json";
/// Says that the source had its experts packed; absent where it had not.
const FORM: &str = "form.json";
/// Files of a Hugging Face model that an export copies unchanged.
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

pub(super) fn dir(run: &Path) -> PathBuf {
    run.join("source")
}

/// The files that an export copies unchanged.
pub fn files(run: &Path) -> Vec<PathBuf> {
    carried(&dir(run))
}

/// The files of a Hugging Face directory that are copied unchanged.
pub(super) fn carried(from: &Path) -> Vec<PathBuf> {
    FILES.iter().map(|name| from.join(name)).filter(|path| path.is_file()).collect()
}

/// Whether a file of this name is a tokenizer's vocabulary, or says which of its tokens are special.
pub(super) fn is_tokenizer(name: &str) -> bool {
    let vocabulary = FILES.iter().filter(|file| !file.contains("template") && !file.contains("config.json"));
    name == "tokenizer_config.json" || vocabulary.into_iter().any(|file| *file == name)
}

/// The tokenizer's files of a directory.
pub fn tokenizer_files(dir: &Path) -> Vec<PathBuf> {
    let names = FILES.into_iter().filter(|name| is_tokenizer(name) || name.contains("template"));
    names.map(|name| dir.join(name)).filter(|path| path.is_file()).collect()
}

/// The source's `config.json`, if the run has one.
pub fn config(run: &Path) -> Result<Option<serde_json::Map<String, serde_json::Value>>> {
    let path = dir(run).join(CONFIG);
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let fields = serde_json::from_slice(&text);
    fields.map(Some).map_err(|e| Error::user(format!("{}: not a JSON object: {e}", path.display())))
}

/// The form of the source's experts; per expert where the run has no source, or an older program kept it.
pub fn form(run: &Path) -> Result<Form> {
    let path = dir(run).join(FORM);
    if !path.exists() {
        return Ok(Form::PerExpert);
    }
    let text = fs::read(&path).map_err(|e| Error::io(&path, e))?;
    match serde_json::from_slice::<Value>(&text) {
        Ok(fields) if fields["experts"] == json!("packed") => Ok(Form::Packed),
        _ => Err(Error::user(format!("{}: it must say {{\"experts\": \"packed\"}}", path.display()))),
    }
}

/// Copies configuration and tokenizer of a Hugging Face directory into the run's `source/`, all files or none, notes
/// the form of its experts, and replaces existing files. Only rank 0 calls it.
pub fn keep(from: &Path, run: &Path, form: Form) -> Result<()> {
    let files = present([CONFIG].into_iter().chain(FILES).map(|name| from.join(name)));
    directory::write_whole(&dir(run), |temporary| {
        copy(&files, temporary)?;
        match form {
            Form::PerExpert => Ok(()),
            Form::Packed => directory::write_json(&temporary.join(FORM), &json!({ "experts": "packed" })),
        }
    })
}

/// Copies the tokenizer that made the data, with the tokenizer files beside it, for a run that did not start from a
/// Hugging Face model. A tokenizer whose file does not have one of Hugging Face's names is not copied.
pub fn keep_tokenizer(tokenizer: &Path, run: &Path) -> Result<()> {
    let known = tokenizer.file_name().is_some_and(|name| FILES.iter().any(|known| name == *known));
    let Some(folder) = tokenizer.parent().filter(|_| known) else {
        return Ok(());
    };
    let names = FILES.into_iter().filter(|name| name.contains("token"));
    let files = present(names.map(|name| folder.join(name)));
    directory::write_whole(&dir(run), |temporary| copy(&files, temporary))
}

/// Removes the run's `source/`.
pub(super) fn remove(run: &Path) -> Result<()> {
    directory::remove(&dir(run))
}

fn present(files: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    files.filter(|path| path.is_file()).collect()
}

/// Copies files, each under its own name, and flushes them.
pub(super) fn copy(files: &[PathBuf], to: &Path) -> Result<()> {
    files.iter().try_for_each(|from| {
        let bytes = fs::read(from).map_err(|e| Error::io(from, e))?;
        directory::write(&to.join(from.file_name().expect("a file has a name")), &bytes)
    })
}
