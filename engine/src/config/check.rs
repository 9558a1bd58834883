//! Checks of the values of a cluster file, each with its message.

use super::origins::Origins;
use crate::error::Result;

/// A required value.
pub fn need<T>(value: Option<T>, key: &str, example: &str, at: &Origins) -> Result<T> {
    value.ok_or_else(|| at.missing(key, format!("write {example}")))
}

/// A count in `range`, as a `usize`.
pub fn size(value: u64, range: std::ops::RangeInclusive<u64>, key: &str, at: &Origins) -> Result<usize> {
    let remedy = || format!("must lie in {} ..= {}", range.start(), range.end());
    if range.contains(&value) { Ok(value as usize) } else { Err(at.bad(key, value, remedy())) }
}

/// A number for which `allowed` holds; `rule` states the condition for the message.
pub fn number(value: f64, allowed: impl Fn(f64) -> bool, rule: &str, key: &str, at: &Origins) -> Result<f64> {
    if allowed(value) { Ok(value) } else { Err(at.bad(key, value, rule)) }
}

pub fn not_negative(value: f64, key: &str, at: &Origins) -> Result<f64> {
    number(value, |x| x >= 0.0 && x <= f32::MAX as f64, "must not be negative, and must fit 32 bits", key, at)
}
