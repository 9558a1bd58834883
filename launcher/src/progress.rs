//! What a person sees of a run: on a terminal a bar, in a file a line a step.
//!
//! Only rank 0 has one. The same figures go to `metrics.jsonl`; nothing is measured here.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use report::records::metrics::StepRecord;
use std::io::{IsTerminal, Write};
use std::time::Instant;

/// The steps of a training run.
pub struct Progress {
    total: u64,
    /// Seconds a step, a moving average.
    pace: Option<f64>,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// `first_step` is the step that comes next: 1, or the one after the checkpoint's.
    pub fn new(total_steps: u64, first_step: u64) -> Progress {
        let bar = on_a_terminal().then(|| {
            let bar = bar(total_steps, "{pos}/{len} {wide_bar:.green/dim} {msg}");
            bar.set_position(first_step.saturating_sub(1));
            bar
        });
        Progress { total: total_steps, pace: None, bar }
    }

    /// A step is done.
    pub fn step(&mut self, r: &StepRecord) {
        // The first step also pays for what is done once; it leaves the average quickly.
        let pace = self.pace.map_or(r.step_time_s, |pace| 0.9 * pace + 0.1 * r.step_time_s);
        self.pace = Some(pace);
        let eta = duration(pace * self.total.saturating_sub(r.step) as f64);
        match &self.bar {
            None => say(&line(r, self.total, &eta)),
            Some(bar) => {
                bar.set_position(r.step);
                bar.set_message(summary(r, &eta));
                if let Some(valid) = r.valid_loss {
                    bar.suspend(|| say(&format!("step {}/{}  validation loss {valid:.4}", r.step, self.total)));
                }
            }
        }
    }

    /// What the user should know, on stderr, between two drawings of the bar.
    pub fn warn(&self, what: &str) {
        self.say(&format!("warning: {what}"));
    }

    /// A line between the steps.
    pub fn say(&self, what: &str) {
        let say = || eprintln!("{what}");
        match &self.bar {
            None => say(),
            Some(bar) => bar.suspend(say),
        }
    }

    /// The run is over: the bar stays as it stands.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.abandon();
        }
    }
}

/// The bytes of a long read: tokenizing, verifying. Safe to report to from many threads.
pub struct Bytes {
    what: String,
    total: u64,
    start: Instant,
    bar: Option<ProgressBar>,
}

impl Bytes {
    pub fn new(what: &str, total: u64) -> Bytes {
        let template = "{prefix} {bytes}/{total_bytes} {wide_bar:.green/dim} {bytes_per_sec} eta {eta}";
        let bar = on_a_terminal().then(|| bar(total, template).with_prefix(what.to_string()));
        Bytes { what: what.to_string(), total, start: Instant::now(), bar }
    }

    /// `done` bytes of the total.
    pub fn at(&self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }

    /// One line that says what was done and how fast.
    pub fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.start.elapsed().as_secs_f64();
        let (mb, rate) = (self.total as f64 / 1e6, self.total as f64 / 1e6 / seconds.max(1e-9));
        say(&format!("{}: {mb:.1} MB in {}, {rate:.1} MB/s", self.what, duration(seconds)));
    }
}

/// Things of one kind, done one by one. Nothing is left of it at the end.
pub struct Count(Option<ProgressBar>);

impl Count {
    pub fn new(what: &str, total: u64) -> Count {
        let template = "{prefix} {pos}/{len} {wide_bar:.green/dim}";
        Count(on_a_terminal().then(|| bar(total, template).with_prefix(what.to_string())))
    }

    /// One more is done.
    pub fn one(&self) {
        if let Some(bar) = &self.0 {
            bar.inc(1);
        }
    }

    pub fn finish(self) {
        if let Some(bar) = self.0 {
            bar.finish_and_clear();
        }
    }
}

fn bar(total: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the template is a literal").progress_chars("━━─");
    ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stdout()).with_style(style)
}

/// Whether somebody watches. A rank's stdout is a pseudo-terminal of mpirun's own making even where
/// mpirun writes to a file, so the parent's stdout has to be one too.
fn on_a_terminal() -> bool {
    let parent = format!("/proc/{}/fd/1", std::os::unix::process::parent_id());
    let parents = std::fs::read_link(parent).map_or(true, |to| to.starts_with("/dev") && !to.ends_with("null"));
    std::io::stdout().is_terminal() && parents
}

/// A line on stdout; whoever closed the pipe does not want it.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The line of a step in a log file.
fn line(r: &StepRecord, total: u64, eta: &str) -> String {
    let valid = r.valid_loss.map_or(String::new(), |loss| format!("  valid {loss:.4}"));
    format!(
        "step {}/{total}  loss {:.4}  grad {:.2}  lr {:.1e}  {} tok/s  {:.2} TFLOPS(model){valid}  eta {eta}",
        r.step,
        r.loss,
        r.grad_norm,
        r.lr,
        thousands(r.tokens_per_s),
        r.tflops_model,
    )
}

/// What stands beside the bar.
fn summary(r: &StepRecord, eta: &str) -> String {
    format!("loss {:.4}  lr {:.1e}  {} tok/s  eta {eta}", r.loss, r.lr, thousands(r.tokens_per_s))
}

/// 12345.6 -> `12,346`.
fn thousands(x: f64) -> String {
    let digits = format!("{x:.0}");
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// 192.4 -> `3m12s`.
fn duration(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s {
        0 => format!("{seconds:.1}s"),
        1..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86400, s / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_matters() {
        let mut r = StepRecord {
            step: 12,
            loss: 3.21041,
            grad_norm: 1.0249,
            lr: 1e-4,
            tokens_per_s: 12345.4,
            tflops_model: 0.519,
            ..Default::default()
        };
        let rest = "loss 3.2104  grad 1.02  lr 1.0e-4  12,345 tok/s  0.52 TFLOPS(model)";
        assert_eq!(line(&r, 100, "3m12s"), format!("step 12/100  {rest}  eta 3m12s"));
        r.valid_loss = Some(3.5);
        assert_eq!(line(&r, 100, "3m12s"), format!("step 12/100  {rest}  valid 3.5000  eta 3m12s"));
    }

    #[test]
    fn numbers_for_people() {
        for (x, text) in [(0.4, "0"), (999.0, "999"), (1000.0, "1,000"), (1234567.0, "1,234,567")] {
            assert_eq!(thousands(x), text);
        }
        for (s, text) in [(0.31, "0.3s"), (59.4, "59s"), (192.4, "3m12s"), (7260.0, "2h01m"), (180000.0, "2d02h")] {
            assert_eq!(duration(s), text);
        }
    }

    #[test]
    fn the_pace_is_a_moving_average() {
        let mut progress = Progress { total: 10, pace: None, bar: None };
        progress.step(&StepRecord { step: 1, step_time_s: 2.0, ..Default::default() });
        progress.step(&StepRecord { step: 2, step_time_s: 1.0, ..Default::default() });
        assert!((progress.pace.unwrap() - 1.9).abs() < 1e-12);
        progress.finish();
    }
}
