//! The first pass: documents go into the spool, and the keys of their bands into a sorter.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use engine::error::{Error, Result};

use super::budget::Budget;
use super::keepers::Value;
use super::minhash::{Bands, Signer};
use super::scratch::Scratch;
use super::sorter::Sorter;
use super::spool::{Packed, Packer, Spool};
use super::{Job, Keep};
use crate::documents::{Batch, Document, Skipped, batches};
use crate::ordered;

/// What the first pass leaves.
pub struct Corpus<'a> {
    pub spool: Spool<'a>,
    /// Records of a band's key, shifted by 64 bits, and the document's number.
    pub keys: Sorter<'a>,
    pub skipped: Skipped,
}

/// What a thread uses again for the next batch.
struct Worker {
    signer: Signer,
    packer: Packer,
}

/// What a worker makes of a batch.
#[derive(Default)]
struct Done {
    blocks: Vec<Packed>,
    /// One for each band of the first document, then of the second.
    keys: Vec<u64>,
    bad: Vec<String>,
    kinds: Kinds,
}

/// Where the first string and the first number are among the values by which documents are compared: they have no
/// common order.
#[derive(Default)]
struct Kinds {
    string: Option<String>,
    number: Option<String>,
}

/// Reads all inputs; `progress` gets the bytes read from the disk.
pub fn read<'a>(
    job: &Job,
    bands: Bands,
    scratch: &'a Scratch,
    budget: &Budget,
    mut progress: impl FnMut(u64),
) -> Result<Corpus<'a>> {
    let idle = Mutex::new(Vec::new());
    let work = |batch: Batch| {
        let mut worker = match idle.lock().expect("no thread panics with it").pop() {
            Some(worker) => worker,
            None => Worker { signer: Signer::new(), packer: Packer::new()? },
        };
        let done = worker.batch(job, bands, &batch)?;
        idle.lock().expect("no thread panics with it").push(worker);
        Ok(done)
    };
    let (spool, keys) = (Spool::new(scratch)?, Sorter::new(scratch, budget.sorter()));
    let mut corpus = Corpus { spool, keys, skipped: Skipped::default() };
    let mut kinds = Kinds::default();
    let read = std::sync::Arc::new(AtomicU64::new(0));
    let inputs = batches(job.inputs, read.clone());
    ordered::map(inputs, job.workers, budget.in_flight(), work, |done: Done| {
        kinds.join(&done.kinds, &job.keep)?;
        corpus.add(job, bands, done)?;
        progress(read.load(Ordering::Relaxed));
        Ok(())
    })?;
    Ok(corpus)
}

impl Worker {
    fn batch(&mut self, job: &Job, bands: Bands, batch: &Batch) -> Result<Done> {
        let key = &job.inputs.key;
        let mut done = Done::default();
        for document in batch.documents(key) {
            let good = document.and_then(|document| done.kinds.check(&job.keep, &document).map(|()| document));
            match good {
                Err(message) => done.bad.push(message),
                Ok(document) => {
                    let characters = document.text.chars().count() as u64;
                    done.blocks.extend(self.packer.add(&document, characters)?);
                    done.keys.extend(bands.keys(self.signer.sign(&document.text)));
                }
            }
        }
        done.blocks.extend(self.packer.finish()?);
        Ok(done)
    }
}

impl Corpus<'_> {
    fn add(&mut self, job: &Job, bands: Bands, done: Done) -> Result<()> {
        for message in done.bad {
            job.bad.record(message, &mut self.skipped)?;
        }
        let documents = (self.spool.documents()..).zip(done.keys.chunks_exact(bands.bands));
        for (document, keys) in documents {
            for &key in keys {
                self.keys.push(u128::from(key) << 64 | u128::from(document))?;
            }
        }
        done.blocks.iter().try_for_each(|block| self.spool.append(block))
    }
}

impl Kinds {
    /// Checks that a document has the value by which it is compared.
    fn check(&mut self, keep: &Keep, document: &Document) -> std::result::Result<(), String> {
        let Keep::Newest { key } = keep else { return Ok(()) };
        let value = match &document.record {
            Some(record) => Value::under(key, record),
            None => Err(format!("a text file has no key \"{key}\"; write its text as JSON lines with that key")),
        };
        let value = value.map_err(|what| format!("{}: {what}", document.place()))?;
        let first = match value {
            Value::String(_) => &mut self.string,
            Value::Number(_) => &mut self.number,
        };
        first.get_or_insert_with(|| document.place());
        Ok(())
    }

    fn join(&mut self, later: &Kinds, keep: &Keep) -> Result<()> {
        self.string = self.string.take().or_else(|| later.string.clone());
        self.number = self.number.take().or_else(|| later.number.clone());
        match (keep, &self.string, &self.number) {
            (Keep::Newest { key }, Some(string), Some(number)) => Err(Error::user(format!(
                "{string}: the value of \"{key}\" is a string, but at {number} it is a number, and the two have no \
                 common order; write all of them in one way"
            ))),
            _ => Ok(()),
        }
    }
}
