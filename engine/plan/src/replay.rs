//! A step in simulated time: what each rank would do (the log of its rehearsal), run against the others'.
//!
//! Each rank has a clock for what computes, and a stream for each kind of group. A call begins when all of its
//! ranks have come to it and their streams are free, compute waits where the log waits, and everything between the two
//! goes on beside the call. Ranks that do the same at the same time are told by one of them: of a group, only the
//! ranks that were given come.

use super::cost::{Class, class};
use engine::backend::{Label, Scope, Span, Track};
use engine::dry::{Call, Log, LogEntry, What};
use engine::layout::mesh::GroupKind;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;

/// How long things take, in seconds.
pub trait Costs {
    fn op(&self, name: &'static str, sizes: [usize; 3]) -> f64;
    /// Between the first and the last byte, once all ranks are there; `rank` is one of them.
    fn call(&self, rank: usize, call: &Call) -> f64;
    /// What a part costs beside its ops.
    fn part(&self, part: Scope) -> f64;
    /// How calls of a kind run.
    fn manner(&self, kind: GroupKind) -> Manner;

    /// What a log has of which nobody knows what it costs, in words.
    fn unknown(&self, _: &Log) -> Vec<String> {
        Vec::new()
    }
}

/// How a call runs beside what computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Manner {
    /// On a stream; compute loses this share of its time.
    Beside { slowdown: f64 },
    /// Compute waits where it starts.
    Alone,
    /// By the cores that compute: the time is theirs, where they wait.
    ByCompute,
}

/// What a rank did.
#[derive(Debug, Clone, Default)]
pub struct Ran {
    pub rank: usize,
    /// Parts and calls, from the beginning of the step.
    pub spans: Vec<Span>,
    /// Seconds of ops.
    pub busy: BTreeMap<Class, f64>,
    /// What parts cost beside their ops.
    pub beside: f64,
    /// Seconds in which compute waited, by the kind of the calls that it waited for.
    pub exposed: BTreeMap<GroupKind, f64>,
    /// From the end of the step before to the end of this one.
    pub seconds: f64,
}

/// Runs the logs against each other; told are the events of these ranges, and what comes before them is warm-up.
///
/// Panics where a call is never met: `dry::order` says so in words.
pub fn replay(logs: &[(&Log, Range<usize>)], costs: &dyn Costs) -> Vec<Ran> {
    let mut all = All::new(logs, costs);
    loop {
        let moved = (0..logs.len()).filter(|&at| all.advance(at)).count();
        if !all.meet() && moved == 0 {
            break;
        }
    }
    for rank in &all.ranks {
        assert_eq!(rank.next, rank.events.len(), "events of rank {}: it waits for ever", rank.rank);
    }
    // Ranks end the step before, and begin this one, one after another: their spans have one zero.
    let zero = all.ranks.iter().map(|rank| rank.began).fold(f64::INFINITY, f64::min);
    all.ranks.into_iter().map(|rank| rank.ran(zero)).collect()
}

/// A call of a group, the n-th; a message by its ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    group: usize,
    first: usize,
    to: Option<usize>,
    turn: usize,
}

/// The ranks of a call that have come to it: (index of the rank, number of its start).
#[derive(Default)]
struct Meeting(Vec<(usize, usize)>);

/// What is at work on a stream at once: a collective, or the halves of an exchange.
struct Post {
    number: usize,
    starts: Vec<usize>,
}

/// One rank's side of a call.
struct Start<'a> {
    call: &'a Call,
    key: Key,
    issued: f64,
    /// When it began and ended, once that is known.
    times: Option<(f64, f64)>,
}

#[derive(Default)]
struct Stream {
    free: f64,
    posts: VecDeque<Post>,
}

struct Rank<'a> {
    /// Of the mesh.
    rank: usize,
    events: &'a [LogEntry],
    from: usize,
    next: usize,
    clock: f64,
    /// What calls beside compute have cost it, until the next op pays.
    debt: f64,
    starts: Vec<Start<'a>>,
    streams: HashMap<GroupKind, Stream>,
    turns: HashMap<(usize, usize, Option<usize>), usize>,
    /// The start that compute is held up at.
    held: Option<usize>,
    open: Vec<(Scope, f64)>,
    began: f64,
    spans: Vec<Span>,
    ran: Ran,
}

struct All<'a> {
    costs: &'a dyn Costs,
    ranks: Vec<Rank<'a>>,
    /// Where a rank of the mesh is among those given.
    index: HashMap<usize, usize>,
    meetings: HashMap<Key, Meeting>,
    /// Calls that all have come to.
    ready: Vec<Key>,
}

impl<'a> All<'a> {
    fn new(logs: &[(&'a Log, Range<usize>)], costs: &'a dyn Costs) -> Self {
        let index = logs.iter().enumerate().map(|(at, (log, _))| (log.rank, at)).collect();
        let ranks = logs.iter().map(|(log, told)| Rank::new(log, told)).collect();
        All { costs, ranks, index, meetings: HashMap::new(), ready: Vec::new() }
    }

    /// Takes a rank as far as it comes; whether that was anywhere.
    fn advance(&mut self, at: usize) -> bool {
        let before = self.ranks[at].next;
        while let Some(event) = self.ranks[at].events.get(self.ranks[at].next) {
            if self.ranks[at].next == self.ranks[at].from {
                self.ranks[at].begin();
            }
            if !self.one(at, event) {
                break;
            }
            self.ranks[at].next += 1;
        }
        self.ranks[at].next > before
    }

    /// Whether the event could be.
    fn one(&mut self, at: usize, event: &'a LogEntry) -> bool {
        match event {
            LogEntry::Op { name, sizes } => self.ranks[at].compute(class(name), self.costs.op(name, *sizes)),
            LogEntry::Enter(part) => self.ranks[at].enter(*part, self.costs.part(*part)),
            LogEntry::Leave => self.ranks[at].leave(),
            LogEntry::Start(call) => return self.start(at, call),
            LogEntry::Wait(number) => return self.wait(at, *number),
        }
        true
    }

    fn start(&mut self, at: usize, call: &'a Call) -> bool {
        let alone = self.costs.manner(call.kind) == Manner::Alone;
        let number = match self.ranks[at].held {
            Some(number) => number,
            None => {
                if alone && matches!(call.what, What::Send(_)) {
                    // The sender stands still for as long as its message travels.
                    let cost = self.costs.call(self.ranks[at].rank, call);
                    self.ranks[at].expose(call.kind, cost);
                }
                self.post(at, call)
            }
        };
        let waits = alone && !matches!(call.what, What::Send(_) | What::Receive(_));
        self.ranks[at].held = (waits && !self.wait(at, number)).then_some(number);
        self.ranks[at].held.is_none()
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
            self.come(at, number);
        }
        number
    }

    /// The call's turn has come on this rank's stream.
    fn come(&mut self, at: usize, number: usize) {
        let Start { call, key, .. } = self.ranks[at].starts[number];
        let wanted = match call.what {
            What::Send(to) => 1 + usize::from(self.index.contains_key(&to)),
            What::Receive(from) => 1 + usize::from(self.index.contains_key(&from)),
            _ => call.members.iter().filter(|member| self.index.contains_key(member)).count(),
        };
        let meeting = self.meetings.entry(key).or_default();
        meeting.0.push((at, number));
        if meeting.0.len() == wanted {
            self.ready.push(key);
        }
    }

    /// Carries out the calls that all have come to; whether there was one.
    fn meet(&mut self) -> bool {
        let ready = std::mem::take(&mut self.ready);
        for key in &ready {
            let Meeting(came) = self.meetings.remove(key).expect("it is ready");
            let call = self.ranks[came[0].0].starts[came[0].1].call;
            let begin = came.iter().map(|&(at, number)| self.ranks[at].could_begin(number)).fold(0.0, f64::max);
            let (rank, manner) = (self.ranks[came[0].0].rank, self.costs.manner(call.kind));
            let message = matches!(call.what, What::Send(_) | What::Receive(_));
            let cost = match manner {
                Manner::Beside { .. } => self.costs.call(rank, call),
                Manner::Alone if !message => self.costs.call(rank, call),
                Manner::Alone | Manner::ByCompute => 0.0,
            };
            for (at, number) in came {
                let next = self.ranks[at].done(number, (begin, begin + cost));
                next.into_iter().for_each(|number| self.come(at, number));
            }
        }
        !ready.is_empty()
    }

    /// Whether compute could go on.
    fn wait(&mut self, at: usize, number: usize) -> bool {
        let rank = &mut self.ranks[at];
        let Start { call, times, .. } = &rank.starts[number];
        let Some((begin, end)) = *times else { return false };
        let manner = self.costs.manner(call.kind);
        if let Manner::Beside { slowdown } = manner {
            // Of what went on beside the call.
            rank.debt += slowdown * (rank.clock.min(end) - begin).max(0.0);
        }
        let until = match manner {
            Manner::ByCompute if !matches!(call.what, What::Send(_)) => {
                rank.clock.max(begin) + self.costs.call(rank.rank, call)
            }
            _ => rank.clock.max(end),
        };
        rank.expose(call.kind, until - rank.clock);
        true
    }
}

impl<'a> Rank<'a> {
    fn new(log: &'a Log, told: &Range<usize>) -> Self {
        Rank {
            rank: log.rank,
            events: &log.events[..told.end],
            from: told.start,
            next: 0,
            clock: 0.0,
            debt: 0.0,
            starts: Vec::new(),
            streams: HashMap::new(),
            turns: HashMap::new(),
            held: None,
            open: Vec::new(),
            began: 0.0,
            spans: Vec::new(),
            ran: Ran::default(),
        }
    }

    /// What was until now was warm-up.
    fn begin(&mut self) {
        if self.held.is_none() {
            self.began = self.clock;
            self.ran = Ran::default();
        }
    }

    fn compute(&mut self, class: Class, seconds: f64) {
        let seconds = seconds + std::mem::take(&mut self.debt);
        *self.ran.busy.entry(class).or_default() += seconds;
        self.clock += seconds;
    }

    fn expose(&mut self, kind: GroupKind, seconds: f64) {
        *self.ran.exposed.entry(kind).or_default() += seconds;
        let (start, end) = (self.clock, self.clock + seconds);
        self.spans.push(Span { track: Track::Wait(kind), label: Label::Wait, start, end });
        self.clock = end;
    }

    fn enter(&mut self, part: Scope, cost: f64) {
        self.open.push((part, self.clock));
        self.clock += cost;
        self.ran.beside += cost;
    }

    fn leave(&mut self) {
        let (part, start) = self.open.pop().expect("a part that was entered");
        let span = Span { track: Track::Parts, label: Label::Scope(part), start, end: self.clock };
        self.spans.push(span);
    }

    fn key(&mut self, call: &Call) -> Key {
        let (first, to) = match call.what {
            What::Send(to) => (self.rank, Some(to)),
            What::Receive(from) => (from, Some(self.rank)),
            _ => (call.members[0], None),
        };
        let turn = self.turns.entry((call.group, first, to)).or_default();
        *turn += 1;
        Key { group: call.group, first, to, turn: *turn }
    }

    /// When its side of a call is ready.
    fn could_begin(&self, number: usize) -> f64 {
        let Start { call, issued, .. } = &self.starts[number];
        issued.max(self.streams[&call.kind.lane()].free)
    }

    /// A call is over; the calls whose turn has come now.
    fn done(&mut self, number: usize, times: (f64, f64)) -> Vec<usize> {
        let start = &mut self.starts[number];
        start.times = Some(times);
        let kind = start.call.kind;
        if times.1 > times.0 {
            let label = Label::Op(start.call.what.to_string());
            self.spans.push(Span { track: Track::Group(kind), label, start: times.0, end: times.1 });
        }
        let stream = self.streams.get_mut(&kind.lane()).expect("a call has a stream");
        let post = stream.posts.front().expect("a call that is over was at work");
        if post.starts.iter().any(|&other| self.starts[other].times.is_none()) {
            return Vec::new();
        }
        let ends = post.starts.iter().filter_map(|&other| self.starts[other].times);
        stream.free = ends.map(|(_, end)| end).fold(stream.free, f64::max);
        stream.posts.pop_front();
        stream.posts.front().map(|post| post.starts.clone()).unwrap_or_default()
    }

    /// What it did, its spans from `zero` on.
    fn ran(self, zero: f64) -> Ran {
        let (began, seconds) = (self.began, self.clock - self.began);
        let within = |at: f64| at.clamp(began, self.clock) - zero;
        let moved = |span: Span| Span { start: within(span.start), end: within(span.end), ..span };
        let spans = self.spans.into_iter().map(moved).filter(|span| span.end > span.start).collect();
        Ran { rank: self.rank, spans, seconds, ..self.ran }
    }
}

#[cfg(test)]
mod tests;
