//! `status`: how a run stands, on one screen, from the files of its directory alone. Any host that sees them can show
//! it.

use crate::output::or_broken_pipe;
use crate::progress::{duration, size, thousands};
use engine::checkpoint;
use engine::config::{Axis, Config};
use engine::error::{Error, Result};
use engine::flight::lives;
use engine::mpi::host;
use nix::sys::statvfs::statvfs;
use report::records::find;
use report::records::machine::Machine;
use report::records::metrics::{self, StepRecord};
use report::records::ranks;
use report::records::status::{State, Status, now};
use report::stragglers::{Straggler, slow};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Show how a run stands: state, speed, loss, stragglers, disk, last checkpoint, time to the end
#[derive(clap::Args)]
#[command(after_help = "Examples:
  swallow-engine status runs/7b
  swallow-engine status runs/7b --follow")]
pub struct Args {
    /// Directory of the run (checkpoint.dir)
    #[arg(value_name = "RUN_DIR")]
    run: PathBuf,
    /// Show it again every two seconds, until the run ends
    #[arg(long)]
    follow: bool,
}

const INTERVAL: Duration = Duration::from_secs(2);
/// Steps over which speed is averaged.
const RECENT: usize = 50;
/// A running run that has written nothing for so long, and for ten steps, may be dead.
const SILENT_S: u64 = 60;

pub fn run(args: Args) -> Result<()> {
    loop {
        let screen = Screen::read(&args.run)?;
        let clear = if args.follow && std::io::stdout().is_terminal() { "\x1b[2J\x1b[H" } else { "" };
        or_broken_pipe(write!(std::io::stdout(), "{clear}{}", screen.text()))?;
        or_broken_pipe(std::io::stdout().flush())?;
        if !args.follow || screen.status.state != State::Running || screen.is_gone() {
            return Ok(());
        }
        std::thread::sleep(INTERVAL);
    }
}

/// What the files say.
struct Screen {
    run: PathBuf,
    status: Status,
    /// The last steps, the newest last.
    steps: Vec<StepRecord>,
    config: Option<Config>,
    straggler: Option<String>,
    /// Bytes of the newest checkpoint, and free bytes of its file system.
    bytes: Option<u64>,
    free: Option<u64>,
}

impl Screen {
    fn read(run: &Path) -> Result<Screen> {
        let none = || {
            let what = "there is no status.json; name the directory of a run (checkpoint.dir) that has taken a step";
            Error::user(format!("{}: {what}", run.display()))
        };
        let status = Status::read(run)?.ok_or_else(none)?;
        let steps = metrics::read_last(&run.join("metrics.jsonl")).unwrap_or_default();
        let text = std::fs::read_to_string(run.join("config.toml")).unwrap_or_default();
        let bytes = |step| checkpoint::Saved::at_step(run, step).ok().map(|saved| saved.bytes());
        let config = Config::from_resolved(&text).ok();
        Ok(Screen {
            run: run.into(),
            bytes: status.checkpoint.and_then(bytes),
            status,
            steps: steps[steps.len().saturating_sub(RECENT)..].to_vec(),
            straggler: config.as_ref().and_then(|config| straggler(run, config)),
            config,
            free: statvfs(run).ok().map(|fs| fs.blocks_available() * fs.fragment_size()),
        })
    }

    fn text(&self) -> String {
        let Status { state, host, pid, .. } = &self.status;
        let head = format!("{}: {} on {host} (process {pid})\n", self.run.display(), state.name());
        let rows = [
            ("step", self.step()),
            ("speed", self.speed()),
            ("time left", self.time_left()),
            ("checkpoint", self.checkpoint()),
            ("disk", self.disk()),
            ("straggler", self.straggler.clone()),
            ("last", Some(self.last())),
        ];
        let row = |(name, text): (&str, Option<String>)| Some(format!("  {name:<11} {}\n", text?));
        head + &rows.into_iter().filter_map(row).collect::<String>()
    }

    fn step(&self) -> Option<String> {
        // Metrics may be ahead of the status, which is written now and then.
        let (last, steps) = (self.steps.last(), self.status.steps);
        let step = last.map_or(self.status.step, |last| last.step.max(self.status.step));
        let share = 100.0 * step as f64 / steps.max(1) as f64;
        let loss = last.map_or(String::new(), |r| format!(", loss {:.4}, gradient norm {:.2}", r.loss, r.grad_norm));
        Some(format!("{step} of {steps} ({share:.1} %){loss}"))
    }

    /// Seconds per step, the mean of the last ones.
    fn pace(&self) -> Option<f64> {
        let seconds: f64 = self.steps.iter().map(|step| step.step_time_s).sum();
        (!self.steps.is_empty()).then(|| seconds / self.steps.len() as f64)
    }

    fn speed(&self) -> Option<String> {
        let (pace, last) = (self.pace()?, self.steps.last()?);
        let mfu = last.mfu_model.map_or(String::new(), |mfu| format!(", MFU {:.1} %", 100.0 * mfu));
        let rate = thousands(last.tokens as f64 / pace);
        Some(format!("{rate} tokens/s, {pace:.3} s a step, {:.2} TFLOPS(model) a rank{mfu}", last.tflops_model))
    }

    fn time_left(&self) -> Option<String> {
        let left = self.status.steps.saturating_sub(self.steps.last()?.step);
        let seconds = self.pace()? * left as f64;
        (self.status.state == State::Running && left > 0).then(|| duration(seconds))
    }

    fn checkpoint(&self) -> Option<String> {
        let Some(saved) = self.status.checkpoint else { return Some("none yet".into()) };
        let size = self.bytes.map_or(String::new(), |bytes| format!(", {}", size(bytes)));
        let step = self.steps.last().map_or(saved, |last| last.step);
        let interval = self.config.as_ref().map_or(0, |config| config.checkpoint.interval);
        let next = if interval == 0 { self.status.steps } else { (step + 1).next_multiple_of(interval) };
        let next = next.min(self.status.steps);
        let next = if next > step { format!("; the next one after step {next}") } else { String::new() };
        Some(format!("of step {saved}{size}{next}"))
    }

    fn disk(&self) -> Option<String> {
        let free = self.free?;
        let room = self.bytes.filter(|&bytes| bytes > 0);
        let room = room.map_or(String::new(), |bytes| format!(", room for {} more checkpoints", free / bytes));
        Some(format!("{} free{room}", size(free)))
    }

    /// Whether the run's process was on this host and is no more.
    fn is_gone(&self) -> bool {
        self.status.host == host() && !lives(self.status.pid)
    }

    /// The reason, how old it is, and whether the process may be dead.
    fn last(&self) -> String {
        let Status { state, reason, time, .. } = &self.status;
        let age = now().saturating_sub(*time);
        let ago = duration(age as f64);
        let silent = age > SILENT_S && age as f64 > 10.0 * self.pace().unwrap_or_default();
        let dead = match *state == State::Running && (silent || self.is_gone()) {
            true if self.is_gone() => "; its process is gone: it was killed, and the same command continues it",
            true => "; nothing was written since then: the run hangs or was killed",
            false => "",
        };
        format!("{reason} ({ago} ago{dead})")
    }
}

/// The slowest rank of the last sample, where it holds up the others.
fn straggler(run: &Path, config: &Config) -> Option<String> {
    let sample = ranks::read_last(&run.join("ranks.jsonl")).ok()??;
    // A sample of an earlier start may have another layout.
    let mesh = config.mesh(sample.busy.len()).ok().filter(|mesh| mesh.layout() == sample.layout)?;
    let slow = slow(&mesh.coords(Axis::Pipeline), &sample.busy).into_iter().filter(Straggler::is_telling);
    let worst = slow.max_by(|a, b| a.by().total_cmp(&b.by()))?;
    let hosts = find::<Machine>(run, "machine.json", |_| None).ok();
    let hosts = hosts.and_then(|found| found.present().cloned()).map_or(Vec::new(), |machine| machine.hosts);
    let host = hosts.get(worst.rank).map_or(String::new(), |host| format!(" on {host}"));
    let by = 100.0 * worst.by();
    Some(format!("rank {}{host} computed {by:.0} % longer than its stage in step {}", worst.rank, sample.step))
}
