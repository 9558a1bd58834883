//! `report`: the efficiency of a run, from the files in its directory.

use crate::output::or_broken_pipe;
use crate::run_dir::replace;
use engine::error::{Error, Result};
use report::document::Document;
use report::efficiency::Efficiency;
use report::run::Run;
use report::{markdown, page};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Report the efficiency of a run: throughput, MFU, time breakdown, exposed communication and memory
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Run directory: the checkpoint.dir of the run
    #[arg(value_name = "RUN_DIR")]
    run: PathBuf,
    /// HTML file to write [default: RUN_DIR/efficiency.html]
    #[arg(long, value_name = "FILE", value_parser = page_file)]
    html: Option<PathBuf>,
    /// Another run to compare with
    #[arg(long, value_name = "RUN_DIR")]
    against: Option<PathBuf>,
    /// Peak TFLOPS of one rank's device, the denominator of MFU
    #[arg(long, value_name = "N", value_parser = peak)]
    peak_tflops: Option<f64>,
}

const EXAMPLES: &str = "Examples:
  swallow-engine report runs/7b
  swallow-engine report runs/7b --against runs/7b-before --html efficiency.html";

pub fn run(args: Args) -> Result<()> {
    let run = Run::read(&args.run)?;
    let other = args.against.as_deref().map(Run::read).transpose()?;
    let efficiency = efficiency(&run, other.as_ref(), args.peak_tflops);
    let document = Document::of(&efficiency, &run, other.as_ref());
    let [json, md, html] = ["json", "md", "html"].map(|kind| args.run.join("efficiency").with_extension(kind));
    let copy = "report on a copy of the run's directory that can be written to";
    let (html, remedy) = match args.html {
        Some(html) => (html, "name a file in a directory that exists and can be written to"),
        None => (html, copy),
    };
    let numbers = serde_json::to_string_pretty(&efficiency).expect("text and numbers") + "\n";
    write(&json, &numbers, copy)?;
    write(&md, &markdown::write(&document), copy)?;
    write(&html, &page::write(&document), remedy)?;
    let summary = format!("{}\n{}\n{}\n{}\n", markdown::head(&document), html.display(), md.display(), json.display());
    or_broken_pipe(std::io::stdout().write_all(summary.as_bytes()))
}

/// A `peak` from the command line is that of this run's device. It holds for the other run if its device is the same.
fn efficiency(run: &Run, other: Option<&Run>, peak: Option<f64>) -> Efficiency {
    let this = Efficiency::of(run, peak);
    let Some(other) = other else { return this };
    let device = |run: &Run| run.machine.present().map(|machine| machine.device.clone());
    let other_efficiency = Efficiency::of(other, peak.filter(|_| device(run) == device(other)));
    this.against(run, &other_efficiency, other)
}

fn write(path: &Path, text: &str, remedy: &str) -> Result<()> {
    replace(path, text.as_bytes()).map_err(|error| match error {
        Error::User(what) => Error::User(format!("{what}; {remedy}")),
        failed => failed,
    })
}

/// Only HTML files, so that a mistyped path does not overwrite a file of the run.
fn page_file(text: &str) -> std::result::Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().is_some_and(|kind| kind == "html" || kind == "htm") {
        true => Ok(path),
        false => Err("must end in .html".into()),
    }
}

fn peak(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(peak) if peak.is_finite() && peak > 0.0 => Ok(peak),
        _ => Err("must be a number above 0".into()),
    }
}
