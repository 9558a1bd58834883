//! Runs on disks that are full for a while or too small, and files that cannot be written.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::common::{Case, Running, engine, finish, metrics, mpirun, set, write_config};

/// A file system of two megabytes in memory.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None` where this process must not mount one.
    fn mount() -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "none"]).arg(dir.path()).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(SmallDisk(dir));
        }
        println!("skipped: a small tmpfs cannot be mounted");
        None
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.path()).status().unwrap();
    }
}

/// Space runs out, for metrics and checkpoints, and somebody makes room: the run loses nothing.
#[test]
fn a_run_outlasts_a_full_disk() {
    let Some(disk) = SmallDisk::mount() else { return };
    let (run, filler) = (disk.path().join("run"), disk.path().join("filler"));
    let mut config = Case::open("mha_odd_vocab").config(&run);
    set(&mut config, "train.steps", 1_000_000);
    set(&mut config, "checkpoint.interval", 2);
    let tmp = tempfile::tempdir().unwrap();
    let path = write_config(tmp.path(), "config.toml", &config);
    let mut running = Running::start(mpirun(2).args(["train", "--set", "checkpoint.keep=1", "--config"]).arg(&path));
    let ended = running.wait_until(|_| run.join("checkpoints/latest").exists());
    assert!(ended.is_none(), "{:?}", running.outcome());
    assert!(std::fs::write(&filler, vec![1; 4 << 20]).is_err(), "the disk is too large");
    let ended = running.wait_until(|running| running.stderr().contains("No space left on device"));
    assert!(ended.is_none(), "{:?}", running.outcome());
    std::fs::remove_file(&filler).unwrap();
    let ended = running.wait_until(|running| running.stderr().contains("the disk works again"));
    assert!(ended.is_none(), "{:?}", running.outcome());
    let steps = metrics(&run).len();
    let ended = running.wait_until(|_| metrics(&run).len() > steps + 4);
    assert!(ended.is_none(), "{:?}", running.outcome());
    running.kill();
    finish(engine().args(["checkpoint", "verify"]).arg(&run)).succeeded();
    // Without `keep`, the disk is too small for the run.
    set(&mut config, "train.steps", metrics(&run).len() as i64 + 5000);
    set(&mut config, "checkpoint.retry_seconds", 1);
    let path = write_config(tmp.path(), "config.toml", &config);
    let outcome = finish(mpirun(2).args(["train", "--config"]).arg(&path));
    let outcome = outcome.refused(1, &[" saves need ", " GB, and the file system of checkpoint.dir = "]);
    assert!(
        outcome.stderr.contains("No space left on device (os error 28); it was tried again for 1 s"),
        "{outcome:?}"
    );
    finish(engine().args(["checkpoint", "verify"]).arg(&run)).succeeded();
}

/// Folders and a file lie where these files would be.
#[test]
fn files_that_only_inform_never_end_a_run() {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    let mut config = Case::open("mha_odd_vocab").config(&run);
    set(&mut config, "train.steps", 6);
    set(&mut config, "report.interval", 1);
    let config = write_config(tmp.path(), "config.toml", &config);
    std::fs::create_dir(&run).unwrap();
    let folders = ["ranks.jsonl", "timeline.json", "machine.json", "memory.json"];
    folders.iter().for_each(|name| std::fs::create_dir(run.join(name)).unwrap());
    ["tensorboard", "traces"].iter().for_each(|name| std::fs::write(run.join(name), "").unwrap());
    let outcome = finish(engine().args(["train", "--trace", "2", "--config"]).arg(config)).succeeded();
    for name in folders.iter().chain(&["tensorboard", "traces"]) {
        let of_file = |line: &&str| line.starts_with("warning: ") && line.contains(&format!("run/{name}: "));
        let lines: Vec<&str> = outcome.stderr.lines().filter(of_file).collect();
        assert_eq!(lines.len(), 1, "{name}: {}", outcome.stderr);
        assert!(lines[0].ends_with("this file only informs, and the run goes on without it"), "{}", lines[0]);
    }
    assert_eq!(metrics(&run).len(), 6);
    assert!(!run.join("timeline.json.partial").exists());
}
