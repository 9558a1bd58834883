//! Runs the schedules of all stages against each other with simulated clocks: whether they can complete at all, and how
//! long they take.
//!
//! The rules are the strictest of any backend: a transfer starts when both ends have posted it (rendezvous); each
//! direction of a stage has one group of transfers open at a time, which may complete in any order, and the next
//! `SendRecv` of that direction makes the stage wait until the group is complete; a forward or backward waits for the
//! whole group that brings its input. A schedule that completes under these rules completes as fast or faster under
//! laxer ones, since each rule only ever adds a wait.

use super::show::show_at;
use super::{Action, Direction, Pipe, Work};
use std::fmt;

/// How long things take, in units of the caller's choice.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// The forward of one micro-batch through one chunk.
    pub forward: u64,
    pub backward: u64,
    pub transfer: u64,
}

/// The simulated times of a whole step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeline {
    /// Start and end of each action of each stage; a post starts when it is posted and ends when its
    /// transfers are complete.
    pub spans: Vec<Vec<(u64, u64)>>,
    pub makespan: u64,
    /// The most forwards that each stage held, whose backwards were still to come.
    pub held: Vec<usize>,
}

/// The schedules cannot complete. Displays them with an arrow at the current action of each stage.
#[derive(Debug, Clone)]
pub struct Stuck {
    pub why: String,
    /// One line per stage.
    pub schedules: Vec<String>,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.why)?;
        self.schedules.iter().enumerate().try_for_each(|(stage, line)| write!(f, "\nstage {stage}: {line}"))
    }
}

/// Runs one schedule per stage to its end. Schedules without any backward are those of validation.
pub fn simulate(pipe: &Pipe, plans: &[Vec<Action>], cost: Cost) -> Result<Timeline, Stuck> {
    assert_eq!(plans.len(), pipe.stages, "{} schedules for {} stages", plans.len(), pipe.stages);
    let mut stages: Vec<Stage> = plans.iter().enumerate().map(|(at, plan)| Stage::new(at, pipe, plan)).collect();
    match run(pipe, &mut stages, cost) {
        Ok(()) => Ok(Timeline {
            makespan: stages.iter().flat_map(|stage| &stage.spans).map(|span| span.1).max().unwrap_or(0),
            held: stages.iter().map(|stage| stage.peak).collect(),
            spans: stages.into_iter().map(|stage| stage.spans).collect(),
        }),
        Err(why) => Err(Stuck { why, schedules: stages.iter().map(|s| show_at(s.plan, s.spans.len())).collect() }),
    }
}

fn run(pipe: &Pipe, stages: &mut [Stage], cost: Cost) -> Result<(), String> {
    loop {
        let mut moved = false;
        for stage in stages.iter_mut() {
            while stage.step(cost)? {
                moved = true;
            }
        }
        for stage in 0..pipe.stages {
            moved |= meet(pipe, stages, stage, Direction::Activations, cost.transfer);
            moved |= meet(pipe, stages, stage, Direction::Gradients, cost.transfer);
        }
        if !moved {
            break;
        }
    }
    if stages.iter().any(|s| s.spans.len() < s.plan.len() || s.lanes.iter().any(|lane| lane.open.is_some())) {
        return Err("a deadlock: no stage can go on".into());
    }
    let training = stages.iter().any(|stage| stage.lane(Direction::Gradients).done.iter().any(|&done| done > 0));
    stages.iter().try_for_each(|stage| stage.complete(training))
}

/// Matches the send in `stage`'s open group of `direction` with the receive of the other side, if that is posted.
fn meet(pipe: &Pipe, stages: &mut [Stage], stage: usize, direction: Direction, transfer: u64) -> bool {
    let group = |stages: &[Stage], stage: usize| stages[stage].lane(direction).open.clone();
    let Some(from) = group(stages, stage) else { return false };
    let Some(sent) = from.send else { return false };
    let (peer, chunk) = pipe.target(direction, stage, sent.chunk).expect("checked where it was posted");
    let Some(to) = group(stages, peer).filter(|to| to.recv == Some(Work { chunk, ..sent })) else { return false };
    let through = from.posted.max(to.posted) + transfer;
    stages[stage].pass(direction, through, |group| group.send = None);
    stages[peer].pass(direction, through, |group| group.recv = None);
    true
}

/// Transfers that were posted together by one `Action::SendRecv`.
#[derive(Debug, Clone)]
struct Group {
    /// Index of the post in the stage's schedule.
    action: usize,
    posted: u64,
    /// The latest end of a transfer that is complete.
    through: u64,
    /// Transfers that are not complete yet.
    send: Option<Work>,
    recv: Option<Work>,
    brings: Option<Work>,
}

/// A stage's side of one direction: activations or gradients.
struct Lane {
    open: Option<Group>,
    /// The time at which the last group was complete.
    free: u64,
    /// Inputs that have arrived and are not used yet, with their times.
    arrived: Vec<(Work, u64)>,
    /// The number of micro-batches done, by chunk. They are done in order, so that the number identifies them.
    done: Vec<usize>,
}

struct Stage<'a> {
    at: usize,
    pipe: &'a Pipe,
    plan: &'a [Action],
    clock: u64,
    lanes: [Lane; 2],
    /// Start and end of the actions done so far.
    spans: Vec<(u64, u64)>,
    held: usize,
    peak: usize,
}

impl<'a> Stage<'a> {
    fn new(at: usize, pipe: &'a Pipe, plan: &'a [Action]) -> Self {
        let lane = || Lane { open: None, free: 0, arrived: Vec::new(), done: vec![0; pipe.chunks] };
        Stage { at, pipe, plan, clock: 0, lanes: [lane(), lane()], spans: Vec::new(), held: 0, peak: 0 }
    }

    fn lane(&self, direction: Direction) -> &Lane {
        &self.lanes[direction as usize]
    }

    fn lane_mut(&mut self, direction: Direction) -> &mut Lane {
        &mut self.lanes[direction as usize]
    }

    /// Runs the next action, if there is one and it need not wait.
    fn step(&mut self, cost: Cost) -> Result<bool, String> {
        let Some(&action) = self.plan.get(self.spans.len()) else { return Ok(false) };
        match action {
            Action::Forward(work) => self.compute(Direction::Activations, work, cost.forward),
            Action::Backward(work) => self.compute(Direction::Gradients, work, cost.backward),
            Action::SendRecv { direction, send, recv } => self.post(direction, send, recv),
        }
    }

    fn compute(&mut self, direction: Direction, work: Work, cost: u64) -> Result<bool, String> {
        self.known(work)?;
        let Some(input) = self.input(direction, work)? else { return Ok(false) };
        let next = self.lane(direction).done[work.chunk];
        if work.mb != next {
            return Err(format!("stage {}: {work:?} where micro-batch {next} would be next", self.at));
        }
        self.lane_mut(direction).done[work.chunk] += 1;
        match direction {
            Direction::Activations => self.held += 1,
            Direction::Gradients => self.held -= 1,
        }
        self.peak = self.peak.max(self.held);
        let start = self.clock.max(input);
        self.clock = start + cost;
        self.spans.push((start, self.clock));
        Ok(true)
    }

    /// Consumes the input of `work` and returns the time of its arrival; `None` if it has not arrived.
    fn input(&mut self, direction: Direction, work: Work) -> Result<Option<u64>, String> {
        if direction == Direction::Gradients && !self.made(Direction::Activations, work) {
            return Err(format!("stage {}: a backward before its forward", self.at));
        }
        match self.pipe.source(direction, self.at, work.chunk) {
            None => Ok(Some(0)),
            Some((stage, chunk)) if stage == self.at => match self.made(direction, Work { chunk, ..work }) {
                true => Ok(Some(self.clock)),
                false => Err(format!("stage {}: a work before the one that makes its input", self.at)),
            },
            Some(_) => {
                let arrived = &mut self.lane_mut(direction).arrived;
                let place = arrived.iter().position(|&(input, _)| input == work);
                Ok(place.map(|place| arrived.swap_remove(place).1))
            }
        }
    }

    fn made(&self, direction: Direction, work: Work) -> bool {
        work.mb < self.lane(direction).done[work.chunk]
    }

    fn post(&mut self, direction: Direction, send: Option<Work>, recv: Option<Work>) -> Result<bool, String> {
        if self.lane(direction).open.is_some() {
            return Ok(false);
        }
        send.iter().chain(&recv).try_for_each(|&work| self.known(work))?;
        if send.is_some_and(|work| {
            !self.made(direction, work) || self.pipe.target(direction, self.at, work.chunk).is_none()
        }) {
            return Err(format!("stage {}: sends what is not made yet, or what nobody takes", self.at));
        }
        self.clock = self.clock.max(self.lane(direction).free);
        let (posted, action) = (self.clock, self.spans.len());
        self.lane_mut(direction).open = Some(Group { action, posted, through: posted, send, recv, brings: recv });
        self.spans.push((posted, posted));
        Ok(true)
    }

    /// Completes a transfer of the open group, and also the group if this was its last transfer.
    fn pass(&mut self, direction: Direction, through: u64, strike: impl Fn(&mut Group)) {
        let mut group = self.lane_mut(direction).open.take().expect("the group that met");
        strike(&mut group);
        group.through = group.through.max(through);
        if group.send.is_some() || group.recv.is_some() {
            self.lane_mut(direction).open = Some(group);
            return;
        }
        self.spans[group.action].1 = group.through;
        self.lane_mut(direction).free = group.through;
        self.lane_mut(direction).arrived.extend(group.brings.map(|work| (work, group.through)));
    }

    /// Refuses a chunk that does not exist. A micro-batch that does not exist is caught by the count, or never arrives.
    fn known(&self, work: Work) -> Result<(), String> {
        match work.chunk < self.pipe.chunks {
            true => Ok(()),
            false => Err(format!("stage {}: {work:?} where it has {} chunks", self.at, self.pipe.chunks)),
        }
    }

    /// Checks that every micro-batch went through every chunk, forward and, in training, backward, and that every input
    /// was used.
    fn complete(&self, training: bool) -> Result<(), String> {
        for (direction, wanted) in [(Direction::Activations, true), (Direction::Gradients, training)] {
            let wanted = if wanted { self.pipe.n_mbs } else { 0 };
            if let Some(done) = self.lane(direction).done.iter().find(|&&done| done != wanted) {
                return Err(format!("stage {}: {done} of {wanted} micro-batches in {direction:?}", self.at));
            }
            if let Some((work, _)) = self.lane(direction).arrived.first() {
                return Err(format!("stage {}: the input of {work:?} in {direction:?} is left over", self.at));
            }
        }
        Ok(())
    }
}
