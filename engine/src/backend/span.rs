//! A trace: spans of time on tracks.

use super::Scope;
use crate::layout::mesh::GroupKind;
use std::fmt::{Display, Formatter, Result};

/// An interval of time on a track.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    pub track: Track,
    pub label: Label,
    /// Seconds since the trace began, like `end`.
    pub start: f64,
    pub end: f64,
}

/// The content of a span.
#[derive(Debug, Clone, PartialEq)]
pub enum Label {
    Scope(Scope),
    /// A kernel, a GEMM, a copy or a collective.
    Op(String),
    /// Compute waits for communication.
    Wait,
}

/// The rows of a trace: spans of different tracks may overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Track {
    /// Parts of the step, nested.
    Parts,
    /// Ops of the compute stream.
    Compute,
    /// Waits of the compute stream for communication of this kind of group.
    Wait(GroupKind),
    /// Communication of this kind of group.
    Group(GroupKind),
}

/// How much a trace records. Recording costs time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detail {
    /// Micro-batches, the optimizer and waits.
    Parts,
    /// Layers, ops and collectives as well.
    Ops,
}

impl Detail {
    /// The least detail that records `part`.
    pub fn of(part: Scope) -> Detail {
        if part.phase().is_some() { Detail::Parts } else { Detail::Ops }
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
