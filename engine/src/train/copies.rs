//! Several ranks hold the same numbers: data-parallel ranks the weights (and, where it is not sharded, the optimizer's
//! state), tensor-parallel ranks the norms and shared heads, both ends of the pipeline a tied table. They compute them
//! alike, to the last bit. Where their copies differ, a defect of memory or of a link has changed one, and training
//! would go on with gradients of different models. So the checksums of all copies are compared after a load and before
//! each save.
//!
//! Rectangles of tensors are compared; shards whose ends lie elsewhere on another rank are not.

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::layout::buckets::Part;
use crate::mpi::{Comm, host};
use crate::train::trainer::Trainer;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;

/// The name of a part of a tensor, the same on all ranks that hold it.
type Name = String;

/// The ranks that hold each checksum of one thing; the largest group of ranks is first.
type Groups = Vec<Vec<usize>>;

/// Bytes of one checksum in a message: a hash of the name, and the checksum.
const ENTRY: usize = size_of::<u64>() + size_of::<u32>();

/// An error of all ranks where copies of weights or of the optimizer's state differ. Waits for the device. Collective.
pub fn must_be_equal<B: Backend>(trainer: &mut Trainer<B>, comm: &Comm) -> Result<()> {
    if comm.size() == 1 {
        return Ok(());
    }
    let mine = comm.agree(checksums(trainer))?;
    let message: Vec<u8> = mine.iter().flat_map(|(name, sum)| entry(name, *sum)).collect();
    let found = comm.gather_bytes(&message).and_then(|all| differing(&all));
    let found = comm.broadcast_bytes(serde_json::to_vec(&found).expect("numbers are JSON"));
    let Some((key, groups)) = serde_json::from_slice::<Option<(u64, Groups)>>(&found).expect("rank 0 wrote it") else {
        return Ok(());
    };
    // Only the ranks that hold it know its name.
    let name = mine.iter().find(|(name, _)| hash(name) == key).map_or("", |(name, _)| name);
    let names = comm.all_gather_bytes(name.as_bytes());
    let hosts = comm.all_gather_bytes(host().as_bytes());
    let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    let name = text(&names[groups[0][0]]);
    let hosts: Vec<String> = hosts.iter().map(text).collect();
    Err(Error::run(format!(
        "step {}: {}; memory or a link of these hosts has changed numbers, so nothing is saved: the same command \
         continues from the newest checkpoint, on other hosts if this comes again",
        trainer.step,
        difference(&name, &groups, &hosts)
    )))
}

/// The checksums of all that this rank holds. Waits for the device.
pub fn checksums<B: Backend>(trainer: &mut Trainer<B>) -> Result<Vec<(Name, u32)>> {
    let (b, layout) = (&trainer.b, trainer.layout.clone());
    let mut copies = Vec::new();
    for (i, (bucket, shard)) in layout.buckets.iter().zip(&trainer.optim.shards).enumerate() {
        let weights = trainer.stage.params.bucket(i);
        for part in bucket.parts(&(0..bucket.len)) {
            copies.push((name("weights", &part), b.copy_to_host_async(&b.checksum(weights, range(&part)))));
        }
        for (kind, state) in &shard.state {
            for part in bucket.parts(&shard.range) {
                copies.push((name(kind.in_words(), &part), b.copy_to_host_async(&b.checksum(state, range(&part)))));
            }
        }
    }
    let sum = |(name, copy)| {
        let parts = b.wait_host(copy).map_err(|fault| Error::run(fault.to_string()))?;
        Ok((name, parts.into_iter().fold(0, u32::wrapping_add)))
    };
    copies.into_iter().map(sum).collect()
}

fn range(part: &Part) -> Range<usize> {
    part.at..part.at + part.rect.len()
}

fn name(what: &str, Part { tensor, rect, .. }: &Part) -> Name {
    format!("the {what} of {} (rows {:?}, columns {:?})", tensor.name, rect.rows, rect.cols)
}

fn hash(name: &str) -> u64 {
    u64::from_le_bytes(*blake3::hash(name.as_bytes()).as_bytes().first_chunk().expect("a hash has 32 bytes"))
}

fn entry(name: &str, sum: u32) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    entry[..8].copy_from_slice(&hash(name).to_le_bytes());
    entry[8..].copy_from_slice(&sum.to_le_bytes());
    entry
}

/// The hash of the first name whose checksums differ between ranks, and those ranks.
fn differing(all: &[Vec<u8>]) -> Option<(u64, Groups)> {
    let mut held = BTreeMap::<u64, BTreeMap<u32, Vec<usize>>>::new();
    for (rank, message) in all.iter().enumerate() {
        for entry in message.as_chunks::<ENTRY>().0 {
            let (key, sum) = entry.split_at(8);
            let key = u64::from_le_bytes(key.try_into().expect("8 bytes"));
            let sum = u32::from_le_bytes(sum.try_into().expect("4 bytes"));
            held.entry(key).or_default().entry(sum).or_default().push(rank);
        }
    }
    let (key, sums) = held.into_iter().find(|(_, sums)| sums.len() > 1)?;
    let mut groups: Groups = sums.into_values().collect();
    groups.sort_by_key(|ranks| (Reverse(ranks.len()), ranks[0]));
    Some((key, groups))
}

fn difference(name: &str, groups: &Groups, hosts: &[String]) -> String {
    let listed = |ranks: &[usize]| {
        let listed: Vec<String> = ranks.iter().map(|&rank| format!("{rank} ({})", hosts[rank])).collect();
        format!("{} {}", if ranks.len() == 1 { "rank" } else { "ranks" }, listed.join(", "))
    };
    let others: Vec<String> = groups[1..].iter().map(|ranks| listed(ranks)).collect();
    let have = if groups.len() == 2 && groups[1].len() == 1 { "has" } else { "have" };
    format!(
        "{name} are not the same on all ranks: {} {have} other numbers than {}",
        others.join(" and "),
        listed(&groups[0])
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(held: &[(&str, u32)]) -> Vec<u8> {
        held.iter().flat_map(|(name, sum)| entry(name, *sum)).collect()
    }

    #[test]
    fn the_ranks_that_differ_from_most_are_named() {
        let right = message(&[("a", 1), ("b", 2)]);
        let wrong = message(&[("b", 3), ("a", 1)]);
        assert_eq!(differing(&[right.clone(), message(&[("c", 9)]), right.clone()]), None);
        let (key, groups) = differing(&[wrong.clone(), right.clone(), message(&[]), right.clone()]).unwrap();
        assert_eq!((key, &groups), (hash("b"), &vec![vec![1, 3], vec![0]]));
        let hosts = ["h0", "h1", "h2", "h3"].map(String::from);
        assert_eq!(
            difference("the weights of b", &groups, &hosts),
            "the weights of b are not the same on all ranks: rank 0 (h0) has other numbers than ranks 1 (h1), 3 (h3)"
        );
        let (_, groups) = differing(&[right.clone(), wrong.clone(), message(&[("b", 4)])]).unwrap();
        assert_eq!(
            difference("b", &groups, &hosts),
            "b are not the same on all ranks: rank 1 (h1) and rank 2 (h2) have other numbers than rank 0 (h0)"
        );
    }
}
