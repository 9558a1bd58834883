//! Ranks of a communicator: threads of a process, each with a device of its own.

use crate::alone::{Ended, named};
use crate::play::*;
use fake_cuda::nccl::*;
use half::bf16;
use std::ptr::null_mut;

pub const FLOAT: i32 = 7;
pub const BF16: i32 = 9;
pub const SUM: i32 = 0;

/// A rank with a stream.
pub struct Rank {
    pub rank: usize,
    pub comm: Handle,
    pub stream: Handle,
}

pub fn id() -> Id {
    let mut id = Id([0; 128]);
    // SAFETY: there is a place for the id.
    ok(unsafe { ncclGetUniqueId(&mut id) });
    id
}

pub fn join(id: Id, size: usize, rank: usize) -> Handle {
    let mut comm = null_mut();
    // SAFETY: there is a place for the handle.
    ok(unsafe { ncclCommInitRank(&mut comm, size as i32, id, rank as i32) });
    comm
}

/// Three ranks in a process with this environment; each destroys its communicator unless it aborted it.
pub fn three<F: Fn(&mut Rank) + Sync>(env: &[(&str, &str)], body: F) -> Ended {
    let id = id();
    let run = || {
        std::thread::scope(|scope| {
            for rank in 0..3 {
                let body = &body;
                scope.spawn(move || {
                    open(rank as i32);
                    let mut rank = Rank { rank, comm: join(id, 3, rank), stream: stream() };
                    body(&mut rank);
                    if !rank.comm.is_null() {
                        rank.leave();
                    }
                });
            }
        });
    };
    named::<F>(&[env, &[("FAKE_CUDA_DEVICES", "3")]].concat(), run)
}

impl Rank {
    pub fn leave(&mut self) {
        // SAFETY: it is a handle, and is not used any more.
        unsafe {
            ok(ncclCommFinalize(self.comm));
            ok(ncclCommDestroy(std::mem::replace(&mut self.comm, null_mut())));
        }
    }

    pub fn abort(&mut self) {
        // SAFETY: as in `leave`.
        ok(unsafe { ncclCommAbort(std::mem::replace(&mut self.comm, null_mut())) });
    }

    pub fn async_error(&self) -> i32 {
        let mut error = 0;
        // SAFETY: it is a handle, and there is a place for the number.
        ok(unsafe { ncclCommGetAsyncError(self.comm, &mut error) });
        error
    }

    /// Device memory with these values.
    pub fn floats(&self, values: &[f32]) -> u64 {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let at = device_memory(bytes.len());
        write(at, &bytes, self.stream);
        at
    }

    pub fn bf16s(&self, values: &[f32]) -> u64 {
        let bytes: Vec<u8> = values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
        let at = device_memory(bytes.len());
        write(at, &bytes, self.stream);
        at
    }

    pub fn read_floats(&self, at: u64, n: usize) -> Vec<f32> {
        let mut bytes = vec![0; n * 4];
        read(&mut bytes, at, self.stream);
        bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect()
    }

    pub fn all_reduce(&self, at: u64, n: usize) -> i32 {
        // SAFETY: the tests' memory lives as long as the process.
        unsafe { ncclAllReduce(at as _, at as _, n, FLOAT, SUM, self.comm, self.stream) }
    }

    pub fn send(&self, at: u64, n: usize, peer: usize) {
        // SAFETY: as above.
        ok(unsafe { ncclSend(at as _, n, FLOAT, peer as i32, self.comm, self.stream) });
    }

    pub fn recv(&self, at: u64, n: usize, peer: usize) {
        // SAFETY: as above.
        ok(unsafe { ncclRecv(at as _, n, FLOAT, peer as i32, self.comm, self.stream) });
    }
}

/// Runs the calls of `work` as one NCCL group.
pub fn group(work: impl FnOnce()) {
    // SAFETY: nothing is asked of the caller.
    unsafe {
        ok(ncclGroupStart());
        work();
        ok(ncclGroupEnd());
    }
}

/// Two ranks in processes of their own, on the same device, with these names of their hosts for NCCL.
pub fn two_processes<F: Fn(usize, Id) + Sync>(hosts: [&str; 2], body: F) -> [Ended; 2] {
    let id = String::from_utf8_lossy(&id().0).trim_end_matches('\0').to_string();
    let id = id.as_str();
    let inside = || {
        let var = |name| std::env::var(name).unwrap();
        let mut id = Id([0; 128]);
        id.0[..var("ID").len()].copy_from_slice(var("ID").as_bytes());
        open(0);
        body(var("RANK").parse().unwrap(), id);
    };
    if std::env::var_os("RANK").is_some() {
        // In one of the two processes this call does not return.
        named::<F>(&[], inside);
    }
    std::thread::scope(|scope| {
        let run = |rank: usize| {
            let (rank, host) = (["0", "1"][rank], hosts[rank]);
            let inside = &inside;
            move || named::<F>(&[("ID", id), ("RANK", rank), ("NCCL_HOSTID", host)], inside)
        };
        let other = scope.spawn(run(1));
        [run(0)(), other.join().unwrap()]
    })
}
