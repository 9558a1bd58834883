//! The ranks beside each other: time, exposed communication, stragglers, memory.

use super::number::{counted, percent, seconds, whole};
use super::{Bars, Block, Chart, Drawing, Section, Tone, no_samples};
use crate::efficiency::{Efficiency, MemoryUse, PhaseTime, Slow, Time, WaitTime, mean};
use crate::run::Run;
use engine::memory::table::{GIB, MemoryTable};

/// The most rows of a chart or table; larger runs show their stages instead.
const ROWS: usize = 64;

pub fn time(e: &Efficiency) -> Section {
    let title = "Time breakdown";
    let Some(time) = &e.time else { return Section::new("time", title, vec![no_samples()]) };
    let (first, last) = (whole(time.first_step), whole(time.last_step));
    let samples = match time.samples {
        1 => format!("Step {first} is the only sample"),
        n => format!("These are means of {}, {first} to {last}", counted(n as u64, "sampled step")),
    };
    let sampled = format!(
        "{samples}. Validation, report and checkpoint lie between steps: they have no bar, and their values are means \
         of all steps on rank 0."
    );
    let row = |phase: &PhaseTime| vec![phase.phase.label().into(), seconds(phase.mean_s), percent(phase.share)];
    let table = Block::table(
        "Seconds per step, mean of the ranks, and their share",
        &["phase", "s", "%"],
        time.phases.iter().map(row).collect(),
    );
    Section::new("time", title, vec![Block::Text(sampled), Block::Charts(vec![bars(e, time)]), table])
}

fn bars(e: &Efficiency, time: &Time) -> Chart {
    let phases: Vec<&PhaseTime> = time.phases.iter().filter(|phase| phase.in_step).collect();
    let ranks = e.setup.ranks;
    let of_rank = |rank: usize| phases.iter().map(|phase| phase.by_rank_s[rank]).collect::<Vec<f64>>();
    let of_stage = |stage: usize| {
        let its = |phase: &&PhaseTime| {
            mean((0..ranks).filter(|&rank| time.stages[rank] == stage).map(|rank| phase.by_rank_s[rank]))
        };
        phases.iter().map(its).collect::<Vec<f64>>()
    };
    let (title, rows) = match ranks <= ROWS {
        true => ("Step time by rank", (0..ranks).map(|r| (format!("rank {r}"), of_rank(r))).collect()),
        false => {
            let row = |stage| (format!("stage {stage}"), of_stage(stage));
            ("Step time by stage, means of its ranks", (0..e.setup.pipeline).map(row).collect())
        }
    };
    let tone = |phase: &&PhaseTime| Tone::of_phase(phase.phase);
    Chart {
        title: title.into(),
        caption: "Phases in the order in which a step enters them".into(),
        keys: phases.iter().map(|phase| (tone(phase), phase.phase.label().into())).collect(),
        drawing: Drawing::Bars(Bars { tones: phases.iter().map(tone).collect(), rows }),
    }
}

pub fn waits(e: &Efficiency) -> Section {
    let title = "Pipeline bubble and exposed communication";
    let Some(time) = &e.time else { return Section::new("waits", title, vec![no_samples()]) };
    let s = &e.setup;
    let bubble = match s.pipeline {
        1 => "A single stage has no pipeline bubble.".to_string(),
        p => format!(
            "The pipeline bubble is {} of a step: ranks wait for other stages, and at the end of the step for the \
             pipeline to drain. The schedule alone makes (p - 1) / (v m + p - 1) = {} if all stages take equally long, \
             with p = {p} stages, v = {} each and m = {}.",
            percent(time.bubble.measured),
            percent(time.bubble.theory),
            counted(s.virtual_pipeline as u64, "virtual stage"),
            counted(s.micro_batches as u64, "micro-batch")
        ),
    };
    let row = |wait: &WaitTime| {
        let most = format!("{} (rank {})", seconds(wait.most_s), wait.most_rank);
        vec![wait.group.clone(), seconds(wait.mean_s), percent(wait.share), most]
    };
    let table = Block::table(
        "Exposed communication by group: time in which compute waits for it",
        &["group", "mean, s per step", "% of step", "longest, s"],
        time.waits.iter().map(row).collect(),
    );
    let waits = if time.waits.is_empty() { Block::Text("No communication was exposed.".into()) } else { table };
    Section::new("waits", title, vec![Block::Text(bubble), waits])
}

pub fn stragglers(e: &Efficiency) -> Section {
    let section = |blocks| Section::new("stragglers", "Stragglers", blocks);
    let Some(time) = &e.time else { return section(vec![no_samples()]) };
    if e.setup.ranks == e.setup.pipeline {
        let alone = "Every stage has one rank, so there are no others of its stage to compare it with.";
        return section(vec![Block::Text(alone.into())]);
    }
    if time.stragglers.is_empty() {
        let none = "There are none: by its median over the sampled steps no rank computes more than 10 % longer than \
                    the others of its stage.";
        return section(vec![Block::Text(none.into())]);
    }
    let row = |slow: &Slow| {
        let host = slow.host.clone().unwrap_or("unknown".into());
        vec![format!("rank {}", slow.rank), host, seconds(slow.busy_s), seconds(slow.usual_s), percent(slow.by)]
    };
    let table = Block::table(
        "Ranks that compute longer than the others of their stage, by medians over the sampled steps",
        &["rank", "host", "compute, s", "others, s", "longer by"],
        time.stragglers.iter().map(row).collect(),
    );
    let remedy = "All ranks wait for these. Check their clocks, their temperature and what else runs on their hosts.";
    section(vec![table, Block::Text(remedy.into())])
}

pub fn memory(e: &Efficiency, run: &Run) -> Section {
    let section = |blocks| Section::new("memory", "Memory", blocks);
    let Some(memory) = &e.memory else {
        let absent = "There is no `memory.json`: a run writes it when it ends without an error.";
        return section(vec![Block::Text(run.memory.instead(absent))]);
    };
    let (caption, shown) = match memory.len() <= ROWS {
        true => ("Planned and used memory by rank", memory.iter().collect()),
        false => {
            ("Planned and used memory, of each stage on the rank that uses most", fullest(memory, e.setup.pipeline))
        }
    };
    let bytes = |of: &&MemoryUse| vec![of.planned_bytes as f64, of.used_bytes as f64, of.checkpoint_copy_bytes as f64];
    let difference = |of: &&MemoryUse| vec![of.used_bytes as f64 - of.planned_bytes as f64];
    let table = MemoryTable::new(&shown.iter().map(bytes).collect::<Vec<_>>());
    let differences = MemoryTable::new(&shown.iter().map(difference).collect::<Vec<_>>());
    let row = |(at, of): (usize, &&MemoryUse)| {
        let [planned, used, copy] = &table.rows[at][..] else { unreachable!("three columns") };
        let name = format!("rank {} (stage {})", of.rank, of.stage);
        vec![name, planned.clone(), used.clone(), differences.rows[at][0].clone(), copy.clone()]
    };
    let unit = table.unit;
    let head = [
        "rank",
        &format!("planned, {unit}"),
        &format!("used, {unit}"),
        &format!("used - planned, {}", differences.unit),
        &format!("checkpoint copy on the host, {unit}"),
    ];
    let table = Block::table(caption, &head, shown.iter().enumerate().map(row).collect());
    section([table].into_iter().chain(others(memory)).collect())
}

/// The memory of a device beside the engine's, where it was measured.
fn others(memory: &[MemoryUse]) -> Option<Block> {
    let measured = memory.iter().filter_map(|of| Some((of.rank, of.others_bytes?)));
    let (rank, [planned, used]) = measured.max_by_key(|(_, [_, used])| *used)?;
    let gib = |bytes: u64| bytes as f64 / GIB;
    Some(Block::Text(format!(
        "Beside that, CUDA's context, libraries and other processes had taken up to {:.2} GiB of a GPU at the end \
         (rank {rank}); {:.2} GiB were planned for them.",
        gib(used),
        gib(planned)
    )))
}

/// The rank of each stage that uses most.
fn fullest(memory: &[MemoryUse], stages: usize) -> Vec<&MemoryUse> {
    let of = |stage| memory.iter().rev().filter(|rank| rank.stage == stage).max_by_key(|rank| rank.used_bytes);
    (0..stages).filter_map(of).collect()
}
