//! The order that streams guarantee, and the order that they do not.

use crate::alone::alone;
use crate::play::*;
use fake_cuda::driver::*;
use std::time::{Duration, Instant};

/// Streams do not wait for each other without an event: the copy reads bytes that are not written yet.
#[test]
fn a_copy_waits_only_for_events() {
    open(0);
    let (one, two, done, at) = (stream(), stream(), event(), device_memory(64));
    let (from, to) = (pinned(64), pinned(64));
    from.fill(7);
    let closed = gate(one);
    write(at, from, one);
    record(done, one);
    read(to, at, two);
    sync(two);
    assert_eq!(to, [0xff; 64]);

    wait(two, done);
    read(to, at, two);
    // SAFETY: it is a handle. What the second stream waits for has not happened.
    assert_eq!(unsafe { cuStreamQuery(two) }, 600);
    closed.send(()).unwrap();
    sync(two);
    assert_eq!(to, [7; 64]);
}

#[test]
fn pinned_memory_is_read_late_and_other_memory_at_once() {
    open(0);
    let (one, a, b) = (stream(), device_memory(8), device_memory(8));
    let (late, mut early) = (pinned(8), vec![1u8; 8]);
    late.fill(1);
    let closed = gate(one);
    write(a, late, one);
    write(b, &early, one);
    late.fill(2);
    early.fill(2);
    closed.send(()).unwrap();
    // A copy to memory that is not pinned is complete when the call returns.
    let mut found = [[0u8; 8]; 2];
    read(&mut found[0], a, one);
    read(&mut found[1], b, one);
    assert_eq!(found, [[2; 8], [1; 8]]);
}

#[test]
fn a_wait_is_for_the_record_that_was_last_when_it_was_asked_for() {
    open(0);
    let (one, two, event) = (stream(), stream(), event());
    // An event that was never recorded is complete.
    wait(two, event);
    sync(two);
    // SAFETY: it is a handle.
    ok(unsafe { cuEventQuery(event) });
    let first = gate(one);
    record(event, one);
    wait(two, event);
    let second = gate(one);
    record(event, one);
    first.send(()).unwrap();
    sync(two);
    // SAFETY: it is a handle.
    assert_eq!(unsafe { cuEventQuery(event) }, 600);
    second.send(()).unwrap();
    // SAFETY: as above.
    ok(unsafe { cuEventSynchronize(event) });
}

#[test]
fn events_tell_the_time_between_them() {
    open(0);
    let (one, from, till) = (stream(), event(), event());
    let mut elapsed = 0.0;
    // SAFETY: they are handles, and there is a place for the number.
    assert_eq!(unsafe { cuEventElapsedTime_v2(&mut elapsed, from, till) }, 400);
    record(from, one);
    enqueue(one, Box::new(|| std::thread::sleep(Duration::from_millis(5))));
    record(till, one);
    sync(one);
    // SAFETY: as above.
    ok(unsafe { cuEventElapsedTime_v2(&mut elapsed, from, till) });
    assert!(elapsed >= 5.0, "{elapsed} ms");
}

#[test]
fn a_value_is_written_in_order() {
    open(0);
    let (one, word) = (stream(), pinned(4));
    word.fill(0);
    let closed = gate(one);
    // SAFETY: the four bytes are pinned.
    ok(unsafe { cuStreamWriteValue32_v2(one, word.as_ptr() as u64, 0x0403_0201, 0) });
    assert_eq!(word, [0; 4]);
    closed.send(()).unwrap();
    sync(one);
    assert_eq!(word, [1, 2, 3, 4]);
}

#[test]
fn a_closed_stream_still_does_what_was_asked() {
    open(0);
    let (one, event, at) = (stream(), event(), device_memory(4));
    let closed = gate(one);
    // SAFETY: the four bytes are the device's.
    ok(unsafe { cuMemsetD32Async(at, 5, 1, one) });
    record(event, one);
    // SAFETY: they are handles; the stream is used no more.
    unsafe {
        ok(cuStreamDestroy_v2(one));
        closed.send(()).unwrap();
        ok(cuEventSynchronize(event));
        assert_eq!(cuStreamSynchronize(one), 400);
    }
    let (mut found, two) = ([0; 4], stream());
    read(&mut found, at, two);
    assert_eq!(found, [5, 0, 0, 0]);
}

/// Only the stream that is set to be slow is slow.
#[test]
fn a_stream_can_be_made_slow() {
    let body = || {
        open(0);
        let (one, two, at) = (stream(), stream(), device_memory(4));
        let took = [one, two].map(|stream| {
            let start = Instant::now();
            for _ in 0..20 {
                // SAFETY: the four bytes are the device's.
                ok(unsafe { cuMemsetD8Async(at, 5, 4, stream) });
            }
            sync(stream);
            start.elapsed()
        });
        assert!(took[1] >= Duration::from_millis(40), "{took:?}");
    };
    alone(&[("FAKE_CUDA_SLOW", "2@2")], body).well();
}

/// Two streams pass a number to and fro, with a random delay before every operation.
#[test]
fn events_keep_the_order_under_delays() {
    let body = || {
        open(0);
        let (streams, events, at) = ([stream(), stream()], [event(), event()], device_memory(400));
        for i in 0..100u64 {
            let (own, other) = ((i % 2) as usize, (i as usize + 1) % 2);
            wait(streams[own], events[other]);
            // SAFETY: the bytes are the device's.
            unsafe {
                match i {
                    0 => ok(cuMemsetD32Async(at, 9, 1, streams[own])),
                    _ => ok(cuMemcpyDtoDAsync_v2(at + 4 * i, at + 4 * (i - 1), 4, streams[own])),
                }
            }
            record(events[own], streams[own]);
        }
        let mut last = [0; 4];
        read(&mut last, at + 396, streams[1]);
        assert_eq!(last, [9, 0, 0, 0]);
    };
    for seed in ["1", "2"] {
        alone(&[("FAKE_CUDA_DELAY", seed)], body).well();
    }
}
