//! Encoding by fragments: a text is cut wherever that changes no id, and the ids of short fragments are kept, since
//! most of them come again: words in English, and single characters under a vocabulary with few Japanese pieces.
//!
//! A fragment is encoded alone when it is met a second time. Those met for the first time are encoded together with
//! their neighbours, which costs less than one call for each.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::bigrams::Bigrams;
use super::cuts::Cuts;

/// The places between fragments.
pub enum Ends {
    /// Between words.
    Words(Cuts),
    /// Between characters that no piece joins.
    Bigrams(Bigrams),
}

/// Fragments of up to this many bytes are kept.
const LONGEST: usize = 48;

/// The most fragments that one shard keeps. With 64 shards of entries of about 100 bytes, at most about 25 MB are kept.
const PER_SHARD: usize = 4096;
const SHARDS: usize = 64;

/// The ids of fragments.
type Shard = HashMap<Box<str>, Box<[u32]>>;

pub struct Fragments {
    ends: Ends,
    /// A fragment's shard is found by its bytes, so that threads seldom wait for each other. A fragment that was met
    /// once has no ids yet.
    shards: Vec<Mutex<Shard>>,
}

/// Whether a fragment was met before.
enum Met {
    Never,
    Once,
    /// Its ids were copied.
    Kept,
}

impl Fragments {
    pub fn new(ends: Ends) -> Self {
        Self { ends, shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    /// The end of the fragment that begins at the byte `start`.
    pub fn end(&self, text: &str, start: usize) -> usize {
        match &self.ends {
            Ends::Words(cuts) => cuts.next(text.as_bytes(), start),
            Ends::Bigrams(bigrams) => bigrams.end(text, start),
        }
    }

    /// Appends the ids of a text that begins with a fragment; `encode` gives those of one or more fragments.
    pub fn encode(
        &self,
        text: &str,
        ids: &mut Vec<u32>,
        encode: impl Fn(&str) -> Result<Vec<u32>, String>,
    ) -> Result<(), String> {
        let encode = |text: &str| if text.is_empty() { Ok(Vec::new()) } else { encode(text) };
        let (mut waiting, mut start, mut kept) = (0, 0, Vec::new());
        while start < text.len() {
            let end = self.end(text, start);
            let fragment = &text[start..end];
            let met = if fragment.len() > LONGEST { Met::Never } else { self.meet(fragment, &mut kept) };
            if !matches!(met, Met::Never) {
                if waiting < start {
                    ids.extend(encode(&text[waiting..start])?);
                }
                if matches!(met, Met::Once) {
                    kept = encode(fragment)?;
                    self.keep(fragment, &kept);
                }
                ids.extend_from_slice(&kept);
                waiting = end;
            }
            start = end;
        }
        ids.extend(encode(&text[waiting..])?);
        Ok(())
    }

    /// Copies the ids of a fragment into `ids` where they are kept.
    fn meet(&self, fragment: &str, ids: &mut Vec<u32>) -> Met {
        let mut shard = self.shard(fragment).lock().unwrap_or_else(PoisonError::into_inner);
        match shard.get(fragment) {
            Some(kept) if kept.is_empty() => Met::Once,
            Some(kept) => {
                ids.clear();
                ids.extend_from_slice(kept);
                Met::Kept
            }
            None => {
                // A corpus changes its subject: those met from now on are worth more than those kept so far.
                if shard.len() == PER_SHARD {
                    shard.clear();
                }
                shard.insert(fragment.into(), Box::default());
                Met::Never
            }
        }
    }

    fn keep(&self, fragment: &str, ids: &[u32]) {
        let mut shard = self.shard(fragment).lock().unwrap_or_else(PoisonError::into_inner);
        shard.insert(fragment.into(), ids.into());
    }

    fn shard(&self, fragment: &str) -> &Mutex<Shard> {
        let hash = fragment.bytes().fold(0u32, |hash, byte| hash.wrapping_mul(31) ^ u32::from(byte));
        &self.shards[hash as usize % SHARDS]
    }
}
