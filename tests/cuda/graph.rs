//! The order of events in a traced step: the collectives are those of the dry run, one by one, and nothing begins
//! before the operation that it waits for has ended.

use std::collections::BTreeMap;

use cuda::backend::CudaScratch;
use engine::config::Config;
use engine::dry::{Call, Keep, LogEntry, Operation};
use half::bf16;
use plan::dry_run::run_rank;
use serde_json::Value;

use super::{Site, apart_and, small, with};
use crate::common::finish;

/// Resolution of the fake device's clock, which is read in single precision; microseconds.
const TICK: f64 = 1.0;

#[test]
fn tensor_and_data_parallel() {
    matches_the_dry_run(&[("parallel.tensor", 2.into())]);
}

mod exhaustive {
    use super::*;

    #[test]
    fn interleaved_pipeline_and_tied_embeddings() {
        let degrees = [("parallel.pipeline", 2.into()), ("parallel.virtual_pipeline", 2.into())];
        let model = [("model.num_hidden_layers", 4.into()), ("model.tie_word_embeddings", true.into())];
        matches_the_dry_run(&[degrees, model].concat());
    }
}

/// Traces a step of four ranks whose communication streams are all slow.
#[track_caller]
fn matches_the_dry_run(layout: &[(&str, toml::Value)]) {
    let site = Site::with_fake_cuda();
    let config = with(&with(&small(site.tmp.path()), layout), &[("train.steps", 2.into())]);
    let slow = apart_and(&[("FAKE_CUDA_SLOW", "3,4,5,6,7,8,9@1")]);
    finish(&mut site.train("run", 4, &config, slow, &["--trace", "2"])).succeeded();
    let config = std::fs::read_to_string(site.dir("run").join("config.toml")).unwrap();
    let config = Config::from_resolved(&config).unwrap();
    for rank in 0..4 {
        let trace = site.dir("run").join(format!("traces/step-00000002-rank-{rank:05}.json"));
        let trace = read(&std::fs::read_to_string(trace).unwrap());
        let step = planned(&config, rank);
        let collectives: Vec<usize> = (0..trace.len()).filter(|&i| trace[i].row != "compute").collect();
        let (seen, wanted) = (collectives.iter().map(|&i| trace[i].said()), step.iter().filter_map(Did::said));
        assert_eq!(seen.collect::<Vec<_>>(), wanted.collect::<Vec<_>>(), "the collectives of rank {rank}");
        nothing_comes_too_early(&trace, &collectives, &step, rank);
    }
}

/// A row of the trace, in the order in which the host started things; times in microseconds.
struct Span {
    row: String,
    name: String,
    from: f64,
    to: f64,
}

impl Span {
    fn said(&self) -> String {
        format!("{}: {}", self.row, self.name)
    }
}

/// The spans of a trace, without the phases of the step and the waits.
fn read(trace: &str) -> Vec<Span> {
    let trace: Value = serde_json::from_str(trace).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let rows = events.iter().filter(|event| event["name"] == "thread_name");
    let rows: BTreeMap<u64, &str> =
        rows.map(|event| (event["tid"].as_u64().unwrap(), event["args"]["name"].as_str().unwrap())).collect();
    let spans = events.iter().filter(|event| event["ph"] == "X").map(|event| {
        let [from, duration] = ["ts", "dur"].map(|key| event[key].as_f64().unwrap());
        let row = rows[&event["tid"].as_u64().unwrap()].to_string();
        Span { row, name: event["name"].as_str().unwrap().into(), from, to: from + duration }
    });
    spans.filter(|span| span.row != "parts" && !span.row.starts_with("waits for ")).collect()
}

/// The actions of a rank in a step that the order of collectives depends on.
#[derive(PartialEq)]
enum Did {
    Compute,
    /// The calls that are posted together: an exchange is two.
    Start(Vec<Call>),
    /// Waits for the n-th `Start` of this step.
    Wait(usize),
}

impl Did {
    fn said(&self) -> Option<String> {
        let Did::Start(calls) = self else { return None };
        let what = match calls[0].what {
            Operation::AllReduce => "an all-reduce",
            Operation::AllGather => "an all-gather",
            Operation::ReduceScatter => "a reduce-scatter",
            Operation::AllToAll => "an all-to-all",
            Operation::Send(_) | Operation::Receive(_) => "an exchange",
        };
        let bytes = calls.iter().map(|call| call.bytes).max().unwrap();
        Some(format!("{}: {what} of {bytes} bytes", calls[0].kind.name()))
    }
}

/// The second step of a rank by the dry run: a log of two steps without that of one.
fn planned(config: &Config, rank: usize) -> Vec<Did> {
    let mesh = config.mesh(4).unwrap();
    let of =
        |steps| run_rank::<bf16>(config, &mesh, rank, CudaScratch::of("any"), Keep::Ops, steps).unwrap().log.events;
    let (one, two) = (of(1), of(2));
    assert!(two[..one.len()] == one, "the first step is not always the same");
    let before = one.iter().filter(|event| matches!(event, LogEntry::Start(_))).count();
    // The number of the `Start` of each call.
    let (mut step, mut starts, mut number) = (Vec::new(), 0, Vec::new());
    for event in two[one.len()..].iter().cloned() {
        match event {
            LogEntry::Op { .. } => step.push(Did::Compute),
            LogEntry::Enter(_) | LogEntry::Leave => {}
            LogEntry::Wait(call) if call < before => {}
            LogEntry::Wait(call) => step.push(Did::Wait(number[call - before])),
            LogEntry::Start(call) => {
                match step.last_mut() {
                    Some(Did::Start(calls)) if calls[0].post == call.post => calls.push(call),
                    _ => {
                        step.push(Did::Start(vec![call]));
                        starts += 1;
                    }
                }
                number.push(starts - 1);
            }
        }
    }
    step
}

/// A collective begins when all compute before it has ended. Where compute waits for a collective, the compute after
/// the wait begins when that collective has ended. The trace does not say where compute between a collective and the
/// wait ends, so it is taken to reach to the next collective.
#[track_caller]
fn nothing_comes_too_early(trace: &[Span], collectives: &[usize], step: &[Did], rank: usize) {
    for &i in collectives {
        for before in trace[..i].iter().filter(|span| span.row == "compute") {
            assert!(before.to <= trace[i].from + TICK, "rank {rank}: {} ahead of {}", trace[i].said(), before.name);
        }
    }
    let (mut started, mut idle, mut held) = (0, false, 0);
    for did in step {
        match did {
            Did::Compute => idle = false,
            Did::Start(_) => (started, idle) = (started + 1, true),
            Did::Wait(n) => {
                let next = if idle { started - 1 } else { started };
                let Some(&from) = collectives.get(next) else { continue };
                let waited = &trace[collectives[*n]];
                for after in trace[from..].iter().filter(|span| span.row == "compute") {
                    assert!(after.from + TICK >= waited.to, "rank {rank}: {} ahead of {}", after.name, waited.said());
                    held += 1;
                }
            }
        }
    }
    assert!(held > 0, "rank {rank}: nothing waits for anything");
    let end =
        |what: &str| trace.iter().filter(|span| span.name.starts_with(what)).map(|span| span.to).fold(0.0, f64::max);
    let adamw: Vec<&Span> = trace.iter().filter(|span| span.name.starts_with("adamw")).collect();
    assert!(!adamw.is_empty() && adamw.iter().all(|span| span.from + TICK >= end("a reduce-scatter")), "rank {rank}");
}
