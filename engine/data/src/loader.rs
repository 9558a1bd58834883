//! Prefetching: a thread reads the next micro-batches while the rank computes.

use super::feed::Feed;
use crossbeam::channel::{Receiver, bounded};
use engine::batch::{MicroBatch, Samples, Split};
use engine::error::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// Micro-batches that are read ahead.
const AHEAD: usize = 4;

/// A feed that reads training samples before they are requested.
pub struct Loader {
    feed: Arc<Feed>,
    ready: Receiver<(Range<u64>, Result<MicroBatch>)>,
}

impl Loader {
    /// `requests` are the training samples that will be asked for, in this order. The thread ends with them, or with
    /// the loader. It is an error where the system makes no thread.
    pub fn start(feed: Arc<Feed>, requests: impl Iterator<Item = Range<u64>> + Send + 'static) -> Result<Loader> {
        let (sender, ready) = bounded(AHEAD);
        let source = feed.clone();
        let read = move || {
            for samples in requests {
                let batch = source.micro_batch(Split::Train, samples.clone());
                // The loader was dropped.
                if sender.send((samples, batch)).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("loader".into()).spawn(read);
        thread.map_err(|e| Error::run(format!("a thread cannot be made: {e}; raise `ulimit -u`")))?;
        Ok(Loader { feed, ready })
    }
}

impl Samples for Loader {
    /// Returns the same micro-batch as the feed.
    fn micro_batch(&self, split: Split, samples: Range<u64>) -> Result<MicroBatch> {
        if split != Split::Train {
            return self.feed.micro_batch(split, samples);
        }
        let (made, batch) = self.ready.recv().expect("the requests hold all training samples of the run");
        assert_eq!(made, samples, "the samples that were read ahead and those asked for");
        batch
    }

    fn text_bytes(&self, split: Split, batch: &MicroBatch) -> Option<u64> {
        self.feed.text_bytes(split, batch)
    }
}
