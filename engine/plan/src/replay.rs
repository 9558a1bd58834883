//! A step in simulated time: the logs of the ranks' dry runs, run against each other.
//!
//! Each rank has a clock for compute and a stream for each kind of group. A call begins when all of its ranks have
//! reached it and their streams are free; compute waits where the log waits and overlaps with the call until then. One
//! rank may stand for all that do the same at the same time: a call waits only for those of its ranks that were given.

use super::cost::class;
use engine::backend::{Label, Op, Scope, Span, Track};
use engine::dry::{Call, Log, LogEntry, Operation};
use engine::layout::mesh::GroupKind;
use engine::time::OpClass;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;

/// Seconds of ops, calls and host overhead.
pub trait CostModel {
    fn op(&self, op: Op, sizes: [usize; 3]) -> f64;
    /// Seconds of a call from the arrival of all its ranks to the last byte; `rank` is one of them.
    fn call(&self, rank: usize, call: &Call) -> f64;
    /// Host overhead when a part of the step begins.
    fn host(&self, part: Scope) -> f64;
    /// The mode of communication in this kind of group.
    fn mode(&self, kind: GroupKind) -> CommMode;

    /// Ops and calls of the log without a cost, as words of a message.
    fn unknown(&self, _: &Log) -> Vec<String> {
        Vec::new()
    }
}

/// The way in which communication runs beside compute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CommMode {
    /// On a stream of its own; compute beside it loses this share of the time.
    Overlapped { slowdown: f64 },
    /// Compute waits where the call starts.
    Blocking,
    /// The cores that compute also communicate: the call takes its time where compute waits for it.
    OnComputeCores,
}

/// The simulated step of one rank.
#[derive(Debug, Clone, Default)]
pub struct RankTimeline {
    pub rank: usize,
    /// Parts and calls, in seconds from the start of the step.
    pub spans: Vec<Span>,
    /// Seconds of ops.
    pub busy: BTreeMap<OpClass, f64>,
    /// Seconds of these that ops lost beside overlapped communication.
    pub slowed: f64,
    /// Seconds of host overhead.
    pub host: f64,
    /// Seconds in which compute waited, by the kind of the calls that it waited for.
    pub exposed: BTreeMap<GroupKind, f64>,
    /// From the end of the step before to the end of this one.
    pub seconds: f64,
}

/// Runs the logs against each other. The result covers the events of the ranges; earlier events are warm-up.
///
/// Panics where a rank waits for a call that another rank never makes.
pub fn replay(logs: &[(&Log, Range<usize>)], costs: &dyn CostModel) -> Vec<RankTimeline> {
    let mut all = All::new(logs, costs);
    loop {
        let moved = (0..logs.len()).filter(|&at| all.advance(at)).count();
        if !all.meet() && moved == 0 {
            break;
        }
    }
    for rank in &all.ranks {
        assert_eq!(rank.next, rank.events.len(), "events of rank {}, which waits for ever", rank.rank);
    }
    // Ranks begin the step at different times; the spans of all are relative to the first.
    let zero = all.ranks.iter().map(|rank| rank.began).fold(f64::INFINITY, f64::min);
    all.ranks.into_iter().map(|rank| rank.timeline(zero)).collect()
}

/// The n-th call of a group, or the n-th message between two ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    group: usize,
    first: usize,
    to: Option<usize>,
    turn: usize,
}

/// The ranks that have reached a call: (index of the rank, number of its start).
#[derive(Default)]
struct Arrived(Vec<(usize, usize)>);

/// A unit of work on a stream: a collective, or the send and the receive of an exchange.
struct Post {
    number: usize,
    starts: Vec<usize>,
}

/// One rank's side of a call.
struct Start<'a> {
    call: &'a Call,
    key: Key,
    issued: f64,
    /// Begin and end, once they are known.
    times: Option<(f64, f64)>,
}

#[derive(Default)]
struct Stream {
    free: f64,
    posts: VecDeque<Post>,
}

struct Rank<'a> {
    /// Rank of the mesh.
    rank: usize,
    events: &'a [LogEntry],
    /// The first event that is not warm-up.
    from: usize,
    next: usize,
    clock: f64,
    /// Slowdown by overlapped calls, which is added to the next op.
    debt: f64,
    starts: Vec<Start<'a>>,
    streams: HashMap<GroupKind, Stream>,
    turns: HashMap<(usize, usize, Option<usize>), usize>,
    /// The blocking call that compute waits in.
    blocked: Option<usize>,
    open: Vec<(Scope, f64)>,
    began: f64,
    spans: Vec<Span>,
    result: RankTimeline,
}

struct All<'a> {
    costs: &'a dyn CostModel,
    ranks: Vec<Rank<'a>>,
    /// Rank of the mesh -> index in `ranks`.
    index: HashMap<usize, usize>,
    arrived: HashMap<Key, Arrived>,
    /// Calls that all of their ranks have reached.
    ready: Vec<Key>,
}

impl<'a> All<'a> {
    fn new(logs: &[(&'a Log, Range<usize>)], costs: &'a dyn CostModel) -> Self {
        let index = logs.iter().enumerate().map(|(at, (log, _))| (log.rank, at)).collect();
        let ranks = logs.iter().map(|(log, range)| Rank::new(log, range)).collect();
        All { costs, ranks, index, arrived: HashMap::new(), ready: Vec::new() }
    }

    /// Runs a rank until it has to wait. Returns whether it got any further.
    fn advance(&mut self, at: usize) -> bool {
        let before = self.ranks[at].next;
        while let Some(event) = self.ranks[at].events.get(self.ranks[at].next) {
            if self.ranks[at].next == self.ranks[at].from {
                self.ranks[at].begin();
            }
            if !self.run(at, event) {
                break;
            }
            self.ranks[at].next += 1;
        }
        self.ranks[at].next > before
    }

    /// Runs one event. Returns false where the rank has to wait first.
    fn run(&mut self, at: usize, event: &'a LogEntry) -> bool {
        match event {
            LogEntry::Op { op, sizes } => self.ranks[at].compute(class(*op), self.costs.op(*op, *sizes)),
            LogEntry::Enter(part) => self.ranks[at].enter(*part, self.costs.host(*part)),
            LogEntry::Leave => self.ranks[at].leave(),
            LogEntry::Start(call) => return self.start(at, call),
            LogEntry::Wait(number) => return self.wait(at, *number),
        }
        true
    }

    fn start(&mut self, at: usize, call: &'a Call) -> bool {
        let blocking = self.costs.mode(call.kind) == CommMode::Blocking;
        let number = match self.ranks[at].blocked {
            Some(number) => number,
            None => {
                if blocking && matches!(call.what, Operation::Send(_)) {
                    // The sender waits until its message has arrived.
                    let cost = self.costs.call(self.ranks[at].rank, call);
                    self.ranks[at].expose(call.kind, cost);
                }
                self.post(at, call)
            }
        };
        let waits = blocking && !matches!(call.what, Operation::Send(_) | Operation::Receive(_));
        self.ranks[at].blocked = (waits && !self.wait(at, number)).then_some(number);
        self.ranks[at].blocked.is_none()
    }

    /// Puts a call on its stream.
    fn post(&mut self, at: usize, call: &'a Call) -> usize {
        let rank = &mut self.ranks[at];
        let key = rank.key(call);
        let number = rank.starts.len();
        rank.starts.push(Start { call, key, issued: rank.clock, times: None });
        let posts = &mut rank.streams.entry(call.kind.lane()).or_default().posts;
        match posts.back_mut().filter(|post| post.number == call.post) {
            Some(post) => post.starts.push(number),
            None => posts.push_back(Post { number: call.post, starts: vec![number] }),
        }
        if posts.len() == 1 {
            self.arrive(at, number);
        }
        number
    }

    /// The call has reached the front of this rank's stream.
    fn arrive(&mut self, at: usize, number: usize) {
        let Start { call, key, .. } = self.ranks[at].starts[number];
        let wanted = match call.what {
            Operation::Send(to) => 1 + usize::from(self.index.contains_key(&to)),
            Operation::Receive(from) => 1 + usize::from(self.index.contains_key(&from)),
            _ => call.members.iter().filter(|member| self.index.contains_key(member)).count(),
        };
        let arrived = self.arrived.entry(key).or_default();
        arrived.0.push((at, number));
        if arrived.0.len() == wanted {
            self.ready.push(key);
        }
    }

    /// Runs the calls that all of their ranks have reached. Returns whether there were any.
    fn meet(&mut self) -> bool {
        let ready = std::mem::take(&mut self.ready);
        for key in &ready {
            let Arrived(ranks) = self.arrived.remove(key).expect("a call that is ready");
            let call = self.ranks[ranks[0].0].starts[ranks[0].1].call;
            let begin = ranks.iter().map(|&(at, number)| self.ranks[at].could_begin(number)).fold(0.0, f64::max);
            let (rank, mode) = (self.ranks[ranks[0].0].rank, self.costs.mode(call.kind));
            let message = matches!(call.what, Operation::Send(_) | Operation::Receive(_));
            let cost = match mode {
                CommMode::Overlapped { .. } => self.costs.call(rank, call),
                CommMode::Blocking if !message => self.costs.call(rank, call),
                CommMode::Blocking | CommMode::OnComputeCores => 0.0,
            };
            for (at, number) in ranks {
                let next = self.ranks[at].done(number, (begin, begin + cost));
                next.into_iter().for_each(|number| self.arrive(at, number));
            }
        }
        !ready.is_empty()
    }

    /// Waits for a call. Returns false where its end is not known yet.
    fn wait(&mut self, at: usize, number: usize) -> bool {
        let rank = &mut self.ranks[at];
        let Start { call, times, .. } = &rank.starts[number];
        let Some((begin, end)) = *times else { return false };
        let mode = self.costs.mode(call.kind);
        if let CommMode::Overlapped { slowdown } = mode {
            // A share of the time in which compute overlapped with the call.
            rank.debt += slowdown * (rank.clock.min(end) - begin).max(0.0);
        }
        let until = match mode {
            CommMode::OnComputeCores if !matches!(call.what, Operation::Send(_)) => {
                rank.clock.max(begin) + self.costs.call(rank.rank, call)
            }
            _ => rank.clock.max(end),
        };
        rank.expose(call.kind, until - rank.clock);
        true
    }
}

impl<'a> Rank<'a> {
    fn new(log: &'a Log, range: &Range<usize>) -> Self {
        Rank {
            rank: log.rank,
            events: &log.events[..range.end],
            from: range.start,
            next: 0,
            clock: 0.0,
            debt: 0.0,
            starts: Vec::new(),
            streams: HashMap::new(),
            turns: HashMap::new(),
            blocked: None,
            open: Vec::new(),
            began: 0.0,
            spans: Vec::new(),
            result: RankTimeline::default(),
        }
    }

    /// Ends the warm-up.
    fn begin(&mut self) {
        if self.blocked.is_none() {
            self.began = self.clock;
            self.result = RankTimeline::default();
        }
    }

    fn compute(&mut self, class: OpClass, seconds: f64) {
        let slowed = std::mem::take(&mut self.debt);
        let seconds = seconds + slowed;
        self.result.slowed += slowed;
        *self.result.busy.entry(class).or_default() += seconds;
        self.clock += seconds;
    }

    fn expose(&mut self, kind: GroupKind, seconds: f64) {
        *self.result.exposed.entry(kind).or_default() += seconds;
        let (start, end) = (self.clock, self.clock + seconds);
        self.spans.push(Span { track: Track::Wait(kind), label: Label::Wait, start, end });
        self.clock = end;
    }

    fn enter(&mut self, part: Scope, cost: f64) {
        self.open.push((part, self.clock));
        self.clock += cost;
        self.result.host += cost;
    }

    fn leave(&mut self) {
        let (part, start) = self.open.pop().expect("a part that was entered");
        let span = Span { track: Track::Parts, label: Label::Scope(part), start, end: self.clock };
        self.spans.push(span);
    }

    fn key(&mut self, call: &Call) -> Key {
        let (first, to) = match call.what {
            Operation::Send(to) => (self.rank, Some(to)),
            Operation::Receive(from) => (from, Some(self.rank)),
            _ => (call.members[0], None),
        };
        let turn = self.turns.entry((call.group, first, to)).or_default();
        *turn += 1;
        Key { group: call.group, first, to, turn: *turn }
    }

    /// The earliest begin of a call on this rank.
    fn could_begin(&self, number: usize) -> f64 {
        let Start { call, issued, .. } = &self.starts[number];
        issued.max(self.streams[&call.kind.lane()].free)
    }

    /// A call has ended. Returns the calls that are now at the front of its stream.
    fn done(&mut self, number: usize, times: (f64, f64)) -> Vec<usize> {
        let start = &mut self.starts[number];
        start.times = Some(times);
        let kind = start.call.kind;
        if times.1 > times.0 {
            let label = Label::Op(start.call.what.to_string());
            self.spans.push(Span { track: Track::Group(kind), label, start: times.0, end: times.1 });
        }
        let stream = self.streams.get_mut(&kind.lane()).expect("a call has a stream");
        let post = stream.posts.front().expect("a call that has ended was at the front");
        if post.starts.iter().any(|&other| self.starts[other].times.is_none()) {
            return Vec::new();
        }
        let ends = post.starts.iter().filter_map(|&other| self.starts[other].times);
        stream.free = ends.map(|(_, end)| end).fold(stream.free, f64::max);
        stream.posts.pop_front();
        stream.posts.front().map(|post| post.starts.clone()).unwrap_or_default()
    }

    /// The result, with spans relative to `zero`.
    fn timeline(self, zero: f64) -> RankTimeline {
        let (began, seconds) = (self.began, self.clock - self.began);
        let within = |at: f64| at.clamp(began, self.clock) - zero;
        let moved = |span: Span| Span { start: within(span.start), end: within(span.end), ..span };
        let spans = self.spans.into_iter().map(moved).filter(|span| span.end > span.start).collect();
        RankTimeline { rank: self.rank, spans, seconds, ..self.result }
    }
}

#[cfg(test)]
mod tests;
