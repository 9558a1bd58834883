//! Damaged files: what a run that was stopped reads when it continues, and tokens that change under a run. Damage is
//! refused with the name of the file, or nothing of it is read.

use crate::ensure;
use crate::lab::{LAYOUTS, STEPS};
use crate::process::{Outcome, Verdict};
use crate::shim::Shim;
use crate::site::{Site, WHOLE};
use std::fs;
use std::path::{Path, PathBuf};

/// The files of a stopped run, and of what it was started from. `@` is its newest checkpoint, a `*` a rank.
const FILES: [&str; 13] = [
    "disk/run/checkpoints/@/manifest.json",
    "disk/run/checkpoints/@/rank-*-0.safetensors",
    "disk/run/checkpoints/latest",
    "disk/run/checkpoints/step-00000009/rank-*-0.safetensors",
    "disk/run/metrics.jsonl",
    "disk/run/config.toml",
    "disk/run/history.jsonl",
    "disk/run/status.json",
    "disk/run/source/config.json",
    "input/train.bin",
    "input/train.idx",
    "input/init/config.json",
    "input/init/model.safetensors",
];

fn newest(site: &Site) -> PathBuf {
    site.run().join(format!("checkpoints/step-{:08}", site.latest().expect("a stopped run has a checkpoint")))
}

/// One of the files. Those of the checkpoint come as often as all others.
fn draw_file(site: &mut Site) -> PathBuf {
    let file = if site.draw.index(2) == 0 { site.draw.pick(&FILES[..3]) } else { site.draw.pick(&FILES) };
    let rank = format!("{:05}", site.draw.index(site.layout.ranks));
    let name = newest(site).file_name().expect("a name").to_string_lossy().into_owned();
    site.path(&file.replace('@', &name).replace('*', &rank))
}

pub fn flip(site: &mut Site) -> Verdict {
    damage_file(site, |site, bytes| {
        let at = site.draw.index(bytes.len());
        bytes[at] ^= 1 << site.draw.index(8);
    })
}

pub fn cut(site: &mut Site) -> Verdict {
    damage_file(site, |site, bytes| match site.draw.index(4) {
        0 => bytes.clear(),
        1 => bytes.fill(0),
        2 => {
            let at = site.draw.index(bytes.len());
            let end = bytes.len().min(at + 512);
            bytes[at..end].fill(0);
        }
        _ => bytes.truncate(site.draw.index(bytes.len())),
    })
}

fn damage_file(site: &mut Site, damage: impl Fn(&mut Site, &mut Vec<u8>)) -> Verdict {
    site.adopt_stopped_run();
    let (file, before) = (draw_file(site), site.latest());
    let whole = fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?;
    let mut bytes = whole.clone();
    damage(site, &mut bytes);
    fs::write(&file, bytes).expect("a site can be written");
    is_noticed(site, &file, || fs::write(&file, &whole).expect("a site can be written"), before)
}

/// A run that has damage goes on as if it had none, or is refused with the file's name; then it falls back to another
/// checkpoint, or continues after the file was mended.
fn is_noticed(site: &Site, file: &Path, mend: impl Fn(), before: Option<u64>) -> Verdict {
    let what = |wrong: String| format!("damaged: {}\n{wrong}", file.display());
    let outcome = site.finish(site.train(), WHOLE).and_then(|end| end.exits(&[0, 1, 2])).map_err(what)?;
    if outcome.code == Some(0) {
        if file.starts_with(site.run().join("source")) {
            // It is only copied into exports.
            mend();
        }
        return has_results(site, file, &outcome).map_err(what);
    }
    let is_named = names(file).iter().any(|name| outcome.stderr.contains(name));
    ensure!(is_named, "expected: a message that names {}; seen: {}", file.display(), outcome.stderr);
    if !file.starts_with(site.run().join("checkpoints")) {
        mend();
        return site.recovers(before).map_err(what);
    }
    let mut command = site.train();
    command.arg("--fall-back");
    let outcome = site.finish(command, WHOLE)?.exits(&[0]).map_err(|wrong| what(format!("--fall-back: {wrong}")))?;
    let after = outcome.continued_after();
    ensure!(after.is_some(), "expected: an earlier checkpoint; seen: the beginning\n{}", outcome.stderr);
    has_results(site, file, &outcome).map_err(what)
}

/// What may name a file in a message: itself, or the keys of the configuration that it stands for.
fn names(file: &Path) -> Vec<String> {
    let name = file.file_name().expect("a file has a name").to_string_lossy().into_owned();
    let key = match name.as_str() {
        "train.bin" | "train.idx" => "data.train",
        "config.json" => "model.",
        _ => return vec![name],
    };
    vec![name, key.into()]
}

/// Of damaged metrics only the lines of the steps that were trained now can be right.
fn has_results(site: &Site, file: &Path, outcome: &Outcome) -> Verdict {
    if !file.ends_with("metrics.jsonl") {
        return site.is_complete();
    }
    let after = outcome.continued_after().unwrap_or(0);
    let (seen, expected) = (site.metrics(), &site.reference().metrics);
    let same = (after + 1..=STEPS).all(|step| seen.get(&step) == expected.get(&step));
    ensure!(same, "expected: the steps after {after}; seen: {seen:?}");
    site.has_same_weights()
}

/// Files of checkpoints change places, come from another run, or are gone.
pub fn misplace(site: &mut Site) -> Verdict {
    site.adopt_stopped_run();
    let (newest, before) = (newest(site), site.latest());
    let (older, latest) = (newest.with_file_name("step-00000009"), newest.with_file_name("latest"));
    let [first, second] = [0, 1].map(|rank| newest.join(format!("rank-{rank:05}-0.safetensors")));
    let other = &LAYOUTS[(site.layout.ranks + site.layout.tensor) % LAYOUTS.len()];
    let foreign = site.lab.stopped(other).join("checkpoints/step-00000009/rank-00000-0.safetensors");
    let manifest = newest.join("manifest.json");
    let (done, file) = match site.draw.index(8) {
        0 => (exchange(&first, &second), &first),
        1 => (fs::remove_file(&second), &second),
        2 => (fs::remove_file(&manifest), &manifest),
        3 => (fs::remove_file(&latest), &latest),
        4 => (fs::remove_dir_all(&newest), &newest),
        5 => (fs::copy(older.join("manifest.json"), &manifest).map(|_| ()), &newest),
        6 => return are_exchanged(site, &older, &newest, before),
        _ => (fs::copy(foreign, &first).map(|_| ()), &first),
    };
    done.expect("a site can be written");
    is_noticed(site, file, || (), before)
}

/// Where the folders of both checkpoints have been exchanged, neither is what its name says: the run is refused, also
/// with `--fall-back`, changes nothing, and continues once they are exchanged back.
fn are_exchanged(site: &Site, older: &Path, newest: &Path, before: Option<u64>) -> Verdict {
    exchange(older, newest).expect("a site can be written");
    for flags in [&[][..], &["--fall-back"]] {
        let mut command = site.train();
        command.args(flags);
        let outcome = site.finish(command, WHOLE)?.exits(&[2])?;
        let is_named = names(newest).iter().any(|name| outcome.stderr.contains(name));
        ensure!(is_named, "expected: a message that names {}; seen: {}", newest.display(), outcome.stderr);
    }
    exchange(older, newest).expect("a site can be written");
    site.recovers(before)
}

fn exchange(a: &Path, b: &Path) -> std::io::Result<()> {
    let aside = a.with_extension("aside");
    fs::rename(a, &aside).and_then(|()| fs::rename(b, a)).and_then(|()| fs::rename(aside, b))
}

/// The tokens change while the run trains. Afterwards the file is as it was.
pub fn change_tokens(site: &mut Site) -> Verdict {
    let file = site.path("input").join(site.draw.pick(&["train.bin", "train.bin", "train.idx"]));
    let whole = fs::read(&file).expect("a site can be read");
    let (how, some) = (site.draw.index(4), site.draw.within(1..STEPS - 2) as usize);
    let at = site.draw.index(whole.len());
    let mut running = site.start(site.train_shimmed(&Shim::slow_steps(60)));
    running.wait_until(WHOLE, || site.metrics().len() >= some);
    let changed = match how {
        0 => whole[..at].to_vec(),
        1 => whole.iter().map(|byte| byte ^ 1).collect(),
        2 => vec![255; whole.len()],
        // Only its time is another.
        _ => whole.clone(),
    };
    fs::write(&file, changed).expect("a site can be written");
    let outcome = running.end(WHOLE)?.exits(&[0, 1, 2])?;
    fs::write(&file, &whole).expect("a site can be written");
    if outcome.code == Some(0) {
        return site.is_complete();
    }
    ensure!(how < 3, "expected: an end with exit code 0; seen: {}", outcome.stderr);
    let is_named = names(&file).iter().any(|name| outcome.stderr.contains(name));
    ensure!(is_named, "expected: a message that names {}; seen: {}", file.display(), outcome.stderr);
    let saved = outcome.saved();
    site.recovers(saved.max(site.latest()))
}
