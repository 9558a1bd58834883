//! What a trace consists of.

/// A stretch of time on one of a backend's streams.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    pub track: Track,
    pub name: String,
    /// Seconds since the trace began.
    pub start: f64,
    pub end: f64,
}

/// What runs beside what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Track {
    /// Parts of the step, one inside another.
    Parts,
    /// What computes.
    Compute,
    /// Collectives of a kind of group.
    Group(crate::mesh::Kind),
}

impl Track {
    pub fn name(self) -> &'static str {
        match self {
            Track::Parts => "parts",
            Track::Compute => "compute",
            Track::Group(kind) => kind.name(),
        }
    }
}
