//! The fault campaign: it disturbs runs and commands of the program in hundreds of ways that a seed draws, and checks
//! after each that everything ended, that nothing was lost, and that the same command continues to the results of an
//! undisturbed run. `docs/testing.md` says how to run it, and how to repeat one fault.
//!
//! It knows the program by its command line and its files alone.

mod draw;
mod kinds;
mod lab;
mod power;
mod process;
mod shim;
mod site;

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use draw::Draw;
use indicatif::{ProgressBar, ProgressStyle};
use kinds::{KINDS, Kind};
use lab::{LAYOUTS, Lab};
use process::Verdict;
use site::Site;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

#[derive(Parser)]
#[command(about = "Disturb runs and commands in hundreds of ways, and check what is left")]
struct Args {
    /// The program under test [default: swallow-engine beside this program]
    #[arg(long)]
    engine: Option<PathBuf>,
    /// How many faults, of all kinds in proportion
    #[arg(long, default_value_t = 1000)]
    faults: usize,
    /// Other seeds draw other faults
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Begin no fault after this time
    #[arg(long)]
    minutes: Option<u64>,
    /// Only this kind
    #[arg(long, value_name = "KIND")]
    only: Option<String>,
    /// With --only: this fault of the kind alone
    #[arg(long, value_name = "K", requires = "only")]
    number: Option<usize>,
    /// How many faults take place at the same time
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Where to write the result, a table in Markdown
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,
    /// The folder in which the faults take place; those of wrong ones stay [default: a new one]
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Let the program's flushes of paths with this text do nothing, to see that the campaign notices
    #[arg(long, value_name = "TEXT", default_value = "")]
    plant: String,
}

/// One fault, which the seed determines.
struct Fault {
    kind: &'static Kind,
    number: usize,
}

/// What became of the faults of a kind.
#[derive(Default, Clone, Copy)]
struct Tally {
    tries: usize,
    right: usize,
}

struct Campaign {
    args: Args,
    lab: Lab,
    faults: Vec<Fault>,
    next: AtomicUsize,
    began: Instant,
    tallies: Mutex<BTreeMap<&'static str, Tally>>,
    bar: ProgressBar,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let beside = |name: &str| std::env::current_exe().expect("this program has a path").with_file_name(name);
    let engine = args.engine.clone().unwrap_or_else(|| beside("swallow-engine"));
    let engine = fs::canonicalize(&engine).unwrap_or_else(|e| panic!("{}: {e}", engine.display()));
    let faults = faults(&args);
    if faults.is_empty() {
        let names: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
        eprintln!("error: --only: there is no such kind or number; the kinds are {}", names.join(", "));
        return ExitCode::from(2);
    }
    let temporary = tempfile::Builder::new().prefix("campaign-").tempdir().expect("a folder can be made");
    let scratch = args.keep.clone().unwrap_or_else(|| temporary.path().into());
    site::create(&scratch);
    let scratch = fs::canonicalize(scratch).expect("the folder exists");
    if !lab::has_own_mounts() {
        println!("skipped: the campaign mounts small file systems, in a namespace of its own, and needs to be root");
        return ExitCode::SUCCESS;
    }
    let lab = Lab::new(engine, beside("libcampaign_shim.so"), scratch, args.plant.clone());
    let style = ProgressStyle::with_template("{pos}/{len} {wide_bar} {elapsed} {msg}").expect("a template");
    let bar = ProgressBar::new(faults.len() as u64).with_style(style);
    let (next, began, tallies) = (AtomicUsize::new(0), Instant::now(), Mutex::default());
    let campaign = Campaign { args, lab, faults, next, began, tallies, bar };
    std::thread::scope(|scope| (0..campaign.args.jobs).for_each(|_| _ = scope.spawn(|| campaign.work())));
    let all_right = campaign.report();
    if !all_right {
        // The folders of what is wrong stay.
        let _ = temporary.keep();
    }
    ExitCode::from(u8::from(!all_right))
}

/// The faults that the arguments ask for, the kinds mixed, so that a campaign that ends early has met them all.
fn faults(args: &Args) -> Vec<Fault> {
    let total: usize = KINDS.iter().map(|kind| kind.weight).sum();
    let tries = |kind: &Kind| (args.faults * kind.weight).div_ceil(total);
    let all = KINDS.iter().flat_map(|kind| (0..tries(kind)).map(move |number| Fault { kind, number }));
    let is_asked = |fault: &Fault| args.only.as_ref().is_none_or(|name| name == fault.kind.name);
    let mut faults: Vec<Fault> = all.filter(is_asked).collect();
    if let (Some(number), Some(fault)) = (args.number, faults.first()) {
        return vec![Fault { kind: fault.kind, number }];
    }
    let place = |fault: &Fault| (fault.number as f64 + 0.5) / tries(fault.kind) as f64;
    faults.sort_by(|a, b| place(a).total_cmp(&place(b)));
    faults
}

impl Campaign {
    fn work(&self) {
        // What a thread starts has its mounts, so that each has its own `/dev/shm`.
        assert!(lab::has_own_mounts(), "the first thread has them too");
        let limit = self.args.minutes.map(|minutes| Duration::from_secs(60 * minutes));
        while limit.is_none_or(|limit| self.began.elapsed() < limit) {
            let Some(fault) = self.faults.get(self.next.fetch_add(1, Relaxed)) else { return };
            let verdict = self.take_place(fault);
            let is_right = verdict.is_ok();
            if let Err(wrong) = verdict {
                self.bar.suspend(|| eprintln!("{}", self.describe(fault, &wrong)));
            }
            let mut tallies = self.tallies.lock().expect("no thread panics while it holds this lock");
            let tally = tallies.entry(fault.kind.name).or_default();
            tally.tries += 1;
            tally.right += usize::from(is_right);
            self.bar.inc(1);
            if self.bar.is_hidden() && self.bar.position().is_multiple_of(50) {
                eprintln!("{} of {} faults", self.bar.position(), self.faults.len());
            }
        }
    }

    fn folder(&self, fault: &Fault) -> PathBuf {
        self.lab.scratch.join(format!("{}-{}", fault.kind.name, fault.number))
    }

    fn take_place(&self, fault: &Fault) -> Verdict {
        let (dir, kind) = (self.folder(fault), fault.kind);
        let layout = &LAYOUTS[fault.number % LAYOUTS.len()];
        let mut site = Site::new(&self.lab, layout, &dir, Draw::new(self.args.seed, kind.name, fault.number));
        let verdict = (kind.run)(&mut site);
        if verdict.is_ok() {
            fs::remove_dir_all(&dir).expect("a site can be removed");
        }
        verdict
    }

    fn describe(&self, fault: &Fault, wrong: &str) -> String {
        let (name, number, layout) = (fault.kind.name, fault.number, LAYOUTS[fault.number % LAYOUTS.len()].name);
        let again = format!("campaign --seed {} --only {name} --number {number}", self.args.seed);
        format!(
            "WRONG: {name} {number} at {layout}\n{wrong}\nkept: {}\nrepeat: {again}\n",
            self.folder(fault).display()
        )
    }

    /// Prints and writes the table; returns whether everything was right.
    fn report(&self) -> bool {
        self.bar.finish_and_clear();
        let tallies = self.tallies.lock().expect("no thread panics while it holds this lock");
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN).set_header(["kind", "tries", "right"]);
        let sum = |count: fn(&Tally) -> usize| tallies.values().map(count).sum::<usize>();
        let (tries, right) = (sum(|tally| tally.tries), sum(|tally| tally.right));
        let of_kind = |kind: &Kind| tallies.get(kind.name).copied().unwrap_or_default();
        let rows = KINDS.iter().map(|kind| (kind.says, of_kind(kind))).filter(|(_, tally)| tally.tries > 0);
        for (says, Tally { tries, right }) in rows.chain([("all", Tally { tries, right })]) {
            table.add_row([says.to_string(), tries.to_string(), right.to_string()]);
        }
        for column in 1..=2 {
            table.column_mut(column).expect("three columns").set_cell_alignment(CellAlignment::Right);
        }
        println!("{table}");
        if let Some(path) = &self.args.table {
            fs::write(path, format!("{table}\n")).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
        tries == right
    }
}
