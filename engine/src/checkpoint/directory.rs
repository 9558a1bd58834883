//! Directories that appear whole or not at all: temporary names, renames, the `latest` file, and the removal of old
//! checkpoints and of leftovers of killed saves.

use super::{Retention, source};
use crate::error::{Error, Result};
use crate::retry::Retry;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The marker of the newest complete checkpoint.
const LATEST: &str = "latest";
/// The name under which `latest` is written before it is renamed.
const LATEST_TMP: &str = ".latest.tmp";
/// The file in a checkpoint that the run abandoned: it went back to an earlier one with `--from-step`.
const ABANDONED: &str = "abandoned";

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

/// The step in the name of a checkpoint's directory; `None` where it has another name.
pub(super) fn step_of(dir: &Path) -> Option<u64> {
    parse_step(dir.file_name()?.to_str()?)
}

/// The name under which a directory is written before it is renamed to `dir`.
pub(super) fn temporary(dir: &Path) -> PathBuf {
    beside(dir, "tmp")
}

/// The name of an existing `dir` while a new one takes its place, where the two cannot be exchanged.
pub(super) fn set_aside(dir: &Path) -> PathBuf {
    beside(dir, "old")
}

/// The name of a directory that is being removed: a removal that is stopped midway leaves nothing under the name of a
/// complete one.
fn condemned(dir: &Path) -> PathBuf {
    beside(dir, "pruned")
}

fn beside(dir: &Path, ending: &str) -> PathBuf {
    let name = dir.file_name().expect("a directory with a name").to_string_lossy();
    dir.with_file_name(format!(".{name}.{ending}"))
}

/// The steps of the complete checkpoints of a run, ascending.
pub fn steps(run: &Path) -> Result<Vec<u64>> {
    steps_in(&checkpoints(run))
}

/// The steps of the complete checkpoints that lead to the run's present state, ascending: those that `--from-step`
/// abandoned are not among them.
pub fn live_steps(run: &Path) -> Result<Vec<u64>> {
    let mut steps = steps(run)?;
    steps.retain(|&step| !abandoned(run, step).exists());
    Ok(steps)
}

/// The mark of an abandoned checkpoint. It is in the checkpoint's directory, so that a new checkpoint of that step
/// takes its place as well.
fn abandoned(run: &Path, step: u64) -> PathBuf {
    checkpoints(run).join(step_name(step)).join(ABANDONED)
}

/// Marks the checkpoints after `step` as abandoned, and that of `step` as not.
pub(super) fn abandon_after(run: &Path, step: u64) -> Result<()> {
    for later in live_steps(run)?.into_iter().filter(|&later| later > step) {
        write(&abandoned(run, later), format!("The run went back to step {step}.\n").as_bytes())?;
        sync(&checkpoints(run).join(step_name(later)))?;
    }
    let path = abandoned(run, step);
    match fs::remove_file(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io(&path, e)),
        Ok(()) => sync(&checkpoints(run).join(step_name(step))),
    }
}

/// The steps whose directories `dir` holds, ascending.
pub(super) fn steps_in(dir: &Path) -> Result<Vec<u64>> {
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

/// Creates a directory. Those above it that do not exist are flushed to the disk; the caller will rename this one.
pub(super) fn create(dir: &Path) -> Result<()> {
    if let Some(parent) = dir.parent().filter(|parent| !parent.is_dir() && !parent.as_os_str().is_empty()) {
        create(parent)?;
        parent.parent().filter(|above| !above.as_os_str().is_empty()).map_or(Ok(()), sync)?;
    }
    fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))
}

pub(super) fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(dir, e)),
        _ => Ok(()),
    }
}

/// Removes a complete directory, under another name: see [`condemned`].
pub(super) fn remove_whole(dir: &Path) -> Result<()> {
    let hidden = condemned(dir);
    remove(&hidden)?;
    match fs::rename(dir, &hidden) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(dir, e)),
        _ => remove(&hidden),
    }
}

/// Writes a directory that appears whole or not at all: `fill` writes its files into a temporary directory, which then
/// takes the place of `dir`. If this fails, nothing is left over.
pub fn write_whole(dir: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let temporary = temporary(dir);
    let written = remove(&temporary).and_then(|()| create(&temporary)).and_then(|()| fill(&temporary));
    written.and_then(|()| publish(dir, &Retry::never())).inspect_err(|_| {
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

/// Gives the finished directory at [`temporary`] the name `dir`, in place of an existing one.
pub(super) fn publish(dir: &Path, retry: &Retry) -> Result<()> {
    let (new, parent) = (temporary(dir), dir.parent().expect("a directory in a directory"));
    retry.run(|| sync(&new))?;
    let inode = |dir: &Path| fs::metadata(dir).map(|data| data.ino()).map_err(|e| Error::io(dir, e));
    let finished = retry.run(|| inode(&new))?;
    // A file server may report an error of a rename that it did: repeating an exchange would undo it.
    retry.run(|| if inode(dir).is_ok_and(|at| at == finished) { Ok(()) } else { take_place(&new, dir) })?;
    retry.run(|| sync(parent))?;
    // One of these is what had the name before.
    retry.run(|| remove(&new).and_then(|()| remove(&set_aside(dir))))
}

/// Renames `new` to `dir`. A directory that has this name is exchanged for it, so that at every moment a complete one
/// has it; file systems without that (NFS) get two renames, and [`recover`] undoes the first where the second did not
/// follow.
fn take_place(new: &Path, dir: &Path) -> Result<()> {
    if !dir.try_exists().map_err(|e| Error::io(dir, e))? {
        return rename(new, dir);
    }
    match renameat2(AT_FDCWD, new, AT_FDCWD, dir, RenameFlags::RENAME_EXCHANGE) {
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => rename_twice(new, dir),
        exchanged => exchanged.map_err(|errno| Error::io(dir, errno.into())),
    }
}

pub(super) fn rename_twice(new: &Path, dir: &Path) -> Result<()> {
    let old = set_aside(dir);
    remove(&old)?;
    rename(dir, &old)?;
    rename(new, dir)
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| Error::io(to, e))
}

/// Removes leftovers of killed saves from a run's directory; a directory that was set aside and not replaced gets its
/// name back. Only the process that holds the run's lock may call it.
pub(super) fn clean(run: &Path) -> Result<()> {
    let dir = checkpoints(run);
    let unfinished = dir.join(LATEST_TMP);
    match fs::remove_file(&unfinished) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io(&unfinished, e)),
        _ => {}
    }
    recover(&source::dir(run))?;
    recover_in(&dir)
}

/// Undoes every [`publish`] and completes every removal of a step's directory in `dir` that was killed midway.
pub(super) fn recover_in(dir: &Path) -> Result<()> {
    for name in names(dir)? {
        let endings = [".tmp", ".old", ".pruned"].into_iter();
        let hidden = name.strip_prefix('.').and_then(|name| endings.into_iter().find_map(|end| name.strip_suffix(end)));
        if let Some(step) = hidden.filter(|step| parse_step(step).is_some()) {
            recover(&dir.join(step))?;
        }
    }
    Ok(())
}

/// Undoes a [`publish`] of `dir` that was killed before it was done, and completes a [`remove_whole`].
fn recover(dir: &Path) -> Result<()> {
    remove(&temporary(dir))?;
    remove(&condemned(dir))?;
    let old = set_aside(dir);
    match (old.exists(), dir.exists()) {
        (true, true) => remove(&old),
        (true, false) => rename(&old, dir),
        (false, _) => Ok(()),
    }
}

/// Makes `latest` name the checkpoint of `step`, atomically.
pub(super) fn set_latest(run: &Path, step: u64) -> Result<()> {
    let dir = checkpoints(run);
    let (new, latest) = (dir.join(LATEST_TMP), dir.join(LATEST));
    write(&new, format!("{}\n", step_name(step)).as_bytes())?;
    rename(&new, &latest)?;
    sync(&dir)
}

/// Removes the checkpoint of a run that has no other one, and `latest` before it. Either may be missing.
pub(super) fn remove_only(run: &Path, step: u64) -> Result<()> {
    let (latest, dir) = (checkpoints(run).join(LATEST), checkpoints(run).join(step_name(step)));
    match fs::remove_file(&latest) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io(&latest, e)),
        _ => {}
    }
    remove_whole(&dir)
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
        false => format!(
            "; to continue from another complete checkpoint: train --from-step N, N of {}, or train --fall-back for \
             the newest that is not damaged",
            others.join(", ")
        ),
    }
}

/// Removes the checkpoints before `step` that `retention` does not keep, except the one of the step `read`. Those of a
/// branch that the user abandoned with `--from-step` are neither counted nor removed; they are the user's to delete.
pub(super) fn prune(run: &Path, step: u64, retention: Retention, read: Option<u64>) -> Result<()> {
    prune_in(&checkpoints(run), live_steps(run)?, step, retention, read)
}

/// [`prune`] for any directory that holds one for each of `steps`.
pub(super) fn prune_in(dir: &Path, steps: Vec<u64>, step: u64, retention: Retention, read: Option<u64>) -> Result<()> {
    let Some(keep) = retention.keep else { return Ok(()) };
    // Those whose removal failed when this was tried before.
    for hidden in names(dir)?.iter().filter(|name| name.starts_with(".step-") && name.ends_with(".pruned")) {
        remove(&dir.join(hidden))?;
    }
    let old: Vec<u64> = steps.into_iter().filter(|&s| s < step).collect();
    let n_removed = (old.len() + 1).saturating_sub(keep.max(1));
    let mut removed = old[..n_removed].iter().filter(|&&s| Some(s) != read && !retention.spares(s));
    removed.try_for_each(|&s| remove_whole(&dir.join(step_name(s))))
}
