//! Runs that are asked to stop, that hang, and that lose a rank: what they leave, and what they say last.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::{
    Outcome, Running, Site, checkout, engine, export, finish, kill_process, locally, metrics, mpirun, program,
};

/// `mpirun`, which grants its ranks two seconds before it kills them.
fn patient_mpirun(ranks: usize) -> Command {
    let mut command = mpirun(ranks);
    command.env("OMPI_MCA_odls_base_sigkill_timeout", "2");
    command
}

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// The run has stopped with a checkpoint of its last step, and says so in its last line and in `status.json`.
#[track_caller]
fn stopped(site: &Site, outcome: &Outcome, signal: &str) {
    assert_eq!(outcome.status.code(), Some(0), "{signal}: {outcome:?}");
    let last = metrics(&site.run()).len() as u64;
    let status = site.status();
    let got = ["state", "step", "checkpoint"].map(|key| status[key].clone());
    assert_eq!(got, [Value::from("stopped"), last.into(), last.into()], "{signal}: {status}");
    assert_eq!(site.latest(), last, "{signal}");
    assert!(outcome.stdout.contains(&format!("saved step {last} (")), "{}", outcome.stdout);
    let line = format!("stopped, since {signal} was received by rank ");
    let found = outcome.stderr.lines().filter(|found| found.starts_with(&line)).count();
    assert_eq!(found, 1, "{signal}: {}", outcome.stderr);
}

/// A run that was stopped twice continues to the weights of one that was not.
#[test]
fn a_signal_to_mpirun_saves_and_the_same_command_continues() {
    let site = Site::endless();
    let mpirun_pid = |running: &Running| running.family()[0];
    for (signal, name) in [(Signal::SIGUSR1, "SIGUSR1"), (Signal::SIGUSR2, "SIGUSR2")] {
        let running = site.start(mpirun(2));
        send(mpirun_pid(&running), signal);
        stopped(&site, &running.outcome(), name);
    }
    let steps = metrics(&site.run()).len() as i64 + 2;
    let site = site.with("train.steps", steps).with("watchdog.seconds", 77);
    let outcome = finish(&mut site.command(mpirun(2))).succeeded();
    assert!(outcome.stderr.contains(&format!("finished: step {steps} of {steps} is done")), "{}", outcome.stderr);
    assert_eq!(site.status()["state"], "finished");
    assert!(outcome.stderr.contains("changed: watchdog.seconds was not set, is now 77"), "{}", outcome.stderr);
    assert_eq!(events(&site.run()), ["start", "stopped", "start", "stopped", "start", "finished"]);
    let shown = finish(engine().arg("status").arg(site.run())).succeeded().stdout;
    assert!(shown.contains(&format!("{steps} of {steps} (100.0 %)")), "{shown}");
    assert!(shown.contains(": finished on ") && shown.contains(&format!("of step {steps}, ")), "{shown}");
    let alone = Site::endless().with("train.steps", steps);
    finish(&mut alone.command(mpirun(2))).succeeded();
    let [cut, whole] = [&site, &alone].map(|site| export(&site.run(), &site.tmp.path().join("out")));
    assert!(cut == whole, "the weights differ");
}

/// Whether this process was started with SIGHUP ignored, as by `nohup`, which a run inherits and heeds.
fn ignores_sighup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & 1 == 1
}

/// One rank of two, and a run without mpirun.
#[test]
fn every_signal_to_a_rank_stops_the_run() {
    for (signal, name) in [(Signal::SIGTERM, "SIGTERM"), (Signal::SIGINT, "SIGINT"), (Signal::SIGHUP, "SIGHUP")] {
        let site = Site::endless();
        let running = site.start(mpirun(2));
        send(running.ranks()[1], signal);
        stopped(&site, &running.outcome(), name);
        if signal == Signal::SIGHUP && ignores_sighup() {
            eprintln!("skipped: SIGHUP to a run without mpirun, since these tests were started with it ignored");
            continue;
        }
        let running = site.start(engine());
        send(running.ranks()[0], signal);
        stopped(&site, &running.outcome(), name);
    }
}

/// The first signal cannot be followed, since the other rank is stopped.
#[test]
fn a_second_signal_ends_the_run_at_once() {
    let site = Site::endless().with("watchdog.seconds", 0);
    let running = site.start(mpirun(2));
    let ranks = running.ranks();
    send(ranks[1], Signal::SIGSTOP);
    let start = Instant::now();
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(300));
        send(ranks[0], Signal::SIGTERM);
    }
    let outcome = running.outcome();
    assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
    assert!(start.elapsed() < Duration::from_secs(20), "it took {:?}", start.elapsed());
    assert!(outcome.stderr.contains("a second signal (SIGTERM) ended the run at once"), "{}", outcome.stderr);
    assert_eq!(site.status()["state"], "failed");
    assert_eq!(events(&site.run()), ["start", "failed"]);
}

/// A pipe that is full from the start: nobody reads the run's messages.
#[test]
fn a_full_standard_error_holds_up_nothing() {
    let site = Site::endless();
    let (_reader, mut full) = std::io::pipe().unwrap();
    full.write_all(&[b'.'; 1 << 16]).unwrap();
    let mut child = site.command(engine()).stdout(Stdio::null()).stderr(full).spawn().unwrap();
    let start = Instant::now();
    let patient = || assert!(start.elapsed() < Duration::from_secs(60), "the run hangs");
    while metrics(&site.run()).len() < 3 {
        std::thread::sleep(Duration::from_millis(50));
        patient();
    }
    send(child.id() as i32, Signal::SIGUSR1);
    let ended = loop {
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        std::thread::sleep(Duration::from_millis(50));
        patient();
    };
    assert_eq!((ended.code(), &site.status()["state"]), (Some(0), &Value::from("stopped")));
}

/// The directory is another run's: only its own run writes how that stands.
#[test]
fn a_start_that_is_refused_leaves_the_status_of_a_live_run_alone() {
    let site = Site::endless();
    let running = site.start(engine());
    finish(&mut site.command(engine())).refused(2, &["another run is using this directory"]);
    assert_eq!(site.status()["state"], "running");
    send(running.ranks()[0], Signal::SIGUSR1);
    stopped(&site, &running.outcome(), "SIGUSR1");
}

#[test]
fn a_run_stops_before_its_time_is_up() {
    let site = Site::endless().with("train.stop_before", "0:00:03");
    let outcome = finish(&mut site.command(mpirun(2)));
    assert_eq!(outcome.status.code(), Some(0), "{outcome:?}");
    let last = metrics(&site.run()).len() as u64;
    assert_eq!((site.latest(), &site.status()["state"]), (last, &Value::from("stopped")));
    assert!(outcome.stderr.contains("stopped, since train.stop_before is near"), "{}", outcome.stderr);
}

/// Without a step, so that a job that is started again does not loop.
#[test]
fn a_run_without_time_for_a_step_fails() {
    let site = Site::endless().with("train.stop_before", "0:00:01");
    // The program waits for its configuration until the time is over.
    let pipe = site.tmp.path().join("pipe.toml");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let running = Running::start(mpirun(2).args(["train", "--config"]).arg(&pipe));
    std::thread::sleep(Duration::from_millis(2500));
    std::fs::write(&pipe, toml::to_string(&site.config).unwrap()).unwrap();
    running.outcome().refused(1, &["train.stop_before = \"0:00:01\"", "before the first step"]);
    assert_eq!(metrics(&site.run()).len(), 0);
}

/// A job that is started again after each signal comes to its end, even where the signal always comes early.
#[test]
fn a_signal_before_the_first_step_lets_the_run_take_it() {
    let site = Site::endless();
    // The program waits for its configuration until it has the signal.
    let pipe = site.tmp.path().join("pipe.toml");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let running = Running::start(engine().args(["train", "--config"]).arg(&pipe));
    // Its signals are blocked and received before it opens the pipe.
    let mut writer = std::fs::File::options().write(true).open(&pipe).unwrap();
    send(running.ranks()[0], Signal::SIGUSR1);
    std::thread::sleep(Duration::from_millis(200));
    writer.write_all(toml::to_string(&site.config).unwrap().as_bytes()).unwrap();
    drop(writer);
    stopped(&site, &running.outcome(), "SIGUSR1");
    assert_eq!(site.latest(), 1);
}

/// The batch system signals the job's script, which passes it on and starts the job again.
#[test]
fn a_job_script_that_is_signalled_saves_and_starts_itself_again() {
    let site = Site::endless();
    let script = "source configs/jobs/requeue.sh; config=$3; again=$4; \
                  run_and_requeue $config \"touch $again\" configs/jobs/mpirun.sh $config 2";
    let mut bash = locally(Command::new("bash"));
    bash.current_dir(checkout()).env("SWALLOW_ENGINE", program()).env("MPIRUN_FLAGS", "--oversubscribe");
    bash.args(["-c", script, "bash"]);
    let again = site.tmp.path().join("again");
    let mut command = site.command(bash);
    command.arg(&again);
    let mut running = Running::start(&mut command);
    assert!(running.wait_until(|_| metrics(&site.run()).len() >= 3).is_none());
    send(running.family()[0], Signal::SIGUSR1);
    stopped(&site, &running.outcome(), "SIGUSR1");
    assert!(again.exists());
}

/// Expects the end of a run that hung or lost rank 1, within the time that the watchdog has.
#[track_caller]
fn reported(site: &Site, outcome: Outcome, since: Instant, needles: &[&str]) {
    assert!(!outcome.status.success(), "{outcome:?}");
    assert!(since.elapsed() < Duration::from_secs(20), "it took {:?}: {}", since.elapsed(), outcome.stderr);
    for needle in needles {
        assert!(outcome.stderr.contains(needle), "no `{needle}` in: {}", outcome.stderr);
    }
    let (state, reason) = (site.status()["state"].clone(), site.status()["reason"].to_string());
    assert_eq!(state, "failed", "{reason}");
    assert!(reason.contains(needles[0]), "{reason}");
    assert_eq!(outcome.stderr.matches(needles[0]).count(), 1, "one rank reports: {}", outcome.stderr);
}

/// The ranks that outlive `mpirun`, which kills them and does not wait for a stopped one.
fn alive(ranks: &[i32]) -> Vec<i32> {
    let lives = |pid: &&i32| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok();
    let alive = || ranks.iter().filter(lives).copied().collect::<Vec<_>>();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) && !alive().is_empty() {
        std::thread::sleep(Duration::from_millis(50));
    }
    alive()
}

fn stop_rank_1(site: &Site, ranks: usize, needles: &[&str]) {
    let running = site.start(mpirun(ranks));
    let pids = running.ranks();
    let since = Instant::now();
    send(pids[1], Signal::SIGSTOP);
    let outcome = running.outcome();
    let [report, of_mpirun] = [needles[0], "-------"].map(|text| outcome.stderr.find(text));
    assert!(report < of_mpirun, "mpirun spoke first: {}", outcome.stderr);
    reported(site, outcome, since, needles);
    assert_eq!(alive(&pids), Vec::<i32>::new());
    let copies = copies(&site.run());
    assert_eq!(copies.len(), ranks, "{copies:?}");
}

/// The events of the run's history, ends by their state.
fn events(run: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(run.join("history.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.map(|line| line.get("state").unwrap_or(&line["event"]).as_str().unwrap().to_string()).collect()
}

/// The copies of the ranks' last operations.
fn copies(run: &Path) -> Vec<PathBuf> {
    let start = std::fs::read_dir(run.join("hangs")).unwrap().next().unwrap().unwrap().path();
    std::fs::read_dir(start).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_stopped_rank_is_named_with_its_place() {
    let site = Site::endless().with("watchdog.seconds", 2).with("parallel.tensor", 2);
    let needles =
        ["rank 1 (tp 1, pp 0, dp 0) on ", "is stopped by a signal or a debugger at step ", "rank 0 waits for it"];
    stop_rank_1(&site, 2, &needles);
}

#[test]
fn a_rank_that_was_killed_is_named_by_those_that_remain() {
    let site = Site::endless();
    let running = site.start(patient_mpirun(2));
    let ranks = running.ranks();
    let since = Instant::now();
    kill_process(ranks[1]);
    let needles = ["rank 1 (tp 0, pp 0, dp 1) on ", "has died without a message at step ", "there is no checkpoint"];
    reported(&site, running.outcome(), since, &needles);
    assert_eq!(alive(&ranks), Vec::<i32>::new());
}

/// A rank that stands still for a while, and then goes on, is not taken for one that hangs.
#[test]
fn a_rank_that_pauses_is_waited_for() {
    let site = Site::endless().with("watchdog.seconds", 4);
    let running = site.start(mpirun(2));
    let rank = running.ranks()[1];
    send(rank, Signal::SIGSTOP);
    std::thread::sleep(Duration::from_millis(2000));
    send(rank, Signal::SIGCONT);
    let before = metrics(&site.run()).len();
    let mut running = running;
    assert!(running.wait_until(|_| metrics(&site.run()).len() > before + 3).is_none());
    send(running.family()[0], Signal::SIGUSR1);
    stopped(&site, &running.outcome(), "SIGUSR1");
}

mod exhaustive {
    use super::*;

    /// Once it has SIGTERM, mpirun reads nothing more: the log of fast steps fills its pipe in a moment.
    #[test]
    fn a_run_of_fast_steps_saves_when_mpirun_is_terminated() {
        let site = Site::endless();
        let running = site.start(patient_mpirun(2));
        send(running.family()[0], Signal::SIGTERM);
        running.outcome();
        let last = metrics(&site.run()).len() as u64;
        assert_eq!((site.latest(), &site.status()["state"]), (last, &Value::from("stopped")));
    }

    #[test]
    fn a_stopped_rank_is_named_at_every_kind_of_layout() {
        let site = || Site::endless().with("watchdog.seconds", 2);
        stop_rank_1(&site(), 2, &["rank 1 (tp 0, pp 0, dp 1) on ", "is stopped"]);
        stop_rank_1(&site().with("parallel.pipeline", 2), 2, &["rank 1 (tp 0, pp 1, dp 0) on ", "is stopped"]);
        let both = site().with("parallel.pipeline", 2).with("parallel.tensor", 2);
        stop_rank_1(&both, 4, &["rank 1 (tp 1, pp 0, dp 0) on ", "is stopped"]);
    }
}
