//! The backend and the layout by which a model is evaluated.

use std::rc::Rc;

use engine::backend::Backend;
use engine::config::{BackendKind, Config, Evaluation, Model, Precision};
use engine::cpu::{Cpu, Float, cores};
use engine::error::{Error, Result};
use engine::layout::mesh::Mesh;
use engine::layout::rank_layout::RankLayout;
use engine::mpi::{Comm, World};
use engine::stage::groups::Groups;
use engine::train::eval::Scorer;
use half::bf16;

use super::Opened;
use crate::commands::train::choose_backend;
use crate::gpu;
use crate::questions::Continue;

/// Rows of a micro-batch, where there are that many.
const ROWS: usize = 4096;

#[derive(clap::Args)]
pub struct Flags {
    /// Where the model is computed [default: cuda where there are devices for it]
    #[arg(long, value_enum, value_name = "BACKEND")]
    backend: Option<OnBackend>,
    /// Precision of weights and activations [default: f32 on the CPU, bf16 with CUDA]
    #[arg(long, value_enum, value_name = "PRECISION")]
    precision: Option<InPrecision>,
    /// Share each layer over this many ranks
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = degree())]
    tensor: usize,
    /// Share the layers over this many ranks; tasks that generate text run at 1
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = degree())]
    pub pipeline: usize,
}

#[derive(clap::ValueEnum, Clone, Copy)]
enum OnBackend {
    Cpu,
    Cuda,
}

#[derive(clap::ValueEnum, Clone, Copy)]
enum InPrecision {
    F32,
    Bf16,
}

/// A number of ranks that share something.
fn degree() -> impl clap::builder::TypedValueParser<Value = usize> {
    use clap::builder::TypedValueParser;
    clap::value_parser!(u32).range(1..=65536).map(|n| n as usize)
}

/// The rows of all texts that a rank computes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rows {
    longest: usize,
    all: usize,
}

impl FromIterator<usize> for Rows {
    fn from_iter<T: IntoIterator<Item = usize>>(rows: T) -> Rows {
        rows.into_iter().fold(Rows::default(), |sum, rows| Rows { longest: sum.longest.max(rows), all: sum.all + rows })
    }
}

/// What is done with a model once it is there.
pub trait Work {
    type Output;
    fn run<B: Backend>(self, scorer: Scorer<B>, proceed: Continue<B>) -> Result<Self::Output>;
}

impl Flags {
    fn config(&self, model: &Model, sequences: usize, seq: usize, comm: &Comm) -> Result<Config> {
        let of = Evaluation { tensor: self.tensor, pipeline: self.pipeline, sequences, seq };
        let named = |what: String| {
            what.replace("the evaluation: ", "")
                .replace("parallel.tensor", "--tensor")
                .replace("parallel.pipeline", "--pipeline")
        };
        let mut config = Config::of_evaluation(model, &of, comm.size()).map_err(|error| error.map(named))?;
        config.train.backend = self.backend.map(|backend| match backend {
            OnBackend::Cpu => BackendKind::Cpu,
            OnBackend::Cuda => BackendKind::Cuda,
        });
        config.train.precision = self.precision.map(|precision| match precision {
            InPrecision::F32 => Precision::F32,
            InPrecision::Bf16 => Precision::Bf16,
        });
        Ok(config)
    }

    /// The ranks as replicas of the model, each of `--tensor` x `--pipeline` ranks.
    pub fn mesh(&self, model: &Model, comm: &Comm) -> Result<Mesh> {
        self.config(model, 1, 1, comm)?.mesh(comm.size())
    }

    /// Opens the backend, loads the model, and does the work, for which this rank needs `rows`. A failure that only
    /// this rank knows of ends all ranks. Collective.
    pub fn with_model<W: Work>(&self, opened: &Opened, rows: Rows, world: &World, work: W) -> Result<W::Output> {
        let comm = world.comm();
        let most = |n: usize| comm.max(n as u64) as usize;
        let (longest, all) = (most(rows.longest).max(1), most(rows.all).max(1));
        let seq = all.min(ROWS).max(longest).min(opened.model.max_position_embeddings);
        let sequences = all.min(ROWS).div_ceil(seq);
        let config = comm.agree(self.config(&opened.model, sequences, seq, comm))?;
        let job = Job { opened, world, ranks: Rc::new(comm.split(0, comm.rank())), config, work };
        let in_flags =
            |what: String| what.replace("train.backend = ", "--backend ").replace("train.precision", "--precision");
        match choose_backend(&job.config, comm).map_err(|error| error.map(in_flags))? {
            (BackendKind::Cpu, Precision::F32) => job.on_cpu::<f32>(),
            (BackendKind::Cpu, Precision::Bf16) => job.on_cpu::<bf16>(),
            (BackendKind::Cuda, _) => job.on_cuda(),
        }
    }
}

/// All that an evaluation needs but its backend.
struct Job<'a, W> {
    opened: &'a Opened,
    world: &'a World,
    ranks: Rc<Comm>,
    config: Config,
    work: W,
}

impl<W: Work> Job<'_, W> {
    fn rank_layout(&self) -> Result<RankLayout> {
        Ok(RankLayout::new(&self.config, self.config.mesh(self.ranks.size())?, self.ranks.rank()))
    }

    fn on_cpu<A: Float>(self) -> Result<W::Output> {
        let b = Cpu::<A>::of(self.ranks.clone(), cores::share(self.world.comm()).threads);
        let rank_layout = self.rank_layout()?;
        let groups = Groups::new(&b, &self.config, &rank_layout);
        self.run(b, groups, rank_layout, Scorer::continuations)
    }

    /// The groups are made first, so that NCCL takes its memory before the engine reserves the rest.
    fn on_cuda(self) -> Result<W::Output> {
        let (b, rank_layout) = (gpu::open(&self.config, &self.ranks)?, self.rank_layout()?);
        let groups = Groups::new(&b, &self.config, &rank_layout);
        gpu::allocate_arena_to_evaluate(&b, &self.config, &rank_layout, &self.ranks)?;
        self.run(b, groups, rank_layout, Scorer::continuations_uncached)
    }

    fn run<B: Backend>(
        self,
        b: B,
        groups: Groups<B>,
        rank_layout: RankLayout,
        proceed: Continue<B>,
    ) -> Result<W::Output> {
        let Job { opened, world, config, work, .. } = self;
        let scorer = Scorer::new(b, groups, &config, rank_layout, |tensor, rect, out| {
            opened.weights.read_parameter(tensor, rect, out)
        });
        let scorer = world.comm().agree(scorer)?;
        match work.run(scorer, proceed) {
            Err(error) if world.comm().size() > 1 => world.abort(&error, |_| String::new()),
            done => done,
        }
    }
}

/// Refuses a layout that the kinds of questions do not allow.
pub fn must_be_one_stage(pipeline: usize, task: &str) -> Result<()> {
    match pipeline {
        1 => Ok(()),
        _ => Err(Error::user(format!(
            "--pipeline {pipeline}: task {task} generates text, which one stage does; leave --pipeline out, and use \
             --tensor"
        ))),
    }
}
