//! Exports that a run makes beside its checkpoints.

use super::*;
use std::collections::BTreeMap;
use std::fs;

/// A header whose configuration is the small model's.
fn header(step: u64) -> Header {
    Header { config: model().to_toml(), ..super::header(step) }
}

fn exporter(run: &Path, comm: &impl Exchange, keep: Option<usize>) -> Saver {
    saver_with(run, comm, Options { retention: keeping(keep), export_interval: 2, ..Options::default() })
}

/// Saves these steps, one rank's share of the pieces.
fn save_steps(saver: &mut Saver, comm: &impl Exchange, steps: impl Iterator<Item = u64>) {
    for step in steps {
        let mine = whole_pieces().skip(comm.rank()).step_by(comm.size());
        saver.begin(comm, &header(step), mine).unwrap();
        saver.poll(comm).unwrap();
    }
    saver.finish(comm).unwrap();
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = directory::names(dir).unwrap().into_iter();
    names.map(|name| (name.clone(), fs::read(dir.join(name)).unwrap())).collect()
}

fn listing(run: &Path) -> Vec<String> {
    let mut names = directory::names(&run.join("exports")).unwrap();
    names.sort();
    names
}

#[test]
fn each_is_the_export_of_its_checkpoint() {
    for ranks in [1, 3] {
        let run = tempfile::tempdir().unwrap();
        let run = run.path();
        fs::create_dir(run.join("source")).unwrap();
        fs::write(run.join("source/tokenizer.json"), "a tokenizer").unwrap();
        on_ranks(ranks, |comm| save_steps(&mut exporter(run, comm, None), comm, 1..6));
        assert_eq!(listing(run), ["step-00000002", "step-00000004"]);
        for step in [2, 4] {
            let again = run.join("again");
            let export = FromSaved::new(Saved::at_step(run, step).unwrap(), None).unwrap();
            export.write(&again, &mut |_| ()).unwrap();
            let ours = contents(&run.join(format!("exports/step-{step:08}")));
            assert!(ours == contents(&again), "step {step} by {ranks} ranks");
            assert_eq!(ours["tokenizer.json"], b"a tokenizer");
        }
    }
}

/// The newest ones stay, of checkpoints and of exports; the checkpoint that is read for an export stays until then.
#[test]
fn keep_holds_for_both() {
    let run = tempfile::tempdir().unwrap();
    let run = run.path();
    on_ranks(2, |comm| save_steps(&mut exporter(run, comm, Some(2)), comm, 1..10));
    assert_eq!(steps(run).unwrap(), [8, 9]);
    assert_eq!(listing(run), ["step-00000006", "step-00000008"]);
    on_ranks(2, |comm| save_steps(&mut exporter(run, comm, Some(1)), comm, 10..11));
    assert_eq!((steps(run).unwrap(), listing(run)), (vec![10], vec!["step-00000010".into()]));
    directory::prune(run, 11, keeping(Some(1)), Some(10)).unwrap();
    assert_eq!(steps(run).unwrap(), [10]);
    directory::prune(run, 11, keeping(Some(1)), None).unwrap();
    assert!(steps(run).unwrap().is_empty());
}

/// Checkpoints that are never removed stay, whatever `keep` says.
#[test]
fn keep_every_spares_checkpoints_and_exports() {
    let run = tempfile::tempdir().unwrap();
    let run = run.path();
    let retention = Retention { keep: Some(1), keep_every: 4 };
    let options = || Options { retention, export_interval: 2, ..Options::default() };
    on_ranks(2, |comm| save_steps(&mut saver_with(run, comm, options()), comm, 1..12));
    assert_eq!(steps(run).unwrap(), [4, 8, 11]);
    assert_eq!(listing(run), ["step-00000004", "step-00000008", "step-00000010"]);
}

/// The next process removes what a killed export left, makes that export, and no other again.
#[test]
fn a_killed_export_is_made_by_the_next_process() {
    let run = tempfile::tempdir().unwrap();
    let run = run.path();
    let exports = run.join("exports");
    save_steps(&mut exporter(run, &Solo, None), &Solo, 1..6);
    let whole = contents(&exports.join("step-00000004"));
    fs::rename(exports.join("step-00000004"), exports.join(".step-00000004.tmp")).unwrap();
    fs::remove_file(exports.join(".step-00000004.tmp/swallow_engine.json")).unwrap();
    fs::write(exports.join("step-00000002/model.safetensors"), "as it was").unwrap();

    clean(run).unwrap();
    assert_eq!(listing(run), ["step-00000002"]);
    let mut saver = exporter(run, &Solo, None);
    saver.export_missing(&Solo, 3).unwrap();
    saver.finish(&Solo).unwrap();
    assert_eq!(listing(run), ["step-00000002"], "step 4 comes later");
    saver.export_missing(&Solo, 5).unwrap();
    saver.finish(&Solo).unwrap();
    assert!(contents(&exports.join("step-00000004")) == whole);
    saver.export_missing(&Solo, 5).unwrap();
    saver.finish(&Solo).unwrap();
    assert_eq!(fs::read(exports.join("step-00000002/model.safetensors")).unwrap(), b"as it was");
}

/// A step that is saved again, by a run that went back, is another checkpoint.
#[test]
fn a_step_that_is_saved_again_is_exported_again() {
    let run = tempfile::tempdir().unwrap();
    let run = run.path();
    let file = run.join("exports/step-00000002/model.safetensors");
    save_steps(&mut exporter(run, &Solo, None), &Solo, 2..3);
    let whole = fs::read(&file).unwrap();
    fs::write(&file, "an older one").unwrap();
    save_steps(&mut exporter(run, &Solo, None), &Solo, 2..3);
    assert_eq!(fs::read(&file).unwrap(), b"an older one", "the same checkpoint");
    on_ranks(2, |comm| save_steps(&mut exporter(run, comm, None), comm, 2..3));
    assert!(fs::read(&file).unwrap() == whole);
}

#[test]
fn all_ranks_learn_that_an_export_failed() {
    let run = tempfile::tempdir().unwrap();
    let run = run.path();
    fs::write(run.join("exports"), "a file in the way").unwrap();
    let errors = on_ranks(3, |comm| {
        let mut saver = exporter(run, comm, None);
        let mine = || whole_pieces().skip(comm.rank()).step_by(3);
        saver.begin(comm, &header(2), mine()).unwrap();
        let error = saver.finish(comm).unwrap_err().to_string();
        // The checkpoint stands, and so does the next one.
        saver.begin(comm, &header(3), mine()).unwrap();
        saver.finish(comm).unwrap();
        error
    });
    assert_eq!(errors, [errors[0].as_str(); 3]);
    assert!(errors[0].starts_with("exporting the checkpoint of step 2: "), "{}", errors[0]);
    assert_eq!(steps(run).unwrap(), [2, 3]);
}
