//! What all faults share: the program, the layouts, and the results of undisturbed runs.

use crate::draw::Draw;
use crate::ensure;
use crate::process::Verdict;
use crate::shim::Shim;
use crate::site::{Metrics, Site, WHOLE, copy, metrics};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub struct Layout {
    pub name: &'static str,
    pub ranks: usize,
    pub tensor: usize,
    pub pipeline: usize,
}

/// The faults of a kind take these in turn.
pub const LAYOUTS: [Layout; 5] = [
    Layout { name: "DP2", ranks: 2, tensor: 1, pipeline: 1 },
    Layout { name: "TP2", ranks: 2, tensor: 2, pipeline: 1 },
    Layout { name: "PP2", ranks: 2, tensor: 1, pipeline: 2 },
    Layout { name: "TP2 x PP2", ranks: 4, tensor: 2, pipeline: 2 },
    Layout { name: "DP2 x TP2 x PP2", ranks: 8, tensor: 2, pipeline: 2 },
];

/// The steps of the run (`run.toml`).
pub const STEPS: u64 = 12;

/// An undisturbed run.
pub struct Reference {
    pub metrics: Metrics,
    pub weights: Vec<u8>,
    /// Each rank's operations on files.
    pub logs: Vec<String>,
    pub time: Duration,
}

pub struct Lab {
    pub engine: PathBuf,
    pub shim: PathBuf,
    pub golden: PathBuf,
    /// The folder of all sites.
    pub scratch: PathBuf,
    /// Flushes of paths with this text are forgotten, to see that the campaign notices; empty: none.
    pub planted: String,
    references: [OnceLock<Reference>; LAYOUTS.len()],
    stopped: [OnceLock<PathBuf>; LAYOUTS.len()],
}

impl Lab {
    pub fn new(engine: PathBuf, shim: PathBuf, scratch: PathBuf, planted: String) -> Lab {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden/mha_odd_vocab");
        let (references, stopped) = Default::default();
        Lab { engine, shim, golden, scratch, planted, references, stopped }
    }

    /// The results of an undisturbed run at this layout.
    pub fn reference(&self, layout: &'static Layout) -> &Reference {
        self.references[index(layout)].get_or_init(|| {
            let site = self.site(layout, "reference");
            let began = Instant::now();
            let outcome = site.finish(site.train_shimmed(&Shim::default()), WHOLE).and_then(|end| end.exits(&[0]));
            outcome.unwrap_or_else(|wrong| panic!("the undisturbed run: {wrong}"));
            let time = began.elapsed();
            let log = |rank: usize| fs::read_to_string(site.path("log").join(rank.to_string())).unwrap_or_default();
            let logs = (0..layout.ranks).map(log).collect();
            let weights = site.export("disk/run").unwrap_or_else(|wrong| panic!("the undisturbed run: {wrong}"));
            Reference { metrics: metrics(&site.run()), weights, logs, time }
        })
    }

    /// A run that was stopped after step 10: it has checkpoints of step 9 and of its last step.
    pub fn stopped(&self, layout: &'static Layout) -> PathBuf {
        let make = || {
            let site = self.site(layout, "stopped");
            let usr1 = Shim { rank: Some(0), first: 9, count: 1, action: "signal:10".into(), ..Shim::slow_steps(0) };
            let outcome = site.finish(site.train_shimmed(&usr1), WHOLE).and_then(|end| end.exits(&[0]));
            outcome.unwrap_or_else(|wrong| panic!("the run that is stopped: {wrong}"));
            site.run()
        };
        self.stopped[index(layout)].get_or_init(make).clone()
    }

    fn site(&self, layout: &'static Layout, name: &str) -> Site<'_> {
        let dir = self.scratch.join(format!("{name}-{}", index(layout)));
        Site::new(self, layout, &dir, Draw::new(0, name, 0))
    }
}

fn index(layout: &Layout) -> usize {
    LAYOUTS.iter().position(|other| other.name == layout.name).expect("a layout of the list")
}

/// Gives this thread mounts of its own, with an empty `/dev/shm`, where it may.
pub fn has_own_mounts() -> bool {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).is_ok()
        && mount(&["--make-rprivate", "/"])
        && mount(&["-t", "tmpfs", "none", "/dev/shm"])
}

fn mount(args: &[&str]) -> bool {
    Command::new("mount").args(args).output().is_ok_and(|output| output.status.success())
}

/// A small file system in memory, over a folder. What it held is kept beside the folder of a site.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    pub fn mount(at: &Path, kilobytes: u64) -> Verdict<SmallDisk> {
        let disk = SmallDisk(at.into());
        disk.resize("", kilobytes).map(|()| disk)
    }

    pub fn make_room(&self) -> Verdict {
        self.resize("remount,", 1 << 20)
    }

    pub fn resize(&self, how: &str, kilobytes: u64) -> Verdict {
        let options = format!("{how}size={kilobytes}k");
        let done = mount(&["-t", "tmpfs", "-o", &options, "none", &self.0.display().to_string()]);
        ensure!(done, "mount -o {options} {}: it failed", self.0.display());
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if !self.0.starts_with("/dev") {
            copy(&self.0, &self.0.with_extension("kept"));
        }
        Command::new("umount").arg("-l").arg(&self.0).status().expect("there is a umount");
    }
}
