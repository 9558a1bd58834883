//! A configuration file, read from and written to disk.

use super::document::Document;
use super::origins::Origins;
use super::raw::{Raw, Read};
use super::{BackendKind, Config, Load, Model, Precision, Ranks, Source, check, hf, model, unbuilt, validate};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

impl Config {
    /// The file at `path` with `KEY=VALUE` of `--set` over it; what it names must be on the disk.
    ///
    /// Relative paths in it are relative to the current directory.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Config> {
        Config::load_for(Ranks::Its, path, overrides)
    }

    /// As [`Config::load`], for these ranks: where the layout cannot be, one that they can run is named.
    pub fn load_for(ranks: Ranks, path: &Path, overrides: &[String]) -> Result<Config> {
        let config = Config::read_for(ranks, path, overrides)?;
        config.check_files()?;
        Ok(config)
    }

    /// As [`Config::load`] without looking for data and weights: to plan on a machine that has none.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Config> {
        Config::read_for(Ranks::Its, path, overrides)
    }

    /// [`Config::read`] as [`Config::load_for`].
    pub fn read_for(ranks: Ranks, path: &Path, overrides: &[String]) -> Result<Config> {
        let mut document = Document::load(path, overrides)?;
        fill_from_hf(&mut document)?;
        settle(document, ranks)
    }

    /// The text that [`Config::to_toml`] made: complete, so that nothing else is read.
    pub fn from_resolved(text: &str) -> Result<Config> {
        settle(Document::parse("config.toml".into(), text)?, Ranks::Its)
    }

    /// This configuration, changed by the program, as if it had been written so: it is refused for what a file would
    /// be refused for, and gets the same defaults.
    pub fn checked(&self) -> Result<Config> {
        let Document { table, .. } = Document::parse(String::new(), &self.to_toml())?;
        settle(Document { table, origins: Origins::nowhere() }, Ranks::Its)
    }

    /// Errors name the key whose file is not there, or does not fit.
    pub fn check_files(&self) -> Result<()> {
        for (key, sources) in [("data.train", &self.data.train), ("data.valid", &self.data.valid)] {
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
}

impl Config {
    /// The backend and its precision, `device` saying whether there is one for CUDA.
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

impl Model {
    /// The `[model]` table of a complete text, [`Config::to_toml`]'s or [`Model::to_toml`]'s; `file`
    /// is where it comes from, for messages.
    pub fn from_toml(file: String, text: &str) -> Result<Model> {
        let Document { mut table, origins } = Document::parse(file, text)?;
        table.retain(|key, _| key == "model");
        let raw = Raw::read(&table.into(), "", &origins)?;
        unbuilt::refuse(&raw, &origins)?;
        model::validate(check::need(raw.model, "model", "[model]", &origins)?, &origins)
    }
}

fn settle(document: Document, ranks: Ranks) -> Result<Config> {
    let Document { table, origins } = document;
    let raw = Raw::read(&table.into(), "", &origins)?;
    unbuilt::refuse(&raw, &origins)?;
    validate::validate(raw, ranks, &origins)
}

/// Puts what `[model] hf = "DIR"` brings under what the file says itself.
fn fill_from_hf(document: &mut Document) -> Result<()> {
    let Document { table, origins } = document;
    let run = table.get("checkpoint").and_then(|table| table.get("dir")?.as_str()).map(PathBuf::from);
    let Some(toml::Value::Table(model)) = table.get_mut("model") else { return Ok(()) };
    let Some(toml::Value::String(dir)) = model.get("hf") else { return Ok(()) };
    if dir.is_empty() {
        return Err(origins.bad("model.hf", "\"\"", "must name the directory of a config.json"));
    }
    let dir = Path::new(dir);
    let found = match dir.join("config.json").is_file() {
        true => Some(hf::model_table(dir)?),
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

/// The `[model]` table that a run with a checkpoint wrote when it started: it continues from its own files where the
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
    // An imported checkpoint that no run has continued yet.
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
                true => "leave .bin or .idx away from the prefix",
                false => "write it with `swallow-engine data tokenize --output PREFIX`",
            };
            return Err(Error::user(format!("{key} = {}: there is no {path}; {remedy}", source.prefix.display())));
        }
    }
    Ok(())
}
