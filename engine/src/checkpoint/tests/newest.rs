//! The checkpoint to continue from, where `latest` or the newest checkpoint cannot be used.

use super::*;
use std::fs;

fn listing(run: &Path) -> Vec<String> {
    let mut names = directory::names(&run.join("checkpoints")).unwrap();
    names.sort();
    names
}

/// A run with checkpoints of these steps, saved in this order.
fn run_of(steps: &[u64]) -> tempfile::TempDir {
    let run = tempfile::tempdir().unwrap();
    steps.iter().for_each(|&step| _ = save_whole(run.path(), step));
    run
}

fn damage(run: &Path, step: u64) {
    let file = run.join(format!("checkpoints/step-{step:08}/rank-00000-0.safetensors"));
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(file, bytes).unwrap();
}

/// The step that is found, and the warnings.
fn found(run: &Path, if_damaged: IfDamaged) -> (u64, Vec<String>) {
    let Newest { saved, warnings } = newest(run, if_damaged).unwrap();
    let saved = saved.unwrap();
    assert_holds_the_state(&saved);
    (saved.header().position.step, warnings)
}

/// A save that was killed between its rename and `latest`, and damage to `latest`.
#[test]
fn a_latest_that_names_nothing_is_written_anew() {
    for (latest, wrong) in [
        (None, "latest: there is no such file; the run continues from step-00000006"),
        (Some("step-00000999\n"), "\"step-00000999\" does not exist; the run continues from step-00000006"),
        (Some(""), "is not the name of a checkpoint such as step-00000500; the run continues from step-00000006"),
    ] {
        let run = run_of(&[3, 6]);
        let path = run.path().join("checkpoints/latest");
        match latest {
            None => fs::remove_file(&path).unwrap(),
            Some(text) => fs::write(&path, text).unwrap(),
        }
        let (step, warnings) = found(run.path(), IfDamaged::Refuse);
        assert_eq!((step, warnings.len()), (6, 1));
        assert!(warnings[0].contains(wrong), "{warnings:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "step-00000006\n");
        assert_eq!(found(run.path(), IfDamaged::Refuse), (6, vec![]));
    }
    let run = run_of(&[3, 6]);
    damage(run.path(), 6);
    fs::remove_file(run.path().join("checkpoints/latest")).unwrap();
    assert_eq!(found(run.path(), IfDamaged::Refuse).0, 3);
    assert_eq!(listing(run.path()), ["latest", "step-00000003", "step-00000006.damaged"]);
}

#[test]
fn a_run_without_checkpoints_has_none() {
    let run = tempfile::tempdir().unwrap();
    assert!(newest(run.path(), IfDamaged::FallBack).unwrap().saved.is_none());
    fs::create_dir(run.path().join("checkpoints")).unwrap();
    fs::write(run.path().join("checkpoints/latest"), "step-00000003").unwrap();
    assert!(refusal(newest(run.path(), IfDamaged::FallBack)).contains("does not exist; this run has no other"));
}

/// The damaged one is no checkpoint of the run any more: it is not kept in place of a good one, nor in the way of the
/// same step.
#[test]
fn falling_back_sets_the_damaged_one_aside() {
    for manifest in [false, true] {
        let run = run_of(&[3, 6]);
        let run = run.path();
        match manifest {
            true => fs::write(run.join("checkpoints/step-00000006/manifest.json"), "{").unwrap(),
            false => damage(run, 6),
        }
        let refused = newest(run, IfDamaged::Refuse).and_then(|found| found.saved.unwrap().verify(&mut |_| ()));
        assert!(refusal(refused).contains("or train --fall-back for the newest that is not damaged"));
        let (step, warnings) = found(run, IfDamaged::FallBack);
        assert_eq!((step, warnings.len()), (3, 1));
        assert!(warnings[0].contains(if manifest { "manifest.json" } else { "rank-00000-0" }), "{warnings:?}");
        assert!(warnings[0].ends_with("step-00000006.damaged, and the run goes back to step 3"), "{warnings:?}");
        assert_eq!(found(run, IfDamaged::Refuse), (3, vec![]));
        save(run, &Solo, &header(6), whole_pieces(), Some(2)).unwrap();
        assert_eq!(listing(run), ["latest", "step-00000003", "step-00000006", "step-00000006.damaged"]);
        assert_eq!(found(run, IfDamaged::FallBack), (6, vec![]));
    }
}

/// After `--from-step 3`, the later steps are another branch.
#[test]
fn no_abandoned_branch_is_fallen_back_to() {
    let run = run_of(&[3, 9, 5]);
    damage(run.path(), 5);
    assert_eq!(found(run.path(), IfDamaged::FallBack).0, 3);
    assert_eq!(listing(run.path()), ["latest", "step-00000003", "step-00000005.damaged", "step-00000009"]);
}

/// The run went back from 9 to 3, saved 5 and 10 there, and keeps two: 6 and 9 are neither counted nor removed, nor
/// fallen back to, until the user names one.
#[test]
fn a_branch_stays_abandoned_when_the_run_has_passed_it() {
    let run = run_of(&[3, 6, 9]);
    let run = run.path();
    go_back(run, 3).unwrap();
    assert_eq!((live_steps(run).unwrap(), steps(run).unwrap()), (vec![3], vec![3, 6, 9]));
    for step in [5, 10] {
        save(run, &Solo, &header(step), whole_pieces(), Some(2)).unwrap();
    }
    assert_eq!((live_steps(run).unwrap(), steps(run).unwrap()), (vec![5, 10], vec![5, 6, 9, 10]));
    damage(run, 10);
    assert_eq!(found(run, IfDamaged::FallBack).0, 5);
    go_back(run, 9).unwrap();
    assert_eq!((found(run, IfDamaged::Refuse).0, live_steps(run).unwrap()), (9, vec![5, 9]));
    // A new checkpoint of the step takes the place of the abandoned one.
    save_whole(run, 6);
    assert_eq!(live_steps(run).unwrap(), [5, 6, 9]);
}

/// A file that cannot be opened may be sound, and a folder of another step was not made by a save.
#[test]
fn what_cannot_be_read_is_not_set_aside_and_a_folder_of_another_step_is() {
    let run = run_of(&[3, 6]);
    let file = run.path().join("checkpoints/step-00000006/rank-00000-0.safetensors");
    let aside = run.path().join("aside");
    fs::rename(&file, &aside).unwrap();
    std::os::unix::fs::symlink(&file, &file).unwrap();
    let before = listing(run.path());
    let what = newest(run.path(), IfDamaged::FallBack).err().expect("a link to itself").to_string();
    assert!(what.contains("step-00000006 cannot be read, which does not mean that it is damaged"), "{what}");
    assert_eq!(listing(run.path()), before);
    fs::remove_file(&file).unwrap();
    fs::rename(&aside, &file).unwrap();
    assert_eq!(found(run.path(), IfDamaged::FallBack).0, 6);
    let [six, nine] = [6, 9].map(|step| run.path().join(format!("checkpoints/step-{step:08}")));
    fs::rename(six, nine).unwrap();
    fs::write(run.path().join("checkpoints/latest"), "step-00000009\n").unwrap();
    let what = refusal(newest(run.path(), IfDamaged::Refuse));
    assert!(what.contains("step-00000009: its manifest.json is of step 6, not 9"), "{what}");
    assert_eq!(found(run.path(), IfDamaged::FallBack).0, 3);
}

#[test]
fn where_all_are_damaged_nothing_changes() {
    let run = run_of(&[3, 6]);
    [3, 6].into_iter().for_each(|step| damage(run.path(), step));
    let before = listing(run.path());
    let what = refusal(newest(run.path(), IfDamaged::FallBack));
    assert!(what.contains("every checkpoint of this run is damaged"), "{what}");
    assert!(what.contains("step-00000003/rank") && what.contains("step-00000006/rank"), "{what}");
    assert_eq!(listing(run.path()), before);
}

/// A run that saves removes a checkpoint while `verify` reads it.
#[test]
fn a_checkpoint_that_is_removed_meanwhile_is_not_called_damaged() {
    let run = run_of(&[3, 6]);
    let run = run.path();
    let saved = Saved::at_step(run, 3).unwrap();
    directory::prune(run, 6, keeping(Some(1)), None).unwrap();
    let what = refusal(saved.verify(&mut |_| ()));
    assert!(what.contains("step-00000003: the run removed this checkpoint while it was read"), "{what}");
    assert!(!what.contains("damaged"), "{what}");
}
