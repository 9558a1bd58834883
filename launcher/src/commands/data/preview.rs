//! `data preview`: what a run will read, before it: tokens, epochs and share of every source in every stage, or the
//! first samples.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};
use data::feed::{Feed, SourceReport, Split};
use engine::batch::Samples;
use engine::config::Config;
use engine::error::{Error, Result};

use crate::output::{or_broken_pipe, say};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The run's configuration (TOML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Replace one key, such as train.steps=100
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print this many samples as JSON lines instead of the table: number, source, pieces [document, offset, tokens],
    /// ids
    #[arg(long, value_name = "N")]
    samples: Option<u64>,
    /// Show only this split [default: the table has both, the samples are of train]
    #[arg(long, value_enum)]
    split: Option<WhichSplit>,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum WhichSplit {
    Train,
    Valid,
}

impl WhichSplit {
    /// The training samples, or every validation set.
    fn of_run(self, feed: &Feed) -> Result<Vec<Split>> {
        let split = match self {
            WhichSplit::Train => return Ok(vec![Split::Train]),
            WhichSplit::Valid => (0..feed.valid_names().len()).map(Split::Valid).collect::<Vec<_>>(),
        };
        match split.is_empty() {
            false => Ok(split),
            true => Err(Error::user("--split valid: the run never validates (train.eval_interval = 0)")),
        }
    }
}

pub fn preview(args: Args) -> Result<()> {
    let config = Config::load(&args.config, &args.set)?;
    let feed = Feed::open(&config)?;
    feed.check_tokenizers(&config.train.load)?;
    for note in config.notes() {
        say!("note: {note}");
    }
    let splits = args.split.map(|split| split.of_run(&feed)).transpose()?;
    match args.samples {
        Some(n) => {
            let mut out = std::io::BufWriter::new(std::io::stdout().lock());
            for split in splits.unwrap_or(vec![Split::Train]) {
                print_samples(&feed, split, n, &mut out)?;
            }
            or_broken_pipe(out.flush())
        }
        None => print_sources(&config, &feed, splits),
    }
}

/// Only the sources of the splits `only`, where they are given.
fn print_sources(config: &Config, feed: &Feed, only: Option<Vec<Split>>) -> Result<()> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "split",
        "name",
        "source",
        "documents",
        "tokens",
        "masked",
        "samples taken",
        "padding",
        "share",
        "epochs",
    ]);
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    let steps = feed.steps_of_stages();
    let name = |source: &SourceReport| match (source.stage, source.split) {
        (None, split) => split.name().to_string(),
        (Some(stage), _) if steps[stage].is_empty() => format!("stage {stage}: not reached"),
        (Some(stage), _) => format!("stage {stage}: steps {} to {}", steps[stage].start, steps[stage].end - 1),
    };
    let all_stages = if steps.len() > 1 { feed.totals() } else { Vec::new() };
    let (train, valid): (Vec<_>, Vec<_>) = feed.sources().into_iter().partition(|s| s.split == Split::Train);
    let rows = train.iter().map(|s| (name(s), s));
    let rows = rows.chain(all_stages.iter().map(|s| ("all stages".to_string(), s)));
    let rows = rows.chain(valid.iter().map(|s| (name(s), s)));
    let mut masked: HashMap<&Path, Option<f64>> = HashMap::new();
    for (split, source) in rows.filter(|(_, s)| only.as_ref().is_none_or(|only| only.contains(&s.split))) {
        let masked = match masked.get(source.prefix.as_path()) {
            Some(&share) => share,
            None => *masked.entry(&source.prefix).or_insert(feed.masked(source)?),
        };
        table.add_row([
            split,
            source.name.clone(),
            source.prefix.display().to_string(),
            source.plan.documents.to_string(),
            source.plan.tokens.to_string(),
            masked.map_or(String::new(), percent),
            source.samples.to_string(),
            source.packing.map_or(String::new(), |packing| percent(packing.padding)),
            percent(source.share),
            format!("{:.3}", source.epochs),
        ]);
    }
    for source in train.iter().chain(&valid) {
        if let Some(cut) = source.packing.map(|packing| packing.cut).filter(|&cut| cut > 0) {
            say!(
                "note: {}: {cut} of {} documents are longer than a row of {} tokens and are cut",
                source.prefix.display(),
                source.plan.documents,
                config.train.seq_length
            );
        }
    }
    table.column_iter_mut().skip(3).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    let train = &config.train;
    or_broken_pipe(writeln!(
        std::io::stdout(),
        "{table}\n{} steps of {} samples of {} tokens: {} tokens",
        train.steps,
        train.global_batch_size,
        train.seq_length,
        u128::from(train.steps) * (train.global_batch_size * train.seq_length) as u128
    ))
}

/// The first `n` samples of a split.
fn print_samples(feed: &Feed, split: Split, n: u64, out: &mut impl Write) -> Result<()> {
    let of_split: Vec<SourceReport> = feed.sources().into_iter().filter(|s| s.split == split).collect();
    for sample in 0..n.min(feed.samples(split)) {
        let (source, pieces) = feed.places(split, sample..sample + 1)?.remove(0);
        let batch = feed.micro_batch(split, sample..sample + 1)?;
        let mut ids = batch.ids;
        // A packed row has a target for each of its tokens but the last of a unit.
        ids.extend(batch.targets.last().filter(|_| of_split[source].packing.is_none()));
        let pieces: Vec<_> = pieces.iter().map(|p| (p.document, p.offset, p.count)).collect();
        let source = &of_split[source];
        let key = match split {
            Split::Train => source.key.clone(),
            Split::Valid(set) => format!("data.valid[{set}]"),
        };
        let line = serde_json::json!({
            "sample": sample, "source": key, "name": source.name,
            "prefix": source.prefix.display().to_string(), "pieces": pieces, "ids": ids,
        });
        or_broken_pipe(writeln!(out, "{line}"))?;
    }
    Ok(())
}
