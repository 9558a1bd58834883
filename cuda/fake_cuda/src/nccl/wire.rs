//! Messages between two ranks.

use super::data_type::{DataType, ReduceOp};
use std::fmt;
use std::io::{Read, Result, Write};

/// The kind of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    AllReduce,
    AllGather,
    ReduceScatter,
    Broadcast,
    Send,
    Recv,
}

/// The parameters of an operation on which all its ranks must agree.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    pub kind: Kind,
    pub data_type: DataType,
    pub reduce: ReduceOp,
    /// The element count of the call.
    pub count: usize,
    /// The root of a broadcast.
    pub root: usize,
}

impl Signature {
    pub fn is_collective(&self) -> bool {
        !matches!(self.kind, Kind::Send | Kind::Recv)
    }

    /// Elements of a rank's input and output, in a communicator of `size` ranks.
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

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {} {:?}", self.kind, self.count, self.data_type)?;
        match self.kind {
            Kind::AllReduce | Kind::ReduceScatter => write!(f, " ({:?})", self.reduce),
            Kind::Broadcast => write!(f, " from rank {}", self.root),
            _ => Ok(()),
        }
    }
}

pub enum Message {
    /// A rank's input of a collective, or a send.
    Data(Signature, Vec<u8>),
    /// A send was received.
    Received,
    /// The rank leaves in an orderly way.
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
            Message::Data(what, bytes) => {
                head[..3].copy_from_slice(&[what.kind as u8, what.data_type as u8, what.reduce as u8]);
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
        let what = Signature {
            kind: KINDS[head[0] as usize],
            data_type: DataType::of(head[1].into()).expect("a data type from a peer"),
            reduce: ReduceOp::of(head[2].into()).expect("a reduction from a peer"),
            count: word(8),
            root: word(4) & 0xffff_ffff,
        };
        let mut payload = vec![0; word(16)];
        from.read_exact(&mut payload)?;
        Ok(Message::Data(what, payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_written() {
        let mut wire = Vec::new();
        let (data_type, reduce) = (DataType::Bfloat16, ReduceOp::Max);
        let what = Signature { kind: Kind::Broadcast, data_type, reduce, count: 5_000_000_000, root: 7 };
        let messages = [Message::Data(what, vec![1, 2, 3]), Message::Received, Message::Bye];
        messages.iter().for_each(|message| message.write(&mut wire).unwrap());
        let mut wire = &wire[..];
        assert!(matches!(Message::read(&mut wire), Ok(Message::Data(w, bytes)) if w == what && bytes == [1, 2, 3]));
        assert!(matches!(Message::read(&mut wire), Ok(Message::Received)));
        assert!(matches!(Message::read(&mut wire), Ok(Message::Bye)));
        assert!(Message::read(&mut wire).is_err());
    }
}
