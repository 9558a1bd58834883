//! The flags of the commands that read documents and write those that stay, and what they print at the end.

use std::io::Write;
use std::path::{Path, PathBuf};

use corpus::documents::{Bad, Skipped};
use corpus::drops::Drops;
use data::text::Inputs;
use engine::error::{Result, counted};

use crate::commands::texts::TextFlags;
use crate::output::{or_broken_pipe, say};

#[derive(clap::Args, Debug)]
pub struct Documents {
    /// Files of documents (.jsonl, or .txt with one document each; also .gz, .zst), read in this order, or - for
    /// standard input
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    input: Vec<PathBuf>,
    #[command(flatten)]
    texts: TextFlags,
    /// The JSON lines to write: .jsonl, .jsonl.gz or .jsonl.zst
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    #[command(flatten)]
    pub work: Work,
}

#[derive(clap::Args, Debug)]
pub struct Work {
    /// Leave out records that cannot be read instead of stopping at the first: count them and name the first ten
    #[arg(long)]
    skip_bad: bool,
    /// Threads; the output does not depend on it [default: the cores of this process]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,
}

impl Work {
    pub fn bad(&self) -> Bad {
        if self.skip_bad { Bad::Skip } else { Bad::Refuse }
    }

    pub fn workers(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.workers.map_or_else(cores, usize::from)
    }
}

impl Documents {
    /// The inputs, which can all be read, and their bytes.
    pub fn inputs(&self) -> Result<(Inputs, u64)> {
        let inputs = self.texts.clone().inputs(self.input.clone());
        let bytes = inputs.check()?;
        Ok((inputs, bytes))
    }
}

/// A number of bytes with an optional unit, as 64MB, 1.5GiB or 4096.
pub fn bytes(text: &str) -> std::result::Result<usize, String> {
    const UNITS: [(&str, f64); 9] = [
        ("kib", 1024.0),
        ("mib", 1048576.0),
        ("gib", 1073741824.0),
        ("kb", 1e3),
        ("mb", 1e6),
        ("gb", 1e9),
        ("k", 1024.0),
        ("m", 1048576.0),
        ("g", 1073741824.0),
    ];
    let lower = text.trim().to_ascii_lowercase();
    let unit = UNITS.iter().find_map(|(unit, bytes)| Some((lower.strip_suffix(unit)?, *bytes)));
    let (number, unit) = unit.unwrap_or((&lower, 1.0));
    let bytes = number.trim().parse::<f64>().ok().map(|number| number * unit);
    let bytes = bytes.filter(|bytes| (0.0..=1e15).contains(bytes));
    bytes.map(|bytes| bytes as usize).ok_or_else(|| "write a number of bytes, such as 64MB or 2GiB".to_string())
}

/// Names the bad records that were left out.
pub fn warn_of_bad(skipped: &Skipped) {
    if skipped.count == 0 {
        return;
    }
    say!("warning: {} left out:", counted(skipped.count as usize, "record"));
    skipped.first.iter().for_each(|what| say!("  {what}"));
    let more = skipped.count - skipped.first.len() as u64;
    if more > 0 {
        say!("  and {more} more");
    }
}

/// Prints what was kept and what each rule dropped, and writes the report that was asked for.
pub fn finish(drops: &Drops, output: &Path, report: Option<&Path>) -> Result<()> {
    report.map_or(Ok(()), |path| drops.write(path))?;
    let share = |n: u64, all: u64| 100.0 * n as f64 / all.max(1) as f64;
    let mut text = format!(
        "{}: {} of {} kept ({:.1} %), {:.1} % of the characters\n",
        output.display(),
        drops.kept,
        counted(drops.documents as usize, "document"),
        share(drops.kept, drops.documents),
        share(drops.kept_characters, drops.characters)
    );
    for rule in drops.rules.iter().filter(|rule| rule.documents > 0) {
        let threshold = rule.threshold.as_ref().map_or(String::new(), |threshold| format!(" {threshold}"));
        text += &format!("  {}{threshold}: {} dropped\n", rule.name, counted(rule.documents as usize, "document"));
    }
    or_broken_pipe(std::io::stdout().write_all(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, right) in [("64MB", 64_000_000), ("1.5 GiB", 1610612736), ("4096", 4096), ("2k", 2048), ("0", 0)] {
            assert_eq!(bytes(text), Ok(right), "{text}");
        }
        for text in ["", "MB", "-1", "1e99", "NaN", "12 parsecs"] {
            assert!(bytes(text).unwrap_err().contains("64MB"), "{text}");
        }
    }
}
