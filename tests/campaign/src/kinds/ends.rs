//! Signals at any time: processes that are killed, stopped, or asked to stop.

use crate::ensure;
use crate::lab::STEPS;
use crate::process::{Running, Verdict, send};
use crate::shim::Shim;
use crate::site::{GONE, Site, WHOLE, metrics};
use nix::sys::signal::Signal::{self, SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGSTOP, SIGTERM, SIGUSR1, SIGUSR2};
use std::time::Duration;

/// `watchdog.seconds` of a run that hangs, and what its judgement and the end of the run may take.
pub const HANG: Duration = Duration::from_secs(5 + 20);
/// The time between two steps of a slow run.
const SLOW: u64 = 100;

/// The run is going to hang.
pub fn watch_closely(site: &mut Site) {
    site.set("watchdog.seconds", 5);
}

/// Waits for a part of the time that the whole run takes, its start included.
fn wait_for_a_moment(site: &mut Site, running: &mut Running) {
    let moment = site.reference().time.mul_f64(site.draw.share());
    running.wait_until(moment, || false);
}

/// Starts the run with slow steps, and waits until some are done.
fn start_slowly(site: &mut Site) -> Running {
    let some = site.draw.within(1..STEPS - 2) as usize;
    let mut running = site.start(site.train_shimmed(&Shim::slow_steps(SLOW)));
    running.wait_until(WHOLE, || metrics(&site.run()).len() >= some);
    running
}

fn send_to_rank(site: &Site, running: &Running, rank: usize, signal: Signal) -> Verdict {
    let pid = running.rank(rank).ok_or(format!("rank {rank} of {} is not there", site.layout.name))?;
    send(pid, signal);
    Ok(())
}

fn draw_rank(site: &mut Site) -> usize {
    site.draw.index(site.layout.ranks)
}

pub fn kill_rank(site: &mut Site) -> Verdict {
    let rank = draw_rank(site);
    let mut running = site.start(site.train());
    wait_for_a_moment(site, &mut running);
    let before = site.latest();
    ends_killed(site, running, rank, before)
}

/// Kills a rank. It may have ended before that, or not have begun.
fn ends_killed(site: &Site, running: Running, rank: usize, before: Option<u64>) -> Verdict {
    let killed = send_to_rank(site, &running, rank, SIGKILL);
    let outcome = running.end(GONE)?;
    let done = site.metrics().len() as u64 == STEPS;
    ensure!(outcome.code != Some(0) || done || killed.is_err(), "expected: a failure; seen: exit code 0");
    site.recovers(before)
}

pub fn kill_all(site: &mut Site) -> Verdict {
    let alone = site.draw.index(2) == 0;
    let mut running = site.start(site.train());
    wait_for_a_moment(site, &mut running);
    let before = site.latest();
    if alone {
        send(running.pid(), SIGKILL)
    } else {
        running.kill()
    }
    running.end(GONE)?;
    site.recovers(before)
}

pub fn kill_in_slow_save(site: &mut Site) -> Verdict {
    let (rank, number) = (draw_rank(site), site.draw.within(0..4));
    let slow = Shim { files: "checkpoints/.step", count: usize::MAX, action: "pause:2".into(), ..Shim::default() };
    let mut running = site.start(site.train_shimmed(&slow));
    let unfinished = site.run().join(format!("checkpoints/.step-{:08}.tmp", 3 * (number + 1)));
    running.wait_until(WHOLE, || unfinished.exists());
    running.wait_until(Duration::from_millis(site.draw.within(0..400)), || false);
    let before = site.latest();
    ends_killed(site, running, rank, before)
}

pub fn stop_for_ever(site: &mut Site) -> Verdict {
    watch_closely(site);
    let rank = draw_rank(site);
    let running = start_slowly(site);
    let before = site.latest();
    send_to_rank(site, &running, rank, SIGSTOP)?;
    let outcome = running.end(HANG)?.exits(&[1])?.says("no progress for 5 s: ")?;
    outcome.says(&format!("no progress for 5 s: rank {rank} ("))?;
    site.recovers(before)
}

pub fn stop_for_a_while(site: &mut Site) -> Verdict {
    watch_closely(site);
    let rank = draw_rank(site);
    let running = start_slowly(site);
    send_to_rank(site, &running, rank, SIGSTOP)?;
    std::thread::sleep(Duration::from_secs(3));
    send_to_rank(site, &running, rank, SIGCONT)?;
    running.end(WHOLE)?.exits(&[0])?;
    site.is_complete()
}

pub fn signal(site: &mut Site) -> Verdict {
    let (rank, to_mpirun) = (draw_rank(site), site.draw.index(3) == 0);
    let signal = site.draw.pick(&[SIGUSR1, SIGUSR2, SIGTERM, SIGINT, SIGHUP][..if to_mpirun { 2 } else { 5 }]);
    let running = start_slowly(site);
    match to_mpirun {
        true => send(running.pid(), signal),
        false => send_to_rank(site, &running, rank, signal)?,
    }
    let outcome = running.end(GONE)?.exits(&[0])?;
    let (latest, last) = (site.latest(), site.metrics().keys().max().copied());
    ensure!(latest == last, "expected: a checkpoint of step {last:?}; seen: {latest:?}\n{}", outcome.stderr);
    if last != Some(STEPS) {
        outcome.says(&format!("stopped, since {} was received by rank", signal.as_str()))?;
    }
    site.recovers(latest)
}

pub fn signal_to_mpirun(site: &mut Site) -> Verdict {
    let signal = site.draw.pick(&[SIGTERM, SIGINT]);
    let running = start_slowly(site);
    let before = site.latest();
    send(running.pid(), signal);
    running.end(GONE)?;
    site.recovers(before)
}
