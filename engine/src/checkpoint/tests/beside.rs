//! Asynchronous saving: the checkpoints that a reader sees while the threads write.

use super::*;
use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

/// Every third piece, from the `rank`-th on.
fn third(rank: usize) -> impl Iterator<Item = Piece> {
    whole_pieces().skip(rank).step_by(3)
}

fn latest_step(run: &Path) -> u64 {
    let saved = Saved::latest(run).unwrap().unwrap();
    assert_holds_the_state(&saved);
    saved.header().position.step
}

fn listing(run: &Path) -> Vec<String> {
    let mut names = directory::names(&run.join("checkpoints")).unwrap();
    names.sort();
    names
}

#[test]
fn latest_waits_for_the_slowest_rank() {
    let run = tempfile::tempdir().unwrap();
    let run = run.path();
    save_whole(run, 1);
    on_ranks(3, |comm| {
        let mut saver = saver(run, comm, Some(1));
        let queue = saver.start(comm, &header(2), None).unwrap();
        third(comm.rank()).for_each(|piece| queue.send(Ok(piece)).unwrap());
        // A rank whose queue is open is not done.
        let open = (comm.rank() == 2).then_some(queue);
        for _ in 0..50 {
            saver.poll(comm).unwrap();
            assert!(saver.is_saving());
            assert_eq!(latest_step(run), 1);
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(open);
        while saver.is_saving() {
            saver.poll(comm).unwrap();
        }
        assert_eq!(latest_step(run), 2);
    });
    assert_eq!(listing(run), ["latest", "step-00000002"]);
    let writers = Saved::latest(run).unwrap().unwrap().manifest().writers.clone();
    let writer = |rank| (format!("rank-{rank:05}-0.safetensors"), format!("rank {rank} on a test"));
    assert_eq!(writers.into_iter().collect::<Vec<_>>(), [writer(0), writer(1), writer(2)]);
    let mut files = directory::names(&run.join("checkpoints/step-00000002")).unwrap();
    files.retain(|name| !name.ends_with(".safetensors"));
    assert_eq!(files, ["manifest.json"]);
}

/// A killed process leaves the files that a reader sees at that time.
#[test]
fn at_every_moment_latest_is_whole() {
    let run = tempfile::tempdir().unwrap();
    let run = run.path();
    save_whole(run, 1);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = vec![1];
            while !done.load(Ordering::Relaxed) {
                seen.push(latest_step(run));
            }
            seen
        });
        let mut saver = saver(run, &Solo, None);
        for step in 2..30 {
            saver.begin(&Solo, &header(step), whole_pieces()).unwrap();
            for _ in 0..5 {
                saver.poll(&Solo).unwrap();
                std::thread::sleep(Duration::from_micros(500));
            }
        }
        saver.finish(&Solo).unwrap();
        done.store(true, Ordering::Relaxed);
        let seen = reader.join().unwrap();
        assert!(seen.is_sorted() && seen.len() > 5, "{seen:?}");
    });
    assert_eq!(latest_step(run), 29);
    assert_eq!(steps(run).unwrap(), (1..30).collect::<Vec<_>>());
}

/// A byte changes between writing and reading back.
#[test]
fn what_does_not_read_back_is_no_checkpoint() {
    let run = tempfile::tempdir().unwrap();
    let run = run.path();
    save_whole(run, 1);
    let errors = on_ranks(3, |comm| {
        let mut saver = saver(run, comm, Some(1));
        let queue = saver.start(comm, &header(2), None).unwrap();
        third(comm.rank()).for_each(|piece| queue.send(Ok(piece)).unwrap());
        if comm.rank() == 1 {
            let file = run.join("checkpoints/.step-00000002.tmp/rank-00001-0.safetensors");
            let data = 8 + (64 << 10) + third(1).map(|piece| piece.rect.len() * 4).sum::<usize>();
            wait_until(|| fs::metadata(&file).is_ok_and(|file| file.len() as usize == data));
            flip(&file, data - 1);
        }
        drop(queue);
        let error = saver.finish(comm).unwrap_err().to_string();
        assert!(!saver.is_saving());
        // Rank 0 has removed the files before it reaches this call.
        comm.all_gather_bytes(&[]);
        assert_eq!((latest_step(run), listing(run)), (1, vec!["latest".into(), "step-00000001".into()]));
        // The next save succeeds.
        comm.all_gather_bytes(&[]);
        saver.begin(comm, &header(3), third(comm.rank())).unwrap();
        saver.finish(comm).unwrap();
        assert_eq!(latest_step(run), 3);
        error
    });
    assert_eq!(errors, [errors[0].as_str(); 3]);
    assert!(errors[0].starts_with("rank 1 on a test: "), "{}", errors[0]);
    assert!(errors[0].contains("rank-00001-0.safetensors: ") && errors[0].contains("does not read back"));
}

fn flip(file: &Path, at: usize) {
    let byte = fs::read(file).unwrap()[at] ^ 1;
    // In place, because the file is open elsewhere.
    fs::File::options().write(true).open(file).unwrap().write_all_at(&[byte], at as u64).unwrap();
}

/// Rank 0's part fails: another rank's list is missing, or differs from what was written.
#[test]
fn all_ranks_learn_that_the_first_failed() {
    for (damage, message) in [
        ((|list| fs::remove_file(list).unwrap()) as fn(&Path), "all ranks need the same file system"),
        (|list| fs::write(list, "{}").unwrap(), "rank-00001.json does not read back"),
        (|list| fs::remove_file(list.with_file_name("rank-00001-0.safetensors")).unwrap(), "the same file system"),
    ] {
        let run = tempfile::tempdir().unwrap();
        let run = run.path();
        save_whole(run, 1);
        let errors = on_ranks(3, |comm| {
            let mut saver = saver(run, comm, None);
            saver.begin(comm, &header(2), third(comm.rank())).unwrap();
            let list = run.join("checkpoints/.step-00000002.tmp/rank-00001.json");
            if comm.rank() == 1 {
                wait_until(|| fs::metadata(&list).is_ok_and(|list| list.len() > 0));
                damage(&list);
            }
            saver.finish(comm).unwrap_err().to_string()
        });
        assert_eq!(errors, [errors[0].as_str(); 3]);
        assert!(errors[0].contains(message), "{}", errors[0]);
        assert_eq!((latest_step(run), listing(run)), (1, vec!["latest".into(), "step-00000001".into()]));
    }
}

#[test]
fn the_next_save_waits_for_the_one_before() {
    let run = tempfile::tempdir().unwrap();
    let run = run.path();
    on_ranks(2, |comm| {
        let mine = || whole_pieces().skip(comm.rank()).step_by(2);
        let mut saver = saver(run, comm, None);
        saver.begin(comm, &header(1), mine()).unwrap();
        saver.begin(comm, &header(2), mine()).unwrap();
        assert!(Saved::latest(run).unwrap().is_some());
        assert_eq!(steps(run).unwrap()[0], 1);
        saver.finish(comm).unwrap();
        assert_eq!(steps(run).unwrap(), [1, 2]);
    });
}
