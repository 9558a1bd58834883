//! The threads of this rank. Work is cut into tasks by shapes alone, and one thread runs each task, so that no result
//! depends on the number of threads.

use std::sync::Mutex;

/// The calling thread and a pool of helpers.
pub struct Workers {
    threads: usize,
    others: Option<rayon::ThreadPool>,
}

impl Workers {
    /// `threads` in all, the calling thread included.
    pub fn new(threads: usize) -> Self {
        let threads = threads.max(1);
        let others = (threads > 1).then(|| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads - 1);
            pool.thread_name(|n| format!("worker {}", n + 1))
                .build()
                .expect("the system can start a thread for each core")
        });
        Workers { threads, others }
    }

    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs every task, in no fixed order.
    pub fn each<T: Send>(&self, tasks: impl IntoIterator<Item = T>, work: impl Fn(T) + Sync) {
        self.each_with(tasks, std::iter::repeat_n((), self.threads), |task, ()| work(task));
    }

    /// Runs every task; each thread passes a slot of its own (its scratch) to the tasks that it runs.
    pub fn each_with<T: Send, S: Send>(
        &self,
        tasks: impl IntoIterator<Item = T>,
        slots: impl IntoIterator<Item = S>,
        work: impl Fn(T, &mut S) + Sync,
    ) {
        let tasks: Vec<T> = tasks.into_iter().collect();
        let helpers = self.threads.min(tasks.len()).saturating_sub(1);
        let mut slots = slots.into_iter();
        let Some(mut mine) = slots.next() else { panic!("no slot for the main thread") };
        let queue = Mutex::new(tasks.into_iter());
        let (queue, work) = (&queue, &work);
        let run = |slot: &mut S| {
            loop {
                let next = queue.lock().expect("no task panics while it takes the next").next();
                let Some(task) = next else { break };
                work(task, slot);
            }
        };
        match &self.others {
            Some(others) if helpers > 0 => others.in_place_scope(|scope| {
                for mut slot in slots.take(helpers) {
                    scope.spawn(move |_| run(&mut slot));
                }
                run(&mut mine);
            }),
            _ => run(&mut mine),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_task_is_done_once() {
        for threads in [0, 1, 2, 5] {
            let done: Vec<AtomicUsize> = (0..100).map(|_| AtomicUsize::new(0)).collect();
            let workers = Workers::new(threads);
            workers.each(0..done.len(), |i| _ = done[i].fetch_add(1, Ordering::Relaxed));
            workers.each(0..0, |_: usize| unreachable!());
            assert!(done.iter().all(|n| n.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn each_thread_has_its_own_slot() {
        let workers = Workers::new(3);
        let mut counts = [0; 3];
        workers.each_with(0..1000, &mut counts, |_, count| **count += 1);
        assert_eq!(counts.iter().sum::<i32>(), 1000);
    }
}
