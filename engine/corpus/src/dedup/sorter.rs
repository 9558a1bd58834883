//! External merge sort of 128-bit records (Knuth, The Art of Computer Programming, volume 3, section 5.4): sorted runs
//! of as many records as the memory holds are written to one temporary file and merged.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::ops::Range;

use engine::error::Result;

use super::scratch::{Scratch, ScratchFile};

/// Bytes of a record.
const RECORD: usize = size_of::<u128>();

/// Bytes that are read of a run at a time: less makes disks seek more than they read.
const LEAST_READ: usize = 64 << 10;

/// More does not make reading faster.
const MOST_READ: usize = 1 << 20;

/// Collects records.
pub struct Sorter<'a> {
    scratch: &'a Scratch,
    buffer: Vec<u128>,
    runs: Option<Runs<'a>>,
    len: u64,
}

/// Sorted runs, one after the other in a file.
struct Runs<'a> {
    file: ScratchFile<'a>,
    /// Offsets in bytes.
    ranges: Vec<Range<u64>>,
}

impl<'a> Sorter<'a> {
    /// A sorter that holds about `memory` bytes.
    pub fn new(scratch: &'a Scratch, memory: usize) -> Self {
        // The system gives pages only as they are filled.
        let buffer = Vec::with_capacity((memory / RECORD).max(1));
        Self { scratch, buffer, runs: None, len: 0 }
    }

    /// Records so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn push(&mut self, record: u128) -> Result<()> {
        if self.buffer.len() == self.buffer.capacity() {
            self.spill()?;
        }
        self.buffer.push(record);
        self.len += 1;
        Ok(())
    }

    /// The records in ascending order, with `memory` bytes for the buffers of a merge.
    pub fn finish(mut self, memory: usize) -> Result<Sorted<'a>> {
        if self.runs.is_none() {
            self.buffer.sort_unstable();
            return Ok(Sorted::Whole(self.buffer.into_iter()));
        }
        self.spill()?;
        drop(std::mem::take(&mut self.buffer));
        let mut runs = self.runs.take().expect("there are some");
        while runs.ranges.len() > fan_in(memory) {
            runs = runs.merged(self.scratch, memory)?;
        }
        let Runs { file, ranges } = runs;
        let merge = Merge::new(&file, ranges, memory)?;
        Ok(Sorted::Merged { merge, file })
    }

    fn spill(&mut self) -> Result<()> {
        self.buffer.sort_unstable();
        let runs = match &mut self.runs {
            Some(runs) => runs,
            none => none.insert(Runs { file: self.scratch.file()?, ranges: Vec::new() }),
        };
        let start = runs.file.len();
        runs.file.append(bytemuck::cast_slice(&self.buffer))?;
        runs.ranges.push(start..runs.file.len());
        self.buffer.clear();
        Ok(())
    }
}

/// Runs that are merged at once.
fn fan_in(memory: usize) -> usize {
    (memory / LEAST_READ).max(2)
}

impl<'a> Runs<'a> {
    /// Fewer and longer runs in a new file.
    fn merged(self, scratch: &'a Scratch, memory: usize) -> Result<Self> {
        let mut longer = Runs { file: scratch.file()?, ranges: Vec::new() };
        let mut buffer = Vec::with_capacity(LEAST_READ / RECORD);
        for ranges in self.ranges.chunks(fan_in(memory)) {
            let start = longer.file.len();
            let mut merge = Merge::new(&self.file, ranges.to_vec(), memory)?;
            loop {
                let record = merge.next(&self.file)?;
                buffer.extend(record);
                if buffer.len() == buffer.capacity() || record.is_none() {
                    longer.file.append(bytemuck::cast_slice(&buffer))?;
                    buffer.clear();
                }
                if record.is_none() {
                    break;
                }
            }
            longer.ranges.push(start..longer.file.len());
        }
        Ok(longer)
    }
}

/// The records of a [`Sorter`] in ascending order.
pub enum Sorted<'a> {
    /// They fit into memory.
    Whole(std::vec::IntoIter<u128>),
    /// They were spilled.
    Merged { merge: Merge, file: ScratchFile<'a> },
}

impl Iterator for Sorted<'_> {
    type Item = Result<u128>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Sorted::Whole(records) => records.next().map(Ok),
            Sorted::Merged { merge, file } => merge.next(file).transpose(),
        }
    }
}

/// A merge of some runs.
pub struct Merge {
    cursors: Vec<Cursor>,
    /// The next record of each run that has one, with the run's number.
    heads: BinaryHeap<Reverse<(u128, usize)>>,
}

/// A run that is being read.
struct Cursor {
    /// Not yet read, in bytes.
    rest: Range<u64>,
    buffer: Vec<u128>,
    at: usize,
    /// Records that are read at a time.
    capacity: usize,
}

impl Merge {
    fn new(file: &ScratchFile, ranges: Vec<Range<u64>>, memory: usize) -> Result<Self> {
        let capacity = (memory / ranges.len()).clamp(RECORD, MOST_READ) / RECORD;
        let cursor = |rest| Cursor { rest, buffer: Vec::new(), at: 0, capacity };
        let mut merge = Self { cursors: ranges.into_iter().map(cursor).collect(), heads: BinaryHeap::new() };
        for run in 0..merge.cursors.len() {
            let head = merge.cursors[run].next(file)?;
            merge.heads.extend(head.map(|record| Reverse((record, run))));
        }
        Ok(merge)
    }

    fn next(&mut self, file: &ScratchFile) -> Result<Option<u128>> {
        let Some(mut head) = self.heads.peek_mut() else { return Ok(None) };
        let Reverse((record, run)) = *head;
        match self.cursors[run].next(file)? {
            Some(next) => *head = Reverse((next, run)),
            None => drop(PeekMut::pop(head)),
        }
        Ok(Some(record))
    }
}

impl Cursor {
    fn next(&mut self, file: &ScratchFile) -> Result<Option<u128>> {
        if self.at == self.buffer.len() {
            let records = ((self.rest.end - self.rest.start) as usize / RECORD).min(self.capacity);
            if records == 0 {
                return Ok(None);
            }
            self.buffer.resize(records, 0);
            file.read(self.rest.start, bytemuck::cast_slice_mut(&mut self.buffer))?;
            self.rest.start += (records * RECORD) as u64;
            self.at = 0;
        }
        self.at += 1;
        Ok(Some(self.buffer[self.at - 1]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sorted(records: &[u128], memory: usize, merge: usize) -> (Vec<u128>, u64) {
        let folder = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(folder.path());
        let mut sorter = Sorter::new(&scratch, memory);
        records.iter().for_each(|&record| sorter.push(record).unwrap());
        assert_eq!(sorter.len(), records.len() as u64);
        let sorted = sorter.finish(merge).unwrap().collect::<Result<_>>().unwrap();
        (sorted, scratch.spilled())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_order_is_that_of_a_sort_in_memory(
            records in prop::collection::vec(prop_oneof![any::<u128>(), 0_u128..20], 0..300),
            memory in 0_usize..2000,
            merge in 0_usize..4 * LEAST_READ,
        ) {
            let mut expected = records.clone();
            expected.sort_unstable();
            let (sorted, spilled) = sorted(&records, memory, merge);
            prop_assert_eq!(sorted, expected);
            prop_assert_eq!(spilled == 0, records.len() <= (memory / RECORD).max(1));
        }
    }

    #[test]
    fn runs_longer_than_the_buffers_and_many_passes_give_the_same_order() {
        let records: Vec<u128> = (0..40_000_u128).map(|n| (n * 7_919 % 40_009) << 70 | n).collect();
        let mut expected = records.clone();
        expected.sort_unstable();
        // 40 runs, two at a time: six passes and the last one.
        let (merged, spilled) = sorted(&records, 1000 * RECORD, 2 * LEAST_READ);
        assert!(merged == expected);
        assert_eq!(spilled, 6 * 40_000 * RECORD as u64);
        assert!(sorted(&records, 1 << 20, 0) == (expected, 0));
    }
}
