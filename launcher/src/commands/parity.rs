//! `parity`: trains a small model at every layout and holds each to one rank.

use super::train::check_ids;
use crate::progress::Count;
use crate::{output::or_broken_pipe, under_mpirun};
use comfy_table::{CellAlignment, Table, presets};
use data::feed::Feed;
use engine::config::{Config, Named, Precision};
use engine::error::{Error, Result, counted};
use engine::mpi::{Comm, World};
use engine::parity::{self, Layout, Outcome, bounds};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

/// Train a small model at every layout, f32 on the CPU, and compare each with one rank
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model, its data and the steps (TOML); its own layout does not matter
    #[arg(long)]
    config: PathBuf,
    /// Replace one key, such as train.steps=3
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Layouts of at most so many ranks [default: as many as mpirun started]
    #[arg(long, value_name = "N")]
    ranks: Option<usize>,
    /// Every layout; without it some that have every pair of features together
    #[arg(long)]
    all: bool,
    /// Also say which layouts the model cannot have, and why; --all does
    #[arg(short, long)]
    verbose: bool,
}

const EXAMPLES: &str = "Examples:
  mpirun -n 8 swallow-engine parity --config configs/parity.toml
  mpirun -n 8 --oversubscribe swallow-engine parity --config configs/parity-tied.toml --all";

pub fn run(args: Args, world: &World) -> Result<()> {
    let comm = world.comm();
    let ranks = ranks(&args, comm)?;
    let text = comm.on_first(|| Ok(Config::load(&args.config, &args.set)?.to_toml().into_bytes()))?;
    let config = comm.agree(Config::from_resolved(&String::from_utf8_lossy(&text)))?;
    let feed = comm.agree(Feed::open(&config))?;
    comm.agree(check_ids(&feed, &config, comm))?;

    if comm.rank() == 0 {
        ignored(&config).iter().for_each(|what| eprintln!("note: {what}"));
    }
    let start = Instant::now();
    let (layouts, refused) = choose(&config, ranks, args.all);
    let those = comm.split(usize::from(comm.rank() >= ranks), comm.rank());
    let outcomes = match comm.rank() < ranks {
        true => try_all(&those, &config, &feed, &layouts),
        false => Ok(Vec::new()),
    };
    let outcomes = outcomes.unwrap_or_else(|error| world.abort(&error));
    if comm.rank() == 0 {
        let refused = if args.all || args.verbose { refused } else { BTreeMap::new() };
        or_broken_pipe(print(&layouts, &outcomes, &refused, start))?;
    }
    let wrong = outcomes.iter().filter(|outcome| !outcome.faults.is_empty()).count();
    // Ranks that took no part have no outcomes: the first speaks for all.
    let verdict = if wrong == 0 { Ok(()) } else { Err(Error::run(differ(wrong))) };
    comm.agree(if comm.rank() == 0 { verdict } else { Ok(()) })
}

fn differ(layouts: usize) -> String {
    let verb = if layouts == 1 { "does" } else { "do" };
    format!("{} {verb} not train as one rank does", counted(layouts, "layout"))
}

/// How many of the ranks take part.
fn ranks(args: &Args, comm: &Comm) -> Result<usize> {
    let size = comm.size();
    if size == 1 && !under_mpirun() {
        return Err(Error::user(format!(
            "parity wants the ranks of the layouts that it tries: \
             mpirun -n 8 --oversubscribe swallow-engine parity --config {}",
            args.config.display()
        )));
    }
    match args.ranks {
        _ if size == 1 => Err(Error::user("mpirun -n 1: one rank would be held to itself; start 2 or more")),
        Some(ranks) if ranks < 2 || ranks > size => {
            let most = format!("must be 2 to {size}, the ranks that mpirun started");
            Err(Error::user(format!("--ranks {ranks}: {most}; one rank is what all others are held to")))
        }
        ranks => Ok(ranks.unwrap_or(size)),
    }
}

/// What of the configuration says nothing here.
fn ignored(config: &Config) -> Vec<&'static str> {
    let bf16 = config.train.precision == Some(Precision::Bf16);
    let keys = [
        (bf16, "train.precision = \"bf16\": parity trains in f32"),
        (config.parallel.layers.is_some(), "parallel.layers: parity balances the layers of each layout itself"),
    ];
    keys.into_iter().filter_map(|(given, what)| given.then_some(what)).collect()
}

/// The layouts to try, and why others cannot be: reasons, each with its layouts.
fn choose(config: &Config, ranks: usize, all: bool) -> (Vec<Layout>, BTreeMap<String, Vec<Layout>>) {
    let (mut layouts, mut refused) = (Vec::new(), BTreeMap::<String, Vec<Layout>>::new());
    for layout in Layout::all(ranks) {
        match layout.config(config) {
            Ok(_) => layouts.push(layout),
            Err(why) => refused.entry(why.to_string()).or_default().push(layout),
        }
    }
    if !all {
        let axes: Vec<_> = layouts.iter().map(Layout::axes).collect();
        layouts = parity::pairwise(&axes).into_iter().map(|i| layouts[i]).collect();
    }
    (layouts, refused)
}

fn try_all(comm: &Comm, config: &Config, feed: &Feed, layouts: &[Layout]) -> Result<Vec<Outcome>> {
    let (watched, mut bar) = (comm.rank() == 0, None);
    let outcomes = parity::run(comm, config, feed, layouts, |_, total| {
        if watched {
            bar.get_or_insert_with(|| Count::new("layouts", total as u64)).one();
        }
    });
    if let Some(bar) = bar {
        bar.finish();
    }
    outcomes
}

fn print(
    layouts: &[Layout],
    outcomes: &[Outcome],
    refused: &BTreeMap<String, Vec<Layout>>,
    start: Instant,
) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for (why, layouts) in refused {
        writeln!(out, "skipped {}, such as {}: {why}", counted(layouts.len(), "layout"), short(&layouts[0]))?;
    }
    writeln!(out, "{}", table(layouts, outcomes))?;
    let worst = |of: fn(&Outcome) -> f64| outcomes.iter().map(of).fold(0.0, f64::max);
    let agree = outcomes.iter().filter(|outcome| outcome.faults.is_empty()).count();
    writeln!(
        out,
        "{agree} of {} layouts train as one rank does; worst: loss {:.1e} (at most {:.0e}), gradient norm {:.1e} ({:.0e}), \
         weights {:.1e} ({:.0e}) of the distance trained; {:.0} s",
        outcomes.len(),
        worst(|o| o.loss),
        bounds::LOSS,
        worst(|o| o.grad_norm),
        bounds::GRAD_NORM,
        worst(|o| o.weights),
        bounds::WEIGHTS,
        start.elapsed().as_secs_f64()
    )
}

fn table(layouts: &[Layout], outcomes: &[Outcome]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "tp",
        "pp",
        "v",
        "dp",
        "sp",
        "optimizer",
        "recompute",
        "loss",
        "grad norm",
        "weights",
        "verdict",
    ]);
    for (l, o) in layouts.iter().zip(outcomes) {
        let [tp, pp, v, dp] = [l.tensor, l.pipeline, l.virtual_pipeline, l.data].map(|n| n.to_string());
        let [loss, norm, weights] = [o.loss, o.grad_norm, o.weights].map(|off| format!("{off:.1e}"));
        let sp = if l.sequence_parallel { "on" } else { "off" };
        let optimizer = if l.distributed_optimizer { "sharded" } else { "whole" };
        let verdict =
            if o.faults.is_empty() { "agrees".to_string() } else { format!("FAILS: {}", o.faults.join("; ")) };
        let recompute = l.recompute.name().to_string();
        table.add_row([tp, pp, v, dp, sp.into(), optimizer.into(), recompute, loss, norm, weights, verdict]);
    }
    for column in [0, 1, 2, 3, 7, 8, 9] {
        table.column_mut(column).expect("the table has eleven").set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn short(l: &Layout) -> String {
    format!("tp {} pp {} v {} dp {}", l.tensor, l.pipeline, l.virtual_pipeline, l.data)
}
