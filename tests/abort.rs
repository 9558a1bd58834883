//! Ranks that fail end the run with one message for each thing that went wrong, and leave nobody hanging.

use engine::error::Error;
use engine::mpi::World;
use std::time::{Duration, Instant};

use crate::common::{finish, is_inside, mpirun_this_test};

const TEST: &str = "abort::ranks_with_the_same_error_report_it_once";
/// The environment variable that names the case, from which a rank derives whether and how it fails.
const CASE: &str = "ENDING";
const FULL: &str = "disk full";

#[test]
fn ranks_with_the_same_error_report_it_once() {
    if is_inside() {
        fail(&std::env::var(CASE).unwrap());
    }
    // Each case waits for messages of other ranks, so all run at once.
    std::thread::scope(|scope| {
        for (case, code, said) in [
            ("all", 2, vec![(0, FULL)]),
            ("the last two", 2, vec![(2, FULL)]),
            ("one", 2, vec![(3, FULL)]),
            ("two by two", 2, vec![(0, FULL), (2, "no network")]),
            ("renumbered", 2, vec![(0, FULL)]),
            ("panics", 1, vec![(0, "a bug")]),
            ("panic of one", 1, vec![(2, "a bug")]),
        ] {
            scope.spawn(move || ends(case, code, &said));
        }
    });
}

/// Runs a case on four ranks, and expects the exit code and these messages by their ranks.
#[track_caller]
fn ends(case: &str, code: i32, said: &[(usize, &str)]) {
    let start = Instant::now();
    let outcome = finish(mpirun_this_test(4, TEST).env(CASE, case));
    println!("{case}: {:?}\n{}", start.elapsed(), outcome.stderr);
    assert_eq!(outcome.status.code(), Some(code), "{case}");
    assert!(start.elapsed() < Duration::from_secs(30), "{case}: somebody was waited for");
    for what in [FULL, "no network", "a bug"] {
        let wanted = said.iter().filter(|(_, said)| *said == what).count();
        assert_eq!(outcome.stderr.matches(what).count(), wanted, "{case}: {what}");
    }
    for rank in 0..4 {
        let wanted = said.iter().filter(|(from, _)| *from == rank).count();
        let found = outcome.stderr.matches(&format!("rank {rank} on ")).count();
        assert_eq!(found, wanted, "{case}: rank {rank}");
    }
}

/// The body of one rank. Ranks that do not fail wait for the others in a collective.
fn fail(case: &str) -> ! {
    let mut world = World::start().unwrap();
    if case == "renumbered" {
        world.reorder(&[3, 2, 1, 0]);
    }
    let rank = world.comm().rank();
    world.comm().barrier();
    let full = || world.abort(&Error::user(FULL), |_| String::new());
    match (case, rank) {
        ("all" | "renumbered", _) | ("the last two", 2..) | ("one", 3) | ("two by two", ..2) => full(),
        ("two by two", _) => world.abort(&Error::user("no network"), |_| String::new()),
        ("panics", _) | ("panic of one", 2) => panic!("a bug"),
        _ => {}
    }
    world.comm().barrier();
    unreachable!("not all ranks come here")
}
