//! How the ranks of a communicator find each other: by sockets whose names are made of its unique id.

use super::code::{Code, INVALID_ARGUMENT, INVALID_USAGE, REMOTE_ERROR, Said, fail};
use crate::settings::settings;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

/// How often who waits looks whether that is still wanted.
const LOOK: Duration = Duration::from_millis(2);

/// What a rank tells the others of itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    pub rank: usize,
    pub size: usize,
    /// Of its device.
    pub uuid: [u8; 16],
    /// Of what NCCL takes for its host.
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

/// Links to all other ranks, by their ranks. Waits for them for as long as `wanted` says.
pub fn meet(id: &str, own: Hello, wanted: impl Fn() -> Said<()>) -> Said<Vec<Option<UnixStream>>> {
    let name = |rank: usize| SocketAddr::from_abstract_name(format!("{id}.{rank}")).expect("a short name");
    let taken = |e| fail(INVALID_USAGE, &format!("rank {} of a communicator is there twice: {e}", own.rank));
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
    fail(REMOTE_ERROR, &format!("a peer is lost while the communicator is made: {error}"))
}

/// Tries until it works, while the error is this one.
fn until<T>(
    wanted: &impl Fn() -> Said<()>,
    mut work: impl FnMut() -> std::io::Result<T>,
    not_yet: ErrorKind,
) -> Said<T> {
    loop {
        wanted()?;
        match work() {
            Ok(done) => return Ok(done),
            Err(e) if e.kind() == not_yet => std::thread::sleep(LOOK),
            Err(e) => return Err(lost(e)),
        }
    }
}

/// Tells the other who this is, and learns who it is.
fn greet(mut link: &UnixStream, own: Hello, wanted: &impl Fn() -> Said<()>) -> Said<Hello> {
    link.write_all(&own.bytes()).map_err(lost)?;
    link.set_read_timeout(Some(LOOK)).map_err(lost)?;
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

/// What all ranks find out alike.
fn check(hellos: &[Hello]) -> Said<()> {
    let (first, n) = (hellos[0], hellos.len());
    if let Some(other) = hellos.iter().find(|hello| hello.size != n) {
        let what = format!("rank {} says that there are {} ranks, another that there are {n}", other.rank, other.size);
        return Err(fail(INVALID_ARGUMENT, &what));
    }
    assert_eq!(first.rank, 0, "ranks by number");
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
