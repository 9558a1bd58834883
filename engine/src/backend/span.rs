//! What a trace consists of.

use super::Part;
use crate::mesh::Kind;
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
    Part(Part),
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
    Wait(Kind),
    /// Collectives of a kind of group.
    Group(Kind),
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
    pub fn of(part: Part) -> Detail {
        match part {
            Part::Slot(_) => Detail::Ops,
            Part::Forward { .. } | Part::Backward { .. } | Part::Validation { .. } | Part::Optimizer => Detail::Parts,
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
            Label::Part(part) => write!(f, "{part}"),
            Label::Op(what) => write!(f, "{what}"),
            Label::Wait => write!(f, "wait"),
        }
    }
}
