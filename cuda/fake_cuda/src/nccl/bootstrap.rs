//! Connects the ranks of a communicator, by sockets whose names derive from its unique id.

use super::code::{Code, INVALID_ARGUMENT, INVALID_USAGE, Outcome, REMOTE_ERROR, fail};
use crate::settings::settings;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

/// The interval at which a waiting thread checks whether the connection is still wanted.
const POLL: Duration = Duration::from_millis(2);

/// The message with which a rank introduces itself to the others.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    pub rank: usize,
    pub size: usize,
    /// The UUID of its device.
    pub uuid: [u8; 16],
    /// A hash of the host that NCCL sees.
    host: u64,
}

impl Hello {
    pub fn new(rank: usize, size: usize, uuid: [u8; 16]) -> Hello {
        let mut host = DefaultHasher::new();
        settings().host.hash(&mut host);
        Hello { rank, size, uuid, host: host.finish() }
    }

    fn bytes(&self) -> [u8; 40] {
        let mut bytes = [0; 40];
        bytes[..8].copy_from_slice(&(self.rank as u64).to_le_bytes());
        bytes[8..16].copy_from_slice(&(self.size as u64).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.host.to_le_bytes());
        bytes[24..].copy_from_slice(&self.uuid);
        bytes
    }

    fn read(bytes: &[u8; 40]) -> Hello {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let uuid = bytes[24..].try_into().expect("sixteen bytes");
        Hello { rank: word(0) as usize, size: word(8) as usize, uuid, host: word(16) }
    }
}

/// Connections to all other ranks, by rank. Waits for them while `wanted` returns Ok.
pub fn meet(id: &str, own: Hello, wanted: impl Fn() -> Outcome<()>) -> Outcome<Vec<Option<UnixStream>>> {
    let name = |rank: usize| SocketAddr::from_abstract_name(format!("{id}.{rank}")).expect("a short name");
    let taken = |e| fail(INVALID_USAGE, &format!("rank {} of a communicator exists twice: {e}", own.rank));
    let listener = UnixListener::bind_addr(&name(own.rank)).map_err(taken)?;
    listener.set_nonblocking(true).map_err(lost)?;
    let mut links: Vec<Option<UnixStream>> = (0..own.size).map(|_| None).collect();
    let mut hellos = vec![own];
    for (rank, place) in links.iter_mut().enumerate().take(own.rank) {
        let link = until(&wanted, || UnixStream::connect_addr(&name(rank)), ErrorKind::ConnectionRefused)?;
        hellos.push(greet(&link, own, &wanted)?);
        *place = Some(link);
    }
    for _ in own.rank + 1..own.size {
        let (link, _) = until(&wanted, || listener.accept(), ErrorKind::WouldBlock)?;
        link.set_nonblocking(false).map_err(lost)?;
        let hello = greet(&link, own, &wanted)?;
        hellos.push(hello);
        if let Some(place) = links.get_mut(hello.rank) {
            *place = Some(link);
        }
    }
    hellos.sort_by_key(|hello| hello.rank);
    check(&hellos)?;
    Ok(links)
}

fn lost(error: std::io::Error) -> Code {
    fail(REMOTE_ERROR, &format!("a peer was lost during initialization: {error}"))
}

/// Retries while the error is `not_yet`.
fn until<T>(
    wanted: &impl Fn() -> Outcome<()>,
    mut work: impl FnMut() -> std::io::Result<T>,
    not_yet: ErrorKind,
) -> Outcome<T> {
    loop {
        wanted()?;
        match work() {
            Ok(done) => return Ok(done),
            Err(e) if e.kind() == not_yet => std::thread::sleep(POLL),
            Err(e) => return Err(lost(e)),
        }
    }
}

/// Exchanges `Hello`s with a peer.
fn greet(mut link: &UnixStream, own: Hello, wanted: &impl Fn() -> Outcome<()>) -> Outcome<Hello> {
    link.write_all(&own.bytes()).map_err(lost)?;
    link.set_read_timeout(Some(POLL)).map_err(lost)?;
    let (mut bytes, mut n) = ([0; 40], 0);
    while n < bytes.len() {
        let got = until(wanted, || link.read(&mut bytes[n..]), ErrorKind::WouldBlock)?;
        if got == 0 {
            return Err(lost(ErrorKind::UnexpectedEof.into()));
        }
        n += got;
    }
    link.set_read_timeout(None).map_err(lost)?;
    Ok(Hello::read(&bytes))
}

/// Checks the ranks against each other; all ranks come to the same result.
fn check(hellos: &[Hello]) -> Outcome<()> {
    let (first, n) = (hellos[0], hellos.len());
    if let Some(other) = hellos.iter().find(|hello| hello.size != n) {
        let what = format!("rank {} was started with {} ranks, another with {n}", other.rank, other.size);
        return Err(fail(INVALID_ARGUMENT, &what));
    }
    assert_eq!(first.rank, 0, "the first rank");
    for (i, a) in hellos.iter().enumerate() {
        if let Some(b) = hellos[i + 1..].iter().find(|b| (b.uuid, b.host) == (a.uuid, a.host)) {
            let number = u64::from_be_bytes(a.uuid[8..].try_into().expect("eight bytes"));
            let what = format!(
                "Duplicate GPU detected : rank {} and rank {} both on CUDA device {:x}",
                a.rank,
                b.rank,
                (number + 1) << 12
            );
            return Err(fail(INVALID_USAGE, &what));
        }
    }
    Ok(())
}
