//! Operations on files that end the run, fail, take long or never return; power cuts; full disks.

use super::ends::{HANG, watch_closely};
use crate::lab::{STEPS, SmallDisk};
use crate::process::{Outcome, Verdict};
use crate::shim::{GROWING, Shim};
use crate::site::{GONE, Site, WHOLE};
use nix::libc::{EIO, ENOSPC, ESTALE};

/// Files whose writes are tried again.
const RETRIED: &str = "checkpoints/,metrics.jsonl";
/// Files that only inform.
const INFORMING: &str = "timeline.json,ranks.jsonl,memory.json,machine.json,tensorboard,status.json,history.jsonl";
/// Operations that make files: where even a removal fails, something is left.
const MAKING: &str = "open,write,fsync,mkdir,rename";

pub fn kill(site: &mut Site) -> Verdict {
    let shim = Shim::once(site.target("", ""), "signal:9");
    let outcome = site.finish(site.train_shimmed(&shim), WHOLE)?;
    ended(site, outcome)
}

/// The run was killed, and what it said to be saved is saved; or it met no fault.
fn ended(site: &Site, outcome: Outcome) -> Verdict {
    if outcome.code == Some(0) {
        site.is_complete()?;
    }
    site.recovers(outcome.saved().max(site.latest()))
}

pub fn lose_power(site: &mut Site) -> Verdict {
    let shim = Shim { follows: true, ..Shim::once(site.target("", ""), "power") };
    let outcome = site.lose_power(site.train_shimmed(&shim))?;
    // What `latest` named in memory was not promised to anybody.
    site.recovers(outcome.saved())
}

/// The disk of the run is a small one.
pub fn full_disk(site: &mut Site) -> Verdict {
    let kilobytes = site.draw.pick(&[8, 100, 700, 1000, 1400, 1900, 2600]);
    let disk = SmallDisk::mount(&site.path("disk"), kilobytes)?;
    site.set("checkpoint.retry_seconds", 1);
    let outcome = site.finish(site.train(), WHOLE)?.exits(&[0, 1])?;
    let before = site.latest();
    if outcome.code == Some(1) {
        outcome.says("No space left on device")?;
    }
    disk.make_room()?;
    site.recovers(before)
}

fn fail(site: &mut Site, errno: i32) -> Verdict {
    let ops = if errno == ENOSPC { GROWING } else { "" };
    site.set("checkpoint.retry_seconds", 1);
    let shim = Shim { ops, count: usize::MAX, ..Shim::once(site.target("", ops), format!("fail:{errno}")) };
    let outcome = site.finish(site.train_shimmed(&shim), WHOLE)?.exits(&[0, 1])?;
    // Where the run was done, the same command removes what could not be removed.
    let outcome = if outcome.code == Some(1) { outcome.says("os error ")? } else { outcome };
    site.recovers(outcome.saved().max(site.latest()))
}

pub fn no_space(site: &mut Site) -> Verdict {
    fail(site, ENOSPC)
}

pub fn bad_disk(site: &mut Site) -> Verdict {
    let errno = site.draw.pick(&[EIO, EIO, ESTALE]);
    fail(site, errno)
}

/// A few failures, which end before `checkpoint.retry_seconds`.
pub fn fail_for_a_while(site: &mut Site) -> Verdict {
    let errno = site.draw.pick(&[ENOSPC, EIO, ESTALE]);
    let ops = if errno == ENOSPC { GROWING } else { "" };
    let (target, count) = (site.target(RETRIED, ops), site.draw.within(1..4) as usize);
    let shim = Shim { files: RETRIED, ops, count, ..Shim::once(target, format!("fail:{errno}")) };
    site.finish(site.train_shimmed(&shim), WHOLE)?.exits(&[0])?;
    site.is_complete()
}

pub fn fail_to_inform(site: &mut Site) -> Verdict {
    let errno = site.draw.pick(&[ENOSPC, EIO]);
    let shim = Shim::once(site.target(INFORMING, MAKING), format!("fail:{errno}"));
    let shim = Shim { files: INFORMING, ops: MAKING, count: usize::MAX, ..shim };
    site.finish(site.train_shimmed(&shim), WHOLE)?.exits(&[0])?;
    site.is_complete()
}

pub fn take_long(site: &mut Site) -> Verdict {
    watch_closely(site);
    let milliseconds = site.draw.within(200..3000);
    let shim = Shim::once(site.target("", ""), format!("pause:{milliseconds}"));
    site.finish(site.train_shimmed(&shim), WHOLE)?.exits(&[0])?;
    site.is_complete()
}

pub fn never_return(site: &mut Site) -> Verdict {
    watch_closely(site);
    let target = site.target(RETRIED, "");
    let rank = target.rank;
    let shim = Shim { files: RETRIED, ..Shim::once(target, "pause:1000000") };
    let running = site.start(site.train_shimmed(&shim));
    let outcome = running.end(HANG + GONE)?;
    if outcome.code == Some(0) && site.metrics().len() as u64 == STEPS {
        return site.is_complete();
    }
    let outcome = outcome.exits(&[1])?.says(&format!("no progress for 5 s: rank {rank} ("))?;
    site.recovers(outcome.saved())
}
