//! Commands that write files: killed, on a full disk, or without power. What stood under a name before still stands, or
//! the whole new one does, and the same command makes the new one.

use crate::draw::Draw;
use crate::ensure;
use crate::lab::{LAYOUTS, SmallDisk};
use crate::process::{Outcome, Verdict};
use crate::shim::{self, GROWING, Shim, Target};
use crate::site::{Site, WHOLE, copy, create, is_unfinished, walk};
use nix::libc::ENOSPC;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Files below a folder, with their contents.
type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// Two calls of a command, whose outputs differ and have the same names below `disk/out`.
struct Calls {
    /// `None`: the command does not replace what is there.
    old: Option<Vec<String>>,
    new: Vec<String>,
    /// A run that lies in `disk/out` at first.
    run: Option<PathBuf>,
    /// Whether what is left is sound, beside the whole new output, and the old one after a command that failed.
    may_leave: fn(&Left) -> bool,
}

/// What a command left, where it ended with exit code 0 or not.
struct Left<'a> {
    is_done: bool,
    seen: &'a Tree,
    old: &'a Tree,
    new: &'a Tree,
}

impl Left<'_> {
    /// Files that do not belong together: each is the old or the new one.
    fn each_is_whole(&self) -> bool {
        let Left { seen, old, new, .. } = self;
        let whole = |(name, bytes): (&PathBuf, &Vec<u8>)| [old, new].iter().any(|tree| tree.get(name) == Some(bytes));
        seen.iter().all(whole) && old.keys().all(|name| seen.contains_key(name))
    }
}

fn words(text: &str, paths: &[&str]) -> Vec<String> {
    let mut paths = paths.iter();
    let word = |word: &str| if word == "@" { paths.next().expect("a path").to_string() } else { word.into() };
    text.split(' ').map(word).collect()
}

pub fn export(site: &mut Site) -> Verdict {
    let run = site.lab.stopped(&LAYOUTS[0]).display().to_string();
    let (step, to) = (format!("{run}/checkpoints/step-00000009"), site.text("disk/out/model"));
    let args = |from: &str| words("checkpoint export --dtype f32 --from @ --to @", &[from, &to]);
    let calls = Calls { old: Some(args(&step)), new: args(&run), run: None, may_leave: |_| false };
    is_disturbed(site, &calls)
}

/// An import that was stopped before `latest` was written has a complete checkpoint, with which a run begins.
pub fn import(site: &mut Site) -> Verdict {
    let args = words("checkpoint import --from @ --to @", &[&site.text("input/init"), &site.text("disk/out")]);
    let may_leave = |left: &Left| {
        let is_of_checkpoint = |name: &&PathBuf| name.starts_with("checkpoints/step-00000000");
        let names = |tree: &Tree| tree.keys().filter(is_of_checkpoint).cloned().collect::<Vec<_>>();
        let seen = names(left.seen);
        !left.is_done && (seen.is_empty() || seen == names(left.new))
    };
    is_disturbed(site, &Calls { old: None, new: args, run: None, may_leave })
}

/// The three files of a token file cannot be replaced at once. Without the `.idx` there is none.
pub fn tokenize(site: &mut Site) -> Verdict {
    let [old, new] = texts(site);
    let (tokenizer, to) = (site.text("input/tokenizers/tokenizer.json"), site.text("disk/out/x"));
    let args = |text: &str| words("data tokenize --input @ --tokenizer @ --output @", &[text, &tokenizer, &to]);
    let may_leave = |left: &Left| !left.is_done && !left.seen.contains_key(Path::new("x.idx"));
    is_disturbed(site, &Calls { old: Some(args(&old)), new: args(&new), run: None, may_leave })
}

pub fn tokenizer(site: &mut Site) -> Verdict {
    let [old, new] = texts(site);
    let to = site.text("disk/out/t.json");
    let args = |text: &str| words("tokenizer train --vocab-size 300 --input @ --output @", &[text, &to]);
    // The other file has the same contents for both texts, and is written by itself.
    let may_leave = |left: &Left| !left.is_done && left.each_is_whole();
    is_disturbed(site, &Calls { old: Some(args(&old)), new: args(&new), run: None, may_leave })
}

/// A report can be made again, so it may be lost with the power after the command was done.
pub fn report(site: &mut Site) -> Verdict {
    let run = site.text("disk/out");
    let args = |peak: &str| words("report @ --peak-tflops @", &[&run, peak]);
    let stopped = Some(site.lab.stopped(&LAYOUTS[0]));
    is_disturbed(
        site,
        &Calls { old: Some(args("1")), new: args("2"), run: stopped, may_leave: |left| left.each_is_whole() },
    )
}

/// Two texts of words that repeat.
fn texts(site: &mut Site) -> [String; 2] {
    copy(&site.lab.golden.join("../tokenizers"), &site.path("input/tokenizers"));
    ["old.txt", "new.txt"].map(|name| {
        let mut draw = Draw::new(0, name, 0);
        let word = |_| (0..draw.within(2..7)).map(|_| draw.pick(&['a', 'e', 'i', 'k', 'n', 'o', 't'])).collect();
        let all: Vec<String> = (0..4000).map(word).collect();
        let path = site.path("input").join(name);
        fs::write(&path, all.chunks(10).map(|line| line.join(" ") + "\n").collect::<String>()).expect("it is written");
        path.display().to_string()
    })
}

fn is_disturbed(site: &mut Site, calls: &Calls) -> Verdict {
    let has_old = calls.old.is_some() && site.draw.index(3) > 0;
    let full = site.draw.index(3) == 0;
    let disk = SmallDisk::mount(&site.path("disk"), 1 << 20)?;
    let before = |site: &Site| -> Verdict<Tree> {
        fs::remove_dir_all(site.path("disk/out")).ok();
        create(&site.path("disk/out"));
        calls.run.iter().for_each(|run| copy(run, &site.path("disk/out")));
        if let Some(old) = calls.old.as_ref().filter(|_| has_old) {
            call(site, old, &Shim::default())?.exits(&[0])?;
        }
        Ok(tree(site))
    };
    before(site)?;
    fs::remove_file(site.path("log/0")).ok();
    call(site, &calls.new, &Shim::default())?.exits(&[0])?;
    let (new, log) = (tree(site), fs::read_to_string(site.path("log/0")).expect("the shim writes a log"));
    let old = before(site)?;
    let outcome = match full {
        true => fill(site, calls, &disk, &log, &new)?,
        false => stop(site, calls, &log)?,
    };
    let seen = visible(tree(site));
    let left = Left { is_done: outcome.code == Some(0), seen: &seen, old: &old, new: &new };
    let is_sound = seen == new || !left.is_done && seen == old || (calls.may_leave)(&left);
    ensure!(
        is_sound,
        "expected: the old or the new files; seen: {}\nfrom the old: {}\n{}",
        differences(&seen, &new),
        differences(&seen, &old),
        outcome.stderr
    );
    disk.make_room()?;
    is_made_again(site, calls, &seen, &new)
}

/// The same command makes the files of an undisturbed one.
fn is_made_again(site: &Site, calls: &Calls, before: &Tree, new: &Tree) -> Verdict {
    let again = call(site, &calls.new, &Shim::default())?;
    if calls.old.is_none() && again.code == Some(2) {
        // It was done, and is not done twice.
        ensure!(before == new, "expected: the same command is done; seen: {}", again.stderr);
    } else {
        again.exits(&[0]).map_err(|wrong| format!("the same command: {wrong}"))?;
    }
    let seen = tree(site);
    ensure!(seen == *new, "expected: the files of an undisturbed command; seen: {}", differences(&seen, new));
    Ok(())
}

fn call(site: &Site, args: &[String], shim: &Shim) -> Verdict<Outcome> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    site.finish(site.engine_shimmed(&args, shim), WHOLE)
}

/// Kills the command or loses the power at one of its operations, or loses the power when it is done.
fn stop(site: &mut Site, calls: &Calls, log: &str) -> Verdict<Outcome> {
    let target = match site.draw.index(10) {
        0 => Target { rank: 0, number: usize::MAX - 1 },
        _ => shim::draw(&mut site.draw, &[log.into()], "", ""),
    };
    if site.draw.index(2) == 0 {
        return call(site, &calls.new, &Shim::once(target, "signal:9"));
    }
    let args: Vec<&str> = calls.new.iter().map(String::as_str).collect();
    let shim = Shim { follows: true, ..Shim::once(target, "power") };
    site.lose_power(site.engine_shimmed(&args, &shim))
}

/// Runs the command on a disk that is too small, or where all operations fail that need space.
fn fill(site: &mut Site, calls: &Calls, disk: &SmallDisk, log: &str, new: &Tree) -> Verdict<Outcome> {
    let kilobytes = |tree: &Tree| tree.values().map(|bytes| 4 * bytes.len().div_ceil(4096) as u64).sum::<u64>();
    let outcome = if site.draw.index(2) == 0 {
        disk.resize("remount,", kilobytes(&tree(site)) + 4 * site.draw.within(1..2 + kilobytes(new) / 4))?;
        call(site, &calls.new, &Shim::default())?
    } else {
        let target = shim::draw(&mut site.draw, &[log.into()], "", GROWING);
        let shim = Shim { ops: GROWING, count: usize::MAX, ..Shim::once(target, format!("fail:{ENOSPC}")) };
        call(site, &calls.new, &shim)?
    };
    match outcome.code {
        Some(0) => Ok(outcome),
        _ => outcome.exits(&[1])?.says("No space left on device"),
    }
}

/// The files of the command. The lock of a run's directory names the process that had it.
fn tree(site: &Site) -> Tree {
    let out = site.path("disk/out");
    let files = walk(&out).into_iter().filter(|path| path.is_file() && !path.ends_with("lock"));
    let name = |path: &Path| path.strip_prefix(&out).expect("a path below the folder").to_path_buf();
    files.map(|path| (name(&path), fs::read(&path).unwrap_or_default())).collect()
}

/// Without what has not got its name yet.
fn visible(mut tree: Tree) -> Tree {
    tree.retain(|path, _| !path.ancestors().any(is_unfinished));
    tree
}

fn differences(seen: &Tree, expected: &Tree) -> String {
    let names: std::collections::BTreeSet<&PathBuf> = seen.keys().chain(expected.keys()).collect();
    let differ = names.into_iter().filter(|name| seen.get(*name) != expected.get(*name));
    let size = |tree: &Tree, name: &PathBuf| tree.get(name).map(Vec::len);
    differ.map(|name| format!("{}: {:?} bytes ", name.display(), size(seen, name))).collect()
}
