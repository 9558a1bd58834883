//! Parts of a step. Traces and error messages use them to name the place of an event.

use crate::model::param_specs::Unit;
use crate::time::Phase;
use std::fmt::{Display, Formatter, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The forward pass of a micro-batch through a chunk of layers.
    Forward {
        chunk: usize,
        mb: usize,
    },
    Backward {
        chunk: usize,
        mb: usize,
    },
    /// The forward pass of a validation micro-batch through a chunk of layers.
    Validation {
        chunk: usize,
        mb: usize,
    },
    Unit(Unit),
    Optimizer,
}

impl Scope {
    /// The phase that the part belongs to; `None` for layers, which run in several phases.
    pub fn phase(self) -> Option<Phase> {
        match self {
            Scope::Forward { .. } => Some(Phase::Forward),
            Scope::Backward { .. } => Some(Phase::Backward),
            Scope::Validation { .. } => Some(Phase::Validation),
            Scope::Optimizer => Some(Phase::Optimizer),
            Scope::Unit(_) => None,
        }
    }
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
            Scope::Unit(Unit::Experts(layer)) => write!(f, "the experts of layer {layer}"),
            Scope::Unit(Unit::Head) => write!(f, "the head"),
            Scope::Optimizer => write!(f, "the optimizer"),
        }
    }
}
