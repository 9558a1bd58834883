//! The last pass: documents that stay are written in the order of the input, and the others are counted.

use engine::error::{Error, Result};

use super::Job;
use super::lines::{Mark, Marks, without};
use super::parallel;
use super::spool::{Body, Reader, Spool, Stored};
use crate::drops::{Drops, EXAMPLES, Example, Rule};
use crate::output::Output;

/// The indices of the rules.
const NEAR_DUPLICATE: usize = 0;
const REPEATED_LINES: usize = 1;

/// What became of a document.
struct Outcome {
    characters: u64,
    removed_lines: u64,
    fate: Fate,
}

enum Fate {
    /// The line of JSON.
    Kept(String),
    /// The number of the document that stays in its place.
    NearDuplicate(u32, Example),
    OnlyRepeatedLines(Example),
}

/// The drops of a job that has dropped nothing yet.
pub fn no_drops(job: &Job) -> Drops {
    let mut rules = vec![Rule::new("near_duplicate", Some(format!("Jaccard at least {}", job.threshold)))];
    if let Some(least) = job.lines {
        rules.push(Rule::new("repeated_lines", Some(format!("all lines of at least {least} characters repeated"))));
    }
    Drops::new("data dedup", rules)
}

/// Writes all documents that stay; returns the drops, and the number of lines removed from documents that are not near
/// duplicates. `progress` gets the number of documents that are done.
pub fn write(
    job: &Job,
    spool: &Spool,
    kept: &[u32],
    mut marks: Marks,
    output: &mut Output,
    mut progress: impl FnMut(u64),
) -> Result<(Drops, u64)> {
    let (mut drops, mut removed_lines) = (no_drops(job), 0);
    let (mut readers, mut places) = (spool.readers(job.workers)?, spool.reader()?);
    for round in spool.rounds() {
        let end = spool.numbers(&round).end;
        let marks = marks.below(end)?;
        let outcomes =
            parallel::map(&mut readers, &round, |reader, &block| block_of(job, reader, block, kept, &marks))?;
        for Outcome { characters, removed_lines: removed, fate } in outcomes.into_iter().flatten() {
            removed_lines += removed;
            match fate {
                Fate::Kept(line) => {
                    output.line(&line)?;
                    drops.keep(characters);
                }
                Fate::NearDuplicate(by, example) => {
                    // Only the first examples are shown, so only their places are looked up.
                    let value = match drops.rules[NEAR_DUPLICATE].examples.len() == EXAMPLES {
                        true => None,
                        false => Some(places.document(by)?.place()),
                    };
                    drops.drop(NEAR_DUPLICATE, characters, || Example { value, ..example });
                }
                Fate::OnlyRepeatedLines(example) => drops.drop(REPEATED_LINES, characters, || example),
            }
        }
        progress(u64::from(end));
    }
    Ok((drops, removed_lines))
}

/// The outcomes of the documents of a block.
fn block_of(job: &Job, reader: &mut Reader, block: usize, kept: &[u32], marks: &[Mark]) -> Result<Vec<Outcome>> {
    let outcome = |stored: Stored| {
        let number = stored.number;
        let start = marks.partition_point(|mark| mark.document < number);
        let end = marks.partition_point(|mark| mark.document <= number);
        match kept[number as usize] {
            by if by == number => staying(job, &stored, &marks[start..end]),
            by => {
                let example = Example::new(&stored.document(&job.inputs.key), None);
                let fate = Fate::NearDuplicate(by, example);
                Ok(Outcome { characters: stored.characters, removed_lines: 0, fate })
            }
        }
    };
    reader.block(block)?.map(outcome).collect()
}

/// The outcome of a document that is no near duplicate, with the marks of its lines.
fn staying(job: &Job, stored: &Stored, marks: &[Mark]) -> Result<Outcome> {
    let key = &job.inputs.key;
    let outcome = |fate| Outcome { characters: stored.characters, removed_lines: marks.len() as u64, fate };
    if let (Body::Record(record), true) = (stored.body, marks.is_empty()) {
        return Ok(outcome(Fate::Kept(record.to_string())));
    }
    let document = stored.document(key);
    let text = without(&document.text, marks);
    if !marks.is_empty() && text.trim().is_empty() {
        let value = format!("{} repeated", engine::error::counted(marks.len(), "line"));
        return Ok(outcome(Fate::OnlyRepeatedLines(Example::new(&document, Some(value)))));
    }
    document.as_json(key, &text).map(|line| outcome(Fate::Kept(line))).map_err(Error::user)
}
