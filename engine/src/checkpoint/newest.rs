//! The checkpoint from which a run continues, where `latest` does not name one that can be used: the newest that
//! verifies. Damaged ones that are passed over are set aside under another name, so that they count neither as
//! checkpoints of the run nor among those to keep.

use super::directory::{self, step_name};
use super::{NotFinite, Saved, directory::checkpoints};
use crate::error::{Error, Result};
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The choice that the user has made for a newest checkpoint that is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfDamaged {
    /// The run does not continue.
    Refuse,
    /// It continues from the newest one that is not.
    FallBack,
}

/// The checkpoint of a run to continue from.
pub struct Newest {
    /// `None`: the run has no checkpoint.
    pub saved: Option<Saved>,
    /// A sentence for each thing that was wrong, for the user.
    pub warnings: Vec<String>,
}

/// The checkpoint that the run's `latest` names. Where there is none, or it is damaged and `if_damaged` allows it, the
/// newest one of which every piece matches its checksum; `latest` then names that one. Only the process that holds the
/// run's lock may call it.
pub fn newest(run: &Path, if_damaged: IfDamaged) -> Result<Newest> {
    let named = directory::latest(run);
    match (named, if_damaged) {
        (Ok(None), _) => Ok(Newest { saved: None, warnings: Vec::new() }),
        (Ok(Some(dir)), IfDamaged::Refuse) => Ok(Newest { saved: Some(Saved::open(&dir)?), warnings: Vec::new() }),
        (Ok(Some(_)), IfDamaged::FallBack) => search(run, None),
        (Err(refused @ Error::User(_)), _) if !directory::steps(run)?.is_empty() => search(run, Some(refused)),
        (Err(error), _) => Err(error),
    }
}

/// Reads the checkpoints from the newest on, until one verifies. `refused` says what is wrong with `latest`.
fn search(run: &Path, refused: Option<Error>) -> Result<Newest> {
    let mut damaged: Vec<(PathBuf, String)> = Vec::new();
    for step in candidates(run)? {
        let dir = checkpoints(run).join(step_name(step));
        let checked = Saved::open_unadvised(&dir).and_then(|saved| Ok((saved.check(&mut |_| ())?, saved)));
        match checked.map(|(not_finite, saved)| (not_finite.first().map(NotFinite::to_string), saved)) {
            Ok((None, saved)) => return settle(run, step, saved, refused, damaged),
            Ok((Some(what), _)) => damaged.push((dir.clone(), format!("{}: {what}", dir.display()))),
            // It may be sound: a disk that fails now, or files that this user may not read.
            Err(error) if !matches!(error, Error::User(_)) || !can_be_read(&dir) => {
                let name = step_name(step);
                let more = format!("; {name} cannot be read, which does not mean that it is damaged");
                return Err(error.map(|what| what + &more));
            }
            Err(error) => damaged.push((dir, error.to_string())),
        }
    }
    let all: Vec<String> = damaged.iter().map(|(_, what)| format!("  {what}")).collect();
    let dir = run.display();
    let what = "every checkpoint of this run is damaged; restore one, or choose another checkpoint.dir";
    Err(Error::user(format!("{dir}: {what}{}:\n{}", others(run, damaged.len())?, all.join("\n"))))
}

/// Whether all files of a checkpoint can be opened; those that are missing count as damage.
fn can_be_read(dir: &Path) -> bool {
    let readable = |name: &String| match File::open(dir.join(name)) {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::NotFound,
    };
    directory::names(dir).is_ok_and(|names| names.iter().all(readable))
}

/// Names the checkpoints that the run abandoned, which are not among the `tried` ones.
fn others(run: &Path, tried: usize) -> Result<String> {
    let (all, live) = (directory::steps(run)?, directory::live_steps(run)?);
    if tried == all.len() {
        return Ok(String::new());
    }
    let rest: Vec<String> = all.iter().filter(|step| !live.contains(step)).map(u64::to_string).collect();
    Ok(format!(", or take one that it abandoned with --from-step: {}", rest.join(", ")))
}

/// The steps to try, the newest first: those that led to the one that `latest` names, or else any that the user has not
/// abandoned, or else all.
fn candidates(run: &Path) -> Result<Vec<u64>> {
    let last = directory::latest_step(run).ok().flatten().unwrap_or(u64::MAX);
    let live = directory::live_steps(run)?;
    let mut steps: Vec<u64> = live.iter().copied().filter(|&step| step <= last).collect();
    if steps.is_empty() {
        steps = if live.is_empty() { directory::steps(run)? } else { live };
    }
    steps.reverse();
    Ok(steps)
}

/// Makes the checkpoint that was found the run's newest.
fn settle(
    run: &Path,
    step: u64,
    saved: Saved,
    refused: Option<Error>,
    damaged: Vec<(PathBuf, String)>,
) -> Result<Newest> {
    let mut warnings = Vec::new();
    if let Some(refused) = refused {
        let what = refused.to_string();
        let what = what.split("; ").next().unwrap_or_default();
        let name = step_name(step);
        warnings.push(format!("{what}; the run continues from {name}, the newest checkpoint that is not damaged"));
    }
    for (dir, what) in damaged {
        let aside = set_aside(&dir)?;
        let aside = aside.display();
        warnings.push(format!("{what}; this checkpoint is now {aside}, and the run goes back to step {step}"));
    }
    if !warnings.is_empty() {
        directory::set_latest(run, step)?;
    }
    Ok(Newest { saved: Some(saved), warnings })
}

/// Renames a damaged checkpoint, in place of an older damaged one of the same step.
fn set_aside(dir: &Path) -> Result<PathBuf> {
    let mut name = dir.file_name().expect("a directory with a name").to_os_string();
    name.push(".damaged");
    let aside = dir.with_file_name(name);
    directory::remove(&aside)?;
    directory::rename(dir, &aside)?;
    Ok(aside)
}
