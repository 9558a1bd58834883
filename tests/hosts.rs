//! Runs over several hosts: namespaces of this machine with host names of their own, which share no memory of the
//! engine's and learn of each other through MPI and the run's directory alone.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Site, finish, metrics, mpirun_alone, program};

/// Runs a command on a host: what `ssh HOST COMMAND` does.
const SHELL: &str = "#!/bin/sh\nhost=$1; shift\nexec unshare --uts sh -c \"hostname $host; $*\"\n";

/// `mpirun` of two ranks on each of the hosts n1 and n2; `None` where this process may not give a namespace a name.
fn on_two_hosts(tmp: &Path) -> Option<Command> {
    let named = Command::new("unshare").args(["--uts", "hostname", "n1"]).output();
    if !named.is_ok_and(|output| output.status.success()) {
        println!("skipped: namespaces with other host names need root");
        return None;
    }
    let shell = tmp.join("shell.sh");
    std::fs::write(&shell, SHELL).unwrap();
    std::fs::set_permissions(&shell, PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = mpirun_alone();
    command.args(["--mca", "plm_rsh_agent"]).arg(shell).args(["-H", "n1:2,n2:2", "--map-by", "ppr:2:node"]);
    command.args(["-n", "4", "--bind-to", "none"]).arg(program());
    command.env("OMPI_MCA_odls_base_sigkill_timeout", "2");
    Some(command)
}

/// The processes of the ranks of the run in `dir`, in their order. They are no descendants of `mpirun`.
fn ranks(dir: &Path) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let read = |name: &str| std::fs::read(entry.as_ref().unwrap().path().join(name)).unwrap_or_default();
        let is_of_run = String::from_utf8_lossy(&read("cmdline")).contains(dir.to_str().unwrap());
        let environment = String::from_utf8_lossy(&read("environ")).into_owned();
        let rank = environment.split('\0').find_map(|line| line.strip_prefix("OMPI_COMM_WORLD_RANK="));
        if let Some(rank) = rank.filter(|_| is_of_run) {
            let pid = entry.as_ref().unwrap().file_name().to_str().unwrap().parse().unwrap();
            found.push((rank.parse::<usize>().unwrap(), pid));
        }
    }
    found.sort();
    found.into_iter().map(|(_, pid)| pid).collect()
}

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// A run at this layout of which these ranks get a signal must end soon, with one report that has the needles.
#[track_caller]
fn reported(keys: &[(&str, i64)], signal: Signal, whom: &[usize], needles: &[&str]) {
    let site =
        keys.iter().fold(Site::endless().with("watchdog.seconds", 3), |site, (key, value)| site.with(key, *value));
    let Some(command) = on_two_hosts(site.tmp.path()) else { return };
    let running = site.start(command);
    let pids = ranks(site.tmp.path());
    assert_eq!(pids.len(), 4, "{pids:?}");
    let since = Instant::now();
    whom.iter().for_each(|&rank| send(pids[rank], signal));
    let outcome = running.outcome();
    assert!(!outcome.status.success(), "{outcome:?}");
    assert!(since.elapsed() < Duration::from_secs(30), "it took {:?}: {}", since.elapsed(), outcome.stderr);
    for needle in needles {
        assert_eq!(outcome.stderr.matches(needle).count(), 1, "`{needle}` in: {}", outcome.stderr);
    }
    assert_eq!(site.status()["state"], "failed");
    assert_eq!(ranks(site.tmp.path()), Vec::<i32>::new());
}

#[test]
fn a_stopped_rank_of_another_host_is_named() {
    let needles = ["rank 3 (tp 0, pp 0, dp 3) on n2, ", "is stopped by a signal or a debugger at step "];
    reported(&[], Signal::SIGSTOP, &[3], &needles);
}

mod exhaustive {
    use super::*;

    #[test]
    fn a_host_on_which_all_ranks_are_stopped_is_named() {
        reported(&[], Signal::SIGSTOP, &[2, 3], &["rank 2 (tp 0, pp 0, dp 2) on n2"]);
    }

    #[test]
    fn a_killed_rank_of_another_host_is_named() {
        reported(&[], Signal::SIGKILL, &[2], &["rank 2 (tp 0, pp 0, dp 2) on n2 has died without a message"]);
    }

    #[test]
    fn a_stopped_rank_is_named_where_tensor_and_pipeline_groups_span_the_hosts() {
        let keys = [("parallel.tensor", 2), ("parallel.pipeline", 2)];
        reported(&keys, Signal::SIGSTOP, &[1], &["rank 1 (tp 1, pp 0, dp 0) on n1, ", "is stopped by a signal"]);
    }

    /// The hosts ask each other, and no host ends the run.
    #[test]
    fn a_rank_of_another_host_that_pauses_is_waited_for() {
        let site = Site::endless().with("watchdog.seconds", 3);
        let Some(command) = on_two_hosts(site.tmp.path()) else { return };
        let mut running = site.start(command);
        let pids = ranks(site.tmp.path());
        send(pids[3], Signal::SIGSTOP);
        std::thread::sleep(Duration::from_secs(2));
        send(pids[3], Signal::SIGCONT);
        let before = metrics(&site.run()).len();
        assert!(running.wait_until(|_| metrics(&site.run()).len() > before + 100).is_none());
        send(running.family()[0], Signal::SIGUSR1);
        let outcome = running.outcome();
        assert!(outcome.stderr.contains("stopped, since SIGUSR1 was received"), "{}", outcome.stderr);
        finish(crate::common::engine().args(["checkpoint", "verify"]).arg(site.run())).succeeded();
    }
}
