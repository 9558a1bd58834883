//! Which document of each cluster stays.

use std::cmp::Ordering;

use data::json::Field;
use engine::error::Result;
use serde_json::{Number, Value as Json};

use super::budget::Budget;
use super::parallel;
use super::scratch::Scratch;
use super::sorter::Sorter;
use super::spool::{Body, Reader, Spool, Stored};
use super::union_find::UnionFind;
use super::{Job, Keep};

/// Documents whose ranks are read together.
const BATCH: usize = 4096;

/// What stays.
pub struct Kept {
    /// For each document the one of its cluster that stays, itself if it does.
    pub by: Vec<u32>,
    /// Clusters of more than one document.
    pub clusters: u64,
}

/// The value under the key by which the newest document is found.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    String(String),
    Number(Number),
}

/// By what the documents of a cluster are compared.
#[derive(Debug, Clone, PartialEq)]
enum Rank {
    Characters(u64),
    Value(Value),
}

/// Finds the document that stays of each component.
pub fn keepers(job: &Job, components: UnionFind, spool: &Spool, scratch: &Scratch, budget: &Budget) -> Result<Kept> {
    let mut by = components.into_firsts();
    let mut members = Sorter::new(scratch, if job.keep == Keep::First { 0 } else { budget.merge() });
    let mut clusters = 0;
    // One bit for each document: whether it is the first of a cluster that was seen.
    let mut seen = vec![0_u64; by.len() / 64 + 1];
    for document in 0..by.len() as u32 {
        let first = by[document as usize];
        if first == document {
            continue;
        }
        let (word, bit) = (first as usize / 64, 1 << (first % 64));
        let is_new = seen[word] & bit == 0;
        seen[word] |= bit;
        clusters += u64::from(is_new);
        if job.keep != Keep::First {
            let new = if is_new { Some(first) } else { None };
            new.into_iter().chain([document]).try_for_each(|member| members.push(record(first, member)))?;
        }
    }
    if job.keep != Keep::First {
        let mut readers = spool.readers(job.workers)?;
        best_of_each(job, members.finish(budget.merge())?, &mut readers, &mut by)?;
    }
    Ok(Kept { by, clusters })
}

/// A member of the cluster that begins with `first`.
fn record(first: u32, member: u32) -> u128 {
    u128::from(first) << 32 | u128::from(member)
}

/// Replaces the first document of each cluster by the best one. `members` has the clusters one after the other.
fn best_of_each(
    job: &Job,
    mut members: impl Iterator<Item = Result<u128>>,
    readers: &mut [Reader],
    by: &mut [u32],
) -> Result<()> {
    let mut best: Option<(u32, Rank)> = None;
    loop {
        let batch = members.by_ref().take(BATCH).collect::<Result<Vec<_>>>()?;
        if batch.is_empty() {
            break;
        }
        let rank = |reader: &mut Reader, record: &u128| Ok(Rank::of(job, &reader.document(*record as u32)?));
        let ranks = parallel::map(readers, &batch, rank)?;
        for (record, rank) in batch.into_iter().zip(ranks) {
            let (first, member) = ((record >> 32) as u32, record as u32);
            let better = match &best {
                Some((of, best)) if *of == first => rank.compare(best) == Ordering::Greater,
                _ => true,
            };
            if better {
                by[first as usize] = member;
                best = Some((first, rank));
            }
        }
    }
    // The first document of a cluster has the best one now, which is not before it; the others still have the first.
    for document in 0..by.len() {
        let first = by[document] as usize;
        if first < document {
            by[document] = by[first];
        }
    }
    Ok(())
}

impl Rank {
    fn of(job: &Job, stored: &Stored) -> Self {
        match (&job.keep, stored.body) {
            (Keep::Newest { key }, Body::Record(record)) => {
                Rank::Value(Value::under(key, record).expect("it was checked when it was read"))
            }
            _ => Rank::Characters(stored.characters),
        }
    }

    fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Rank::Characters(a), Rank::Characters(b)) => a.cmp(b),
            (Rank::Value(a), Rank::Value(b)) => a.compare(b),
            _ => panic!("{self:?} and {other:?} have no common order"),
        }
    }
}

impl Value {
    /// The value under `key` in a line of JSON; the error does not name the place.
    pub fn under(key: &str, record: &str) -> std::result::Result<Self, String> {
        let field = Field { key, flag: "--keep", example: "\"2024-01-31\"" };
        match field.value(record)? {
            Json::String(string) => Ok(Value::String(string)),
            Json::Number(number) => Ok(Value::Number(number)),
            other => {
                let kind = match other {
                    Json::Array(_) => "an array",
                    Json::Object(_) => "an object",
                    Json::Null => "null",
                    _ => "true or false",
                };
                Err(format!("the value of \"{key}\" is {kind}; it must be a string or a number to be compared"))
            }
        }
    }

    /// Strings are compared by their bytes, numbers by their values, without rounding.
    fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Value::String(a), Value::String(b)) => a.cmp(b),
            (Value::Number(a), Value::Number(b)) => match (a.as_i128(), b.as_i128()) {
                (Some(a), Some(b)) => a.cmp(&b),
                (Some(a), None) => with_fraction(a, float(b)),
                (None, Some(b)) => with_fraction(b, float(a)).reverse(),
                (None, None) => compare(float(a), float(b)),
            },
            _ => panic!("{self:?} and {other:?} were read, but have no common order"),
        }
    }
}

fn float(number: &Number) -> f64 {
    number.as_f64().expect("a number of JSON that is no integer")
}

fn compare(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).expect("JSON has no NaN")
}

/// Compares an integer of at most 64 bits with a finite number. A conversion to an integer saturates.
fn with_fraction(integer: i128, number: f64) -> Ordering {
    integer.cmp(&(number.trunc() as i128)).then(compare(0.0, number.fract()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(json: &str) -> Value {
        Value::under("v", &format!("{{\"v\": {json}}}")).unwrap()
    }

    #[test]
    fn values_have_the_order_of_numbers_or_of_bytes() {
        let ascending = [
            "-1e300",
            "-9223372036854775808",
            "-2.5",
            "-2",
            "-1.5",
            "0",
            "0.25",
            "1",
            "9007199254740992.0",
            "9007199254740993",
            "9007199254740994.0",
            "18446744073709551614",
            "18446744073709551615",
            "1e20",
            "1.7e308",
        ];
        let strings = ["\"\"", "\"10\"", "\"2024-01-31\"", "\"2024-02-01\"", "\"Z\"", "\"a\"", "\"あ\"", "\"𠮟\""];
        for values in [ascending.as_slice(), &strings] {
            for (i, a) in values.iter().enumerate() {
                for (j, b) in values.iter().enumerate() {
                    assert_eq!(value(a).compare(&value(b)), i.cmp(&j), "{a} and {b}");
                }
            }
        }
        for (a, b) in [("1", "1.0"), ("-3.0", "-3"), ("0", "-0.0"), ("0.0", "-0.0"), ("1e2", "100")] {
            assert_eq!(value(a).compare(&value(b)), Ordering::Equal, "{a} and {b}");
        }
    }

    #[test]
    fn other_values_are_refused() {
        let error = |record: &str| Value::under("v", record).unwrap_err();
        for (value, kind) in [("null", "null"), ("true", "true or false"), ("[1]", "an array"), ("{}", "an object")] {
            let error = error(&format!("{{\"v\": {value}}}"));
            assert!(error.contains(&format!("\"v\" is {kind}; it must be a string or a number")), "{error}");
        }
        assert_eq!(error(r#"{"text": "x"}"#), r#"no key "v" (it has "text"); --keep names the one to read"#);
    }
}
