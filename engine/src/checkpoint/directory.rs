//! Directories that appear whole or not at all: temporary names, renames, `latest`, and what
//! becomes of old checkpoints.

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

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

/// Where the old `dir` waits while a new one takes its name.
fn aside(dir: &Path) -> PathBuf {
    beside(dir, "old")
}

fn beside(dir: &Path, ending: &str) -> PathBuf {
    let name = dir.file_name().expect("a directory with a name").to_string_lossy();
    dir.with_file_name(format!(".{name}.{ending}"))
}

/// The steps of the complete checkpoints of a run, ascending.
pub fn steps(run: &Path) -> Result<Vec<u64>> {
    let mut steps: Vec<u64> = names(&checkpoints(run))?.iter().filter_map(|name| parse_step(name)).collect();
    steps.sort_unstable();
    Ok(steps)
}

/// The names in a directory; none where it does not exist.
pub(super) fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| Error::io(dir, e))?,
    };
    entries.map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()).map_err(|e| Error::io(dir, e))).collect()
}

/// An empty directory of this name; what a killed process left there goes.
pub(super) fn create_anew(dir: &Path) -> Result<()> {
    remove(dir)?;
    fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))
}

pub(super) fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(dir, e)),
        _ => Ok(()),
    }
}

/// Writes a whole file and flushes it to the disk.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let io = |e| Error::io(path, e);
    let mut file = File::create(path).map_err(io)?;
    file.write_all(bytes).map_err(io)?;
    file.sync_all().map_err(io)
}

/// Flushes the names in a directory to the disk.
pub(super) fn sync(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| Error::io(dir, e))
}

/// Gives the finished directory at [`temporary`] its name, in place of what had it.
pub(super) fn publish(dir: &Path) -> Result<()> {
    let (new, old, parent) = (temporary(dir), aside(dir), dir.parent().expect("a directory in a directory"));
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

/// Removes what killed saves left; a checkpoint that was set aside and not replaced comes back.
pub(super) fn clean(run: &Path) -> Result<()> {
    let dir = checkpoints(run);
    for name in names(&dir)? {
        let path = dir.join(&name);
        let Some(hidden) = name.strip_prefix('.') else { continue };
        let step = |ending| hidden.strip_suffix(ending).filter(|name| parse_step(name).is_some());
        if step(".tmp").is_some() {
            remove(&path)?;
        } else if let Some(target) = step(".old").map(|name| dir.join(name)) {
            match target.exists() {
                true => remove(&path)?,
                false => fs::rename(&path, &target).map_err(|e| Error::io(&target, e))?,
            }
        }
    }
    Ok(())
}

/// Makes `latest` name the checkpoint of `step`, at once or not at all.
pub(super) fn set_latest(run: &Path, step: u64) -> Result<()> {
    let dir = checkpoints(run);
    let (new, latest) = (dir.join(".latest.tmp"), dir.join("latest"));
    write(&new, format!("{}\n", step_name(step)).as_bytes())?;
    fs::rename(&new, &latest).map_err(|e| Error::io(&latest, e))?;
    sync(&dir)
}

/// The directory that `latest` names; `None` where the run has no checkpoint. Complete checkpoints
/// without a `latest` are refused: a run that took them for none would start over.
pub(super) fn latest(run: &Path) -> Result<Option<PathBuf>> {
    let path = checkpoints(run).join("latest");
    let text = match fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return match steps(run)?.is_empty() {
                true => Ok(None),
                false => Err(Error::user(format!("{}: it is not there{}", path.display(), hint(run, "latest")))),
            };
        }
        text => text.map_err(|e| Error::io(&path, e))?,
    };
    let name = String::from_utf8_lossy(&text);
    let name = name.trim_end();
    let refuse = |what: &str| Err(Error::user(format!("{}: {name:.100?} {what}{}", path.display(), hint(run, name))));
    if parse_step(name).is_none() {
        return refuse("is not the name of a checkpoint such as step-00000500");
    }
    let dir = path.with_file_name(name);
    match (dir.exists(), aside(&dir).exists()) {
        (true, _) => Ok(Some(dir)),
        // A save of the same step was killed between its two renames.
        (false, true) => Ok(Some(aside(&dir))),
        (false, false) => refuse("is not there"),
    }
}

/// What the user can do where the checkpoint of this name is refused.
pub(super) fn hint(run: &Path, refused: &str) -> String {
    let others = steps(run).unwrap_or_default().into_iter().filter(|&step| step_name(step) != refused);
    let others: Vec<String> = others.map(|step| step.to_string()).collect();
    match others.is_empty() {
        true => "; this run has no other checkpoint".into(),
        false => format!(
            "; a complete checkpoint is used where it is asked for: train --from-step N, N of {}",
            others.join(", ")
        ),
    }
}

/// Keeps the newest `keep` checkpoints up to `step`, which is one of them. Later steps belong to a
/// run that was taken back; they are the user's to delete.
pub(super) fn prune(run: &Path, step: u64, keep: usize) -> Result<()> {
    let old: Vec<u64> = steps(run)?.into_iter().filter(|&s| s < step).collect();
    let n_gone = (old.len() + 1).saturating_sub(keep.max(1));
    old[..n_gone].iter().try_for_each(|&s| remove(&checkpoints(run).join(step_name(s))))
}
