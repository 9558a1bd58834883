//! The second pass: documents that share a band are compared by the exact Jaccard coefficient of their sets of grams,
//! and those that are alike are joined.
//!
//! The documents of one key are a group. The first one of a group starts a sub-cluster; each other one is compared with
//! the first document of every sub-cluster so far, and starts one of its own where it is like none. So a group of
//! thousands of copies needs one comparison for each. Pairs that are connected already are not compared.
//!
//! Which pairs are connected when a pair comes up depends on the size of the batches, so that is fixed: neither the
//! number of workers nor the memory changes the result.

use engine::error::Result;

use super::grams;
use super::parallel;
use super::sorter::Sorted;
use super::spool::{Reader, Spool};
use super::union_find::UnionFind;

/// Documents that are compared before the components are looked at again.
const BATCH: usize = 4096;

/// The most sub-clusters of a group. Documents beyond them that are like none of them may still meet in another band.
const SUBCLUSTERS: usize = 16;

/// What is compared, and by which measure.
pub struct Comparison<'a> {
    pub spool: &'a Spool<'a>,
    /// The key of the text.
    pub key: &'a str,
    /// The least Jaccard coefficient.
    pub threshold: f64,
    pub workers: usize,
}

/// The components of documents of which each is like another one. `keys` are records of a band's key, shifted by 64
/// bits, and a document's number; `progress` gets the number of those that are done.
pub fn components(comparison: &Comparison, keys: Sorted, mut progress: impl FnMut(u64)) -> Result<UnionFind> {
    let mut batch = Batch::new(comparison)?;
    let (mut before, mut all) = (None, 0);
    for (done, record) in (1..).zip(keys) {
        let record = record?;
        let (key, document) = ((record >> 64) as u64, record as u32);
        match before {
            Some((previous, first)) if previous == key => batch.add(first, document)?,
            _ => batch.in_group = false,
        }
        (before, all) = (Some((key, document)), done);
        if done % BATCH as u64 == 1 {
            progress(done);
        }
    }
    batch.compare()?;
    progress(all);
    Ok(batch.components)
}

/// Documents that are to be compared with the sub-clusters of their groups.
struct Batch<'a> {
    comparison: &'a Comparison<'a>,
    verifiers: Vec<Verifier<'a>>,
    components: UnionFind,
    /// The first documents of each group's sub-clusters.
    groups: Vec<Vec<u32>>,
    /// Whether the last group may get more documents.
    in_group: bool,
    open: Vec<Member>,
}

/// A document of a group that has found no sub-cluster yet.
struct Member {
    document: u32,
    group: usize,
    /// The next sub-cluster that it is compared with.
    subcluster: usize,
}

impl<'a> Batch<'a> {
    fn new(comparison: &'a Comparison<'a>) -> Result<Self> {
        let readers = comparison.spool.readers(comparison.workers)?;
        let verifier = |reader| Verifier { reader, first: Loaded::default(), other: Loaded::default() };
        Ok(Self {
            comparison,
            verifiers: readers.into_iter().map(verifier).collect(),
            components: UnionFind::new(comparison.spool.documents()),
            groups: Vec::new(),
            in_group: false,
            open: Vec::new(),
        })
    }

    /// Adds a document to the group of the record before, which is that of `first` if it is new.
    fn add(&mut self, first: u32, document: u32) -> Result<()> {
        if !self.in_group {
            self.in_group = true;
            self.groups.push(vec![first]);
        }
        self.open.push(Member { document, group: self.groups.len() - 1, subcluster: 0 });
        if self.open.len() < BATCH { Ok(()) } else { self.compare() }
    }

    /// Finds the sub-clusters of all documents. The last group stays, since more of it may come.
    fn compare(&mut self) -> Result<()> {
        while !self.open.is_empty() {
            let open = std::mem::take(&mut self.open);
            let open: Vec<_> = open.into_iter().filter_map(|member| self.pair(member)).collect();
            // Near duplicates meet in most of their bands, and are compared only once. In ascending order, the first
            // document of many pairs stays loaded.
            let mut pairs: Vec<(u32, u32)> = open.iter().map(|(first, member)| (*first, member.document)).collect();
            pairs.sort_unstable();
            pairs.dedup();
            let Comparison { key, threshold, .. } = *self.comparison;
            let alike = parallel::map(&mut self.verifiers, &pairs, |verifier, &(first, other)| {
                verifier.alike(first, other, key, threshold)
            })?;
            for (first, member) in open {
                let pair = pairs.binary_search(&(first, member.document)).expect("it was compared");
                match alike[pair] {
                    true => self.components.union(first, member.document),
                    false => self.open.push(Member { subcluster: member.subcluster + 1, ..member }),
                }
            }
        }
        let last = self.groups.pop();
        self.groups.clear();
        self.groups.extend(last);
        Ok(())
    }

    /// The document that a member is to be compared with next; `None` where nothing is left to do for it.
    fn pair(&mut self, member: Member) -> Option<(u32, Member)> {
        let group = &mut self.groups[member.group];
        match group.get(member.subcluster) {
            Some(&first) if self.components.find(first) == self.components.find(member.document) => None,
            Some(&first) => Some((first, member)),
            None => {
                if group.len() < SUBCLUSTERS {
                    group.push(member.document);
                }
                None
            }
        }
    }
}

/// What a thread needs for comparisons.
struct Verifier<'s> {
    reader: Reader<'s>,
    /// Kept from pair to pair: the documents of a group come one after the other.
    first: Loaded,
    other: Loaded,
}

/// A document in memory.
#[derive(Default)]
struct Loaded {
    number: Option<u32>,
    text: String,
    /// Empty until they are asked for.
    grams: Vec<u64>,
}

impl Verifier<'_> {
    fn alike(&mut self, first: u32, other: u32, key: &str, threshold: f64) -> Result<bool> {
        self.first.load(&mut self.reader, first, key)?;
        self.other.load(&mut self.reader, other, key)?;
        if self.first.text == self.other.text {
            return Ok(true);
        }
        Ok(grams::alike(self.first.grams(), self.other.grams(), threshold))
    }
}

impl Loaded {
    fn load(&mut self, reader: &mut Reader, number: u32, key: &str) -> Result<()> {
        if self.number != Some(number) {
            let text = reader.document(number)?.text(key);
            self.text.clear();
            self.text.push_str(&text);
            self.grams.clear();
            self.number = Some(number);
        }
        Ok(())
    }

    fn grams(&mut self) -> &[u64] {
        if self.grams.is_empty() {
            grams::set_of(&self.text, &mut self.grams);
        }
        &self.grams
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::scratch::Scratch;
    use super::super::sorter::Sorter;
    use super::super::spool::Packer;
    use super::*;
    use crate::documents::Document;

    /// The first document of each one's component, where all documents are in one group.
    fn firsts(texts: &[String]) -> Vec<u32> {
        let folder = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(folder.path());
        let (mut spool, mut packer) = (Spool::new(&scratch).unwrap(), Packer::new().unwrap());
        let mut keys = Sorter::new(&scratch, 1 << 20);
        for (number, text) in (0_u128..).zip(texts) {
            let document = Document { text: text.clone(), record: None, file: Path::new("a").into(), line: 1 };
            packer.add(&document, 1).unwrap().iter().for_each(|block| spool.append(block).unwrap());
            keys.push(u128::from(u64::MAX) << 64 | number).unwrap();
        }
        packer.finish().unwrap().iter().for_each(|block| spool.append(block).unwrap());
        let comparison = Comparison { spool: &spool, key: "text", threshold: 0.8, workers: 2 };
        components(&comparison, keys.finish(0).unwrap(), |_| {}).unwrap().into_firsts()
    }

    /// `n` documents, each in the family of its remainder. Those of a family share 56 of 58 grams, others none.
    fn families(families: u32, n: u32) -> Vec<String> {
        let character = |code| char::from_u32(code).expect("kanji");
        let text = |n: u32| (0..60).map(move |at| character(0x4e00 + n % families * 60 + at));
        (0..n).map(|n| text(n).chain([character(0x20000 + n)]).collect()).collect()
    }

    #[test]
    fn a_group_may_have_several_subclusters_that_go_on_in_the_next_batch() {
        let n = 2 * BATCH as u32 + 100;
        assert!(firsts(&families(5, n)).into_iter().eq((0..n).map(|document| document % 5)));
    }

    #[test]
    fn the_subclusters_of_a_group_are_limited() {
        let most = SUBCLUSTERS as u32;
        let firsts = firsts(&families(most + 3, 5 * (most + 3)));
        for (document, first) in (0..).zip(firsts) {
            let family = document % (most + 3);
            assert_eq!(first, if family < most { family } else { document }, "document {document}");
        }
    }
}
