//! Tests of schedules for every shape of pipeline: that they complete, how long they take, and that wrong ones are
//! detected.

mod show;
mod simulate;

use super::*;
use show::show;
use simulate::{Cost, Timeline, simulate};

const COST: Cost = Cost { forward: 1, backward: 2, transfer: 0 };

fn pipe(stages: usize, chunks: usize, n_mbs: usize) -> Pipe {
    Pipe { stages, chunks, n_mbs }
}

fn all(pipe: &Pipe, schedule: fn(usize, &Pipe) -> Vec<Action>) -> Vec<Vec<Action>> {
    (0..pipe.stages).map(|stage| schedule(stage, pipe)).collect()
}

/// Up to 16 stages and 48 micro-batches, with several chunks if interleaving is possible.
fn trainable() -> impl Iterator<Item = Pipe> {
    let plain = (1..=16).flat_map(|stages| (1..=48).map(move |n_mbs| pipe(stages, 1, n_mbs)));
    let chunked = (2..=16).flat_map(|stages| {
        (2..=4).flat_map(move |chunks| (stages..=48).step_by(stages).map(move |n_mbs| pipe(stages, chunks, n_mbs)))
    });
    plain.chain(chunked)
}

fn run(pipe: &Pipe, plans: &[Vec<Action>], cost: Cost) -> Timeline {
    simulate(pipe, plans, cost).unwrap_or_else(|stuck| panic!("{pipe:?}: {stuck}"))
}

#[test]
fn training_takes_as_long_and_holds_as_much_as_the_theory_says() {
    for pipe in trainable() {
        let Pipe { stages, chunks, n_mbs } = pipe;
        let time = run(&pipe, &all(&pipe, train), COST);
        // Every stage runs m v forwards and backwards, and idles while the pipeline fills and drains.
        assert_eq!(time.makespan as usize, 3 * (n_mbs * chunks + stages - 1), "{pipe:?}");
        for (stage, &held) in time.held.iter().enumerate() {
            let ahead = match chunks {
                1 => stages - stage - 1,
                _ => 2 * (stages - stage - 1) + (chunks - 1) * stages,
            };
            assert_eq!(held, (ahead + 1).min(n_mbs * chunks), "stage {stage} of {pipe:?}");
        }
    }
}

#[test]
fn validation_takes_any_number_of_micro_batches_through_any_chunks() {
    let pipes = (1..=16)
        .flat_map(|stages| (1..=4).flat_map(move |chunks| (1..=48).map(move |n_mbs| pipe(stages, chunks, n_mbs))));
    for pipe in pipes {
        let Pipe { stages, chunks, n_mbs } = pipe;
        let time = run(&pipe, &all(&pipe, forward_only), COST);
        // A last group that is not full takes one round per chunk; nothing fills the gaps.
        let missing = n_mbs.next_multiple_of(stages) - n_mbs;
        let turns = n_mbs * chunks + (chunks - 1) * missing;
        assert_eq!(time.makespan as usize, turns + stages - 1, "{pipe:?}");
    }
}

/// The time if inputs were sent as soon as they are computed, even to stages that are not ready: no placement of the
/// posts can be faster.
fn bound(pipe: &Pipe, plans: &[Vec<Action>], cost: Cost) -> u64 {
    let mut made = std::collections::HashMap::new();
    let (mut next, mut clock) = (vec![0; pipe.stages], vec![0; pipe.stages]);
    while (0..pipe.stages).any(|stage| next[stage] < plans[stage].len()) {
        for stage in 0..pipe.stages {
            for action in &plans[stage][next[stage]..] {
                if let Some((direction, work)) = action.work() {
                    if let Some((peer, chunk)) = pipe.source(direction, stage, work.chunk) {
                        let Some(&input) = made.get(&(peer, direction, Work { chunk, ..work })) else { break };
                        clock[stage] = clock[stage].max(input + cost.transfer);
                    }
                    clock[stage] += if direction == Direction::Activations { cost.forward } else { cost.backward };
                    made.insert((stage, direction, work), clock[stage]);
                }
                next[stage] += 1;
            }
        }
    }
    // The embedding's gradient is not sent, so that the last action to end is a work.
    clock.into_iter().max().unwrap_or(0)
}

#[test]
fn no_other_place_of_the_posts_is_faster() {
    for transfer in [1, 5, 10] {
        let cost = Cost { forward: 10, backward: 20, transfer };
        for pipe in trainable().filter(|pipe| pipe.stages.is_power_of_two() && pipe.n_mbs % 4 == 0) {
            let plans = all(&pipe, train);
            assert_eq!(run(&pipe, &plans, cost).makespan, bound(&pipe, &plans, cost), "{pipe:?}, transfer {transfer}");
        }
    }
}

#[test]
fn one_stage_alternates_and_posts_nothing() {
    assert_eq!(show(&train(0, &pipe(1, 1, 3))), "F0 B0 F1 B1 F2 B2");
    assert_eq!(show(&forward_only(0, &pipe(1, 2, 2))), "F0.0 F0.1 F1.0 F1.1");
    let mut plan = forward_only(0, &pipe(1, 2, 2));
    plan.swap(0, 1);
    let stuck = simulate(&pipe(1, 2, 2), &[plan], COST).unwrap_err();
    assert!(stuck.to_string().contains("before the one that makes its input"), "{stuck}");
}

#[test]
fn golden_texts() {
    let four = pipe(4, 1, 4);
    let texts = [
        (0, "F0 >+0 F1 >+1 F2 >+2 F3 >+3 <-0 B0 <-1 B1 <-2 B2 <-3 B3"),
        (2, ">-0 F0 >+0-1 F1 >+1-2 <-0 B0 <+0-1 F2 >+2-3 B1 <+1-2 F3 >+3 B2 <+2-3 B3 <+3"),
        (3, ">-0 F0 >-1 B0 <+0 F1 >-2 B1 <+1 F2 >-3 B2 <+2 F3 B3 <+3"),
    ];
    for (stage, text) in texts {
        assert_eq!(show(&train(stage, &four)), text, "stage {stage} of 4");
    }
    let two = pipe(2, 2, 4);
    assert_eq!(
        show(&train(0, &two)),
        "F0.0 >+0.0 F1.0 >+1.0-0.1 F0.1 >+0.1-1.1 F1.1 >+1.1 F2.0 >+2.0 <-0.1 B0.1 <+0.1-1.1 F3.0 >+3.0-2.1 \
         B1.1 <+1.1-0.0 F2.1 >+2.1-3.1 B0.0 <-1.0 F3.1 >+3.1 B1.0 <-2.1 B2.1 <+2.1-3.1 B3.1 <+3.1-2.0 B2.0 <-3.0 B3.0"
    );
    assert_eq!(
        show(&train(1, &two)),
        ">-0.0 F0.0 >+0.0-1.0 F1.0 >+1.0-0.1 F0.1 >-1.1 B0.1 <+0.1 F1.1 >-2.0 B1.1 <+1.1-0.0 F2.0 >+2.0-3.0 B0.0 \
         <+0.0-1.0 F3.0 >+3.0-2.1 B1.0 <+1.0 F2.1 >-3.1 B2.1 <+2.1 F3.1 B3.1 <+3.1-2.0 B2.0 <+2.0-3.0 B3.0 <+3.0"
    );
    assert_eq!(
        show(&forward_only(0, &pipe(2, 2, 3))),
        "F0.0 >+0.0 F1.0 >+1.0-0.1 F0.1 >+0.1-1.1 F1.1 >+1.1 F2.0 >+2.0-2.1 F2.1 >+2.1"
    );
}

#[test]
fn neighbours_are_the_same_seen_from_either_side() {
    let pipe = pipe(3, 2, 6);
    assert_eq!(pipe.after(2, 0), Some((0, 1)));
    assert_eq!(pipe.before(0, 1), Some((2, 0)));
    for (stage, chunk) in (0..3).flat_map(|stage| [(stage, 0), (stage, 1)]) {
        assert_eq!(pipe.after(stage, chunk).is_none(), (stage, chunk) == (2, 1));
        assert_eq!(pipe.before(stage, chunk).is_none(), (stage, chunk) == (0, 0));
        if let Some((s, c)) = pipe.after(stage, chunk) {
            assert_eq!(pipe.before(s, c), Some((stage, chunk)));
        }
    }
}

/// Stage 0 sends late here, so that each rule of the simulator shows in a number.
#[test]
fn a_timeline_by_hand() {
    let pipe = pipe(3, 1, 3);
    let mut plans = all(&pipe, forward_only);
    plans[0].swap(3, 4);
    assert_eq!(show(&plans[0]), "F0 >+0 F1 F2 >+1 >+2");
    assert_eq!(show(&plans[1]), ">-0 F0 >+0-1 F1 >+1-2 F2 >+2");
    let time = run(&pipe, &plans, Cost { forward: 10, backward: 20, transfer: 1 });
    // Output 1 is sent at 30, and the post of output 2 waits for it.
    assert_eq!(time.spans[0], [(0, 10), (10, 11), (10, 20), (20, 30), (30, 31), (31, 42)]);
    // Output 0 is sent at 22, but its group is complete only with input 1.
    assert_eq!(time.spans[1], [(0, 11), (11, 21), (21, 31), (31, 41), (41, 42), (42, 52), (52, 53)]);
    assert_eq!(time.spans[2], [(0, 22), (22, 32), (32, 42), (42, 52), (52, 53), (53, 63)]);
    assert_eq!((time.makespan, time.held), (63, vec![3, 3, 3]));
}

/// Schedules small enough that every change of one action can be tried.
fn to_mutate() -> Vec<(Pipe, Vec<Vec<Action>>)> {
    let pipes = [pipe(2, 1, 4), pipe(4, 1, 6), pipe(2, 2, 4), pipe(3, 2, 6)];
    let train = pipes.iter().map(|pipe| (*pipe, all(pipe, train)));
    let forward = pipes.iter().map(|pipe| (*pipe, all(pipe, forward_only)));
    train.chain(forward).collect()
}

/// The actions that must keep their order on a stage: the works, and the transfers of each direction.
fn orders(plan: &[Action]) -> [Vec<Action>; 3] {
    let is = |action: &Action, wanted| matches!(action, Action::SendRecv { direction, .. } if *direction == wanted);
    let works = plan.iter().filter(|action| action.work().is_some()).copied().collect();
    let of = |direction| plan.iter().filter(|action| is(action, direction)).copied().collect();
    [works, of(Direction::Activations), of(Direction::Gradients)]
}

/// A post may move past works and posts that do not depend on it; no other two actions may be swapped.
#[test]
fn two_swapped_actions_are_caught() {
    for (pipe, plans) in to_mutate() {
        let right = run(&pipe, &plans, COST);
        for stage in 0..pipe.stages {
            for (i, j) in (0..plans[stage].len()).flat_map(|j| (0..j).map(move |i| (i, j))) {
                let mut wrong = plans.clone();
                wrong[stage].swap(i, j);
                let Ok(time) = simulate(&pipe, &wrong, COST) else { continue };
                let caught = time.makespan > right.makespan || time.held != right.held;
                let harmless = orders(&wrong[stage]) == orders(&plans[stage]);
                assert!(caught || harmless, "{pipe:?} runs as well with stage {stage}: {}", show(&wrong[stage]));
            }
        }
    }
}

#[test]
fn a_dropped_action_is_caught() {
    for (pipe, plans) in to_mutate() {
        for stage in 0..pipe.stages {
            for i in 0..plans[stage].len() {
                let mut wrong = plans.clone();
                let dropped = wrong[stage].remove(i);
                assert!(simulate(&pipe, &wrong, COST).is_err(), "{pipe:?} runs without {dropped:?} of stage {stage}");
            }
        }
    }
}

#[test]
fn the_wrong_work_is_caught() {
    for (pipe, plans) in to_mutate() {
        let works: Vec<Work> =
            (0..=pipe.chunks).flat_map(|chunk| (0..=pipe.n_mbs).map(move |mb| Work { chunk, mb })).collect();
        for (stage, work) in (0..pipe.stages).flat_map(|stage| works.iter().map(move |&work| (stage, work))) {
            for i in 0..plans[stage].len() {
                for wrong_one in changed(plans[stage][i], work) {
                    let mut wrong = plans.clone();
                    wrong[stage][i] = wrong_one;
                    assert!(
                        simulate(&pipe, &wrong, COST).is_err(),
                        "{pipe:?} runs with {wrong_one:?} in stage {stage}"
                    );
                }
            }
        }
    }
}

/// The last output is sent once more, consistently on both sides, so that every transfer is matched.
#[test]
fn a_transfer_too_many_is_caught() {
    let pipe = pipe(2, 1, 2);
    for (from, direction) in [(0, Direction::Activations), (1, Direction::Gradients)] {
        let mut plans = all(&pipe, train);
        let work = Work { chunk: 0, mb: 1 };
        plans[from].push(Action::SendRecv { direction, send: Some(work), recv: None });
        plans[1 - from].push(Action::SendRecv { direction, send: None, recv: Some(work) });
        let stuck = simulate(&pipe, &plans, COST).unwrap_err();
        assert!(stuck.to_string().contains("is left over"), "{stuck}");
    }
}

/// The action with another work in each of its places.
fn changed(action: Action, work: Work) -> Vec<Action> {
    let mut out = match action {
        Action::Forward(_) => vec![Action::Forward(work), Action::Backward(work)],
        Action::Backward(_) => vec![Action::Backward(work), Action::Forward(work)],
        Action::SendRecv { direction, send, recv } => vec![
            Action::SendRecv { direction, send: Some(work), recv },
            Action::SendRecv { direction, send, recv: Some(work) },
            Action::SendRecv { direction, send: None, recv },
            Action::SendRecv { direction, send, recv: None },
        ],
    };
    out.retain(|&other| other != action);
    out
}

#[test]
fn a_deadlock_shows_where_each_stage_stands() {
    let pipe = pipe(2, 1, 2);
    let mut plans = all(&pipe, train);
    plans[1].remove(0);
    let stuck = simulate(&pipe, &plans, COST).unwrap_err();
    assert_eq!(
        stuck.to_string(),
        "a deadlock: no stage can go on\nstage 0: F0 >+0 F1 --> >+1 <-0 B0 <-1 B1\nstage 1: --> F0 >-1 B0 <+0 F1 B1 <+1"
    );
}
