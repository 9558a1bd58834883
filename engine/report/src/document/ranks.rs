//! The ranks beside each other: time, waits, stragglers, memory.

use super::number::{counted, fixed, gib, percent, seconds, whole};
use super::{Bars, Block, Chart, Drawing, Section, Tone, no_samples};
use crate::efficiency::{Efficiency, MemoryUse, PhaseTime, Slow, Time, WaitTime, mean};
use crate::run::Run;

/// Rows of a chart that can be told apart.
const ROWS: usize = 64;

pub fn time(e: &Efficiency) -> Section {
    let title = "Where the time goes";
    let Some(time) = &e.time else { return Section::new("time", title, vec![no_samples()]) };
    let (first, last) = (whole(time.first_step), whole(time.last_step));
    let samples = match time.samples {
        1 => format!("Of sampled step {first} alone"),
        n => format!("Means of {}, {first} to {last}", counted(n as u64, "sampled step")),
    };
    let sampled = format!(
        "{samples}. Validation, report and checkpoint lie between steps: their means are of all steps, as rank 0 saw \
         them, and stand in no bar."
    );
    let row = |phase: &PhaseTime| vec![phase.phase.to_string(), seconds(phase.mean_s), percent(phase.share)];
    let table = Block::table(
        "Seconds a step, mean of the ranks, and the share of all",
        &["phase", "s", "%"],
        time.phases.iter().map(row).collect(),
    );
    Section::new("time", title, vec![Block::Text(sampled), Block::Charts(vec![bars(e, time)]), table])
}

fn tone(phase: &str) -> Tone {
    match phase {
        "forward" => Tone::Forward,
        "backward" => Tone::Backward,
        "pipeline" => Tone::Stages,
        "reduce" => Tone::Groups,
        "optimizer" => Tone::Optimizer,
        _ => Tone::Data,
    }
}

fn bars(e: &Efficiency, time: &Time) -> Chart {
    let phases: Vec<&PhaseTime> = time.phases.iter().filter(|phase| phase.in_step).collect();
    let ranks = e.setup.ranks;
    let of_rank = |rank: usize| phases.iter().map(|phase| phase.by_rank_s[rank]).collect::<Vec<f64>>();
    let of_stage = |stage: usize| {
        let its = |phase: &&PhaseTime| {
            let of = (0..ranks).filter(|&rank| time.stages[rank] == stage).map(|rank| phase.by_rank_s[rank]);
            mean(of)
        };
        phases.iter().map(its).collect::<Vec<f64>>()
    };
    let (title, rows) = match ranks <= ROWS {
        true => ("Seconds a step, by rank", (0..ranks).map(|r| (format!("rank {r}"), of_rank(r))).collect()),
        false => {
            let row = |stage| (format!("stage {stage}"), of_stage(stage));
            ("Seconds a step, means of the ranks of a stage", (0..e.setup.pipeline).map(row).collect())
        }
    };
    Chart {
        title: title.into(),
        caption: "Phases in the order in which a step begins them".into(),
        keys: phases.iter().map(|phase| (tone(phase.phase), phase.phase.to_string())).collect(),
        drawing: Drawing::Bars(Bars { tones: phases.iter().map(|phase| tone(phase.phase)).collect(), rows }),
    }
}

pub fn waits(e: &Efficiency) -> Section {
    let title = "Bubble and exposed communication";
    let Some(time) = &e.time else { return Section::new("waits", title, vec![no_samples()]) };
    let s = &e.setup;
    let bubble = match s.pipeline {
        1 => "One stage: no pipeline, no bubble.".to_string(),
        p => format!(
            "Ranks wait for other stages in {} of a step, the end counted in which the last stage waits for the others to drain. The schedule alone has (p - 1) / (v m + p - 1) = {} with p = {p} \
             stages, v = {} of each and m = {}, if all of them took as long.",
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
        "What nothing hid of each group's communication",
        &["waiting for", "s a step, mean", "% of the step", "s, the longest"],
        time.waits.iter().map(row).collect(),
    );
    let waits = if time.waits.is_empty() { Block::Text("No rank waited for another.".into()) } else { table };
    Section::new("waits", title, vec![Block::Text(bubble), waits])
}

pub fn stragglers(e: &Efficiency) -> Section {
    let title = "Stragglers";
    let Some(time) = &e.time else { return Section::new("stragglers", title, vec![no_samples()]) };
    let how = "by its median over the sampled steps";
    if e.setup.ranks == e.setup.pipeline {
        let alone = "None can be told: a stage has one rank, and it is compared with the others of its stage.";
        return Section::new("stragglers", title, vec![Block::Text(alone.into())]);
    }
    if time.stragglers.is_empty() {
        let none = format!("None: no rank computes 10 % longer than the others of its stage, {how}.");
        return Section::new("stragglers", title, vec![Block::Text(none)]);
    }
    let row = |slow: &Slow| {
        let host = slow.host.clone().unwrap_or("not written down".into());
        vec![format!("rank {}", slow.rank), host, seconds(slow.busy_s), seconds(slow.usual_s), percent(slow.by)]
    };
    let table = Block::table(
        format!("Ranks that compute longer than the others of their stage, {how}"),
        &["rank", "host", "s", "s, the others", "longer by"],
        time.stragglers.iter().map(row).collect(),
    );
    let cure = "All ranks wait for these: look at their clocks, temperature and neighbours.";
    Section::new("stragglers", title, vec![table, Block::Text(cure.into())])
}

pub fn memory(e: &Efficiency, run: &Run) -> Section {
    let title = "Memory";
    let Some(memory) = &e.memory else {
        let absent = "No `memory.json`: a run leaves one when it ends well.";
        return Section::new("memory", title, vec![Block::Text(run.memory.instead(absent))]);
    };
    let (what, shown) = match memory.len() <= ROWS {
        true => ("Planned and used, by rank", memory.iter().collect()),
        false => ("Planned and used, of each stage the rank that used most", fullest(memory, e.setup.pipeline)),
    };
    let row = |of: &&MemoryUse| {
        let difference = fixed((of.used_bytes as f64 - of.planned_bytes as f64) / (1u64 << 20) as f64, 1);
        let name = format!("rank {} (stage {})", of.rank, of.stage);
        vec![name, gib(of.planned_bytes), gib(of.used_bytes), difference, gib(of.checkpoint_copy_bytes)]
    };
    let head = ["rank", "planned, GiB", "used, GiB", "difference, MiB", "checkpoint's copy on the host, GiB"];
    Section::new("memory", title, vec![Block::table(what, &head, shown.iter().map(row).collect())])
}

fn fullest(memory: &[MemoryUse], stages: usize) -> Vec<&MemoryUse> {
    let of = |stage| memory.iter().rev().filter(|rank| rank.stage == stage).max_by_key(|rank| rank.used_bytes);
    (0..stages).filter_map(of).collect()
}
