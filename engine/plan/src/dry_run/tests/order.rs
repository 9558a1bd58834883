//! Checks that the collectives of all ranks can complete, whatever the timing: the union of the orders in which ranks
//! start and wait for them must have no cycle.
//!
//! A collective is one node for all its ranks, a message one node for its two ends, and each rank is a chain of
//! points, one after each wait. A point comes before every call that is started at it; a call comes before the point
//! that waits for it; and on a stream (`GroupKind::lane`) each post comes before the next. These are the strictest
//! rules of any backend: no message leaves before both ends have posted it, and streams are shared.

use engine::dry::{Call, Log, LogEntry, Operation};
use engine::layout::mesh::GroupKind;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// The reason why some ranks cannot complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disorder {
    /// The n-th call of a group is not the same on two of its ranks.
    Unlike(String),
    /// Some ranks of a group never make a call that the others make.
    Missing(String),
    /// Each line waits for the next, and the last for the first.
    Cycle(Vec<String>),
}

impl fmt::Display for Disorder {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Disorder::Unlike(what) | Disorder::Missing(what) => write!(f, "{what}"),
            Disorder::Cycle(steps) => {
                write!(f, "a deadlock: each of these comes before the next, and the last before the first")?;
                steps.iter().try_for_each(|step| write!(f, "\n  {step}"))
            }
        }
    }
}

/// Checks the logs of all ranks, which were recorded with their calls. A call that nobody waits for blocks nobody.
pub fn check(logs: &[Log]) -> Result<(), Disorder> {
    let mut graph = Graph::default();
    logs.iter().try_for_each(|log| graph.add(log))?;
    graph.complete()?;
    graph.acyclic()
}

/// One collective of a group, or one message from a rank to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    group: usize,
    /// The first member, or the sender.
    from: usize,
    /// The receiver of a message.
    to: Option<usize>,
    /// The n-th call of this group or pair.
    turn: usize,
}

enum Node {
    Shared {
        key: Key,
        /// The call as the first rank made it.
        call: Call,
        ranks: Vec<usize>,
    },
    /// A point of the rank's program: after the wait for that node, or the start of the program.
    Point { rank: usize, after: Option<usize> },
}

#[derive(Default)]
struct Graph {
    nodes: Vec<Node>,
    /// (before, after, rank that orders them).
    edges: Vec<(usize, usize, usize)>,
    shared: HashMap<Key, usize>,
}

/// The nodes of the last post to a stream, and of the post before it.
#[derive(Default)]
struct Stream {
    post: usize,
    now: Vec<usize>,
    before: Vec<usize>,
}

impl Graph {
    fn add(&mut self, log: &Log) -> Result<(), Disorder> {
        let rank = log.rank;
        let (mut started, mut turns, mut streams) = (Vec::new(), HashMap::new(), BTreeMap::<GroupKind, Stream>::new());
        let mut point = self.node(Node::Point { rank, after: None });
        for event in &log.events {
            match event {
                LogEntry::Op { .. } | LogEntry::Enter(_) | LogEntry::Leave => {}
                LogEntry::Start(call) => {
                    let node = self.join(rank, call, &mut turns)?;
                    self.edges.push((point, node, rank));
                    let stream = streams.entry(call.kind.lane()).or_default();
                    stream.enter(call.post, node);
                    self.edges.extend(stream.before.iter().map(|&before| (before, node, rank)));
                    started.push(node);
                }
                LogEntry::Wait(start) => {
                    let next = self.node(Node::Point { rank, after: Some(started[*start]) });
                    self.edges.extend([(started[*start], next, rank), (point, next, rank)]);
                    point = next;
                }
            }
        }
        Ok(())
    }

    fn node(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// The node of the call that `rank` makes: that of the other ranks where one of them has made it already.
    fn join(&mut self, rank: usize, call: &Call, turns: &mut HashMap<Key, usize>) -> Result<usize, Disorder> {
        let (from, to) = match call.what {
            Operation::Send(to) => (rank, Some(to)),
            Operation::Receive(from) => (from, Some(rank)),
            Operation::AllReduce | Operation::AllGather | Operation::ReduceScatter | Operation::AllToAll => {
                (call.members[0], None)
            }
        };
        let mut key = Key { group: call.group, from, to, turn: 0 };
        let turn = turns.entry(key).or_default();
        (key.turn, *turn) = (*turn, *turn + 1);
        let Some(&node) = self.shared.get(&key) else {
            let node = self.node(Node::Shared { key, call: call.clone(), ranks: vec![rank] });
            self.shared.insert(key, node);
            return Ok(node);
        };
        let Node::Shared { call: first, ranks, .. } = &mut self.nodes[node] else { unreachable!("it is shared") };
        let same = to.is_some() || first.what == call.what;
        if !same || first.bytes != call.bytes || first.members != call.members || first.kind != call.kind {
            let (a, b) = (ranks[0], rank);
            return Err(Disorder::Unlike(format!(
                "call {} of the {:?} group {:?}: {} of {} bytes on rank {a}, {} of {} bytes on rank {b} (in {:?})",
                key.turn, first.kind, first.members, first.what, first.bytes, call.what, call.bytes, call.members
            )));
        }
        ranks.push(rank);
        Ok(node)
    }

    /// Every call was made by all of its ranks.
    fn complete(&self) -> Result<(), Disorder> {
        for (at, node) in self.nodes.iter().enumerate() {
            let Node::Shared { key, call, ranks } = node else { continue };
            let wanted = key.to.map_or(call.members.to_vec(), |to| vec![key.from, to]);
            if let Some(absent) = wanted.iter().find(|rank| !ranks.contains(rank)) {
                return Err(Disorder::Missing(format!("rank {absent} never makes {}", self.name(at))));
            }
        }
        Ok(())
    }

    /// Removes nodes without a predecessor, one after another. If any nodes are left, they contain a cycle.
    fn acyclic(&self) -> Result<(), Disorder> {
        let mut before = vec![0usize; self.nodes.len()];
        self.edges.iter().for_each(|edge| before[edge.1] += 1);
        let mut edges = self.edges.clone();
        edges.sort_unstable_by_key(|edge| edge.0);
        let first = |node| edges.partition_point(|edge| edge.0 < node);
        let mut free: Vec<usize> = (0..self.nodes.len()).filter(|&node| before[node] == 0).collect();
        while let Some(node) = free.pop() {
            for edge in edges[first(node)..].iter().take_while(|edge| edge.0 == node) {
                before[edge.1] -= 1;
                if before[edge.1] == 0 {
                    free.push(edge.1);
                }
            }
        }
        match before.iter().position(|&n| n > 0) {
            None => Ok(()),
            Some(node) => Err(Disorder::Cycle(self.cycle(&before, node))),
        }
    }

    /// A cycle among the nodes that are `left`: each of them has a predecessor that is left, too.
    fn cycle(&self, left: &[usize], start: usize) -> Vec<String> {
        let mut back = HashMap::new();
        for edge in self.edges.iter().filter(|edge| left[edge.0] > 0 && left[edge.1] > 0) {
            back.entry(edge.1).or_insert(*edge);
        }
        let (mut path, mut node) = (Vec::new(), start);
        let round = loop {
            let edge = back[&node];
            path.push(edge);
            node = edge.0;
            if let Some(at) = path.iter().position(|edge| edge.1 == node) {
                break path.split_off(at);
            }
        };
        round.iter().rev().filter_map(|&edge| self.step(edge)).collect()
    }

    /// An edge in words; `None` where a rank merely goes on from one point to the next.
    fn step(&self, (before, after, rank): (usize, usize, usize)) -> Option<String> {
        match (&self.nodes[before], &self.nodes[after]) {
            (Node::Shared { .. }, Node::Point { .. }) => Some(format!("rank {rank} waits for {}", self.name(before))),
            (Node::Point { .. }, Node::Shared { .. }) => Some(format!("rank {rank} starts {}", self.name(after))),
            (Node::Shared { call, .. }, Node::Shared { .. }) => Some(format!(
                "rank {rank} has put {} before {} on the stream of {:?}",
                self.name(before),
                self.name(after),
                call.kind
            )),
            (Node::Point { .. }, Node::Point { .. }) => None,
        }
    }

    fn name(&self, node: usize) -> String {
        match &self.nodes[node] {
            Node::Shared { key: Key { from, to: Some(to), turn, .. }, call, .. } => {
                format!("message {turn} of {:?} from rank {from} to rank {to} ({} bytes)", call.kind, call.bytes)
            }
            Node::Shared { key, call, .. } => {
                let (what, kind, members) = (call.what, call.kind, &call.members);
                format!("call {} of the {kind:?} group {members:?}, {what} ({} bytes)", key.turn, call.bytes)
            }
            Node::Point { rank, after: Some(after) } => format!("rank {rank} after {}", self.name(*after)),
            Node::Point { rank, after: None } => format!("rank {rank}'s start"),
        }
    }
}

impl Stream {
    /// Adds `node` to `post`; all nodes of the previous post come before it.
    fn enter(&mut self, post: usize, node: usize) {
        if self.post != post {
            self.before = std::mem::take(&mut self.now);
            self.post = post;
        }
        self.now.push(node);
    }
}
