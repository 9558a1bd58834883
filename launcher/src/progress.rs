//! The progress of long commands. On a terminal it is a bar. Otherwise training prints a line per step, and every other
//! long command prints a line at once and then one every half minute ([`LogLines`]).
//!
//! Only one process shows progress. Training's figures are those of `metrics.jsonl`; nothing is measured here.

use crate::log_writer::LogWriter;
use crate::output::to_stderr;
use crate::terminal;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use report::records::metrics::{SetRecord, StepRecord};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The time between two lines of a log.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// The steps of a training run.
pub struct Progress {
    total: u64,
    /// Seconds per step, a moving average.
    pace: Option<f64>,
    shown: StepsShown,
}

/// The form in which steps are shown.
enum StepsShown {
    Bar(ProgressBar),
    Log(LogWriter),
}

impl Progress {
    /// `first_step` is the next step: 1, or the one after the checkpoint's.
    pub fn new(total_steps: u64, first_step: u64) -> Progress {
        let shown = match terminal::is_shown() {
            true => {
                let bar = bar(total_steps, "{pos}/{len} {wide_bar:.green/dim} {msg}");
                bar.set_position(first_step.saturating_sub(1));
                StepsShown::Bar(bar)
            }
            false => StepsShown::Log(LogWriter::start()),
        };
        Progress { total: total_steps, pace: None, shown }
    }

    /// Shows a completed step.
    pub fn step(&mut self, r: &StepRecord) {
        // The first step is slower than the others, and loses its weight in the average quickly.
        let pace = self.pace.map_or(r.step_time_s, |pace| 0.9 * pace + 0.1 * r.step_time_s);
        self.pace = Some(pace);
        let eta = duration(pace * self.total.saturating_sub(r.step) as f64);
        match &self.shown {
            StepsShown::Log(log) => log.step(dated(&line(r, self.total, &eta))),
            StepsShown::Bar(bar) => {
                bar.set_position(r.step);
                bar.set_message(summary(r, &eta));
                for what in validation(r).into_iter().chain(tasks(r)) {
                    bar.suspend(|| print(&format!("step {}/{}  {what}", r.step, self.total)));
                }
            }
        }
    }

    /// Says that the checkpoint of `step` is complete.
    pub fn saved(&self, step: u64, bytes: u64, time: Duration) {
        let line = format!("saved step {step} ({}, {:.1} s)", size(bytes), time.as_secs_f64());
        match &self.shown {
            StepsShown::Log(log) => log.line(dated(&line)),
            StepsShown::Bar(bar) => bar.suspend(|| print(&line)),
        }
    }

    /// Prints a warning to stderr.
    pub fn warn(&self, what: &str) {
        self.note(&format!("warning: {what}"));
    }

    /// Prints a line to stderr, without tearing the bar.
    pub fn note(&self, what: &str) {
        let print = || to_stderr(what);
        match &self.shown {
            StepsShown::Log(_) => print(),
            StepsShown::Bar(bar) => bar.suspend(print),
        }
    }

    /// Ends the progress: a bar stays on the screen, and the last lines of a log are written.
    pub fn finish(&mut self) {
        match &mut self.shown {
            StepsShown::Bar(bar) => bar.abandon(),
            StepsShown::Log(log) => log.finish(),
        }
    }
}

/// Progress in bytes: tokenizing, verifying. May be used from many threads.
pub struct Bytes {
    what: String,
    total: u64,
    start: Instant,
    done: Arc<AtomicU64>,
    shown: Shown,
}

impl Bytes {
    pub fn new(what: &str, total: u64) -> Bytes {
        let (start, done) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let line = {
            let (what, done) = (what.to_string(), done.clone());
            move || bytes_line(&what, done.load(Relaxed), total, start.elapsed())
        };
        let template = "{prefix} {bytes}/{total_bytes} {wide_bar:.green/dim} {bytes_per_sec} eta {eta}";
        Bytes { what: what.to_string(), total, start, done, shown: Shown::new(what, total, template, line) }
    }

    /// Sets the bytes done so far.
    pub fn at(&self, done: u64) {
        self.done.store(done, Relaxed);
        if let Shown::Bar(bar) = &self.shown {
            bar.set_position(done);
        }
    }

    /// Replaces the progress by one line with the total and the rate.
    pub fn finish(self) {
        self.shown.finish();
        let seconds = self.start.elapsed().as_secs_f64();
        let (mb, rate) = (self.total as f64 / 1e6, self.total as f64 / 1e6 / seconds.max(1e-9));
        print(&format!("{}: {mb:.1} MB in {}, {rate:.1} MB/s", self.what, duration(seconds)));
    }
}

/// Progress in items of one kind, such as layouts or files. May be used from many threads.
pub struct Count {
    done: Arc<AtomicU64>,
    shown: Shown,
}

impl Count {
    pub fn new(what: &str, total: u64) -> Count {
        let (start, done) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let line = {
            let (what, done) = (what.to_string(), done.clone());
            move || {
                let elapsed = duration(start.elapsed().as_secs_f64());
                format!("{what}: {} of {total}, {elapsed}", done.load(Relaxed))
            }
        };
        Count { done, shown: Shown::new(what, total, "{prefix} {pos}/{len} {wide_bar:.green/dim}", line) }
    }

    /// One more item is done.
    pub fn one(&self) {
        self.done.fetch_add(1, Relaxed);
        if let Shown::Bar(bar) = &self.shown {
            bar.inc(1);
        }
    }

    /// Sets the items done so far.
    pub fn at(&self, done: u64) {
        self.done.store(done, Relaxed);
        if let Shown::Bar(bar) = &self.shown {
            bar.set_position(done);
        }
    }

    /// Ends the progress; nothing of it stays on a terminal.
    pub fn finish(self) {
        self.shown.finish();
    }
}

/// Work of unknown length; shows the time since its start. Ends when it is dropped.
pub struct Waiting(Shown);

impl Waiting {
    pub fn new(what: &str) -> Waiting {
        let start = Instant::now();
        let line = {
            let what = what.to_string();
            move || waiting_line(&what, start.elapsed())
        };
        Waiting(Shown::new(what, 0, "{prefix} {elapsed}", line))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// The form in which progress is shown.
enum Shown {
    Bar(ProgressBar),
    Log(LogLines),
}

impl Shown {
    /// `template` draws the bar, `line` makes the line of a log.
    fn new(what: &str, total: u64, template: &str, line: impl Fn() -> String + Send + 'static) -> Shown {
        match terminal::is_shown() {
            true => {
                let bar = bar(total, template).with_prefix(what.to_string());
                // So that the bar is redrawn even while its position stays the same.
                bar.enable_steady_tick(Duration::from_millis(500));
                Shown::Bar(bar)
            }
            false => Shown::Log(LogLines::start(LOG_INTERVAL, move || to_stderr(&line()))),
        }
    }

    fn finish(self) {
        match self {
            Shown::Bar(bar) => bar.finish_and_clear(),
            Shown::Log(lines) => drop(lines),
        }
    }
}

/// Calls a function at once and then at an interval, on a thread, until it is dropped.
struct LogLines {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl LogLines {
    fn start(interval: Duration, print: impl Fn() + Send + 'static) -> LogLines {
        print();
        let (stop, stopped) = channel();
        let until_stopped = move || {
            while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                print();
            }
        };
        // A command that cannot have one more thread works without further lines.
        let thread = std::thread::Builder::new().name("progress".into()).spawn(until_stopped).ok();
        LogLines { stop: Some(stop), thread }
    }
}

impl Drop for LogLines {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed by the hook.
            let _ = thread.join();
        }
    }
}

fn bar(total: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the template is a literal").progress_chars("━━─");
    ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stdout()).with_style(style)
}

/// Prints a line to stdout. A closed pipe is not an error: its reader has seen enough.
fn print(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// A line of a log, with the time.
fn dated(line: &str) -> String {
    format!("{line}  {}", jiff::ZonedDateTime::now().strftime("%F %T"))
}

/// 1234567890 -> `1.23 GB`.
pub fn size(bytes: u64) -> String {
    match bytes as f64 {
        b if b < 1e6 => format!("{:.1} kB", b / 1e3),
        b if b < 1e9 => format!("{:.1} MB", b / 1e6),
        b => format!("{:.2} GB", b / 1e9),
    }
}

/// The line of a log about a number of bytes: how many are done, how fast, and how long the rest will take.
fn bytes_line(what: &str, done: u64, total: u64, elapsed: Duration) -> String {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let line = format!("{what}: {:.1} of {:.1} MB", mb(done), mb(total));
    let rate = done as f64 / elapsed.as_secs_f64().max(1e-9);
    match done {
        0 => line,
        _ => {
            let eta = duration(total.saturating_sub(done) as f64 / rate);
            format!("{line}, {:.1} MB/s, eta {eta}", rate / 1e6)
        }
    }
}

/// The line of a log about work of unknown length.
fn waiting_line(what: &str, elapsed: Duration) -> String {
    match elapsed.as_secs() {
        0 => what.to_string(),
        _ => format!("{what}: {} so far", duration(elapsed.as_secs_f64())),
    }
}

/// The line of a step in a log file.
fn line(r: &StepRecord, total: u64, eta: &str) -> String {
    let valid: String = validation(r).into_iter().chain(tasks(r)).map(|what| format!("  {what}")).collect();
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

/// The losses of a validation, with those of each set where there are several; `None` where the step had none.
fn validation(r: &StepRecord) -> Option<String> {
    let bits = |set: &SetRecord| set.bits_per_byte.map_or(String::new(), |bits| format!(" {bits:.4} bits/byte"));
    let each = match r.valid.len() {
        0 => String::new(),
        1 => r.valid.values().map(bits).collect(),
        _ => {
            let set = |(name, set): (&String, &SetRecord)| format!("{name} {:.4}{}", set.loss, bits(set));
            format!(" ({})", r.valid.iter().map(set).collect::<Vec<_>>().join(", "))
        }
    };
    Some(format!("valid {:.4}{each}", r.valid_loss?))
}

/// The scores of tasks; `None` where the step had none.
fn tasks(r: &StepRecord) -> Option<String> {
    let each = r.tasks.iter().flat_map(|(task, scores)| scores.values().map(move |score| (task, score)));
    let each: Vec<String> = each.map(|(task, score)| format!("{task} {:.1} %", 100.0 * score)).collect();
    (!each.is_empty()).then(|| format!("tasks {}", each.join(", ")))
}

/// The text beside the bar.
fn summary(r: &StepRecord, eta: &str) -> String {
    format!("loss {:.4}  lr {:.1e}  {} tok/s  eta {eta}", r.loss, r.lr, thousands(r.tokens_per_s))
}

/// 12345.6 -> `12,346`.
pub fn thousands(x: f64) -> String {
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
pub fn duration(seconds: f64) -> String {
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
    fn the_line_of_a_step() {
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
        let set = |loss, bits_per_byte| SetRecord { loss, bits_per_byte, loss_tokens: 8 };
        r.valid.insert("ja".into(), set(3.25, Some(1.5)));
        assert_eq!(validation(&r).unwrap(), "valid 3.5000 1.5000 bits/byte");
        r.valid.insert("en".into(), set(3.75, None));
        assert_eq!(validation(&r).unwrap(), "valid 3.5000 (en 3.7500, ja 3.2500 1.5000 bits/byte)");
    }

    #[test]
    fn the_line_of_a_log_has_rate_and_remaining_time() {
        let line = |done, seconds| bytes_line("tokenize", done, 300_000_000, Duration::from_secs(seconds));
        assert_eq!(line(0, 30), "tokenize: 0.0 of 300.0 MB");
        assert_eq!(line(60_000_000, 30), "tokenize: 60.0 of 300.0 MB, 2.0 MB/s, eta 2m00s");
        assert_eq!(waiting_line("loading", Duration::from_millis(5)), "loading");
        assert_eq!(waiting_line("loading", Duration::from_secs(90)), "loading: 1m30s so far");
    }

    #[test]
    fn a_log_has_a_line_at_once_and_then_at_the_interval() {
        let (sender, lines) = channel();
        let log = LogLines::start(Duration::from_millis(20), move || sender.send(Instant::now()).unwrap());
        lines.try_recv().expect("the first line is printed before the work begins");
        let next: Vec<Instant> = (0..2).map(|_| lines.recv_timeout(Duration::from_secs(30)).unwrap()).collect();
        assert!(next[1] - next[0] >= Duration::from_millis(15), "{:?}", next[1] - next[0]);
        drop(log);
        // The channel closes, because the thread has ended.
        lines.iter().for_each(drop);
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
        let shown = StepsShown::Bar(ProgressBar::hidden());
        let mut progress = Progress { total: 10, pace: None, shown };
        progress.step(&StepRecord { step: 1, step_time_s: 2.0, ..Default::default() });
        progress.step(&StepRecord { step: 2, step_time_s: 1.0, ..Default::default() });
        assert!((progress.pace.unwrap() - 1.9).abs() < 1e-12);
        progress.finish();
    }
}
