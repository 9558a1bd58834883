//! What a trace consists of.

use super::Scope;
use crate::layout::mesh::GroupKind;
use std::fmt::{Display, Formatter, Result};

/// A stretch of time on one of a backend's streams.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    pub track: Track,
    pub label: Label,
    /// Seconds since the trace began.
    pub start: f64,
    pub end: f64,
}

/// What happened then.
#[derive(Debug, Clone, PartialEq)]
pub enum Label {
    Scope(Scope),
    /// A kernel, a product, a collective.
    Op(String),
    /// For what others were to bring.
    Wait,
}

/// What runs beside what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Track {
    /// Parts of the step, one inside another.
    Parts,
    /// What computes.
    Compute,
    /// Where compute waits for a kind of group.
    Wait(GroupKind),
    /// Collectives of a kind of group.
    Group(GroupKind),
}

/// How much a trace remembers. What is remembered costs time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detail {
    /// Micro-batches, the optimizer, and waits.
    Parts,
    /// Layers, ops and collectives, too.
    Ops,
}

impl Detail {
    /// The least that remembers parts like this one.
    pub fn of(part: Scope) -> Detail {
        match part {
            Scope::Unit(_) => Detail::Ops,
            Scope::Forward { .. } | Scope::Backward { .. } | Scope::Validation { .. } | Scope::Optimizer => {
                Detail::Parts
            }
        }
    }
}

impl Display for Track {
    fn fmt(&self, f: &mut Formatter) -> Result {
        match self {
            Track::Parts => write!(f, "parts"),
            Track::Compute => write!(f, "compute"),
            Track::Wait(kind) => write!(f, "waits for {}", kind.name()),
            Track::Group(kind) => write!(f, "{}", kind.name()),
        }
    }
}

impl Display for Label {
    fn fmt(&self, f: &mut Formatter) -> Result {
        match self {
            Label::Scope(part) => write!(f, "{part}"),
            Label::Op(what) => write!(f, "{what}"),
            Label::Wait => write!(f, "wait"),
        }
    }
}
