//! A parallel map over batches whose results arrive in the order of the batches.
//!
//! A reader hands batches to the workers and, in the same order, the receivers of their results to the calling thread,
//! so what is made of the results does not depend on the number of workers.

use crossbeam::channel::{Receiver, Sender, bounded};
use data::budget::{Budget, Share};
use engine::error::{Error, Result};

use crate::documents::Batch;

/// A result and the share of the memory of its batch, which is held until the result is used.
type Answer<'b, T> = Result<(T, Share<'b>)>;

struct Work<'b, T> {
    batch: Batch,
    share: Share<'b>,
    answer: Sender<Answer<'b, T>>,
}

/// Applies `f` to batches on `workers` threads. `each` gets the results on the calling thread in the order of the
/// batches. At most `in_flight` bytes of batches are between the reader and `each`, or one batch if it is larger, and
/// at most `2 * workers + 2` batches. The first error in the order of the batches ends it and is returned.
pub fn map<T: Send>(
    batches: impl Iterator<Item = Result<Batch>> + Send,
    workers: usize,
    in_flight: usize,
    f: impl Fn(Batch) -> Result<T> + Sync,
    mut each: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    assert!(workers > 0, "{workers} workers");
    let budget = Budget::new(in_flight);
    std::thread::scope(|scope| {
        let (to_workers, work) = bounded(workers);
        let (to_caller, results) = bounded(workers);
        let (budget, f) = (&budget, &f);
        scope.spawn(move || hand_out(batches, budget, &to_workers, &to_caller));
        for _ in 0..workers {
            let work: Receiver<Work<T>> = work.clone();
            scope.spawn(move || {
                for Work { batch, share, answer } in work {
                    // The caller may have stopped at an earlier error.
                    answer.send(f(batch).map(|result| (result, share))).ok();
                }
            });
        }
        drop(work);
        for result in results {
            let result: Receiver<Answer<T>> = result;
            let (result, share) = result.recv().map_err(|_| Error::run("a worker died"))??;
            each(result)?;
            drop(share);
        }
        Ok(())
    })
}

/// Returns after the last batch, at the first error, or when the receivers are gone.
fn hand_out<'b, T>(
    batches: impl Iterator<Item = Result<Batch>>,
    budget: &'b Budget,
    to_workers: &Sender<Work<'b, T>>,
    to_caller: &Sender<Receiver<Answer<'b, T>>>,
) {
    for batch in batches {
        let (answer, result) = bounded(1);
        if to_caller.send(result).is_err() {
            return;
        }
        match batch {
            Ok(batch) => {
                let share = budget.take(batch.size());
                if to_workers.send(Work { batch, share, answer }).is_err() {
                    return;
                }
            }
            Err(e) => {
                answer.send(Err(e)).ok();
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    use std::time::Duration;

    use data::text::Inputs;

    use super::*;
    use crate::documents::batches;

    /// About 40 batches in one file.
    fn inputs(folder: &std::path::Path) -> Inputs {
        let path = folder.join("a.jsonl");
        let line = |i: usize| format!("{{\"text\": \"{i} {}\"}}\n", "x".repeat(i % 3000));
        std::fs::write(&path, (0..7000).map(line).collect::<String>()).unwrap();
        Inputs { paths: vec![path], format: None, key: "text".into() }
    }

    /// The numbers at the beginnings of the documents.
    fn numbers(batch: &Batch) -> Vec<usize> {
        let number = |text: &str| text.split(' ').next().unwrap().parse().unwrap();
        batch.documents("text").iter().map(|document| number(&document.as_ref().unwrap().text)).collect()
    }

    #[test]
    fn results_arrive_in_the_order_of_the_batches() {
        let folder = tempfile::tempdir().unwrap();
        let inputs = inputs(folder.path());
        for workers in [1, 2, 5] {
            let (mut all, mut calls) = (Vec::new(), 0);
            let work = |batch: Batch| {
                let numbers = numbers(&batch);
                // Batches take different times.
                std::thread::sleep(Duration::from_micros(numbers[0] as u64 * 7919 % 3000));
                Ok(numbers)
            };
            let read = AtomicU64::new(0).into();
            map(batches(&inputs, read), workers, 1 << 20, work, |numbers| {
                calls += 1;
                all.extend(numbers);
                Ok(())
            })
            .unwrap();
            assert!(calls > 20, "{calls} batches");
            assert!(all.iter().copied().eq(0..7000), "{workers} workers");
        }
    }

    #[test]
    fn the_memory_between_reader_and_caller_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let inputs = inputs(folder.path());
        let (held, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = |batch: Batch| {
            let now = held.fetch_add(batch.size(), Ordering::SeqCst) + batch.size();
            most.fetch_max(now, Ordering::SeqCst);
            Ok(batch.size())
        };
        map(batches(&inputs, AtomicU64::new(0).into()), 4, 1 << 20, work, |size| {
            std::thread::sleep(Duration::from_millis(1));
            held.fetch_sub(size, Ordering::SeqCst);
            Ok(())
        })
        .unwrap();
        let most = most.into_inner();
        assert!((300 << 10..=1 << 20).contains(&most), "{most} bytes at once");
    }

    #[test]
    fn the_first_error_in_the_order_of_the_batches_ends_it() {
        let folder = tempfile::tempdir().unwrap();
        let inputs = inputs(folder.path());
        let mut seen = 0;
        let work = |batch: Batch| {
            let numbers = numbers(&batch);
            match numbers.contains(&3000) || numbers.contains(&3500) {
                true => Err(Error::user(format!("bad {}", numbers[0] <= 3000))),
                false => Ok(numbers.len()),
            }
        };
        let read = || AtomicU64::new(0).into();
        let error = map(batches(&inputs, read()), 3, 1 << 20, work, |n| {
            seen += n;
            Ok(())
        });
        assert_eq!(error.unwrap_err().to_string(), "bad true");
        assert!((1..=3000).contains(&seen), "{seen} documents before the error");
        let error = map(batches(&inputs, read()), 3, 1 << 20, |_| Ok(()), |()| Err(Error::run("the disk is full")));
        assert_eq!(error.unwrap_err().to_string(), "the disk is full");
    }

    #[test]
    fn a_batch_above_the_limit_passes_alone_and_no_batch_is_no_call() {
        let folder = tempfile::tempdir().unwrap();
        let inputs = inputs(folder.path());
        let mut calls = 0;
        map(
            batches(&inputs, AtomicU64::new(0).into()),
            2,
            1,
            |_| Ok(()),
            |()| {
                calls += 1;
                Ok(())
            },
        )
        .unwrap();
        assert!(calls > 20, "{calls} batches");
        map(std::iter::empty(), 2, 1, |_| Ok(()), |()| panic!("nothing to see")).unwrap();
    }
}
