//! A profile of a machine: times of ops and calls that `benches/figures` measured, and the cost model made of them.

use super::replay::{CommMode, CostModel};
use engine::backend::{Op, Scope};
use engine::dry::{Call, Log, LogEntry, Operation};
use engine::error::{Error, Result};
use engine::layout::mesh::GroupKind;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The file that `plan --calibrate` reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    pub host: String,
    /// The CPU's model name.
    pub device: String,
    /// `f32` or `bf16`.
    pub precision: String,
    /// Ranks of this machine that were timed at the same time, and the threads of each.
    pub ranks: usize,
    pub threads: usize,
    /// Memory of the machine.
    pub memory_gib: f64,
    pub ops: Vec<OpTime>,
    pub calls: Vec<CallTime>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpTime {
    /// [`Op::name`].
    pub op: String,
    pub sizes: [usize; 3],
    pub seconds: f64,
}

/// Time of a call once all ranks have arrived.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CallTime {
    pub group: String,
    /// [`call_name`].
    pub call: String,
    pub ranks: usize,
    pub bytes: usize,
    pub seconds: f64,
}

/// The name of a call in a profile; send and receive have one.
pub fn call_name(what: Operation) -> &'static str {
    match what {
        Operation::AllReduce => "all-reduce",
        Operation::AllGather => "all-gather",
        Operation::ReduceScatter => "reduce-scatter",
        Operation::AllToAll => "all-to-all",
        Operation::Send(_) | Operation::Receive(_) => "message",
    }
}

impl Profile {
    pub fn read(path: &Path) -> Result<Profile> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let remedy = "benches/figures.sh writes such a file";
        let bad = |what: String| Error::user(format!("--calibrate {}: {what}; {remedy}", path.display()));
        let profile: Profile = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
        match profile.fault() {
            Some(what) => Err(bad(what)),
            None => Ok(profile),
        }
    }

    /// The first value that no machine can have.
    fn fault(&self) -> Option<String> {
        let can_be = |seconds: f64| (0.0..1e6).contains(&seconds);
        let op = self.ops.iter().find(|f| !can_be(f.seconds)).map(|f| format!("{} takes {} s", f.op, f.seconds));
        let call = self.calls.iter().find(|f| !can_be(f.seconds)).map(|f| format!("{} takes {} s", f.call, f.seconds));
        let none = |what: &str, is: bool| is.then(|| format!("{what} = 0"));
        let some = self.memory_gib.is_finite() && self.memory_gib > 0.0;
        let memory = (!some).then(|| format!("memory_gib = {}", self.memory_gib));
        op.or(call).or(memory).or(none("ranks", self.ranks == 0)).or(none("threads", self.threads == 0))
    }

    /// This profile, with the entries of `before` that were not timed again.
    pub fn after(mut self, before: Profile) -> Profile {
        let ops: BTreeSet<_> = self.ops.iter().map(|f| (f.op.clone(), f.sizes)).collect();
        self.ops.extend(before.ops.into_iter().filter(|f| !ops.contains(&(f.op.clone(), f.sizes))));
        let key = |f: &CallTime| (f.group.clone(), f.call.clone(), f.ranks, f.bytes);
        let calls: BTreeSet<_> = self.calls.iter().map(key).collect();
        self.calls.extend(before.calls.into_iter().filter(|f| !calls.contains(&key(f))));
        self
    }
}

/// Costs by a profile.
pub struct ProfiledCosts {
    /// Bytes of an activation.
    act: usize,
    ops: BTreeMap<String, BTreeMap<[usize; 3], f64>>,
    /// (group, call, ranks) -> bytes -> seconds.
    calls: BTreeMap<(String, String, usize), BTreeMap<usize, f64>>,
}

impl ProfiledCosts {
    pub fn new(profile: &Profile, act: usize) -> ProfiledCosts {
        let (mut ops, mut calls) = (BTreeMap::<_, BTreeMap<_, _>>::new(), BTreeMap::<_, BTreeMap<_, _>>::new());
        for OpTime { op, sizes, seconds } in &profile.ops {
            ops.entry(op.clone()).or_default().insert(*sizes, *seconds);
        }
        for CallTime { group, call, ranks, bytes, seconds } in &profile.calls {
            calls.entry((group.clone(), call.clone(), *ranks)).or_default().insert(*bytes, *seconds);
        }
        ProfiledCosts { act, ops, calls }
    }
}

fn key(call: &Call) -> (String, String, usize) {
    (call.kind.name().into(), call_name(call.what).into(), call.members.len())
}

/// Seconds at size `of`, scaled linearly from the nearest (size, seconds).
fn scaled<'a>(times: impl Iterator<Item = (f64, &'a f64)>, of: f64) -> f64 {
    let far = |size: f64| (size / of).ln().abs();
    let nearest = times.min_by(|a, b| far(a.0).total_cmp(&far(b.0)));
    nearest.map_or(0.0, |(size, seconds)| seconds * of / size)
}

impl CostModel for ProfiledCosts {
    /// The measured time, or that of the nearest sizes scaled by FLOPs or bytes.
    fn op(&self, op: Op, sizes: [usize; 3]) -> f64 {
        let Some(times) = self.ops.get(op.name()) else { return 0.0 };
        let size = |sizes| op.flops(sizes).max(op.bytes(sizes, self.act)).max(1.0);
        let like = || scaled(times.iter().map(|(sizes, seconds)| (size(*sizes), seconds)), size(sizes));
        times.get(&sizes).copied().unwrap_or_else(like)
    }

    fn call(&self, _: usize, call: &Call) -> f64 {
        let Some(times) = self.calls.get(&key(call)) else { return 0.0 };
        let like = || scaled(times.iter().map(|(bytes, seconds)| (*bytes as f64, seconds)), call.bytes as f64);
        times.get(&call.bytes).copied().unwrap_or_else(like)
    }

    fn host(&self, _: Scope) -> f64 {
        0.0
    }

    fn mode(&self, _: GroupKind) -> CommMode {
        CommMode::OnComputeCores
    }

    fn unknown(&self, log: &Log) -> Vec<String> {
        let unknown = |event: &LogEntry| match event {
            LogEntry::Op { op, .. } => (!self.ops.contains_key(op.name())).then(|| op.name().to_string()),
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

    fn profile() -> Profile {
        let op = |op: &str, sizes, seconds| OpTime { op: op.into(), sizes, seconds };
        let call =
            |bytes, seconds| CallTime { group: "tensor".into(), call: "all-gather".into(), ranks: 2, bytes, seconds };
        Profile {
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
        Call { group: 0, kind: GroupKind::Tensor, members: [0, 1].into(), what: Operation::AllGather, bytes, post: 0 }
    }

    #[test]
    fn times_are_those_measured_or_scaled_from_the_nearest() {
        let costs = ProfiledCosts::new(&profile(), 4);
        assert_eq!(costs.op(Op::MatmulNt, [512, 64, 64]), 7.0);
        assert_eq!(costs.op(Op::MatmulNt, [256, 64, 64]), 3.5);
        assert_eq!(costs.op(Op::MatmulNt, [32, 64, 64]), 0.5);
        assert_eq!((costs.call(0, &call(1000)), costs.call(0, &call(2000))), (1.0, 2.0));
        assert_eq!(costs.call(0, &call(50_000)), 25.0);
    }

    #[test]
    fn ops_and_calls_without_a_measurement_are_named() {
        let mut log = Log::new(0, Keep::Ops);
        let three = Call { members: [0, 1, 2].into(), ..call(4) };
        log.events.extend([
            LogEntry::Op { op: Op::Rope, sizes: [1, 1, 1] },
            LogEntry::Start(three),
            LogEntry::Start(call(4)),
        ]);
        let unknown = ProfiledCosts::new(&profile(), 4).unknown(&log);
        assert_eq!(unknown, ["all-gather of 3 ranks of the tensor group", "rope"]);
    }

    #[test]
    fn values_that_no_machine_can_have_are_refused() {
        let with = |change: fn(&mut Profile)| {
            let mut profile = profile();
            change(&mut profile);
            profile.fault()
        };
        assert_eq!(profile().fault(), None);
        assert_eq!(with(|f| f.ops[0].seconds = -1.0), Some("matmul_nt takes -1 s".into()));
        assert!(with(|f| f.calls[1].seconds = 1e300).unwrap().starts_with("all-gather takes "));
        assert_eq!(with(|f| f.memory_gib = -3.0), Some("memory_gib = -3".into()));
        assert_eq!(with(|f| f.threads = 0), Some("threads = 0".into()));
    }

    #[test]
    fn newer_times_replace_older_ones() {
        let mut new = profile();
        new.ops.truncate(1);
        new.ops[0].seconds = 9.0;
        new.calls.clear();
        let both = new.after(profile());
        assert_eq!((both.ops.len(), both.ops[0].seconds, both.calls.len()), (3, 9.0, 2));
    }
}
