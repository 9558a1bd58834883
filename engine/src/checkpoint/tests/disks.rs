//! Disks that are full for a while, directories that are replaced, and records that are flushed.

use super::*;
use crate::retry::Retry;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A file system of half a megabyte in memory, with a run that has a checkpoint of step 1.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` where this process must not mount one.
    fn mount() -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=512k", "none"]).arg(dir.path());
        if !mount.output().is_ok_and(|output| output.status.success()) {
            println!("skipped: a small tmpfs cannot be mounted");
            return None;
        }
        save_whole(&dir.path().join("run"), 1);
        Some(SmallDisk(dir))
    }

    fn run(&self) -> std::path::PathBuf {
        self.0.path().join("run")
    }

    /// Fills the disk up to a few kilobytes.
    fn fill(&self) {
        let filler = self.0.path().join("filler");
        assert!(fs::write(&filler, vec![1; 1 << 20]).is_err(), "the disk is too large");
        let file = fs::File::options().write(true).open(&filler).unwrap();
        file.set_len(file.metadata().unwrap().len() - (8 << 10)).unwrap();
    }

    fn make_room(&self) {
        fs::remove_file(self.0.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg(self.0.path()).status().unwrap().success());
    }
}

/// Options with a [`Retry`], and the lines that it reports.
fn patient(limit: Duration) -> (Options, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let told = lines.clone();
    let retry = Retry::new(limit, "rank 0 on a test", Arc::new(move |line| told.lock().unwrap().push(line.into())));
    (Options { retry, ..Options::default() }, lines)
}

fn listing(run: &Path) -> Vec<String> {
    let mut names = directory::names(&run.join("checkpoints")).unwrap();
    names.sort();
    names
}

/// Each rank's files are written anew once there is room, and training goes on meanwhile.
#[test]
fn a_save_outlasts_a_full_disk() {
    let Some(disk) = SmallDisk::mount() else { return };
    let run = disk.run();
    disk.fill();
    on_ranks(2, |comm| {
        let (options, lines) = patient(Duration::from_secs(60));
        let mut saver = saver_with(&run, comm, options);
        saver.begin(comm, &header(2), whole_pieces().skip(comm.rank()).step_by(2)).unwrap();
        wait_until(|| !lines.lock().unwrap().is_empty());
        saver.poll(comm).unwrap();
        assert!(saver.is_saving());
        // Both ranks have met the full disk.
        comm.all_gather_bytes(&[]);
        if comm.rank() == 0 {
            disk.make_room();
        }
        saver.finish(comm).unwrap();
        let lines = lines.lock().unwrap();
        assert_eq!(lines.len(), 2, "{lines:?}");
        let file = format!("rank-{:05}", comm.rank());
        let failed = "warning: rank 0 on a test: checkpoint of step 2: ";
        assert!(lines[0].starts_with(failed) && lines[0].contains(&file), "{lines:?}");
        assert!(lines[0].ends_with(": No space left on device (os error 28); trying again for 60 s"), "{lines:?}");
        assert!(lines[1].contains("the disk works again after "), "{lines:?}");
    });
    assert_eq!(listing(&run), ["latest", "step-00000001", "step-00000002"]);
    assert_holds_the_state(&Saved::latest(&run).unwrap().unwrap());
}

#[test]
fn a_disk_that_stays_full_ends_the_save_and_keeps_nothing_of_it() {
    let Some(disk) = SmallDisk::mount() else { return };
    let run = disk.run();
    disk.fill();
    let mut saver = saver_with(&run, &Solo, patient(Duration::from_millis(200)).0);
    saver.begin(&Solo, &header(2), whole_pieces()).unwrap();
    let error = saver.finish(&Solo).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("No space left on device (os error 28); it was tried again for "), "{error}");
    assert_eq!(listing(&run), ["latest", "step-00000001"]);
    disk.make_room();
    saver.begin(&Solo, &header(3), whole_pieces()).unwrap();
    saver.finish(&Solo).unwrap();
    assert_eq!(Saved::latest(&run).unwrap().unwrap().header().position.step, 3);
}

/// Steps that are in a checkpoint but not in the metrics would be lost with the power.
#[test]
fn records_are_flushed_before_the_checkpoint_is_complete() {
    let run = tempfile::tempdir().unwrap();
    let run = run.path();
    let record = run.join("metrics.jsonl");
    let mut saver = saver_with(run, &Solo, Options { records: vec![record.clone()], ..Options::default() });
    saver.begin(&Solo, &header(1), whole_pieces()).unwrap();
    assert!(saver.finish(&Solo).unwrap_err().to_string().contains("metrics.jsonl: it does not exist"));
    assert!(listing(run).is_empty());
    fs::write(&record, "{}\n").unwrap();
    saver.begin(&Solo, &header(1), whole_pieces()).unwrap();
    saver.finish(&Solo).unwrap();
    assert_eq!(listing(run), ["latest", "step-00000001"]);
}

/// A reader, or a process that is killed, finds the old directory or the new one.
#[test]
fn a_directory_that_is_replaced_is_there_at_every_moment() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("export");
    let write = |text: &str| directory::write_whole(&dir, |dir| directory::write(&dir.join("file"), text.as_bytes()));
    write("0").unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut reads, mut missing) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                (reads, missing) = (reads + 1, missing + u64::from(!dir.exists()));
            }
            (reads, missing)
        });
        (1..200).for_each(|n| write(&n.to_string()).unwrap());
        done.store(true, Ordering::Relaxed);
        let (reads, missing) = reader.join().unwrap();
        assert!(reads > 200 && missing == 0, "missing in {missing} of {reads} reads");
    });
    assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "199");
    assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1);
}

/// For file systems that cannot exchange directories.
#[test]
fn two_renames_put_the_new_directory_in_place() {
    let tmp = tempfile::tempdir().unwrap();
    let [old, new] = ["old", "new"].map(|name| tmp.path().join(name));
    [&old, &new].into_iter().for_each(|dir| fs::create_dir(dir).unwrap());
    fs::write(new.join("file"), "new").unwrap();
    directory::rename_twice(&new, &old).unwrap();
    assert_eq!(fs::read_to_string(old.join("file")).unwrap(), "new");
    assert!(!new.exists() && tmp.path().join(".old.old").exists());
}

/// An export over an older one that was stopped between two renames: the next one finds the older one again, and
/// leaves it where it fails itself.
#[test]
fn an_export_that_was_set_aside_comes_back() {
    let tmp = tempfile::tempdir().unwrap();
    let to = tmp.path().join("out");
    super::huggingface::export_small_shards(&to);
    let set_aside = || fs::rename(&to, tmp.path().join(".out.old")).unwrap();
    set_aside();
    fs::write(tmp.path().join(".out.old/notes"), "of the user").unwrap();
    let run = tempfile::tempdir().unwrap();
    let header = Header { config: model().to_toml(), ..header(1) };
    save(run.path(), &Solo, &header, whole_pieces(), None).unwrap();
    let export = || FromSaved::new(Saved::at_step(run.path(), 1).unwrap(), None).unwrap().write(&to, &mut |_| ());
    assert!(refusal(export()).contains("would delete notes"));
    fs::remove_file(to.join("notes")).unwrap();
    set_aside();
    export().unwrap();
    assert_eq!(directory::names(tmp.path()).unwrap(), ["out"]);
    assert!(to.join("model.safetensors").exists());
}
