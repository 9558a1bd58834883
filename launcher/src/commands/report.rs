//! `report`: how efficient a run was, out of what it left in its directory.

use crate::output::or_broken_pipe;
use engine::error::{Error, Result};
use report::document::Document;
use report::efficiency::Efficiency;
use report::run::Run;
use report::{markdown, page};
use std::io::Write;
use std::path::{Path, PathBuf};

/// How efficient a run was: speed, time, waits, memory, as a page, as text and as JSON
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The directory that the run left: its checkpoint.dir
    #[arg(value_name = "RUN_DIR")]
    run: PathBuf,
    /// Where the page goes [default: RUN_DIR/efficiency.html]
    #[arg(long, value_name = "FILE", value_parser = page_file)]
    html: Option<PathBuf>,
    /// Another run to hold it against
    #[arg(long, value_name = "RUN_DIR")]
    against: Option<PathBuf>,
    /// Peak of a rank's device in TFLOPS, of which MFU is a share
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
    let html = args.html.unwrap_or(html);
    let figures = serde_json::to_string_pretty(&efficiency).expect("text and numbers") + "\n";
    write(&json, &figures)?;
    write(&md, &markdown::write(&document))?;
    write(&html, &page::write(&document))?;
    let told = format!("{}\n{}\n{}\n{}\n", markdown::head(&document), html.display(), md.display(), json.display());
    or_broken_pipe(std::io::stdout().write_all(told.as_bytes()))
}

/// `peak`, where the user gives it, is that of this run's device: the other run has it, too, where its device is the same.
fn efficiency(run: &Run, other: Option<&Run>, peak: Option<f64>) -> Efficiency {
    let this = Efficiency::of(run, peak);
    let Some(other) = other else { return this };
    let device = |run: &Run| run.machine.there().map(|machine| machine.device.clone());
    let figures = Efficiency::of(other, peak.filter(|_| device(run) == device(other)));
    this.beside(run, &figures, other)
}

fn write(path: &Path, text: &str) -> Result<()> {
    let remedy = "report on a copy of the run's directory that can be written to";
    std::fs::write(path, text).map_err(|e| Error::user(format!("{}: {e}; {remedy}", path.display())))
}

/// So that a slip of the pen does not write over a run's own files.
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
