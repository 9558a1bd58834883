//! `exports/` in a run's directory: checkpoints of the run in Hugging Face's format, which rank 0 makes in the
//! background from the files of a complete checkpoint. So training waits for nothing, and a checkpoint of any layout
//! is read.

use super::export::recorded_checkpoint;
use super::{FromSaved, Retention, Saved, directory};
use crate::error::{Error, Result};
use crate::retry::Retry;
use std::path::{Path, PathBuf};

fn dir(run: &Path) -> PathBuf {
    run.join("exports")
}

fn of_step(run: &Path, step: u64) -> PathBuf {
    dir(run).join(directory::step_name(step))
}

/// Exports the run's checkpoint of `step`, unless its export stands, and removes the exports that `retention` does not
/// keep. An export that a full disk stops is made anew from its beginning.
pub(super) fn write(run: &Path, step: u64, retention: Retention, retry: &Retry) -> Result<()> {
    let name = |error: Error| error.map(|what| format!("exporting the checkpoint of step {step}: {what}"));
    let saved = Saved::at_step(run, step).map_err(name)?;
    let to = of_step(run, step);
    if !stands(&to, &saved) {
        let export = FromSaved::new(saved, None).map_err(name)?;
        retry.run(|| export.write(&to, &mut |_| ())).map_err(name)?;
    }
    retry.run(|| directory::prune_in(&dir(run), steps(run)?, step, retention, None))
}

/// The steps that have an export, ascending.
pub(super) fn steps(run: &Path) -> Result<Vec<u64>> {
    directory::steps_in(&dir(run))
}

/// The newest checkpoint up to `step` that is due for an export and has none: the run was killed before it was made.
pub(super) fn missing(run: &Path, step: u64, interval: u64) -> Result<Option<u64>> {
    let due = |&saved: &u64| saved > 0 && saved <= step && saved.is_multiple_of(interval);
    let Some(newest) = directory::live_steps(run)?.into_iter().rfind(due) else { return Ok(None) };
    Ok((!of_step(run, newest).exists()).then_some(newest))
}

/// Whether `to` is the export of this very checkpoint, and not of one that had its step before.
fn stands(to: &Path, saved: &Saved) -> bool {
    recorded_checkpoint(to).is_some_and(|checkpoint| checkpoint == saved.manifest().checksum())
}

/// Removes what a killed export left.
pub(super) fn clean(run: &Path) -> Result<()> {
    directory::recover_in(&dir(run))
}
