//! Parts of a step, for whoever tells where something happened or how long it took.

use crate::model::param_specs::Unit;
use std::fmt::{Display, Formatter, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// A micro-batch through a chunk of layers.
    Forward {
        chunk: usize,
        mb: usize,
    },
    Backward {
        chunk: usize,
        mb: usize,
    },
    /// A micro-batch of a validation.
    Validation {
        chunk: usize,
        mb: usize,
    },
    Unit(Unit),
    Optimizer,
}

impl Display for Scope {
    fn fmt(&self, f: &mut Formatter) -> Result {
        let mut chunk_of = |what, chunk, mb| match chunk {
            0 => write!(f, "{what} of micro-batch {mb}"),
            chunk => write!(f, "{what} of micro-batch {mb} in chunk {chunk}"),
        };
        match *self {
            Scope::Forward { chunk, mb } => chunk_of("forward", chunk, mb),
            Scope::Backward { chunk, mb } => chunk_of("backward", chunk, mb),
            Scope::Validation { chunk, mb } => chunk_of("validation", chunk, mb),
            Scope::Unit(Unit::Embedding) => write!(f, "the embedding"),
            Scope::Unit(Unit::Layer(layer)) => write!(f, "layer {layer}"),
            Scope::Unit(Unit::Head) => write!(f, "the head"),
            Scope::Optimizer => write!(f, "the optimizer"),
        }
    }
}
