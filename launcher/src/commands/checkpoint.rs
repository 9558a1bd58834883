//! `checkpoint`: imports, exports, expands and upcycles Hugging Face checkpoints; inspects and verifies a run's own.

use super::{expand_vocab, upcycle};
use crate::output::{or_broken_pipe, to_stderr};
use crate::progress::Bytes;
use crate::run_dir::RunDir;
use clap::{Subcommand, ValueEnum};
use comfy_table::{CellAlignment, Table, presets};
use engine::checkpoint::{self, AcceptedSteps, FromSaved, Header, Position, Saved, TensorEntry};
use engine::config::{Model, Precision, hf};
use engine::error::{Error, Result, counted};
use engine::model::param_specs::all_tensors;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Tensors with values that are not finite that `verify` lists.
const MOST_FINDINGS: usize = 20;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a run's first checkpoint, of step 0, from a Hugging Face checkpoint
    #[command(after_help = "Examples:
  swallow-engine checkpoint import --from models/Llama-3-8B --to runs/8b

`train` with checkpoint.dir = \"runs/8b\" then continues from it, at any layout.")]
    Import {
        /// Directory with config.json and model.safetensors or its shards
        #[arg(long, value_name = "HF_DIR")]
        from: PathBuf,
        /// Directory of the run, which must not have a checkpoint yet
        #[arg(long, value_name = "RUN_DIR")]
        to: PathBuf,
    },
    /// Write a checkpoint of a run in Hugging Face's format
    #[command(after_help = "Examples:
  swallow-engine checkpoint export --from runs/7b --to export/7b
  swallow-engine checkpoint export --from runs/7b/checkpoints/step-00000500 \\
      --to export/7b-500 --dtype f32")]
    Export {
        /// Directory of a run (for its latest checkpoint) or of one of its checkpoints
        #[arg(long, value_name = "RUN_DIR[/checkpoints/step-N]")]
        from: PathBuf,
        /// Directory to write: a new or empty one, or an earlier export, which is replaced
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Type of the weights; bf16 rounds the f32 master weights to nearest even [default: the type of the
        /// model that the run started from if it is one of these, else bf16]
        #[arg(long)]
        dtype: Option<Dtype>,
    },
    /// Give a Hugging Face model rows for the new pieces of an expanded tokenizer
    #[command(after_help = expand_vocab::EXAMPLES)]
    ExpandVocab(expand_vocab::Args),
    /// Make a mixture of experts of a dense Hugging Face model: each expert is a copy of its MLP
    #[command(after_help = upcycle::EXAMPLES)]
    Upcycle(upcycle::Args),
    /// Print the tensors, files and step of a checkpoint
    #[command(after_help = "Examples:
  swallow-engine checkpoint inspect runs/7b
  swallow-engine checkpoint inspect runs/7b/checkpoints/step-00000500")]
    Inspect {
        /// Directory of a run (for its latest checkpoint) or of one of its checkpoints
        #[arg(value_name = "RUN_DIR[/checkpoints/step-N]")]
        from: PathBuf,
    },
    /// Read a whole checkpoint, compare it with its checksums, and look for values that are not finite
    #[command(after_help = "Examples:
  swallow-engine checkpoint verify runs/7b
  swallow-engine checkpoint verify runs/7b/checkpoints/step-00000500")]
    Verify {
        /// Directory of a run (for its latest checkpoint) or of one of its checkpoints
        #[arg(value_name = "RUN_DIR[/checkpoints/step-N]")]
        from: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    Bf16,
    F32,
}

pub fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Import { from, to } => import(&from, &to),
        Command::Export { from, to, dtype } => export(&from, &to, dtype),
        Command::ExpandVocab(args) => expand_vocab::run(args),
        Command::Upcycle(args) => upcycle::run(args),
        Command::Inspect { from } => inspect(&open(&from)?),
        Command::Verify { from } => verify(&open(&from)?),
    }
}

fn import(from: &Path, run: &Path) -> Result<()> {
    let model = Model { hf: None, ..hf::read_model(from)? };
    let header = Header {
        position: Position { step: 0, consumed_samples: 0 },
        config: model.to_toml(),
        identity: model.identity(),
        accepted: AcceptedSteps::default(),
    };
    let locked = RunDir::lock(run, "--to")?;
    locked.lock.announce()?;
    let (bar, mut done) = (Bytes::new("import", elements(&model) * 4), 0);
    let dir = checkpoint::import(from, run, &model, &header, &mut |n| {
        done += n * 4;
        bar.at(done);
    })?;
    bar.finish();
    or_broken_pipe(writeln!(std::io::stdout(), "{}: {} parameters", dir.display(), elements(&model)))
}

fn export(from: &Path, to: &Path, dtype: Option<Dtype>) -> Result<()> {
    let dtype = dtype.map(|dtype| match dtype {
        Dtype::Bf16 => Precision::Bf16,
        Dtype::F32 => Precision::F32,
    });
    let export = FromSaved::new(open(from)?, dtype)?;
    let (bar, mut done) = (Bytes::new("export", export.bytes()), 0);
    export.write(to, &mut |n| {
        done += n;
        bar.at(done);
    })?;
    bar.finish();
    if let Some(note) = export.note() {
        to_stderr(&format!("note: {}: {note}", to.display()));
    }
    or_broken_pipe(writeln!(
        std::io::stdout(),
        "{}: {} parameters in {} after step {}",
        to.display(),
        export.parameters(),
        if export.dtype() == Precision::F32 { "f32" } else { "bf16" },
        export.step()
    ))
}

/// Opens the checkpoint at a path: a checkpoint's own directory, or a run's, whose latest one is opened.
fn open(from: &Path) -> Result<Saved> {
    // Canonical, so that a checkpoint given as `.` has a parent directory, which is the run's.
    let from = from.canonicalize().map_err(|e| Error::io(from, e))?;
    if from.join("manifest.json").exists() {
        return Saved::open(&from);
    }
    let what = "this is neither a run with checkpoints nor one of its checkpoints/step-N";
    Saved::latest(&from)?.ok_or_else(|| Error::user(format!("{}: {what}", from.display())))
}

fn inspect(saved: &Saved) -> Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["tensor", "shape", "parameters", "pieces", "files"]);
    for tensor in &saved.manifest().tensors {
        table.add_row(row(tensor));
    }
    for column in [2, 3] {
        table.column_mut(column).expect("the table has five columns").set_cell_alignment(CellAlignment::Right);
    }
    let manifest = saved.manifest();
    let kinds: Vec<&str> = manifest.kinds.iter().map(|kind| kind.name()).collect();
    let parameters: usize = manifest.tensors.iter().map(|tensor| tensor.dims.iter().product::<usize>()).sum();
    let mut text = format!("{table}\n\n");
    let mut line = |key: &str, value: String| writeln!(text, "{key:<18}{value}").expect("a string grows");
    line("checkpoint", saved.dir().display().to_string());
    line("step", manifest.position.step.to_string());
    line("consumed samples", manifest.position.consumed_samples.to_string());
    line("tensors", manifest.tensors.len().to_string());
    line("parameters", parameters.to_string());
    line(
        "states",
        format!("{}, f32{}", kinds.join(", "), if kinds.len() == 1 { "; the moments are zero" } else { "" }),
    );
    line("bytes", saved.bytes().to_string());
    for (file, writer) in &manifest.writers {
        line("written by", format!("{writer}: {file}"));
    }
    or_broken_pipe(std::io::stdout().write_all(text.as_bytes()))
}

fn row(tensor: &TensorEntry) -> [String; 5] {
    let mut files: Vec<&str> = tensor.pieces.iter().map(|piece| piece.file.as_str()).collect();
    files.sort_unstable();
    files.dedup();
    let files = match files[..] {
        [] => String::new(),
        [file] => file.to_string(),
        [first, .., last] => format!("{first} .. {last} ({})", files.len()),
    };
    let parameters: usize = tensor.dims.iter().product();
    [tensor.name.clone(), format!("{:?}", tensor.dims), parameters.to_string(), tensor.pieces.len().to_string(), files]
}

fn verify(saved: &Saved) -> Result<()> {
    let (bar, mut done) = (Bytes::new("verify", saved.bytes()), 0);
    let not_finite = saved.verify(&mut |n| {
        done += n;
        bar.at(done);
    })?;
    bar.finish();
    let pieces: usize = saved.manifest().tensors.iter().map(|tensor| tensor.pieces.len()).sum();
    let mut out = std::io::stdout();
    or_broken_pipe(writeln!(out, "{}: all {pieces} pieces match their checksums", saved.dir().display()))?;
    for found in not_finite.iter().take(MOST_FINDINGS) {
        or_broken_pipe(writeln!(out, "{found}"))?;
    }
    match not_finite.first() {
        None => Ok(()),
        // The files are as the run wrote them: it is the run that failed.
        Some(first) => Err(Error::run(format!(
            "{}: {} with values that are not finite ({first}): training had diverged; continue from an earlier \
             checkpoint, with `train --from-step`",
            saved.dir().display(),
            counted(not_finite.len(), "tensor")
        ))),
    }
}

fn elements(model: &Model) -> u64 {
    all_tensors(model).iter().map(|tensor| tensor.len() as u64).sum()
}
