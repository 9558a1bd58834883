//! Ranks that see different files, limits of the machine, and numbers that are not finite.

use crate::ensure;
use crate::lab::{LAYOUTS, STEPS, SmallDisk};
use crate::process::{Outcome, Verdict};
use crate::site::{Site, WHOLE, copy, create};
use std::fs;
use std::path::Path;

/// Rank 1 has a folder of its own, in which it sees another state of the run. It must be refused before a step.
pub fn see_other_checkpoints(site: &mut Site) -> Verdict {
    site.adopt_stopped_run();
    let (first, second) = (site.path("disk"), site.path("other"));
    create(&second);
    copy(&first.join("run"), &second.join("run"));
    let newest = format!("run/checkpoints/step-{:08}", site.latest().expect("a stopped run has a checkpoint"));
    let lose_newest = |of: &Path| {
        fs::remove_dir_all(of.join(&newest))
            .and_then(|()| fs::write(of.join("run/checkpoints/latest"), "step-00000009\n"))
    };
    let other_layout = &LAYOUTS[usize::from(site.layout.tensor == 1)];
    let done = match site.draw.index(4) {
        0 => lose_newest(&second),
        // Rank 0 is the one with the outdated view.
        1 => lose_newest(&first),
        2 => fs::remove_dir_all(second.join("run")),
        _ => {
            let foreign = site.lab.stopped(other_layout).join("checkpoints/step-00000009/manifest.json");
            fs::copy(foreign, second.join(&newest).join("manifest.json")).map(|_| ())
        }
    };
    done.expect("a site can be written");
    site.set("checkpoint.dir", "run");
    is_refused(site, [&first, &second])
}

/// Rank 1 sees another model, other tokens, or another configuration, at the start of a run or when it continues.
pub fn see_other_inputs(site: &mut Site) -> Verdict {
    let (first, second) = (site.path("first"), site.path("second"));
    [&first, &second].iter().for_each(|dir| copy(&site.path("input"), dir));
    site.set("model.hf", "init");
    site.set("train.load", "hf:init");
    site.set("data.train", vec![toml::Value::from(toml::Table::from_iter([("prefix".into(), "train".into())]))]);
    let change = |name: &str, at: usize| {
        let path = second.join(name);
        let mut bytes = fs::read(&path).expect("a site can be read");
        let at = bytes.len() - 1 - at;
        bytes[at] ^= 1;
        fs::write(path, bytes).expect("a site can be written");
    };
    match site.draw.index(4) {
        0 => change("train.bin", 100),
        1 => change("init/model.safetensors", 100),
        2 => fs::remove_file(second.join("train.bin")).expect("a site can be written"),
        _ => fs::remove_dir_all(second.join("init")).expect("a site can be written"),
    }
    is_refused(site, [&first, &second])
}

/// Starts the run with a folder for rank 1, and one for the others.
fn is_refused(site: &mut Site, [first, second]: [&Path; 2]) -> Verdict {
    let steps = site.metrics().len();
    // It writes the configuration.
    site.train();
    let mut command = site.mpirun();
    let parts = [(1, first), (1, second), (site.layout.ranks - 2, first)];
    for (number, (ranks, dir)) in parts.into_iter().filter(|(ranks, _)| *ranks > 0).enumerate() {
        command.args([":"].iter().skip(usize::from(number == 0))).args(["-n", &ranks.to_string(), "--wdir"]);
        command.arg(dir).arg(&site.lab.engine).args(["train", "--config"]).arg(site.path("config.toml"));
    }
    let outcome = site.finish(command, WHOLE)?.exits(&[2])?.says("rank 1 on ")?;
    ensure!(site.metrics().len() == steps, "expected: no step; seen: steps\n{}", outcome.stderr);
    Ok(())
}

/// Limits under which a run is an undisturbed one, or ends with a message.
pub fn limit(site: &mut Site) -> Verdict {
    let script = match site.draw.index(7) {
        0 => format!("ulimit -v {}", site.draw.within(100..4000) << 10),
        1 => format!("ulimit -n {}", site.draw.within(4..60)),
        2 => format!("ulimit -u {}", site.draw.within(1..60)),
        3 => "exec 2>&-".into(),
        4 => "exec 2>/dev/full".into(),
        5 => "export TMPDIR=/proc".into(),
        _ => "exec >&-".into(),
    };
    let script = format!("{script}; exec \"$@\"");
    let outcome = site.finish(site.train_with(&["sh", "-c", &script, "sh"]), WHOLE)?;
    ends_in_order(site, outcome)
}

/// There is little shared memory.
pub fn limit_shared_memory(site: &mut Site) -> Verdict {
    let disk = SmallDisk::mount("/dev/shm".as_ref(), site.draw.pick(&[4, 64, 1 << 10, 4 << 10, 16 << 10]))?;
    let outcome = site.finish(site.train(), WHOLE)?;
    drop(disk);
    ends_in_order(site, outcome)
}

fn ends_in_order(site: &Site, outcome: Outcome) -> Verdict {
    if outcome.code == Some(0) {
        return site.is_complete();
    }
    ensure!(outcome.code.is_some_and(|code| code < 128), "expected: an exit code; seen: {:?}", outcome.code);
    ensure!(!outcome.stderr.trim().is_empty(), "expected: a message; seen: none");
    site.recovers(site.latest())
}

/// One weight of the model that the run starts from is not finite, or is as large as a number can be.
pub fn spoil_weight(site: &mut Site) -> Verdict {
    let value = site.draw.pick(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38]);
    let path = site.path("input/init/model.safetensors");
    let mut bytes = fs::read(&path).expect("a site can be read");
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let at = header + 4 * site.draw.index((bytes.len() - header) / 4);
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    fs::write(path, bytes).expect("a site can be written");
    if site.draw.index(3) > 0 || value.is_finite() {
        let outcome = site.finish(site.train(), WHOLE)?;
        return diverges(site, outcome.exits(if value.is_finite() { &[0, 1, 2] } else { &[2] })?);
    }
    let args = ["checkpoint", "import", "--from", &site.text("input/init"), "--to", &site.text("disk/run")];
    site.finish(site.engine(&args), WHOLE)?.exits(&[2])?.says("finite").map(|_| ())
}

pub fn set_absurd_rate(site: &mut Site) -> Verdict {
    let rate = site.draw.pick(&[1e3, 1e6, 1e10, 1e20, 1e30, 1e38]);
    let clip = site.draw.pick(&[0.0, 1.0, 1e30]);
    site.set("optimizer.lr", rate);
    site.set("optimizer.clip_grad", clip);
    let (warmup_steps, interval) = (site.draw.within(0..3), site.draw.within(1..4));
    site.set("optimizer.warmup_steps", warmup_steps as i64);
    site.set("checkpoint.interval", interval as i64);
    let outcome = site.finish(site.train(), WHOLE)?.exits(&[0, 1, 2])?;
    diverges(site, outcome)
}

/// The run ended with a message about the step, or went on to its end; what it saved is finite.
fn diverges(site: &Site, outcome: Outcome) -> Verdict {
    match outcome.code {
        Some(0) => ensure!(site.metrics().len() as u64 == STEPS, "expected: all steps; seen: fewer"),
        Some(1) => _ = outcome.says("step ")?.says("finite")?,
        _ => ensure!(site.metrics().is_empty(), "expected: no step; seen: some\n{}", outcome.stderr),
    }
    if site.latest().is_some() {
        site.is_verified()?;
    }
    site.nothing_is_left()
}
