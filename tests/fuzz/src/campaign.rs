//! The campaign: targets take turns until the time is over, and each case that ends wrongly is kept.

use crate::case::{Case, root, seeds};
use crate::mutate::Cases;
use crate::targets::{Target, named};
use crate::worker::{self, Done};
use crate::{Args, Which};
use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::io::{Error, Result};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A target's turn.
const TURN: Duration = Duration::from_secs(20);
/// For targets that run by number.
const FOREVER: Duration = Duration::from_secs(1 << 30);
/// Cases of a worker. A new one starts with fresh memory, so that what libraries keep does not add up to a finding.
const BATCH: u64 = 2000;
/// Cases for each that one of a target which starts the program takes.
const SLOWER: u64 = 50;
/// Cases kept of those that end for the same reason.
const ALIKE: u64 = 3;

/// The state of a target.
struct Tally<'t> {
    target: &'t Target,
    seeds: Vec<Case>,
    /// The number of its next case.
    next: u64,
    accepted: u64,
    refused: u64,
    /// The numbers of cases by the reason for which they are wrong.
    wrong: BTreeMap<String, u64>,
}

/// What all turns share.
struct Campaign<'a> {
    args: &'a Args,
    start: Instant,
    /// The folder of the workers.
    tmp: TempDir,
    bar: ProgressBar,
}

/// Runs the targets and prints a table.
pub fn run(args: &Args) -> Result<ExitCode> {
    let targets = named(&args.target)?;
    let mut all = targets.into_iter().map(Tally::new).collect::<Result<Vec<_>>>()?;
    if all.iter().any(|tally| tally.target.starts_program()) && !args.engine.is_file() {
        let what = "it is not there; build it, or name another by --engine";
        return Err(Error::other(format!("{}: {what}", args.engine.display())));
    }
    let time = Duration::from_secs_f64(60.0 * args.minutes);
    let steps = if args.inputs.is_some() { all.len() as u64 } else { time.as_secs() };
    let style = ProgressStyle::with_template("{bar:30} {elapsed_precise} {wide_msg}").expect("a template");
    let bar = ProgressBar::new(steps).with_style(style);
    let campaign = Campaign { args, start: Instant::now(), tmp: workplace()?, bar };
    match args.inputs {
        Some(inputs) => campaign.count(&mut all, inputs)?,
        None => campaign.take_turns(&mut all, time)?,
    }
    campaign.bar.finish_and_clear();
    println!("{}", table(&all));
    Ok(if all.iter().all(|tally| tally.wrong.is_empty()) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Campaign<'_> {
    /// Runs so many cases of each target. Every seed runs: it may be a case that was wrong once.
    fn count(&self, all: &mut [Tally], inputs: u64) -> Result<()> {
        for tally in all {
            let inputs = if tally.target.starts_program() { inputs / SLOWER } else { inputs };
            tally.turn(self, inputs.max(tally.seeds.len() as u64), FOREVER)?;
            self.bar.inc(1);
        }
        Ok(())
    }

    /// Runs the targets one after the other until the time is over. A short campaign reaches every target too.
    fn take_turns(&self, all: &mut [Tally], time: Duration) -> Result<()> {
        let turn = TURN.min(time / all.len() as u32);
        loop {
            for tally in &mut *all {
                let left = time.saturating_sub(self.start.elapsed());
                if left.is_zero() {
                    return Ok(());
                }
                tally.turn(self, u64::MAX, left.min(turn))?;
                self.bar.set_position(self.start.elapsed().as_secs());
            }
        }
    }
}

/// Runs one case, and prints how it ends.
pub fn rerun(args: &Args, folder: &Path) -> Result<ExitCode> {
    let [target] = named(&args.target)?[..] else { return Err(Error::other("--input needs one --target")) };
    let Done { refused, refusal, wrong, .. } =
        worker::run(args, target.name, &Which::Given(folder.canonicalize()?), workplace()?.path())?;
    println!("{}", wrong.as_deref().unwrap_or(if refused > 0 { &refusal } else { "accepted" }));
    Ok(if wrong.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The folder of a campaign, in memory where that is possible: cases are written and synced many times a second.
fn workplace() -> Result<TempDir> {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())
}

impl<'t> Tally<'t> {
    fn new(target: &'t Target) -> Result<Tally<'t>> {
        let (next, accepted, refused, wrong) = (0, 0, 0, BTreeMap::new());
        Ok(Tally { target, seeds: seeds(target.name)?, next, accepted, refused, wrong })
    }

    /// Runs cases up to the number `last` or until the time is over.
    fn turn(&mut self, campaign: &Campaign, last: u64, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while self.next < last && Instant::now() < end {
            campaign.bar.set_message(format!("{}: {} cases, {} wrong", self.target.name, self.next, self.wrong()));
            let seconds = end.saturating_duration_since(Instant::now()).as_secs_f64();
            let which = Which::Numbers { first: self.next, most: BATCH.min(last - self.next), seconds };
            let done = worker::run(campaign.args, self.target.name, &which, campaign.tmp.path())?;
            self.accepted += done.accepted;
            self.refused += done.refused;
            self.next += done.accepted + done.refused;
            if let Some(reason) = done.wrong {
                self.keep(campaign, reason)?;
                self.next += 1;
            }
        }
        Ok(())
    }

    fn wrong(&self) -> u64 {
        self.wrong.values().sum()
    }

    /// Keeps the next case, which was wrong, and says so.
    fn keep(&mut self, campaign: &Campaign, reason: String) -> Result<()> {
        let alike = self.wrong.entry(kind(&reason)).or_default();
        *alike += 1;
        if *alike > ALIKE {
            return Ok(());
        }
        let case = Cases::new(self.target, self.seeds.clone(), campaign.args.seed).get(self.next);
        let folder = root().join("found").join(format!("{}-{}", self.target.name, case.hash()));
        case.write(&folder)?;
        campaign.bar.suspend(|| println!("{} {}: {reason}\n  {}", self.target.name, self.next, folder.display()));
        Ok(())
    }
}

/// The place of a panic, without its message, or the reason without its numbers.
fn kind(reason: &str) -> String {
    let place = reason.rfind("panicked at").and_then(|at| reason[at..].split(": ").next());
    place.map_or_else(|| reason.chars().filter(|c| !c.is_ascii_digit()).collect(), str::to_string)
}

fn table(all: &[Tally]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["target", "inputs", "accepted", "refused", "wrong"]);
    for tally in all {
        let (name, wrong) = (tally.target.name, tally.wrong());
        let counts = [tally.accepted + tally.refused + wrong, tally.accepted, tally.refused, wrong];
        table.add_row([name.to_string()].into_iter().chain(counts.map(|count| count.to_string())));
    }
    table
}
