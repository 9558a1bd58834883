//! Directories that appear whole or not at all: temporary names, renames, the `latest` file, and the removal of old
//! checkpoints and of leftovers of killed saves.

use super::source;
use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// The marker of the newest complete checkpoint.
const LATEST: &str = "latest";
/// The name under which `latest` is written before it is renamed.
const LATEST_TMP: &str = ".latest.tmp";

pub(super) fn checkpoints(run: &Path) -> PathBuf {
    run.join("checkpoints")
}

pub(super) fn step_name(step: u64) -> String {
    format!("step-{step:08}")
}

fn parse_step(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("step-")?;
    if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// The name under which a directory is written before it is renamed to `dir`.
pub(super) fn temporary(dir: &Path) -> PathBuf {
    beside(dir, "tmp")
}

/// The name of an existing `dir` while a new one takes its place.
fn set_aside(dir: &Path) -> PathBuf {
    beside(dir, "old")
}

fn beside(dir: &Path, ending: &str) -> PathBuf {
    let name = dir.file_name().expect("a directory with a name").to_string_lossy();
    dir.with_file_name(format!(".{name}.{ending}"))
}

/// The steps of the complete checkpoints of a run, ascending.
pub fn steps(run: &Path) -> Result<Vec<u64>> {
    steps_in(&checkpoints(run))
}

/// The steps whose directories `dir` holds, ascending.
fn steps_in(dir: &Path) -> Result<Vec<u64>> {
    let mut steps: Vec<u64> = names(dir)?.iter().filter_map(|name| parse_step(name)).collect();
    steps.sort_unstable();
    Ok(steps)
}

/// The names in a directory; none if it does not exist.
pub(super) fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| Error::io(dir, e))?,
    };
    entries.map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()).map_err(|e| Error::io(dir, e))).collect()
}

/// Creates an empty directory, and removes leftovers of a killed process under its name.
pub(super) fn create_empty(dir: &Path) -> Result<()> {
    remove(dir)?;
    fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))
}

pub(super) fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(dir, e)),
        _ => Ok(()),
    }
}

/// Writes a directory that appears whole or not at all: `fill` writes its files into a temporary directory, which then
/// takes the place of `dir`. If this fails, nothing is left over.
pub fn write_whole(dir: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let temporary = temporary(dir);
    create_empty(&temporary).and_then(|()| fill(&temporary)).and_then(|()| publish(dir)).inspect_err(|_| {
        // The earlier error is reported, not one of this removal.
        let _ = remove(&temporary);
    })
}

/// The full path of a directory that is to be written: it must be absent or empty. `flag` named it.
pub fn new_path(dir: &Path, flag: &str) -> Result<PathBuf> {
    let refuse = |what: &str| Err(Error::user(format!("{flag} {}: {what}", dir.display())));
    if dir.is_dir() {
        return match names(dir)?.is_empty() {
            true => dir.canonicalize().map_err(|e| Error::io(dir, e)),
            false => refuse("this directory is not empty; name a new one"),
        };
    }
    match dir.file_name() {
        _ if dir.exists() => refuse("this is a file; name a new directory"),
        Some(_) => std::path::absolute(dir).map_err(|e| Error::io(dir, e)),
        None => refuse("this is not a name for a directory"),
    }
}

/// Writes a whole file and flushes it to the disk.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let io = |e| Error::io(path, e);
    let mut file = File::create(path).map_err(io)?;
    file.write_all(bytes).map_err(io)?;
    file.sync_all().map_err(io)
}

/// Writes a JSON file, in lines that people can read.
pub(super) fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).expect("numbers and strings are JSON");
    write(path, format!("{text}\n").as_bytes())
}

/// Flushes the entries of a directory to the disk.
pub(super) fn sync(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| Error::io(dir, e))
}

/// Renames the finished directory at [`temporary`] to `dir`, in place of an existing one.
pub(super) fn publish(dir: &Path) -> Result<()> {
    let (new, old, parent) = (temporary(dir), set_aside(dir), dir.parent().expect("a directory in a directory"));
    let rename = |from: &Path, to: &Path| fs::rename(from, to).map_err(|e| Error::io(to, e));
    sync(&new)?;
    if dir.exists() {
        remove(&old)?;
        rename(dir, &old)?;
    }
    rename(&new, dir)?;
    sync(parent)?;
    remove(&old)
}

/// Removes leftovers of killed saves from a run's directory; a directory that was set aside and not replaced gets its
/// name back, and a run's only checkpoint its `latest`, which a killed first save did not write. Only the process that
/// holds the run's lock may call it.
pub(super) fn clean(run: &Path) -> Result<()> {
    let dir = checkpoints(run);
    let unfinished = dir.join(LATEST_TMP);
    match fs::remove_file(&unfinished) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io(&unfinished, e)),
        _ => {}
    }
    recover(&source::dir(run))?;
    recover_in(&dir)?;
    match (latest_name(run)?, &steps(run)?[..]) {
        (None, &[only]) => set_latest(run, only),
        _ => Ok(()),
    }
}

/// Undoes every [`publish`] of a step's directory in `dir` that was killed before it was done.
pub(super) fn recover_in(dir: &Path) -> Result<()> {
    for name in names(dir)? {
        let hidden = name.strip_prefix('.').and_then(|n| n.strip_suffix(".tmp").or(n.strip_suffix(".old")));
        if let Some(step) = hidden.filter(|step| parse_step(step).is_some()) {
            recover(&dir.join(step))?;
        }
    }
    Ok(())
}

/// Undoes a [`publish`] of `dir` that was killed before it was done.
fn recover(dir: &Path) -> Result<()> {
    remove(&temporary(dir))?;
    let old = set_aside(dir);
    match (old.exists(), dir.exists()) {
        (true, true) => remove(&old),
        (true, false) => fs::rename(&old, dir).map_err(|e| Error::io(dir, e)),
        (false, _) => Ok(()),
    }
}

/// Makes `latest` name the checkpoint of `step`, atomically.
pub(super) fn set_latest(run: &Path, step: u64) -> Result<()> {
    let dir = checkpoints(run);
    let (new, latest) = (dir.join(LATEST_TMP), dir.join(LATEST));
    write(&new, format!("{}\n", step_name(step)).as_bytes())?;
    fs::rename(&new, &latest).map_err(|e| Error::io(&latest, e))?;
    sync(&dir)
}

/// The step that `latest` names, whether or not that checkpoint exists; `None` if there is no `latest`.
pub fn latest_step(run: &Path) -> Result<Option<u64>> {
    let Some(name) = latest_name(run)? else { return Ok(None) };
    match parse_step(&name) {
        Some(step) => Ok(Some(step)),
        None => Err(refuse_latest(run, &name, "is not the name of a checkpoint such as step-00000500")),
    }
}

/// The text of `latest`; `None` if there is no such file.
fn latest_name(run: &Path) -> Result<Option<String>> {
    let path = checkpoints(run).join(LATEST);
    match fs::read(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        text => Ok(Some(String::from_utf8_lossy(&text.map_err(|e| Error::io(&path, e))?).trim_end().to_string())),
    }
}

fn refuse_latest(run: &Path, name: &str, what: &str) -> Error {
    let path = checkpoints(run).join(LATEST);
    Error::user(format!("{}: {name:.100?} {what}{}", path.display(), hint(run, name)))
}

/// The directory that `latest` names; `None` if the run has no checkpoint. Complete checkpoints without a `latest` are
/// refused: a run that ignored them would start over.
pub(super) fn latest(run: &Path) -> Result<Option<PathBuf>> {
    let Some(step) = latest_step(run)? else {
        return match steps(run)?.is_empty() {
            true => Ok(None),
            false => {
                let path = checkpoints(run).join(LATEST);
                Err(Error::user(format!("{}: there is no such file{}", path.display(), hint(run, LATEST))))
            }
        };
    };
    let dir = checkpoints(run).join(step_name(step));
    match (dir.exists(), set_aside(&dir).exists()) {
        (true, _) => Ok(Some(dir)),
        // A save of the same step was killed between its two renames.
        (false, true) => Ok(Some(set_aside(&dir))),
        (false, false) => Err(refuse_latest(run, &step_name(step), "does not exist")),
    }
}

/// A hint that names the other checkpoints, for the message that refuses the one named `refused`.
pub(super) fn hint(run: &Path, refused: &str) -> String {
    let others = steps(run).unwrap_or_default().into_iter().filter(|&step| step_name(step) != refused);
    let others: Vec<String> = others.map(|step| step.to_string()).collect();
    match others.is_empty() {
        true => "; this run has no other checkpoint".into(),
        false => {
            format!("; to continue from another complete checkpoint: train --from-step N, N of {}", others.join(", "))
        }
    }
}

/// Keeps the newest `keep` checkpoints up to `step`, which is one of them, and the one of the step `spared`. Later
/// steps belong to a branch that the user abandoned with `--from-step`; they are the user's to delete.
pub(super) fn prune(run: &Path, step: u64, keep: usize, spared: Option<u64>) -> Result<()> {
    prune_in(&checkpoints(run), step, keep, spared)
}

/// [`prune`] for any directory that holds one for each of several steps.
pub(super) fn prune_in(dir: &Path, step: u64, keep: usize, spared: Option<u64>) -> Result<()> {
    let old: Vec<u64> = steps_in(dir)?.into_iter().filter(|&s| s < step).collect();
    let n_removed = (old.len() + 1).saturating_sub(keep.max(1));
    let removed = old[..n_removed].iter().filter(|&&s| Some(s) != spared);
    removed.into_iter().try_for_each(|&s| remove(&dir.join(step_name(s))))
}
