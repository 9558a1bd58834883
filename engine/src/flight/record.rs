//! The records of the ring, and how they are packed into words.

use crate::layout::mesh::GroupKind;
use crate::model::param_specs::Unit;
use crate::scope::Scope;
use serde::{Deserialize, Serialize};
use std::fmt::{self, Display};

/// A group of calls in which ranks wait for each other; each channel counts its calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Channel {
    /// Small messages of the host, among all ranks.
    Host,
    /// Small messages of the host, among some ranks.
    HostGroup,
    Group(GroupKind),
}

impl Channel {
    pub const COUNT: usize = 2 + GroupKind::ALL.len();

    /// From 0 to [`Channel::COUNT`].
    pub fn index(self) -> usize {
        match self {
            Channel::Host => 0,
            Channel::HostGroup => 1,
            Channel::Group(kind) => {
                2 + GroupKind::ALL.iter().position(|&other| other == kind).expect("ALL has every kind")
            }
        }
    }

    pub(super) fn of_index(index: usize) -> Option<Channel> {
        match index {
            0 => Some(Channel::Host),
            1 => Some(Channel::HostGroup),
            _ => GroupKind::ALL.get(index - 2).map(|&kind| Channel::Group(kind)),
        }
    }
}

impl Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Channel::Host => write!(f, "all ranks' hosts"),
            Channel::HostGroup => write!(f, "some ranks' hosts"),
            Channel::Group(kind) => write!(f, "the {} group", kind.name()),
        }
    }
}

/// An entry of the ring.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    Step(u64),
    Scope(Scope),
    /// An op of the backend, by its name.
    Op(String),
    /// A call of a channel was started: its number (the first is 1), what it is, and its bytes.
    Started {
        channel: Channel,
        number: u32,
        what: String,
        bytes: u64,
    },
    /// The host waits for a call.
    Waits {
        channel: Channel,
        number: u32,
    },
    /// Work that is neither an op nor a call, such as reading a file.
    Work(String),
}

/// Characters of a name that a record keeps.
pub(super) const NAME: usize = 16;

/// A record in words: the kind with small numbers, 16 bytes of name, and a large number.
pub(super) type Packed = [u64; 4];

const STEP: u64 = 1;
const SCOPE: u64 = 2;
const OP: u64 = 3;
const STARTED: u64 = 4;
const WAITS: u64 = 5;
const WORK: u64 = 6;

pub(super) fn pack_name(name: &str) -> [u64; 2] {
    let mut bytes = [0u8; NAME];
    let len = name.len().min(NAME);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    let half = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    [half(0), half(8)]
}

pub(super) fn name_of(words: [u64; 2]) -> String {
    let bytes = words.map(u64::to_le_bytes).concat();
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(NAME);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A kind, a channel and a number in one word.
fn head(kind: u64, channel: Channel, number: u32) -> u64 {
    kind | (channel.index() as u64) << 8 | u64::from(number) << 32
}

pub(super) fn step(step: u64) -> Packed {
    [STEP, 0, 0, step]
}

pub(super) fn scope(scope: Scope) -> Packed {
    let (which, index, chunk) = match scope {
        Scope::Forward { chunk, mb } => (1, mb, chunk),
        Scope::Backward { chunk, mb } => (2, mb, chunk),
        Scope::Validation { chunk, mb } => (3, mb, chunk),
        Scope::Unit(Unit::Embedding) => (4, 0, 0),
        Scope::Unit(Unit::Layer(layer)) => (5, layer, 0),
        Scope::Unit(Unit::Head) => (6, 0, 0),
        Scope::Unit(Unit::Experts(layer)) => (8, layer, 0),
        Scope::Optimizer => (7, 0, 0),
    };
    [SCOPE, which, index as u64, chunk as u64]
}

/// A packed scope without its first word.
pub(super) fn scope_words([which, index, chunk]: [u64; 3]) -> Packed {
    [SCOPE, which, index, chunk]
}

pub(super) fn op(name: &str) -> Packed {
    let [a, b] = pack_name(name);
    [OP, a, b, 0]
}

pub(super) fn started(channel: Channel, number: u32, what: &str, bytes: u64) -> Packed {
    let [a, b] = pack_name(what);
    [head(STARTED, channel, number), a, b, bytes]
}

pub(super) fn waits(channel: Channel, number: u32) -> Packed {
    [head(WAITS, channel, number), 0, 0, 0]
}

pub(super) fn work(what: &str) -> Packed {
    let [a, b] = pack_name(what);
    [WORK, a, b, 0]
}

/// `None` for words that no record has, as in a slot that is being written.
pub(super) fn unpack([first, a, b, last]: Packed) -> Option<Record> {
    let channel = || Channel::of_index((first >> 8 & 0xff) as usize);
    let number = (first >> 32) as u32;
    Some(match first & 0xff {
        STEP => Record::Step(last),
        SCOPE => Record::Scope(unpack_scope(a, b as usize, last as usize)?),
        OP => Record::Op(name_of([a, b])),
        STARTED => Record::Started { channel: channel()?, number, what: name_of([a, b]), bytes: last },
        WAITS => Record::Waits { channel: channel()?, number },
        WORK => Record::Work(name_of([a, b])),
        _ => return None,
    })
}

fn unpack_scope(which: u64, index: usize, chunk: usize) -> Option<Scope> {
    Some(match which {
        1 => Scope::Forward { chunk, mb: index },
        2 => Scope::Backward { chunk, mb: index },
        3 => Scope::Validation { chunk, mb: index },
        4 => Scope::Unit(Unit::Embedding),
        5 => Scope::Unit(Unit::Layer(index)),
        6 => Scope::Unit(Unit::Head),
        7 => Scope::Optimizer,
        _ => return None,
    })
}

impl Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Record::Step(step) => write!(f, "step {step}"),
            Record::Scope(scope) => scope.fmt(f),
            Record::Op(name) => name.fmt(f),
            Record::Started { channel, number, what, bytes } => {
                write!(f, "started {what} #{number} of {channel}, {bytes} bytes")
            }
            Record::Waits { channel, number } => write!(f, "waits for call #{number} of {channel}"),
            Record::Work(what) => what.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_is_unpacked_as_it_was_packed() {
        let data = Channel::Group(GroupKind::Data);
        for (packed, record) in [
            (step(1 << 40), Record::Step(1 << 40)),
            (op("rmsnorm_bwd_add"), Record::Op("rmsnorm_bwd_add".into())),
            (op("a name longer than the ring keeps"), Record::Op("a name longer th".into())),
            (waits(Channel::Host, u32::MAX), Record::Waits { channel: Channel::Host, number: u32::MAX }),
            (
                started(data, 199, "reduce-scatter", 1 << 33),
                Record::Started { channel: data, number: 199, what: "reduce-scatter".into(), bytes: 1 << 33 },
            ),
            (work("metrics.jsonl"), Record::Work("metrics.jsonl".into())),
        ] {
            assert_eq!(unpack(packed), Some(record));
        }
        for part in [
            Scope::Forward { chunk: 3, mb: 1000 },
            Scope::Backward { chunk: 0, mb: 7 },
            Scope::Validation { chunk: 1, mb: 2 },
            Scope::Unit(Unit::Embedding),
            Scope::Unit(Unit::Layer(79)),
            Scope::Unit(Unit::Head),
            Scope::Optimizer,
        ] {
            assert_eq!(unpack(scope(part)), Some(Record::Scope(part)));
        }
        assert_eq!(unpack([0; 4]), None);
        assert!((0..Channel::COUNT).all(|i| Channel::of_index(i).unwrap().index() == i));
        assert_eq!(Channel::of_index(Channel::COUNT), None);
    }
}
