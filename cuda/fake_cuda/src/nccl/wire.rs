//! What goes over a link between two ranks.

use super::number::{Number, Reduce};
use std::fmt;
use std::io::{Read, Result, Write};

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    AllReduce,
    AllGather,
    ReduceScatter,
    Broadcast,
    Send,
    Recv,
}

/// An operation as all who take part in it must know it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct What {
    pub kind: Kind,
    pub number: Number,
    pub reduce: Reduce,
    /// Elements, as the call counts them.
    pub count: usize,
    /// The root of a broadcast.
    pub root: usize,
}

impl What {
    pub fn is_collective(&self) -> bool {
        !matches!(self.kind, Kind::Send | Kind::Recv)
    }

    /// Elements that a rank hands in and that it gets, in a communicator of `size`.
    pub fn counts(&self, size: usize) -> (usize, usize) {
        match self.kind {
            Kind::AllReduce | Kind::Broadcast => (self.count, self.count),
            Kind::AllGather => (self.count, self.count * size),
            Kind::ReduceScatter => (self.count * size, self.count),
            Kind::Send => (self.count, 0),
            Kind::Recv => (0, self.count),
        }
    }
}

impl fmt::Debug for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {} {:?}", self.kind, self.count, self.number)?;
        match self.kind {
            Kind::AllReduce | Kind::ReduceScatter => write!(f, " ({:?})", self.reduce),
            Kind::Broadcast => write!(f, " from rank {}", self.root),
            _ => Ok(()),
        }
    }
}

pub enum Message {
    /// A rank's part in a collective, or what is sent to a peer.
    Part(What, Vec<u8>),
    /// What was sent has been received.
    Received,
    /// The rank takes part in nothing any more, and it is well.
    Bye,
}

const KINDS: [Kind; 6] =
    [Kind::AllReduce, Kind::AllGather, Kind::ReduceScatter, Kind::Broadcast, Kind::Send, Kind::Recv];
const RECEIVED: u8 = 0x80;
const BYE: u8 = 0x81;
/// Bytes before the payload.
const HEAD: usize = 24;

impl Message {
    pub fn write(&self, to: &mut impl Write) -> Result<()> {
        let mut head = [0; HEAD];
        let payload: &[u8] = match self {
            Message::Received => {
                head[0] = RECEIVED;
                &[]
            }
            Message::Bye => {
                head[0] = BYE;
                &[]
            }
            Message::Part(what, bytes) => {
                head[..3].copy_from_slice(&[what.kind as u8, what.number as u8, what.reduce as u8]);
                head[4..8].copy_from_slice(&(what.root as u32).to_le_bytes());
                head[8..16].copy_from_slice(&(what.count as u64).to_le_bytes());
                head[16..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
                bytes
            }
        };
        to.write_all(&head)?;
        to.write_all(payload)
    }

    pub fn read(from: &mut impl Read) -> Result<Message> {
        let mut head = [0; HEAD];
        from.read_exact(&mut head)?;
        if let RECEIVED | BYE = head[0] {
            return Ok(if head[0] == BYE { Message::Bye } else { Message::Received });
        }
        let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes")) as usize;
        let what = What {
            kind: KINDS[head[0] as usize],
            number: Number::of(head[1].into()).expect("a number that was sent"),
            reduce: Reduce::of(head[2].into()).expect("a reduction that was sent"),
            count: word(8),
            root: word(4) & 0xffff_ffff,
        };
        let mut payload = vec![0; word(16)];
        from.read_exact(&mut payload)?;
        Ok(Message::Part(what, payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut wire = Vec::new();
        let (number, reduce) = (Number::Bfloat16, Reduce::Max);
        let what = What { kind: Kind::Broadcast, number, reduce, count: 5_000_000_000, root: 7 };
        let messages = [Message::Part(what, vec![1, 2, 3]), Message::Received, Message::Bye];
        messages.iter().for_each(|message| message.write(&mut wire).unwrap());
        let mut wire = &wire[..];
        assert!(matches!(Message::read(&mut wire), Ok(Message::Part(w, bytes)) if w == what && bytes == [1, 2, 3]));
        assert!(matches!(Message::read(&mut wire), Ok(Message::Received)));
        assert!(matches!(Message::read(&mut wire), Ok(Message::Bye)));
        assert!(Message::read(&mut wire).is_err());
    }
}
