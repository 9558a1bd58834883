//! Every few steps, rank 0 gathers the breakdown of the step's time on all ranks, writes it to `ranks.jsonl` and
//! `timeline.json`, and warns of ranks that the others wait for.

use crate::informative::Informative;
use crate::output::to_stderr;
use engine::backend::Span;
use engine::config::{Axis, Config};
use engine::layout::mesh::Mesh;
use engine::mpi::Comm;
use report::records::ranks::{RankTime, Sample, SampleLog};
use report::records::timeline::{Row, Timeline, met};
use report::stragglers::{Straggler, Stragglers};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The most rows of a chart that a reader can distinguish.
const ROWS: usize = 64;
/// The most boxes of a chart, which are the forward and backward passes of all rows: a file of about a megabyte.
const BOXES: usize = 16_384;

/// A rank's row of the timeline, and the time on its own clock at which it met the other ranks.
type Met = (Row, Option<f64>);

/// One rank's part of the sampling.
pub struct RankSampler {
    /// Steps from one sample to the next; 0: no samples.
    interval: u64,
    /// Degrees of tensor, pipeline and data parallelism.
    layout: [usize; 3],
    /// Whether the timeline shows this rank.
    shown: bool,
    /// Only rank 0 has one.
    aggregator: Option<Aggregator>,
}

/// Receives the samples of all ranks.
struct Aggregator {
    log: Option<SampleLog>,
    log_file: Informative,
    timeline: PathBuf,
    timeline_file: Informative,
    /// The host of each rank.
    hosts: Vec<String>,
    stragglers: Stragglers,
}

impl RankSampler {
    /// `hosts`: the host of each rank.
    pub fn new(config: &Config, mesh: &Mesh, hosts: Vec<String>, rank: usize) -> RankSampler {
        let aggregator = (rank == 0).then(|| Aggregator::new(config, mesh, hosts));
        let interval = config.report.interval.unwrap_or(default_interval(mesh.ranks()));
        RankSampler { interval, layout: mesh.layout(), shown: shown(config, mesh, rank), aggregator }
    }

    /// Whether this step is sampled.
    pub fn samples(&self, step: u64) -> bool {
        self.interval > 0 && step.is_multiple_of(self.interval)
    }

    /// Gathers the measurements of the step from all ranks, and returns warnings to print. Collective.
    pub fn sample(
        &mut self,
        comm: &Comm,
        step: u64,
        seconds: f64,
        phases: BTreeMap<String, f64>,
        spans: &[Span],
    ) -> Vec<String> {
        let mine = RankTime::of(seconds, phases, spans);
        let row = self.shown.then(|| (Row::of(comm.rank(), spans), met(spans)));
        let mine = serde_json::to_vec(&(mine, row)).expect("text and numbers are JSON");
        let Some(all) = comm.gather_bytes(&mine) else { return Vec::new() };
        let read = |bytes: &Vec<u8>| serde_json::from_slice(bytes).expect("every rank wrote it with this program");
        let (ranks, rows): (Vec<RankTime>, Vec<Option<Met>>) = all.iter().map(read).unzip();
        let aggregator = self.aggregator.as_mut().expect("rank 0, which gathers, has the aggregator");
        aggregator.add(
            &Sample::of(step, self.layout, &ranks),
            &Timeline::of(step, self.layout, rows.into_iter().flatten().collect()),
        )
    }
}

impl Aggregator {
    fn new(config: &Config, mesh: &Mesh, hosts: Vec<String>) -> Aggregator {
        let dir = &config.checkpoint.dir;
        let (mut log_file, timeline_file) = (Informative::default(), Informative::default());
        let (log, warning) = log_file.check(SampleLog::open(&dir.join("ranks.jsonl")));
        warning.into_iter().for_each(|warning| to_stderr(&format!("warning: {warning}")));
        let (timeline, stragglers) = (dir.join("timeline.json"), Stragglers::new(mesh.coords(Axis::Pipeline)));
        Aggregator { log, log_file, timeline, timeline_file, hosts, stragglers }
    }

    fn add(&mut self, sample: &Sample, timeline: &Timeline) -> Vec<String> {
        let logged = self.log.as_mut().map_or(Ok(()), |log| log.append(sample));
        let failures = [self.log_file.check(logged).1, self.timeline_file.check(timeline.write(&self.timeline)).1];
        let stragglers = self.stragglers.see(&sample.busy);
        let stragglers = stragglers.iter().map(|straggler| self.warning(sample.step, straggler));
        failures.into_iter().flatten().chain(stragglers).collect()
    }

    fn warning(&self, step: u64, straggler: &Straggler) -> String {
        let Straggler { rank, seconds, usual } = *straggler;
        format!(
            "step {step}: rank {rank} on {} computes for {seconds:.3} s of a step, the other ranks of its stage for \
             {usual:.3} s: all ranks wait for the difference of {:.0} %; check its clocks, temperature and other \
             processes",
            self.hosts[rank],
            100.0 * straggler.by()
        )
    }
}

/// An interval at which a run of 25,000 steps leaves tens of megabytes, whatever its number of ranks.
fn default_interval(ranks: usize) -> u64 {
    (ranks as u64 / 10).max(10)
}

/// Whether the timeline shows a rank: all ranks where the chart stays readable, else those of the first replica, else
/// one rank of each of its stages.
fn shown(config: &Config, mesh: &Mesh, rank: usize) -> bool {
    let (t, replicas) = (&config.train, mesh.replicas());
    let n_mbs = t.global_batch_size / (t.micro_batch_size * replicas);
    let boxes = 2 * n_mbs * config.parallel.virtual_pipeline;
    let fits = |rows: usize| rows <= ROWS && rows * boxes <= BOXES;
    if fits(mesh.ranks()) {
        return true;
    }
    mesh.replica(rank) == 0 && (fits(mesh.ranks() / replicas) || mesh.coord(rank, Axis::Tensor) == 0)
}
