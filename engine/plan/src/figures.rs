//! A machine's own figures: what its ops and calls took when they were timed (`benches/figures`), and costs made of them.

use super::cost;
use super::replay::{Costs, Manner};
use engine::backend::Scope;
use engine::dry::{Call, Log, LogEntry, What};
use engine::error::{Error, Result};
use engine::layout::mesh::GroupKind;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What was timed, and on what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    pub host: String,
    /// As its maker calls it.
    pub device: String,
    /// `f32` or `bf16`.
    pub precision: String,
    /// Ranks that were timed at once, of one machine, and the threads of each.
    pub ranks: usize,
    pub threads: usize,
    /// Of the machine.
    pub memory_gib: f64,
    pub ops: Vec<OpFigure>,
    pub calls: Vec<CallFigure>,
}

/// An op as the log of the dry backend names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpFigure {
    pub op: String,
    pub sizes: [usize; 3],
    pub seconds: f64,
}

/// A call from the moment at which all ranks are there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CallFigure {
    pub group: String,
    /// As [`call_name`] says.
    pub call: String,
    pub ranks: usize,
    pub bytes: usize,
    pub seconds: f64,
}

/// Both halves of a message are one.
pub fn call_name(what: What) -> &'static str {
    match what {
        What::AllReduce => "all-reduce",
        What::AllGather => "all-gather",
        What::ReduceScatter => "reduce-scatter",
        What::Send(_) | What::Receive(_) => "message",
    }
}

impl Figures {
    pub fn read(path: &Path) -> Result<Figures> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let remedy = "benches/figures.sh writes such a file";
        let bad = |what: String| Error::user(format!("--calibrate {}: {what}; {remedy}", path.display()));
        let figures: Figures = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
        match figures.fault() {
            Some(what) => Err(bad(what)),
            None => Ok(figures),
        }
    }

    /// What no machine has.
    fn fault(&self) -> Option<String> {
        let can_be = |seconds: f64| (0.0..1e6).contains(&seconds);
        let op = self.ops.iter().find(|f| !can_be(f.seconds)).map(|f| format!("{} takes {} s", f.op, f.seconds));
        let call = self.calls.iter().find(|f| !can_be(f.seconds)).map(|f| format!("{} takes {} s", f.call, f.seconds));
        let none = |what: &str, is: bool| is.then(|| format!("{what} = 0"));
        let some = self.memory_gib.is_finite() && self.memory_gib > 0.0;
        let memory = (!some).then(|| format!("memory_gib = {}", self.memory_gib));
        op.or(call).or(memory).or(none("ranks", self.ranks == 0)).or(none("threads", self.threads == 0))
    }

    /// These, and of `before` what was not timed again.
    pub fn after(mut self, before: Figures) -> Figures {
        let ops: BTreeSet<_> = self.ops.iter().map(|f| (f.op.clone(), f.sizes)).collect();
        self.ops.extend(before.ops.into_iter().filter(|f| !ops.contains(&(f.op.clone(), f.sizes))));
        let key = |f: &CallFigure| (f.group.clone(), f.call.clone(), f.ranks, f.bytes);
        let calls: BTreeSet<_> = self.calls.iter().map(key).collect();
        self.calls.extend(before.calls.into_iter().filter(|f| !calls.contains(&key(f))));
        self
    }
}

/// Figures to be looked up.
pub struct Measured {
    /// Bytes of an activation.
    act: usize,
    ops: BTreeMap<String, BTreeMap<[usize; 3], f64>>,
    /// By group, call and ranks: seconds by bytes.
    calls: BTreeMap<(String, String, usize), BTreeMap<usize, f64>>,
}

impl Measured {
    pub fn new(figures: &Figures, act: usize) -> Measured {
        let (mut ops, mut calls) = (BTreeMap::<_, BTreeMap<_, _>>::new(), BTreeMap::<_, BTreeMap<_, _>>::new());
        for OpFigure { op, sizes, seconds } in &figures.ops {
            ops.entry(op.clone()).or_default().insert(*sizes, *seconds);
        }
        for CallFigure { group, call, ranks, bytes, seconds } in &figures.calls {
            calls.entry((group.clone(), call.clone(), *ranks)).or_default().insert(*bytes, *seconds);
        }
        Measured { act, ops, calls }
    }
}

fn key(call: &Call) -> (String, String, usize) {
    (call.kind.name().into(), call_name(call.what).into(), call.members.len())
}

/// Seconds of what is `of` large, by the figure nearest to it; things of a kind take time by their size.
fn scaled<'a>(figures: impl Iterator<Item = (f64, &'a f64)>, of: f64) -> f64 {
    let far = |size: f64| (size / of).ln().abs();
    let nearest = figures.min_by(|a, b| far(a.0).total_cmp(&far(b.0)));
    nearest.map_or(0.0, |(size, seconds)| seconds * of / size)
}

impl Costs for Measured {
    /// What was timed; else what is most like it, by its operations or bytes.
    fn op(&self, name: &'static str, sizes: [usize; 3]) -> f64 {
        let Some(figures) = self.ops.get(name) else { return 0.0 };
        let size = |sizes| cost::flops(name, sizes).max(cost::bytes(name, sizes, self.act)).max(1.0);
        let like = || scaled(figures.iter().map(|(sizes, seconds)| (size(*sizes), seconds)), size(sizes));
        figures.get(&sizes).copied().unwrap_or_else(like)
    }

    fn call(&self, _: usize, call: &Call) -> f64 {
        let Some(figures) = self.calls.get(&key(call)) else { return 0.0 };
        let like = || scaled(figures.iter().map(|(bytes, seconds)| (*bytes as f64, seconds)), call.bytes as f64);
        figures.get(&call.bytes).copied().unwrap_or_else(like)
    }

    fn part(&self, _: Scope) -> f64 {
        0.0
    }

    /// The cores that compute also carry.
    fn manner(&self, _: GroupKind) -> Manner {
        Manner::ByCompute
    }

    fn unknown(&self, log: &Log) -> Vec<String> {
        let unknown = |event: &LogEntry| match event {
            LogEntry::Op { name, .. } => (!self.ops.contains_key(*name)).then(|| name.to_string()),
            LogEntry::Start(call) if call.members.len() > 1 && !self.calls.contains_key(&key(call)) => {
                let (group, call, ranks) = key(call);
                Some(format!("{call} of {ranks} ranks of the {group} group"))
            }
            _ => None,
        };
        log.events.iter().filter_map(unknown).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::dry::Keep;

    fn figures() -> Figures {
        let op = |op: &str, sizes, seconds| OpFigure { op: op.into(), sizes, seconds };
        let call =
            |bytes, seconds| CallFigure { group: "tensor".into(), call: "all-gather".into(), ranks: 2, bytes, seconds };
        Figures {
            host: "a".into(),
            device: "b".into(),
            precision: "f32".into(),
            ranks: 2,
            threads: 1,
            memory_gib: 16.0,
            ops: vec![
                op("matmul_nt", [64, 64, 64], 1.0),
                op("matmul_nt", [512, 64, 64], 7.0),
                op("add", [8, 8, 1], 0.5),
            ],
            calls: vec![call(1000, 1.0), call(100_000, 50.0)],
        }
    }

    fn call(bytes: usize) -> Call {
        Call { group: 0, kind: GroupKind::Tensor, members: [0, 1].into(), what: What::AllGather, bytes, post: 0 }
    }

    #[test]
    fn what_was_timed_counts_and_the_nearest_where_nothing_was() {
        let measured = Measured::new(&figures(), 4);
        assert_eq!(measured.op("matmul_nt", [512, 64, 64]), 7.0);
        assert_eq!(measured.op("matmul_nt", [256, 64, 64]), 3.5);
        assert_eq!(measured.op("matmul_nt", [32, 64, 64]), 0.5);
        assert_eq!((measured.call(0, &call(1000)), measured.call(0, &call(2000))), (1.0, 2.0));
        assert_eq!(measured.call(0, &call(50_000)), 25.0);
    }

    #[test]
    fn what_nobody_timed_is_named() {
        let mut log = Log::new(0, Keep::Ops);
        let three = Call { members: [0, 1, 2].into(), ..call(4) };
        log.events.extend([
            LogEntry::Op { name: "rope", sizes: [1, 1, 1] },
            LogEntry::Start(three),
            LogEntry::Start(call(4)),
        ]);
        let unknown = Measured::new(&figures(), 4).unknown(&log);
        assert_eq!(unknown, ["all-gather of 3 ranks of the tensor group", "rope"]);
    }

    #[test]
    fn what_no_machine_has_is_refused() {
        let with = |change: fn(&mut Figures)| {
            let mut figures = figures();
            change(&mut figures);
            figures.fault()
        };
        assert_eq!(figures().fault(), None);
        assert_eq!(with(|f| f.ops[0].seconds = -1.0), Some("matmul_nt takes -1 s".into()));
        assert!(with(|f| f.calls[1].seconds = 1e300).unwrap().starts_with("all-gather takes "));
        assert_eq!(with(|f| f.memory_gib = -3.0), Some("memory_gib = -3".into()));
        assert_eq!(with(|f| f.threads = 0), Some("threads = 0".into()));
    }

    #[test]
    fn newer_figures_take_the_place_of_older_ones() {
        let mut new = figures();
        new.ops.truncate(1);
        new.ops[0].seconds = 9.0;
        new.calls.clear();
        let both = new.after(figures());
        assert_eq!((both.ops.len(), both.ops[0].seconds, both.calls.len()), (3, 9.0, 2));
    }
}
