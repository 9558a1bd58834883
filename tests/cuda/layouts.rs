//! Every kind of layout trains as one rank does, within the rounding of bf16, and uses the memory that was planned for
//! it.

use cuda::backend::CudaScratch;
use engine::backend::Scratch;
use toml::{Table, Value as Toml};

use super::{Left, Site, apart, experts, small, with};
use crate::common::{Tensors, distance, engine, export, finish, write_config};
use crate::trajectories::BF16;

/// The run that layouts are compared with: of one rank, unless said otherwise.
struct Alone {
    site: Site,
    config: Table,
    left: Left,
    /// The initial weights.
    first: Tensors,
}

impl Alone {
    fn with(more: &[(&str, Toml)]) -> Alone {
        Alone::at(1, &[], more)
    }

    /// The run of `ranks` ranks at a layout.
    fn at(ranks: usize, layout: &[(&str, Toml)], more: &[(&str, Toml)]) -> Alone {
        let site = Site::new();
        let config = with(&small(site.tmp.path()), more);
        let left = site.run("alone", ranks, &with(&config, layout), apart);
        Alone { first: first(&site, &config), left, site, config }
    }

    #[track_caller]
    fn trains_like(&self, name: &str, ranks: usize, layout: &[(&str, Toml)]) {
        let got = self.site.run(name, ranks, &with(&self.config, layout), apart);
        assert_eq!(got.metrics.len(), self.left.metrics.len());
        for (got, want) in got.metrics.iter().zip(&self.left.metrics) {
            for (key, bound) in [("loss", BF16.loss), ("grad_norm", BF16.grad_norm), ("tokens", 0.0), ("lr", 0.0)] {
                let [is, alone] = [got, want].map(|step| step[key].as_f64().unwrap());
                let off = (is / alone - 1.0).abs();
                assert!(
                    off <= bound,
                    "{name}, step {}: {key} is {is}, in the reference {alone}: {off:.1e}",
                    got["step"]
                );
            }
        }
        for (tensor, got) in &got.weights {
            let last = &self.left.weights[tensor];
            let off = distance(got, last) / distance(&self.first[tensor], last);
            assert!(off <= BF16.weights, "{name}: {tensor} is off by {off:.1e} of the distance trained");
        }
    }
}

/// The initial weights of a run: those after a step that is too small to change them.
fn first(site: &Site, config: &Table) -> Tensors {
    let rest = [
        ("train.backend", Toml::from("cpu")),
        ("train.steps", 1.into()),
        ("optimizer.lr", 1e-30.into()),
        ("optimizer.min_lr", 0.0.into()),
        ("optimizer.warmup_steps", 0.into()),
        ("checkpoint.dir", site.dir("first").to_str().unwrap().into()),
    ];
    let config = write_config(site.tmp.path(), "first.toml", &with(config, &rest));
    finish(engine().args(["train", "--config"]).arg(config)).succeeded();
    export(&site.dir("first"), &site.dir("first-hf"))
}

fn degrees(tensor: i64, pipeline: i64, chunks: i64) -> Vec<(&'static str, Toml)> {
    let keys = ["parallel.tensor", "parallel.pipeline", "parallel.virtual_pipeline"];
    keys.into_iter().zip([tensor, pipeline, chunks].map(Toml::from)).collect()
}

fn and(mut layout: Vec<(&'static str, Toml)>, key: &'static str, value: impl Into<Toml>) -> Vec<(&'static str, Toml)> {
    layout.push((key, value.into()));
    layout
}

#[test]
fn tensor_and_pipeline_parallel() {
    Alone::with(&[]).trains_like("tp2-pp2", 4, &degrees(2, 2, 1));
}

/// Ranks that share the experts send each other rows.
#[test]
fn experts_of_two_ranks() {
    Alone::with(&experts()).trains_like("ep2", 2, &[("parallel.expert", 2.into())]);
}

mod exhaustive {
    use super::*;

    /// Sums over tensor-parallel ranks round otherwise in bf16, so that some tokens choose other experts than on one
    /// rank: ranks that share experts are compared with ranks that do not, at the same tensor parallelism.
    #[test]
    fn experts_and_other_ways() {
        let alone = Alone::with(&experts());
        let shared = |tensor, pipeline| and(degrees(tensor, pipeline, 1), "parallel.expert", 2);
        alone.trains_like("ep2-pp2", 4, &shared(1, 2));
        alone.trains_like("ep2-rounds", 2, &and(shared(1, 1), "parallel.expert_buffer", 0.4));
        // GPT-OSS: each rank adds its own columns of the experts' biases.
        let family = [("model.architecture", "gpt_oss".into()), ("model.sliding_window", 9.into())];
        let tensor_parallel = Alone::at(2, &degrees(2, 1, 1), &[&experts()[..], &family].concat());
        tensor_parallel.trains_like("ep2-tp2", 4, &shared(2, 1));
    }

    #[test]
    fn every_other_layout() {
        let alone = Alone::with(&[]);
        let plain = and(degrees(2, 1, 1), "parallel.sequence_parallel", false);
        let whole = and(degrees(1, 1, 1), "parallel.distributed_optimizer", false);
        for (name, ranks, layout) in [
            ("tp2-rows-held", 2, plain),
            ("pp2", 2, degrees(1, 2, 1)),
            ("dp2-whole", 2, whole),
            ("tp2-dp2", 4, degrees(2, 1, 1)),
            ("tp2-selective", 2, and(degrees(2, 1, 1), "train.recompute", "selective")),
            ("pp2-full", 2, and(degrees(1, 2, 1), "train.recompute", "full")),
        ] {
            alone.trains_like(name, ranks, &layout);
        }
    }

    #[test]
    fn interleaved_stages() {
        let alone = Alone::with(&[("model.num_hidden_layers", 4.into())]);
        alone.trains_like("pp2-v2", 2, &degrees(1, 2, 2));
        alone.trains_like("tp2-pp2-v2", 4, &and(degrees(2, 2, 2), "train.recompute", "full"));
    }

    #[test]
    fn tied_embeddings_and_shared_heads() {
        let alone = Alone::with(&[("model.tie_word_embeddings", true.into()), ("model.num_key_value_heads", 1.into())]);
        alone.trains_like("tp2-pp2", 4, &degrees(2, 2, 1));
        alone.trains_like("tp2", 2, &degrees(2, 1, 1));
    }

    #[test]
    fn collectives_in_chunks() {
        assert_eq!(CudaScratch::of("any").comm_chunks(64 * 32 / 2), 4, "chunks of the rows that a rank of two holds");
        let alone = Alone::with(&[&in_pieces()[..], &[("train.global_batch_size", 32.into())]].concat());
        alone.trains_like("tp2", 2, &degrees(2, 1, 1));
    }
}

/// Settings with enough rows that collectives are split into chunks, which overlap with the GEMM.
pub fn in_pieces() -> [(&'static str, toml::Value); 5] {
    [
        ("model.num_hidden_layers", 1.into()),
        ("train.seq_length", 64.into()),
        ("train.micro_batch_size", 32.into()),
        ("train.global_batch_size", 64.into()),
        ("train.steps", 2.into()),
    ]
}
