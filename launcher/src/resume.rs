//! The state that a run starts from, the same on all ranks: the checkpoint that rank 0 resolved, or else the weights
//! that `train.load` names.

use crate::agreement::{self, from_first};
use crate::lock;
use crate::output::say;
use crate::progress::Waiting;
use crate::run_dir::RunDir;
use data::feed::Feed;
use data::identity;
use engine::backend::Backend;
use engine::checkpoint::{self, HuggingFace, IfDamaged, Newest, Saved, source};
use engine::config::{Config, Load};
use engine::error::{Error, Result};
use engine::model::init;
use engine::mpi::{Comm, host};
use engine::retry::Retry;
use engine::train::state;
use engine::train::trainer::Trainer;
use report::records::history::{self, What};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The user's options for resuming, and rank 0's hold on the run's directory.
pub struct Resume<'a> {
    /// The step to continue from, instead of the newest checkpoint's.
    pub from_step: Option<u64>,
    /// Whether to go back to that step although the run has done so before.
    pub again: bool,
    pub if_damaged: IfDamaged,
    pub accept_data_change: bool,
    /// Repeats what a disk refuses for a moment.
    pub retry: Retry,
    /// Rank 0's lock of the run's directory.
    pub run_dir: Option<&'a RunDir>,
}

/// The checkpoint that rank 0 continues from.
#[derive(Serialize, Deserialize)]
struct Resolved {
    host: String,
    /// Its step, and the checksum of its manifest; `None` where the run has no checkpoint.
    checkpoint: Option<(u64, String)>,
    /// The step that `latest` names on rank 0.
    latest: Option<u64>,
}

/// Loads the run's newest checkpoint, or the one asked for, or else the initial weights. Collective.
pub fn load<B: Backend>(how: &Resume<'_>, trainer: &mut Trainer<B>, feed: &Feed, comm: &Comm) -> Result<()> {
    let dir = trainer.config.checkpoint.dir.clone();
    let Some(saved) = open(&dir, how, comm)? else {
        return load_initial(how, trainer, feed, comm);
    };
    comm.agree(must_match(how, trainer, feed, &saved))?;
    if comm.rank() == 0 {
        say!("continuing {} after step {}", dir.display(), saved.header().position.step);
        warn_of_another_order(feed, &saved);
        if let Err(mixed) = feed.check_tokenizers(&trainer.config.train.load) {
            say!("warning: {mixed}");
        }
    }
    let loaded = {
        let _waiting = waiting("loading the checkpoint", comm);
        comm.agree(state::resume(trainer, &saved))
    };
    loaded?;
    let step = saved.header().position.step;
    let remember = || how.retry.of("the step to continue from").run(|| remember(&dir, how.from_step, step));
    comm.agree(if comm.rank() == 0 { remember() } else { Ok(()) })
}

/// A run that goes back to an earlier step remembers it at once: the same command without `--from-step`, or with it as
/// in a job script, then goes on with the new branch. Rank 0 only.
fn remember(dir: &Path, from_step: Option<u64>, step: u64) -> Result<()> {
    if from_step != Some(step) {
        return checkpoint::continues_after(dir, step);
    }
    // A damaged `latest` is written anew.
    let latest = checkpoint::latest_step(dir).unwrap_or(None);
    // Also where the newest checkpoint is that one: an earlier start may have been killed in the middle of this, and
    // the next start with the same command goes on from later ones.
    checkpoint::go_back(dir, step)?;
    history::append(dir, What::Rollback { from: latest.unwrap_or_default(), to: step })
}

/// The step of `--from-step`, unless the run has gone back to it before and has not been told to do so again. Rank 0
/// only.
fn to_go_back(dir: &Path, how: &Resume<'_>) -> Result<Option<u64>> {
    let Some(step) = how.from_step else { return Ok(None) };
    match history::last_rollback(&history::read(dir)?) {
        Some((to, _)) if to == step && !how.again => {
            say!(
                "note: --from-step {step}: this run went back to that step before, and continues after its newest \
                 checkpoint; --again goes back once more"
            );
            Ok(None)
        }
        // It would abandon what the run has done since, if it went back before.
        None if history::is_damaged(dir) && !how.again => Err(Error::user(format!(
            "--from-step {step}: {} has damaged lines, which may have recorded that this run already went back to that \
             step; add --again to go back, or leave --from-step out to continue after the newest checkpoint",
            dir.join(history::NAME).display()
        ))),
        _ => Ok(Some(step)),
    }
}

/// Rank 0 shows that it waits for the disk.
fn waiting(what: &str, comm: &Comm) -> Option<Waiting> {
    (comm.rank() == 0).then(|| Waiting::new(what))
}

/// Opens the checkpoint that rank 0 resolves, on all ranks. `None`: the run has no checkpoint. Collective.
fn open(dir: &Path, how: &Resume<'_>, comm: &Comm) -> Result<Option<Saved>> {
    let find = || match to_go_back(dir, how)? {
        Some(step) => Saved::at_step(dir, step).map(Some),
        None => newest(dir, how.if_damaged),
    };
    let find = || how.retry.of("the checkpoint to continue from").run(find);
    let found = comm.agree(if comm.rank() == 0 { find() } else { Ok(None) })?;
    // Rank 0 has mended a `latest` that it could not read.
    let latest = checkpoint::latest_step(dir).unwrap_or(None);
    let identify = |saved: &Saved| (saved.header().position.step, saved.manifest().checksum().to_string());
    let first = from_first(comm, &Resolved { host: host(), checkpoint: found.as_ref().map(identify), latest });
    comm.agree(if comm.rank() == 0 { Ok(found) } else { open_as_first(dir, latest, &first) })
}

/// The run's newest checkpoint, with a warning for each thing that is wrong with those before it.
fn newest(dir: &Path, if_damaged: IfDamaged) -> Result<Option<Saved>> {
    let steps = checkpoint::steps(dir)?;
    let named = checkpoint::latest_step(dir).unwrap_or(None).is_some_and(|step| steps.contains(&step));
    let reads_all = !steps.is_empty() && (if_damaged == IfDamaged::FallBack || !named);
    let waiting = reads_all.then(|| Waiting::new("verifying the newest checkpoint"));
    let Newest { saved, warnings } = checkpoint::newest(dir, if_damaged)?;
    drop(waiting);
    warnings.iter().for_each(|warning| say!("warning: {warning}"));
    Ok(saved)
}

/// Opens rank 0's checkpoint on another rank, whose own `latest` may name an older step: a network file system may
/// serve an outdated copy of that file. A newer step means that rank 0 sees an outdated one, or another directory.
fn open_as_first(dir: &Path, latest: Option<u64>, first: &Resolved) -> Result<Option<Saved>> {
    let Resolved { host, checkpoint, latest: first_latest } = first;
    let refuse = |what: String| Err(Error::user(format!("checkpoint.dir = {}: {what}; {REMEDY}", dir.display())));
    if let Some(step) = latest.filter(|_| latest > *first_latest) {
        let newest = first_latest.map_or("no checkpoint".to_string(), |step| format!("step {step}"));
        return refuse(format!("the newest checkpoint is of step {step}, but rank 0 on {host} sees {newest}"));
    }
    let Some((step, manifest)) = checkpoint else { return Ok(None) };
    if !checkpoint::steps(dir)?.contains(step) {
        return refuse(format!("there is no checkpoint of step {step}, from which rank 0 on {host} continues"));
    }
    let saved = Saved::at_step(dir, *step)?;
    if saved.manifest().checksum() != manifest {
        return refuse(format!("the checkpoint of step {step} has another manifest.json than on rank 0 ({host})"));
    }
    Ok(Some(saved))
}

/// A new run that will save must save to one directory: every rank must see rank 0's. (A run that continues has a
/// checkpoint in it that all ranks can read.) Collective.
fn must_share(run_dir: Option<&RunDir>, config: &Config, comm: &Comm) -> Result<()> {
    let (c, owner) = (&config.checkpoint, run_dir.map_or(String::new(), |dir| dir.lock.owner().to_string()));
    let (host, owner) = from_first(comm, &(host(), owner));
    if comm.rank() == 0 || (c.interval == 0 && !c.at_end) || lock::is_shared(&c.dir, &owner) {
        return comm.agree(Ok(()));
    }
    let dir = c.dir.display();
    comm.agree(Err(Error::user(format!(
        "checkpoint.dir = {dir}: this is not the directory of rank 0 on {host}; {REMEDY}"
    ))))
}

const REMEDY: &str = "all ranks need the same file system at checkpoint.dir";

/// The weights that `train.load` names; rank 0 keeps the model's configuration and tokenizer in the run's directory.
fn load_initial<B: Backend>(how: &Resume<'_>, trainer: &mut Trainer<B>, feed: &Feed, comm: &Comm) -> Result<()> {
    let dir = trainer.config.checkpoint.dir.clone();
    let on_first = |keep: &dyn Fn() -> Result<()>| comm.agree(if comm.rank() == 0 { keep() } else { Ok(()) });
    match trainer.config.train.load.clone() {
        Load::Random => {
            must_share(how.run_dir, &trainer.config, comm)?;
            on_first(&|| feed.tokenizer().map_or(Ok(()), |tokenizer| source::keep_tokenizer(&tokenizer, &dir)))?;
            let (model, seed) = (trainer.config.model.clone(), trainer.config.train.seed);
            comm.agree(state::load_weights(trainer, |tensor, rect, out| {
                init::fill(&model, seed, tensor, rect, out);
                Ok(())
            }))
        }
        Load::HuggingFace(from) => {
            let weights = comm.agree(HuggingFace::open(&from, &trainer.config.model))?;
            let mine = comm.agree(weights.fingerprint())?;
            agreement::on_files(&format!("train.load = \"hf:{}\"", from.display()), &mine, comm)?;
            must_share(how.run_dir, &trainer.config, comm)?;
            on_first(&|| source::keep(&from, &dir, weights.form()))?;
            let _waiting = waiting(&format!("loading the weights of {}", from.display()), comm);
            comm.agree(state::load_weights(trainer, |tensor, rect, out| weights.read_parameter(tensor, rect, out)))
        }
    }
}

/// Megatron's sample order depends on the number of epochs, and so on the steps and on all stages: with more steps or
/// with another stage a source may be shuffled differently.
fn warn_of_another_order(now: &Feed, saved: &Saved) {
    let before = Config::from_resolved(&saved.header().config).and_then(|config| Feed::open(&config));
    let Ok(before) = before else {
        return;
    };
    let before: BTreeMap<String, String> = before.epochs().into_iter().collect();
    for (key, is) in now.epochs() {
        if let Some(was) = before.get(&key).filter(|was| **was != is) {
            say!(
                "warning: {}: was {was}, is now {is}: the remaining samples are in another order, and some will be \
                 seen twice or not at all",
                now.spelled(&key)
            );
        }
    }
}

/// A changed model, data plan or batch would make it another run.
fn must_match<B: Backend>(how: &Resume<'_>, trainer: &Trainer<B>, feed: &Feed, saved: &Saved) -> Result<()> {
    let header = saved.header();
    let saved = identity::comparable(state::saved_identity(&header));
    let now = state::identity(&trainer.config, feed.fingerprint(header.position.step));
    let mut differences = checkpoint::compare(&saved, &now);
    if how.accept_data_change {
        differences.retain(|d| !d.key.starts_with("data."));
    }
    if differences.is_empty() {
        return Ok(());
    }
    let data = differences.iter().any(|d| d.key.starts_with("data."));
    for difference in &mut differences {
        let values = [&mut difference.was, &mut difference.now].into_iter().flatten();
        values.chain([&mut difference.key]).for_each(|text| *text = feed.spelled(text));
    }
    let lines: Vec<String> = differences.iter().map(|d| format!("  {d}")).collect();
    Err(Error::user(format!(
        "{}: this run was started with other settings:\n{}\nrestore them, or choose another checkpoint.dir{}",
        trainer.config.checkpoint.dir.display(),
        lines.join("\n"),
        if data { " (--accept-data-change allows the changes of data)" } else { "" }
    )))
}
