//! Saves that are killed or fail, and which checkpoints remain.

use super::*;
use std::fs;

fn listing(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run.join("checkpoints")).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn latest_step(run: &Path) -> u64 {
    let saved = Saved::latest(run).unwrap().unwrap();
    assert_holds_the_state(&saved);
    saved.header().position.step
}

/// After every step of a save that is killed, `latest` is a complete checkpoint and the next save works.
#[test]
fn a_killed_save_leaves_the_one_before() {
    let run = tempfile::tempdir().unwrap();
    let (run, at) = (run.path(), run.path().join("checkpoints"));
    let first = save_whole(run, 1);
    fs::create_dir(at.join(".step-00000002.tmp")).unwrap();
    fs::write(at.join(".step-00000002.tmp/rank-00000-0.safetensors"), "half of").unwrap();
    assert_eq!(latest_step(run), 1);
    // The directory was renamed, but `latest` was not written.
    copy(&first, &at.join("step-00000003"));
    fs::write(at.join(".latest.tmp"), "step-00").unwrap();
    assert_eq!(latest_step(run), 1);
    save_whole(run, 4);
    assert_eq!(latest_step(run), 4);
    assert_eq!(listing(run), ["latest", "step-00000001", "step-00000003", "step-00000004"]);
}

/// A step that is saved again replaces the old checkpoint; if the save is killed between the renames, the old one is
/// used.
#[test]
fn a_killed_replacement_leaves_the_old_one() {
    let run = tempfile::tempdir().unwrap();
    let (run, at) = (run.path(), run.path().join("checkpoints"));
    let dir = save_whole(run, 7);
    assert_eq!(save_whole(run, 7), dir);
    assert_eq!(listing(run), ["latest", "step-00000007"]);
    fs::rename(&dir, at.join(".step-00000007.old")).unwrap();
    assert_eq!(latest_step(run), 7);
    save_whole(run, 8);
    assert_eq!(listing(run), ["latest", "step-00000007", "step-00000008"]);
    copy(&dir, &at.join(".step-00000007.old"));
    save_whole(run, 9);
    assert_eq!(listing(run), ["latest", "step-00000007", "step-00000008", "step-00000009"]);
}

#[test]
fn one_rank_that_fails_ends_the_save_on_all() {
    let run = tempfile::tempdir().unwrap();
    save_whole(run.path(), 1);
    let errors = on_ranks(3, |comm| {
        let mine = whole_pieces().skip(comm.rank()).step_by(3).map(|piece| match (comm.rank(), piece.kind) {
            (1, StateKind::M) => Err(Error::run("the disk of rank 1 is full")),
            _ => Ok(piece),
        });
        saver(run.path(), comm, Some(1)).save(comm, &header(2), mine).unwrap_err().to_string()
    });
    assert_eq!(errors, ["rank 1 on a test: the disk of rank 1 is full"; 3]);
    assert_eq!(latest_step(run.path()), 1);
    assert_eq!(listing(run.path()), ["latest", "step-00000001"]);
}

#[test]
fn keep_removes_the_oldest() {
    let run = tempfile::tempdir().unwrap();
    let run = run.path();
    for step in [5, 10, 15, 20] {
        save(run, &Solo, &header(step), whole_pieces(), Some(2)).unwrap();
    }
    assert_eq!(steps(run).unwrap(), [15, 20]);
    // The run was continued from step 15: step 20 belongs to an abandoned branch.
    save(run, &Solo, &header(16), whole_pieces(), Some(1)).unwrap();
    assert_eq!(steps(run).unwrap(), [16, 20]);
    assert_eq!(latest_step(run), 16);
    save(run, &Solo, &header(17), whole_pieces(), Some(0)).unwrap();
    assert_eq!(steps(run).unwrap(), [17, 20]);
}

#[test]
fn latest_is_not_followed_blindly() {
    let run = tempfile::tempdir().unwrap();
    let run = run.path();
    assert!(Saved::latest(run).unwrap().is_none());
    save_whole(run, 1);
    for (text, message) in [
        ("step-00000009\n", "\"step-00000009\" does not exist"),
        ("../step-00000001", "is not the name of a checkpoint"),
        ("step-99999999999999999999999", "is not the name of a checkpoint"),
        ("", "is not the name of a checkpoint"),
    ] {
        fs::write(run.join("checkpoints/latest"), text).unwrap();
        let what = refusal(Saved::latest(run));
        assert!(what.contains(message) && what.contains("--from-step N, N of 1"), "{what}");
    }
    assert_holds_the_state(&Saved::at_step(run, 1).unwrap());
    assert!(
        refusal(Saved::at_step(run, 2))
            .contains("step-00000002: there is no such checkpoint; to continue from another")
    );
}

/// A run whose `latest` was lost does not start over, and no import overwrites it.
#[test]
fn a_lost_latest_is_refused() {
    let run = tempfile::tempdir().unwrap();
    let run = run.path();
    save_whole(run, 3);
    save_whole(run, 6);
    fs::remove_file(run.join("checkpoints/latest")).unwrap();
    let what = refusal(Saved::latest(run));
    assert!(what.contains("checkpoints/latest: there is no such file"), "{what}");
    assert!(what.contains("--from-step N, N of 3, 6, or train --fall-back"), "{what}");
    assert_eq!(refusal(import(run, run, &model(), &header(0), &mut |_| ())), what);
    assert_holds_the_state(&Saved::at_step(run, 3).unwrap());
}

/// A full disk or a kill may leave any of these; a run that starts again needs their space.
#[test]
fn leftovers_of_dead_saves_are_removed() {
    let run = tempfile::tempdir().unwrap();
    let (run, at) = (run.path(), run.path().join("checkpoints"));
    let dir = save_whole(run, 7);
    fs::rename(&dir, at.join(".step-00000007.old")).unwrap();
    let leftovers = [".step-00000007.tmp", ".step-00000008.tmp", ".step-00000006.pruned"].map(|name| at.join(name));
    for leftover in leftovers.into_iter().chain([run.join(".source.tmp")]) {
        fs::create_dir(&leftover).unwrap();
        fs::write(leftover.join("half"), "half of").unwrap();
    }
    fs::write(at.join(".latest.tmp"), "step-00").unwrap();
    clean(run).unwrap();
    assert_eq!(listing(run), ["latest", "step-00000007"]);
    assert_eq!(fs::read_dir(run).unwrap().count(), 1);
    assert_eq!(latest_step(run), 7);
}

/// The next start would find a checkpoint that is newer than the one that `latest` names.
#[test]
fn a_checkpoint_whose_latest_cannot_be_written_is_taken_back() {
    let run = tempfile::tempdir().unwrap();
    let (run, at) = (run.path(), run.path().join("checkpoints"));
    let in_the_way = at.join(".latest.tmp");
    let save_failing = |step: u64| {
        let mut saver = saver(run, &Solo, None);
        let queue = saver.start(&Solo, &header(step), None).unwrap();
        fs::create_dir_all(&in_the_way).unwrap();
        whole_pieces().for_each(|piece| queue.send(Ok(piece)).unwrap());
        drop(queue);
        assert!(saver.finish(&Solo).unwrap_err().to_string().contains(".latest.tmp"));
        fs::remove_dir(&in_the_way).unwrap();
    };
    save_failing(4);
    assert!(Saved::latest(run).unwrap().is_none());
    // The step that `latest` names stays, though it was saved again.
    save_whole(run, 4);
    save_failing(4);
    assert_eq!(latest_step(run), 4);
}

/// The checkpoint is there, `latest` is not: only an import leaves that at step 0, and the same import succeeds.
#[test]
fn an_import_that_ended_before_latest_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let (from, run) = (dir.path().join("hf"), dir.path().join("run"));
    super::huggingface::export_small_shards(&from);
    import(&from, &run, &model(), &header(0), &mut |_| ()).unwrap();
    fs::remove_file(run.join("checkpoints/latest")).unwrap();
    import(&from, &run, &model(), &header(0), &mut |_| ()).unwrap();
    assert_eq!(directory::latest_step(&run).unwrap(), Some(0));
}

/// If the disk fills up during an import, nothing of the import is left.
#[test]
fn a_failed_import_leaves_no_source() {
    let dir = tempfile::tempdir().unwrap();
    let (from, run) = (dir.path().join("hf"), dir.path().join("run"));
    super::huggingface::export_small_shards(&from);
    // The directory that is being written is removed during the import.
    let mut first = true;
    let error = import(&from, &run, &model(), &header(0), &mut |_| {
        if std::mem::take(&mut first) {
            super::wait_until(|| run.join("checkpoints/.step-00000000.tmp").exists());
            fs::remove_dir_all(run.join("checkpoints")).unwrap();
        }
    });
    assert!(error.is_err());
    assert!(!run.join("source").exists());
}
