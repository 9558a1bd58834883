//! Every few steps, where the time of all ranks goes: gathered by rank 0, which writes it down and names those that the
//! others wait for.

use engine::backend::Span;
use engine::config::{Axis, Config};
use engine::error::Result;
use engine::layout::mesh::Mesh;
use engine::mpi::Comm;
use report::records::ranks::{RankTime, Sample, SampleLog};
use report::records::timeline::{Row, Timeline, met};
use report::stragglers::{Straggler, Stragglers};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Rows of a chart that can be told apart.
const ROWS: usize = 64;
/// Micro-batches, forth and back, of all rows: a file of a megabyte.
const BOXES: usize = 16_384;

/// A rank's row, and when it met the others by its own clock.
type Met = (Row, Option<f64>);

/// One rank's part in it.
pub struct Survey {
    /// Steps from one sample to the next; 0: there are none.
    interval: u64,
    /// Tensor, pipeline, data.
    layout: [usize; 3],
    /// Whether this rank's step is shown in the timeline.
    shown: bool,
    /// Rank 0's.
    desk: Option<Desk>,
}

/// Where samples come together.
struct Desk {
    log: SampleLog,
    timeline: PathBuf,
    hosts: Vec<String>,
    stragglers: Stragglers,
}

impl Survey {
    /// `hosts`: of each rank.
    pub fn new(config: &Config, mesh: &Mesh, hosts: Vec<String>, rank: usize) -> Result<Survey> {
        let dir = &config.checkpoint.dir;
        let desk = || {
            let stages = (0..mesh.ranks()).map(|rank| mesh.coord(rank, Axis::Pipeline)).collect();
            let (log, stragglers) = (SampleLog::open(&dir.join("ranks.jsonl"))?, Stragglers::new(stages));
            Ok(Desk { log, timeline: dir.join("timeline.json"), hosts, stragglers })
        };
        let desk = (rank == 0).then(desk).transpose()?;
        let interval = config.report.interval.unwrap_or(often(mesh.ranks()));
        Ok(Survey { interval, layout: mesh.layout(), shown: shown(config, mesh, rank), desk })
    }

    /// Whether this step is one of those.
    pub fn takes(&self, step: u64) -> bool {
        self.interval > 0 && step.is_multiple_of(self.interval)
    }

    /// All ranks call it together with what they saw of the step. What there is to warn of.
    pub fn take(
        &mut self,
        comm: &Comm,
        step: u64,
        seconds: f64,
        phases: BTreeMap<String, f64>,
        spans: &[Span],
    ) -> Result<Vec<String>> {
        let mine = RankTime::of(seconds, phases, spans);
        let row = self.shown.then(|| (Row::of(comm.rank(), spans), met(spans)));
        let mine = serde_json::to_vec(&(mine, row)).expect("text and numbers");
        let Some(all) = comm.gather_bytes(&mine) else { return Ok(Vec::new()) };
        let read = |bytes: &Vec<u8>| serde_json::from_slice(bytes).expect("as it was written above");
        let (ranks, rows): (Vec<RankTime>, Vec<Option<Met>>) = all.iter().map(read).unzip();
        let desk = self.desk.as_mut().expect("what is gathered is gathered at rank 0");
        desk.take(
            &Sample::of(step, self.layout, &ranks),
            &Timeline::of(step, self.layout, rows.into_iter().flatten().collect()),
        )
    }
}

impl Desk {
    fn take(&mut self, sample: &Sample, timeline: &Timeline) -> Result<Vec<String>> {
        self.log.append(sample)?;
        timeline.write(&self.timeline)?;
        Ok(self.stragglers.see(&sample.busy).iter().map(|straggler| self.warning(sample.step, straggler)).collect())
    }

    fn warning(&self, step: u64, straggler: &Straggler) -> String {
        let Straggler { rank, seconds, usual } = *straggler;
        format!(
            "step {step}: rank {rank} on {} computes {seconds:.3} s of a step, the others of its stage {usual:.3} s: \
             {:.0} % longer, which all ranks wait for; look at its clocks, temperature and neighbours",
            self.hosts[rank],
            100.0 * straggler.by()
        )
    }
}

/// So that a run of 25,000 steps leaves tens of megabytes, however many ranks it has.
fn often(ranks: usize) -> u64 {
    (ranks as u64 / 10).max(10)
}

/// All ranks where they are few, with few boxes; else those of the first replica; else one of each of its stages.
fn shown(config: &Config, mesh: &Mesh, rank: usize) -> bool {
    let first = |axis| mesh.coord(rank, axis) == 0;
    let (t, replicas) = (&config.train, mesh.size(Axis::Data));
    let n_mbs = t.global_batch_size / (t.micro_batch_size * replicas);
    let boxes = 2 * n_mbs * config.parallel.virtual_pipeline;
    let few = |rows: usize| rows <= ROWS && rows * boxes <= BOXES;
    if few(mesh.ranks()) {
        return true;
    }
    first(Axis::Data) && (few(mesh.ranks() / replicas) || first(Axis::Tensor))
}
