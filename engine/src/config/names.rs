//! The words of a configuration file for values that are one of a few.

use super::origins::{Origins, nearest};
use super::{Architecture, Axis, BackendKind, DecayShape, Order, Precision, Recompute};
use crate::error::Result;

/// A type whose values have names in the file.
pub trait Named: Copy + PartialEq + 'static {
    const NAMES: &'static [(&'static str, Self)];

    fn name(self) -> &'static str {
        let named = Self::NAMES.iter().find(|(_, value)| *value == self);
        named.expect("every value has a name").0
    }
}

impl Named for Architecture {
    const NAMES: &'static [(&'static str, Self)] = &[("llama", Architecture::Llama)];
}

impl Named for BackendKind {
    const NAMES: &'static [(&'static str, Self)] = &[("cuda", BackendKind::Cuda), ("cpu", BackendKind::Cpu)];
}

impl Named for Precision {
    const NAMES: &'static [(&'static str, Self)] = &[("bf16", Precision::Bf16), ("f32", Precision::F32)];
}

impl Named for Recompute {
    const NAMES: &'static [(&'static str, Self)] =
        &[("none", Recompute::None), ("selective", Recompute::Selective), ("full", Recompute::Full)];
}

impl Named for DecayShape {
    const NAMES: &'static [(&'static str, Self)] =
        &[("linear", DecayShape::Linear), ("1-sqrt", DecayShape::OneMinusSqrt)];
}

impl Named for Order {
    const NAMES: &'static [(&'static str, Self)] = &[("megatron", Order::Megatron), ("sequential", Order::Sequential)];
}

impl Named for Axis {
    const NAMES: &'static [(&'static str, Self)] = &[
        ("tp", Axis::Tensor),
        ("cp", Axis::Context),
        ("ep", Axis::Expert),
        ("dp", Axis::Data),
        ("pp", Axis::Pipeline),
    ];
}

/// The value that `word` names, and where there is none, an error with the words that are.
pub fn choose<T: Copy>(names: &[(&'static str, T)], word: &str, key: &str, at: &Origins) -> Result<T> {
    match names.iter().find(|(name, _)| *name == word) {
        Some((_, value)) => Ok(*value),
        None => {
            let words: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
            let hint = nearest(word, &words).map_or(String::new(), |near| format!("; did you mean {near:?}?"));
            Err(at.bad(key, format!("{word:?}"), format!("must be one of {}{hint}", words.join(", "))))
        }
    }
}
