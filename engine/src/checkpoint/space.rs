//! The space that the next saves of a run need, and what the file system has. Too little is a warning and never the
//! end of a run: somebody may make room in time.

use super::{Retention, directory, exports, from_saved, source};
use crate::config::Model;
use crate::error::{Error, Result};
use crate::model::param_specs::all_tensors;
use crate::retry::Retry;
use nix::sys::statvfs::statvfs;
use std::path::Path;

/// Bytes of each checkpoint and of each export of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub checkpoint: u64,
    pub export: u64,
}

/// The saves that a run has yet to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// The completed steps.
    pub step: u64,
    /// The last step.
    pub last: u64,
    /// Steps between checkpoints and between exports; 0: none.
    pub interval: u64,
    pub export_interval: u64,
    /// Whether the last step is saved in any case.
    pub at_end: bool,
}

impl Ahead {
    /// The number of multiples of `interval` among the steps to come; 0 where `interval` is.
    fn multiples(&self, interval: u64) -> u64 {
        let up_to = |step: u64| step.checked_div(interval).unwrap_or(0);
        up_to(self.last).saturating_sub(up_to(self.step))
    }

    pub fn saves(&self) -> u64 {
        let is_extra = self.at_end && self.last > self.step && !self.last.is_multiple_of(self.interval.max(1));
        let only_last = self.at_end && self.interval == 0 && self.last > self.step;
        self.multiples(self.interval) + u64::from(is_extra || only_last)
    }
}

impl Space {
    /// The bytes of a run's checkpoints, which have the master weights and both moments in f32, and of its exports.
    pub fn of(model: &Model, run: &Path) -> Result<Space> {
        let parameters: u64 = all_tensors(model).iter().map(|tensor| tensor.len() as u64).sum();
        let each = from_saved::bytes_of(from_saved::dtype_of(source::config(run)?.as_ref()));
        Ok(Space { checkpoint: 12 * parameters, export: each * parameters })
    }

    /// A warning where the file system of the run's directory has less than all of its next saves need.
    pub fn shortage(&self, run: &Path, ahead: &Ahead, retention: Retention) -> Result<Option<String>> {
        let saves = ahead.saves();
        let (spared, exports) = (ahead.multiples(retention.keep_every), ahead.multiples(ahead.export_interval));
        let here = |steps: Vec<u64>| steps.into_iter().filter(|&step| step <= ahead.step).count() as u64;
        let checkpoints = growth(saves, here(directory::live_steps(run)?), spared, retention.keep);
        let exports = growth(exports, here(exports::steps(run)?), spared, retention.keep);
        let need = checkpoints * self.checkpoint + exports * self.export;
        let what = if saves == 1 { "the next save needs".to_string() } else { format!("the next {saves} saves need") };
        Ok(free(run)?.filter(|&free| free < need).map(|free| message(&what, need, run, free)))
    }

    /// Reports that the file system has less than the save of `step` needs.
    pub(super) fn warn_before(&self, run: &Path, step: u64, exports: bool, retry: &Retry) {
        let need = self.checkpoint + if exports { self.export } else { 0 };
        // A file system that does not tell is not short of space.
        if let Some(free) = free(run).ok().flatten().filter(|&free| free < need) {
            retry.tell(&format!("warning: {}", message(&format!("the save of step {step} needs"), need, run, free)));
        }
    }
}

/// The number of directories that are added to `here` of them at most while `saves` more are made, if each save first
/// adds one and then removes all but the newest `keep` and those that are spared.
fn growth(saves: u64, here: u64, spared: u64, keep: Option<usize>) -> u64 {
    match keep {
        None => saves,
        Some(keep) => saves.min((keep as u64 + 1).saturating_sub(here).max(1) + spared),
    }
}

/// Bytes that are free at a path; `None` where the file system does not tell.
fn free(path: &Path) -> Result<Option<u64>> {
    let stat = statvfs(path).map_err(|errno| Error::io(path, errno.into()))?;
    Ok((stat.blocks() > 0).then(|| stat.blocks_available() as u64 * stat.fragment_size() as u64))
}

fn message(what: &str, need: u64, run: &Path, free: u64) -> String {
    let run = run.display();
    let remedy = "make room, or set checkpoint.keep";
    format!("{what} {}, and the file system of checkpoint.dir = {run} has {} free; {remedy}", gb(need), gb(free))
}

/// 1234567890 -> `1.2 GB`.
fn gb(bytes: u64) -> String {
    let gb = bytes as f64 / 1e9;
    if gb < 1.0 { format!("{gb:.4} GB") } else { format!("{gb:.1} GB") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_saves_to_come() {
        let saves = |step, last, interval, at_end| Ahead { step, last, interval, export_interval: 0, at_end }.saves();
        assert_eq!([saves(0, 20, 5, true), saves(5, 20, 5, true), saves(7, 22, 5, true)], [4, 3, 4]);
        assert_eq!([saves(7, 22, 5, false), saves(0, 9, 0, true), saves(0, 9, 0, false)], [3, 1, 0]);
        assert_eq!([saves(9, 9, 0, true), saves(9, 9, 5, true), saves(12, 9, 5, true)], [0, 0, 0]);
    }

    /// Against a simulation of the saves.
    #[test]
    fn growth_is_that_of_the_fullest_moment() {
        for (saves, here, keep, every) in
            [(9, 0, 3, 0), (9, 3, 3, 0), (2, 0, 3, 0), (9, 5, 3, 0), (9, 1, 1, 0), (9, 0, 2, 4)]
        {
            let mut steps: Vec<u64> = (1..=here).collect();
            let mut most = here;
            for step in here + 1..=here + saves {
                steps.push(step);
                most = most.max(steps.len() as u64);
                let spared = |step: u64| every > 0 && step.is_multiple_of(every);
                let newest = steps[steps.len().saturating_sub(keep)];
                steps.retain(|&step| step >= newest || spared(step));
            }
            let up_to = |step: u64| step.checked_div(every).unwrap_or(0);
            let spared = up_to(here + saves) - up_to(here);
            let most = most - here;
            let got = growth(saves, here, spared, Some(keep));
            assert!(got == most || (every > 0 && (most..=most + 2).contains(&got)), "{got} for {most}");
        }
        assert_eq!(growth(9, 4, 0, None), 9);
    }

    #[test]
    fn a_shortage_has_both_figures() {
        let run = tempfile::tempdir().unwrap();
        let ahead = Ahead { step: 0, last: 10, interval: 5, export_interval: 5, at_end: true };
        let space = |checkpoint| Space { checkpoint, export: 1 };
        let keep = Retention { keep: Some(1), keep_every: 0 };
        assert_eq!(space(1).shortage(run.path(), &ahead, keep).unwrap(), None);
        let text = space(4_000_000_000_000_000).shortage(run.path(), &ahead, keep).unwrap().unwrap();
        assert!(
            text.starts_with("the next 2 saves need 8000000.0 GB, and the file system of checkpoint.dir = "),
            "{text}"
        );
        assert!(text.ends_with(" GB free; make room, or set checkpoint.keep"), "{text}");
    }
}
