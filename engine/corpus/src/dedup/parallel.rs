//! A parallel map over a slice. It starts and joins threads for each call, so a call should be worth milliseconds; what
//! a thread keeps from call to call, such as buffers, is its state.

use std::sync::atomic::{AtomicUsize, Ordering};

use engine::error::Result;

/// Items that a thread takes at a time: consecutive ones often share a block of the spool.
const TAKEN: usize = 8;

/// Applies `f` to every item on as many threads as there are states. The results are in the order of the items, and so
/// is the error that is returned, the first one.
pub fn map<S: Send, I: Sync, T: Send>(
    states: &mut [S],
    items: &[I],
    f: impl Fn(&mut S, &I) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let work = |state: &mut S| {
        let mut results = Vec::new();
        loop {
            let start = next.fetch_add(TAKEN, Ordering::Relaxed);
            for (at, item) in items.iter().enumerate().skip(start).take(TAKEN) {
                let result = f(state, item);
                let failed = result.is_err();
                results.push((at, result));
                if failed {
                    return results;
                }
            }
            if start >= items.len() {
                return results;
            }
        }
    };
    let threads = states.len().min(items.len().div_ceil(TAKEN)).max(1);
    let (own, others) = states[..threads].split_first_mut().expect("at least one state");
    let mut results = std::thread::scope(|scope| {
        let others: Vec<_> = others.iter_mut().map(|state| scope.spawn(|| work(state))).collect();
        let mut results = work(own);
        for other in others {
            results.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        results
    });
    results.sort_unstable_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use engine::error::Error;

    use super::*;

    #[test]
    fn results_are_in_the_order_of_the_items() {
        for (threads, length) in [(1, 0), (3, 0), (1, 100), (2, 7), (3, 8), (5, 1001)] {
            let items: Vec<usize> = (0..length).collect();
            let mut states = vec![0; threads];
            let squares = map(&mut states, &items, |calls, &item| {
                *calls += 1;
                Ok(item * item)
            });
            assert!(squares.unwrap().into_iter().eq(items.iter().map(|item| item * item)));
            assert_eq!(states.iter().sum::<usize>(), length, "calls by {threads} threads");
        }
    }

    #[test]
    fn the_first_error_is_returned() {
        let items: Vec<usize> = (0..1000).collect();
        let fail = |_: &mut (), &item: &usize| match item % 300 {
            299 => Err(Error::run(format!("item {item}"))),
            _ => Ok(item),
        };
        for threads in [1, 2, 5] {
            let error = map(&mut vec![(); threads], &items, fail).unwrap_err();
            assert_eq!(error.to_string(), "item 299", "{threads} threads");
        }
    }
}
