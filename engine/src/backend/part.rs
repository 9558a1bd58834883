//! Parts of a step, for whoever tells where something happened or how long it took.

use crate::inventory::Slot;
use std::fmt::{Display, Formatter, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
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
    Slot(Slot),
    Optimizer,
}

impl Display for Part {
    fn fmt(&self, f: &mut Formatter) -> Result {
        let mut chunk_of = |what, chunk, mb| match chunk {
            0 => write!(f, "{what} of micro-batch {mb}"),
            chunk => write!(f, "{what} of micro-batch {mb} in chunk {chunk}"),
        };
        match *self {
            Part::Forward { chunk, mb } => chunk_of("forward", chunk, mb),
            Part::Backward { chunk, mb } => chunk_of("backward", chunk, mb),
            Part::Validation { chunk, mb } => chunk_of("validation", chunk, mb),
            Part::Slot(Slot::Embedding) => write!(f, "the embedding"),
            Part::Slot(Slot::Layer(layer)) => write!(f, "layer {layer}"),
            Part::Slot(Slot::Head) => write!(f, "the head"),
            Part::Optimizer => write!(f, "the optimizer"),
        }
    }
}
