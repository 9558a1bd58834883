//! NCCL's collectives, point-to-point calls, groups and errors.

use crate::alone::alone;
use crate::play::*;
use crate::ranks::*;
use fake_cuda::driver::*;
use fake_cuda::nccl::*;
use std::ptr::null_mut;
use std::sync::Barrier;
use std::sync::mpsc::channel;

/// The values of rank r: r + 1, 10 (r + 1), 100 (r + 1).
fn values(r: usize) -> [f32; 3] {
    [1.0, 10.0, 100.0].map(|x| x * (r + 1) as f32)
}

#[test]
fn collectives_are_what_plain_sums_are() {
    let body = |r: &mut Rank| {
        let all: Vec<f32> = (0..3).flat_map(values).collect();
        let x = r.floats(&values(r.rank));
        ok(r.all_reduce(x, 3));
        assert_eq!(r.read_floats(x, 3), [6.0, 60.0, 600.0]);

        // An all-gather out of place, and one in place.
        let (part, whole) = (r.floats(&values(r.rank)), r.floats(&[0.0; 9]));
        let own =
            r.floats(&all.iter().enumerate().map(|(i, x)| if i / 3 == r.rank { *x } else { -1.0 }).collect::<Vec<_>>());
        let mine = own + 12 * r.rank as u64;
        // SAFETY: the tests' memory lives as long as the process.
        unsafe {
            ok(ncclAllGather(part as _, whole as _, 3, FLOAT, r.comm, r.stream));
            ok(ncclAllGather(mine as _, own as _, 3, FLOAT, r.comm, r.stream));
        }
        assert_eq!((r.read_floats(whole, 9), r.read_floats(own, 9)), (all.clone(), all.clone()));
        // SAFETY: as above.
        ok(unsafe { ncclReduceScatter(own as _, mine as _, 3, FLOAT, SUM, r.comm, r.stream) });
        assert_eq!(r.read_floats(mine, 3), values(r.rank).map(|x| 3.0 * x));

        let from_last = r.floats(&values(r.rank));
        // SAFETY: as above.
        ok(unsafe { ncclBroadcast(from_last as _, from_last as _, 3, FLOAT, 2, r.comm, r.stream) });
        assert_eq!(r.read_floats(from_last, 3), values(2));

        let small = r.bf16s(&[if r.rank == 0 { 256.0 } else { 1.0 }; 2]);
        // SAFETY: as above.
        ok(unsafe { ncclAllReduce(small as _, small as _, 2, BF16, SUM, r.comm, r.stream) });
        let mut bytes = [0; 4];
        read(&mut bytes, small, r.stream);
        assert_eq!(bytes, [0x81, 0x43, 0x81, 0x43], "258, which no sum of two of them is");
    };
    for env in [&[][..], &[("FAKE_CUDA_DELAY", "3")]] {
        three(env, body).well();
    }
}

/// A ring in which every rank sends before it receives, with more bytes than a socket buffers.
#[test]
fn a_group_sends_and_receives_at_once() {
    let body = |r: &mut Rank| {
        let n = 300_000;
        let (mine, theirs, own) = (r.floats(&vec![r.rank as f32; n]), device_memory(4 * n), device_memory(4));
        let (next, before) = ((r.rank + 1) % 3, (r.rank + 2) % 3);
        group(|| {
            r.send(mine, n, next);
            group(|| r.recv(theirs, n, before));
            r.send(mine, 1, r.rank);
            r.recv(own, 1, r.rank);
        });
        assert!(r.read_floats(theirs, n).iter().all(|x| *x == before as f32));
        assert_eq!(r.read_floats(own, 1), [r.rank as f32]);
    };
    three(&[], body).well();
}

/// One NCCL group with calls of two communicators, each on a stream of its own.
#[test]
fn a_group_may_hold_several_communicators() {
    let (second, here) = (id(), Barrier::new(3));
    let body = |r: &mut Rank| {
        let more = Rank { rank: r.rank, comm: join(second, 3, 2 - r.rank), stream: stream() };
        let (x, y) = (r.floats(&[1.0; 5]), more.floats(&[2.0; 5]));
        sync(more.stream);
        group(|| {
            ok(more.all_reduce(y, 5));
            ok(r.all_reduce(x, 5));
        });
        assert_eq!((r.read_floats(x, 5), more.read_floats(y, 5)), (vec![3.0; 5], vec![6.0; 5]));
        here.wait();
        { more }.leave();
    };
    three(&[], body).well();
}

#[test]
fn a_send_ends_when_it_was_received() {
    let here = Barrier::new(2);
    let body = |r: &mut Rank| {
        let x = r.floats(&[r.rank as f32]);
        match r.rank {
            0 => {
                sync(r.stream);
                r.send(x, 1, 1);
                std::thread::sleep(std::time::Duration::from_millis(50));
                // SAFETY: it is a handle.
                assert_eq!(unsafe { cuStreamQuery(r.stream) }, 600);
                here.wait();
                sync(r.stream);
            }
            1 => {
                here.wait();
                r.recv(x, 1, 0);
                assert_eq!(r.read_floats(x, 1), [0.0]);
            }
            _ => {}
        }
    };
    three(&[], body).well();
}

/// Calls of a communicator on several streams run in the order of the calls.
#[test]
fn one_after_another_on_any_stream() {
    let body = |r: &mut Rank| {
        let (x, other) = (r.floats(&[1.0]), Rank { stream: stream(), ..*r });
        sync(r.stream);
        let closed = gate(r.stream);
        ok(r.all_reduce(x, 1));
        ok(other.all_reduce(x, 1));
        // SAFETY: it is a handle.
        assert_eq!(unsafe { cuStreamQuery(other.stream) }, 600);
        closed.send(()).unwrap();
        sync(other.stream);
        assert_eq!(r.read_floats(x, 1), [9.0]);
    };
    three(&[], body).well();
}

/// The stream blocks until the communicator is aborted.
#[test]
fn a_dead_peer_is_reported() {
    let [first, second] = two_processes(["a", "b"], |rank, id| {
        let mut r = Rank { rank, comm: join(id, 2, rank), stream: stream() };
        let x = r.floats(&[1.0]);
        ok(r.all_reduce(x, 1));
        sync(r.stream);
        if rank == 1 {
            std::process::abort();
        }
        ok(r.all_reduce(x, 1));
        while r.async_error() == 0 {
            std::thread::yield_now();
        }
        assert_eq!(r.async_error(), 6);
        // SAFETY: it is a handle.
        assert_eq!(unsafe { cuStreamQuery(r.stream) }, 600);
        r.abort();
        sync(r.stream);
    });
    first.well().says("the connection to rank 1 broke");
    assert!(!second.status.success());
}

#[test]
fn mismatched_calls_are_reported() {
    let here = Barrier::new(3);
    let body = |r: &mut Rank| {
        let x = r.floats(&[1.0; 4]);
        ok(r.all_reduce(x, if r.rank == 1 { 4 } else { 3 }));
        while r.async_error() == 0 {
            std::thread::yield_now();
        }
        assert_eq!(r.async_error(), 3);
        // A rank that aborts sooner would be missing for the others.
        here.wait();
        r.abort();
        sync(r.stream);
        assert_eq!(r.read_floats(x, 4), [1.0; 4]);
    };
    three(&[], body).well().says("rank 1 is in AllReduce of 4 Float32 (Sum), rank 0 in AllReduce of 3 Float32 (Sum)");
}

fn init(rank: usize, id: Id) -> (i32, Handle) {
    let mut comm = null_mut();
    // SAFETY: there is a place for the handle.
    (unsafe { ncclCommInitRank(&mut comm, 2, id, rank as i32) }, comm)
}

#[test]
fn one_device_is_for_one_rank() {
    let ended = two_processes(["a", "a"], |rank, id| assert_eq!(init(rank, id).0, 5));
    for ended in ended {
        ended.well().says("Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1000");
    }
}

#[test]
fn one_device_is_for_ranks_that_are_said_to_be_on_other_hosts() {
    let ended = two_processes(["a", "b"], |rank, id| {
        let (code, comm) = init(rank, id);
        ok(code);
        Rank { rank, comm, stream: stream() }.leave();
    });
    ended.into_iter().for_each(|ended| _ = ended.well());
}

/// A rank whose peers never come does not block if the communicator is nonblocking, and can abort.
#[test]
fn a_communicator_is_made_meanwhile() {
    open(0);
    let (size, unset) = (size_of::<Config>(), i32::MIN);
    let config = |max_ctas| Config {
        size,
        magic: 0xcafe_beef,
        version: 22703,
        blocking: 0,
        cga_cluster_size: unset,
        min_ctas: unset,
        max_ctas,
    };
    let mut comm = null_mut();
    // SAFETY: there is a place for the handle.
    let mut init = |ctas| unsafe { ncclCommInitRankConfig(&mut comm, 2, id(), 0, &config(ctas)) };
    assert_eq!([init(0), init(33), init(unset)], [4, 4, 7]);
    let mut r = Rank { rank: 0, comm, stream: stream() };
    assert_eq!(r.async_error(), 7);
    let x = r.floats(&[1.0]);
    assert_eq!(r.all_reduce(x, 1), 4);
    r.abort();
}

#[test]
fn bad_calls_are_refused() {
    open(0);
    let mut r = Rank { rank: 0, comm: join(id(), 1, 0), stream: stream() };
    let (x, mut host) = (r.floats(&[1.0, 2.0, 3.0]), [0f32; 3]);
    ok(r.all_reduce(x, 3));
    assert_eq!(r.all_reduce(host.as_mut_ptr() as u64, 3), 4);
    assert_eq!(r.all_reduce(x, 4), 4);
    // SAFETY: nothing of this is started.
    unsafe {
        assert_eq!(ncclAllReduce(x as _, (x + 4) as _, 2, FLOAT, SUM, r.comm, r.stream), 4);
        assert_eq!(ncclBroadcast(x as _, x as _, 2, FLOAT, 1, r.comm, r.stream), 4);
        assert_eq!(ncclGroupEnd(), 5);
    }
    assert_eq!(r.read_floats(x, 3), [1.0, 2.0, 3.0]);
    r.leave();
}

#[test]
fn an_operation_hangs_where_a_test_wants_it() {
    let body = || {
        open(0);
        let mut r = Rank { rank: 0, comm: join(id(), 1, 0), stream: stream() };
        let x = r.floats(&[1.0]);
        ok(r.all_reduce(x, 1));
        sync(r.stream);
        ok(r.all_reduce(x, 1));
        let (done, ended) = channel();
        let stream = r.stream as usize;
        std::thread::spawn(move || {
            open(0);
            sync(stream as Handle);
            done.send(())
        });
        assert!(ended.recv_timeout(std::time::Duration::from_millis(50)).is_err());
        assert_eq!(r.async_error(), 0);
        r.abort();
        ended.recv().unwrap();
    };
    alone(&[("FAKE_CUDA_NCCL_HANG", "AllReduce@2")], body).well();
}
