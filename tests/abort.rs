//! Ranks that fail end the run with one message for each thing that went wrong, and leave nobody hanging.
//!
//! The test starts itself on four ranks.

use engine::error::Error;
use engine::mpi::World;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const NAME: &str = "ranks_that_fail_alike_say_it_once";

#[test]
fn ranks_that_fail_alike_say_it_once() {
    if let Ok(case) = std::env::var("ENDING") {
        fail(&case);
    }
    let full = "disk full";
    for (case, code, said) in [
        ("all", 2, vec![(0, full)]),
        ("the last two", 2, vec![(2, full)]),
        ("one", 2, vec![(3, full)]),
        ("two by two", 2, vec![(0, full), (2, "no network")]),
        ("renumbered", 2, vec![(0, full)]),
        ("panics", 1, vec![(0, "a bug")]),
        ("panic of one", 1, vec![(2, "a bug")]),
    ] {
        let start = Instant::now();
        let Output { status, stderr, .. } = start_ranks(case);
        let stderr = String::from_utf8_lossy(&stderr);
        println!("{case}: {:?}\n{stderr}", start.elapsed());
        assert_eq!(status.code(), Some(code), "{case}");
        assert!(start.elapsed() < Duration::from_secs(30), "{case}: somebody was waited for");
        for what in [full, "no network", "a bug"] {
            let wanted = said.iter().filter(|(_, said)| *said == what).count();
            assert_eq!(stderr.matches(what).count(), wanted, "{case}: {what}");
        }
        for rank in 0..4 {
            let wanted = said.iter().filter(|(speaker, _)| *speaker == rank).count();
            assert_eq!(stderr.matches(&format!("rank {rank} on ")).count(), wanted, "{case}: rank {rank}");
        }
    }
}

fn start_ranks(case: &str) -> Output {
    let mut command = Command::new("mpirun");
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1").env("ENDING", case);
    // A run that hangs is ended, with another code.
    command.args(["--oversubscribe", "--timeout", "60", "-n", "4"]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", NAME, "--nocapture", "--test-threads", "1"]).output().unwrap()
}

/// What one rank does; those that do not fail wait for the others in a collective.
fn fail(case: &str) -> ! {
    let mut world = World::start().unwrap();
    if case == "renumbered" {
        world.reorder(&[3, 2, 1, 0]);
    }
    let rank = world.comm().rank();
    world.comm().barrier();
    let full = || world.abort(&Error::user("disk full"));
    match (case, rank) {
        ("all" | "renumbered", _) | ("the last two", 2..) | ("one", 3) | ("two by two", ..2) => full(),
        ("two by two", _) => world.abort(&Error::user("no network")),
        ("panics", _) | ("panic of one", 2) => panic!("a bug"),
        _ => {}
    }
    world.comm().barrier();
    unreachable!("not all ranks come here")
}
