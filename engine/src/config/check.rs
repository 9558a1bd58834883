//! Small questions that a value must pass, each with its complaint.

use super::origins::Origins;
use crate::error::Result;

/// A required value.
pub fn need<T>(value: Option<T>, key: &str, example: &str, at: &Origins) -> Result<T> {
    value.ok_or_else(|| at.missing(key, format!("write {example}")))
}

/// A whole number of `range`.
pub fn whole(value: u64, range: std::ops::RangeInclusive<u64>, key: &str, at: &Origins) -> Result<u64> {
    let remedy = || format!("must lie in {} ..= {}", range.start(), range.end());
    if range.contains(&value) { Ok(value) } else { Err(at.bad(key, value, remedy())) }
}

/// As [`whole`], for what is counted in memory.
pub fn size(value: u64, range: std::ops::RangeInclusive<u64>, key: &str, at: &Origins) -> Result<usize> {
    whole(value, range, key, at).map(|n| n as usize)
}

/// A number that `allowed` holds for; `rule` says it in words.
pub fn number(value: f64, allowed: impl Fn(f64) -> bool, rule: &str, key: &str, at: &Origins) -> Result<f64> {
    if allowed(value) { Ok(value) } else { Err(at.bad(key, value, rule)) }
}

/// Added to a denominator in f32: it must be there in f32 too.
pub fn epsilon(value: f64, key: &str, at: &Origins) -> Result<f64> {
    let allowed = |x: f64| (x as f32).is_normal() && x > 0.0;
    number(value, allowed, "must lie between 1e-37 and 1e38", key, at)
}

pub fn not_negative(value: f64, key: &str, at: &Origins) -> Result<f64> {
    number(value, |x| x >= 0.0 && x <= f32::MAX as f64, "must not be negative, and fit 32 bits", key, at)
}

/// A path as typed; the empty one is no path.
pub fn path(value: String, key: &str, at: &Origins) -> Result<std::path::PathBuf> {
    if value.is_empty() { Err(at.bad(key, "\"\"", "must name a path")) } else { Ok(value.into()) }
}
