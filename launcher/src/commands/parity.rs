//! `parity`: trains a small model at every layout and compares each with one rank.

use super::train::open_data;
use crate::output::say;
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
    /// Configuration with the model, its data and the steps (TOML); its layout is not used
    #[arg(long)]
    config: PathBuf,
    /// Override one key of the configuration, such as train.steps=3
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Try layouts of at most this many ranks [default: as many as mpirun started]
    #[arg(long, value_name = "N")]
    ranks: Option<usize>,
    /// Try every layout, not only a subset that covers every pair of features
    #[arg(long)]
    all: bool,
    /// Also print which layouts the model cannot have, and why; --all does that, too
    #[arg(short, long)]
    verbose: bool,
}

const EXAMPLES: &str = "Examples:
  mpirun -n 8 swallow-engine parity --config configs/parity.toml
  mpirun -n 8 swallow-engine parity --config configs/parity-experts.toml
  mpirun -n 8 --oversubscribe swallow-engine parity \\
      --config configs/parity-tied.toml --all";

pub fn run(args: Args, world: &World) -> Result<()> {
    let comm = world.comm();
    let ranks = ranks(&args, comm)?;
    let text = comm.on_first(|| Ok(Config::load(&args.config, &args.set)?.to_toml().into_bytes()))?;
    let config = comm.agree(Config::from_resolved(&String::from_utf8_lossy(&text)))?;
    let feed = open_data(&config, comm)?;
    if comm.rank() == 0 {
        ignored(&config).iter().for_each(|what| say!("note: {what}"));
    }
    let start = Instant::now();
    let (layouts, refused) = choose(&config, ranks, args.all);
    let taking_part = comm.split(usize::from(comm.rank() >= ranks), comm.rank());
    let outcomes = match comm.rank() < ranks {
        true => try_all(&taking_part, &config, &feed, &layouts),
        false => Ok(Vec::new()),
    };
    let outcomes = outcomes.unwrap_or_else(|error| world.abort(&error, |_| String::new()));
    if comm.rank() == 0 {
        let refused = if args.all || args.verbose { refused } else { BTreeMap::new() };
        or_broken_pipe(print(&layouts, &outcomes, &refused, start))?;
    }
    let wrong = outcomes.iter().filter(|outcome| !outcome.faults.is_empty()).count();
    // Ranks that took no part have no outcomes, so rank 0's verdict counts.
    let verdict = if wrong == 0 { Ok(()) } else { Err(Error::run(differ(wrong))) };
    comm.agree(if comm.rank() == 0 { verdict } else { Ok(()) })
}

fn differ(layouts: usize) -> String {
    let verb = if layouts == 1 { "does" } else { "do" };
    format!("{} {verb} not train like one rank", counted(layouts, "layout"))
}

/// The number of ranks that take part.
fn ranks(args: &Args, comm: &Comm) -> Result<usize> {
    let size = comm.size();
    if size == 1 && !under_mpirun() {
        return Err(Error::user(format!(
            "parity needs as many ranks as the layouts that it tries: \
             mpirun -n 8 --oversubscribe swallow-engine parity --config {}",
            args.config.display()
        )));
    }
    match args.ranks {
        _ if size == 1 => Err(Error::user("mpirun -n 1: one rank would be compared with itself; start 2 or more")),
        Some(ranks) if ranks < 2 || ranks > size => {
            let range = format!("it must be 2 to {size}, the number of ranks that mpirun started");
            Err(Error::user(format!("--ranks {ranks}: {range}; all layouts are compared with one rank")))
        }
        ranks => Ok(ranks.unwrap_or(size)),
    }
}

/// The keys of the configuration that parity ignores.
fn ignored(config: &Config) -> Vec<&'static str> {
    let bf16 = config.train.precision == Some(Precision::Bf16);
    let keys = [
        (bf16, "train.precision = \"bf16\": parity trains in f32"),
        (config.parallel.layers.is_some(), "parallel.layers: parity balances the layers of each layout itself"),
    ];
    keys.into_iter().filter_map(|(given, what)| given.then_some(what)).collect()
}

/// The layouts to try, and the invalid layouts by the reason.
fn choose(config: &Config, ranks: usize, all: bool) -> (Vec<Layout>, BTreeMap<String, Vec<Layout>>) {
    let (mut layouts, mut refused) = (Vec::new(), BTreeMap::<String, Vec<Layout>>::new());
    for layout in Layout::all(ranks, config.model.experts()) {
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
    let mut count: Option<Count> = None;
    let outcomes = parity::run(comm, config, feed, layouts, |done, total| match &count {
        Some(count) => count.at(done as u64),
        None => count = (comm.rank() == 0).then(|| Count::new("training layouts", total as u64)),
    });
    if let Some(count) = count {
        count.finish();
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
        writeln!(out, "skipped {}, for example {}: {why}", counted(layouts.len(), "layout"), short(&layouts[0]))?;
    }
    writeln!(out, "{}", table(layouts, outcomes))?;
    let worst = |of: fn(&Outcome) -> f64| outcomes.iter().map(of).fold(0.0, f64::max);
    let agree = outcomes.iter().filter(|outcome| outcome.faults.is_empty()).count();
    writeln!(
        out,
        "{agree} of {} layouts train like one rank; largest relative differences: loss {:.1e} (bound {:.0e}), \
         gradient norm {:.1e} ({:.0e}), weights {:.1e} ({:.0e}) of the distance that training moved them; {:.0} s",
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
        "ep",
        "sp",
        "optimizer",
        "recompute",
        "loss",
        "grad norm",
        "weights",
        "verdict",
    ]);
    for (l, o) in layouts.iter().zip(outcomes) {
        let ranks = [l.tensor, l.pipeline, l.virtual_pipeline, l.data, l.expert];
        let [tp, pp, v, dp, ep] = ranks.map(|n| n.to_string());
        let [loss, norm, weights] = [o.loss, o.grad_norm, o.weights].map(|off| format!("{off:.1e}"));
        let sp = if l.sequence_parallel { "on" } else { "off" };
        let optimizer = if l.distributed_optimizer { "sharded" } else { "replicated" };
        let verdict =
            if o.faults.is_empty() { "agrees".to_string() } else { format!("FAILS: {}", o.faults.join("; ")) };
        let recompute = l.recompute.name().to_string();
        table.add_row([tp, pp, v, dp, ep, sp.into(), optimizer.into(), recompute, loss, norm, weights, verdict]);
    }
    for column in [0, 1, 2, 3, 4, 8, 9, 10] {
        table.column_mut(column).expect("the table has twelve").set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn short(l: &Layout) -> String {
    format!("tp {} pp {} v {} dp {} ep {}", l.tensor, l.pipeline, l.virtual_pipeline, l.data, l.expert)
}
