//! A configuration file, read from and written to disk.

use super::document::Document;
use super::origins::Origins;
use super::section::Read;
use super::{BackendKind, Config, Load, Precision, Ranks, Source, hf};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

impl Config {
    /// Loads the file at `path`, overridden by the `KEY=VALUE` of each `--set`; the files that it names must exist.
    ///
    /// Relative paths in it are relative to the current directory.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Config> {
        Config::load_for(Ranks::Its, path, overrides)
    }

    /// Like [`Config::load`], but for these ranks: the refusal of a layout names one that they can run.
    pub fn load_for(ranks: Ranks, path: &Path, overrides: &[String]) -> Result<Config> {
        let config = Config::read_for(ranks, path, overrides)?;
        config.check_files()?;
        Ok(config)
    }

    /// Like [`Config::load`], but the files that it names need not exist, so that a machine that lacks them can plan.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Config> {
        Config::read_for(Ranks::Its, path, overrides)
    }

    /// Like [`Config::read`], but for these ranks, as in [`Config::load_for`].
    pub fn read_for(ranks: Ranks, path: &Path, overrides: &[String]) -> Result<Config> {
        let mut document = Document::load(path, overrides)?;
        fill_from_hf(&mut document)?;
        Config::read_table(document.table, ranks, &document.origins)
    }

    /// Reads the text that [`Config::to_toml`] wrote. The text is complete, so that no other file is read.
    pub fn from_resolved(text: &str) -> Result<Config> {
        let Document { table, origins } = Document::parse("config.toml".into(), text)?;
        Config::read_table(table, Ranks::Its, &origins)
    }

    /// Validates a configuration that the program changed, as if it were read from a file.
    pub fn checked(&self) -> Result<Config> {
        let Document { table, .. } = Document::parse(String::new(), &self.to_toml())?;
        Config::read_table(table, Ranks::Its, &Origins::nowhere())
    }

    /// Checks that the files that the configuration names exist, and that the weights fit the model. An error names the
    /// key.
    pub fn check_files(&self) -> Result<()> {
        for (key, sources) in self.data.lists() {
            for (i, source) in sources.iter().enumerate() {
                check_source(source, &format!("{key}[{i}].prefix"))?;
            }
        }
        match &self.train.load {
            Load::Random => Ok(()),
            Load::HuggingFace(dir) if dir.join("config.json").is_file() => hf::must_fit(&self.model, dir),
            Load::HuggingFace(_) if has_checkpoint(&self.checkpoint.dir) => Ok(()),
            Load::HuggingFace(dir) => Err(Error::user(format!(
                "train.load = \"hf:{}\": there is no config.json in this directory",
                dir.display()
            ))),
        }
    }

    /// The backend and its precision; `device` says whether the machine has a CUDA device.
    pub fn backend(&self, device: bool) -> Result<(BackendKind, Precision)> {
        let best = if device { BackendKind::Cuda } else { BackendKind::Cpu };
        match (self.train.backend.unwrap_or(best), self.train.precision) {
            (BackendKind::Cuda, Some(Precision::F32)) => Err(Error::user(
                "train.precision = \"f32\": this machine has a CUDA device, which computes in \"bf16\"; \
                 write train.backend = \"cpu\" to stay in f32",
            )),
            (BackendKind::Cuda, _) => Ok((BackendKind::Cuda, Precision::Bf16)),
            (BackendKind::Cpu, precision) => Ok((BackendKind::Cpu, precision.unwrap_or(Precision::F32))),
        }
    }
}

/// Fills the keys of `[model]` that the file leaves out from the `config.json` in `hf = "DIR"`.
fn fill_from_hf(document: &mut Document) -> Result<()> {
    let Document { table, origins } = document;
    let run = table.get("checkpoint").and_then(|table| table.get("dir")?.as_str()).map(PathBuf::from);
    let Some(toml::Value::Table(model)) = table.get_mut("model") else { return Ok(()) };
    let Some(dir) = model.get("hf") else { return Ok(()) };
    let dir = PathBuf::read(dir, "model.hf", origins)?;
    if dir.as_os_str().is_empty() {
        return Err(origins.bad("model.hf", "\"\"", "must name the directory of a config.json"));
    }
    let found = match dir.join("config.json").is_file() {
        true => Some(hf::model_table(&dir)?),
        false => run.map_or(Ok(None), |run| model_of_run(&run))?,
    };
    let Some((theirs, places)) = found else {
        return Err(origins.bad("model.hf", dir.display(), "there is no config.json in this directory"));
    };
    origins.put("model/hf", format!("{} and {}: model", origins.file(), places.file()));
    for (key, value) in theirs {
        if !model.contains_key(&key) {
            origins.adopt(&places, &format!("model.{key}"));
            model.insert(key, value);
        }
    }
    Ok(())
}

/// The `[model]` table that a run with a checkpoint wrote when it started. The run continues from its own files if the
/// directory of its base model is gone.
fn model_of_run(run: &Path) -> Result<Option<(toml::Table, Origins)>> {
    let (resolved, source) = (run.join("config.toml"), run.join("source"));
    if !has_checkpoint(run) {
        return Ok(None);
    }
    if resolved.is_file() {
        let Document { mut table, origins } = Document::open(&resolved, "checkpoint.dir")?;
        let Some(toml::Value::Table(mut model)) = table.remove("model") else { return Ok(None) };
        model.remove("hf");
        return Ok(Some((model, origins)));
    }
    // This is an imported checkpoint that no run has continued yet.
    source.join("config.json").is_file().then(|| hf::model_table(&source)).transpose()
}

fn has_checkpoint(run: &Path) -> bool {
    run.join("checkpoints/latest").is_file()
}

fn check_source(source: &Source, key: &str) -> Result<()> {
    for extension in ["idx", "bin"] {
        let path = format!("{}.{extension}", source.prefix.display());
        if !Path::new(&path).is_file() {
            let typed = source.prefix.extension().is_some_and(|typed| typed == "idx" || typed == "bin");
            let remedy = match typed {
                true => "leave .bin or .idx out of the prefix",
                false => "write it with `swallow-engine data tokenize --output PREFIX`",
            };
            return Err(Error::user(format!("{key} = {}: there is no {path}; {remedy}", source.prefix.display())));
        }
    }
    Ok(())
}
