//! Mixtures, splits, document starts, and the errors for data that does not fit the run.

use std::path::{Path, PathBuf};

mod staged;

use super::super::idx::TokenKind;
use super::super::writer::IndexWriter;
use super::*;
use engine::config::*;

/// Writes documents of the given lengths whose tokens count up from `first`; returns the source.
fn source(folder: &Path, name: &str, lengths: &[usize], first: u32, weight: Option<f64>) -> Source {
    let prefix = folder.join(name);
    let mut writer = IndexWriter::create(&prefix, TokenKind::I32).unwrap();
    let mut next = first;
    for &length in lengths {
        writer.push(&(next..next + length as u32).collect::<Vec<_>>()).unwrap();
        writer.end_document().unwrap();
        next += length as u32;
    }
    writer.finish().unwrap();
    entry(prefix, weight)
}

fn entry(prefix: impl Into<PathBuf>, weight: Option<f64>) -> Source {
    Source { prefix: prefix.into(), weight, name: None, max_epochs: None, pack: false }
}

/// Two samples of four tokens a step, five steps.
fn config(train: Vec<Source>, order: Order) -> Config {
    let data = Data {
        stage: vec![],
        train,
        valid: vec![],
        split: [1.0, 0.0, 0.0],
        order,
        mask_document_boundaries: false,
        allow_mixed_tokenizers: false,
    };
    let axes = [Axis::Tensor, Axis::Context, Axis::Expert, Axis::Data, Axis::Pipeline];
    Config {
        model: Model { vocab_size: 10_000, ..Model::tiny() },
        train: Train {
            backend: None,
            precision: None,
            seq_length: 4,
            micro_batch_size: 1,
            global_batch_size: 2,
            steps: 5,
            seed: 1234,
            recompute: Recompute::None,
            load: Load::Random,
            z_loss: 0.0,
            refuse_untrained: false,
            eval_interval: 0,
            eval_steps: 1,
            stop_before: None,
        },
        parallel: Parallel {
            tensor: 1,
            pipeline: 1,
            context: 1,
            expert: 1,
            expert_buffer: 1.5,
            expert_imbalance: 1.0,
            virtual_pipeline: 1,
            layers: None,
            sequence_parallel: false,
            distributed_optimizer: true,
            gradient_precision: engine::config::Precision::F32,
            order: axes,
            ranks: None,
        },
        nccl: Nccl::default(),
        optimizer: Optimizer {
            lr: 1e-4,
            min_lr: 0.0,
            schedule: Schedule::Cosine,
            decay_steps: None,
            decay_shape: None,
            warmup_steps: 0,
            betas: [0.9, 0.95],
            eps: 1e-8,
            weight_decay: 0.1,
            clip_grad: 1.0,
        },
        data,
        spike: Spike::default(),
        checkpoint: Checkpoint {
            dir: "run".into(),
            interval: 0,
            at_end: true,
            keep: None,
            export_interval: 0,
            keep_every: 0,
            retry_seconds: 0,
        },
        eval: engine::config::Eval::default(),
        watchdog: engine::config::Watchdog::default(),
        report: Report { peak_tflops: None, interval: None, cluster: None },
    }
}

fn refusal(config: &Config) -> String {
    let error = Feed::open(config).err().expect("refused");
    assert_eq!(error.exit_code(), 2);
    error.to_string()
}

#[test]
fn sequential_starts_over() {
    let folder = tempfile::tempdir().unwrap();
    let one = source(folder.path(), "one", &[3, 9, 6], 0, None);
    let feed = Feed::open(&config(vec![one], Order::Sequential)).unwrap();
    // 18 tokens are 4 samples; the fifth is the first again.
    let batch = feed.micro_batch(Split::Train, 3..5).unwrap();
    assert_eq!(batch.ids, [12, 13, 14, 15, 0, 1, 2, 3]);
    assert_eq!(batch.targets, [13, 14, 15, 16, 1, 2, 3, 4]);
    assert_eq!((batch.weights, batch.starts), (vec![1.0; 8], vec![0; 8]));
}

#[test]
fn sequential_sources_are_interleaved() {
    let folder = tempfile::tempdir().unwrap();
    let three = source(folder.path(), "a", &[40], 0, Some(3.0));
    let one = source(folder.path(), "b", &[40], 1000, Some(1.0));
    let feed = Feed::open(&config(vec![three, one], Order::Sequential)).unwrap();
    let batch = feed.micro_batch(Split::Train, 0..8).unwrap();
    let firsts: Vec<u32> = batch.ids.chunks(4).map(|sample| sample[0]).collect();
    assert_eq!(firsts, [0, 1000, 4, 8, 12, 1004, 16, 20]);
    let sources = feed.sources();
    assert_eq!((sources[0].samples, sources[1].samples), (7, 3));
    assert!((sources[1].epochs - 12.0 / 40.0).abs() < 1e-12);
}

#[test]
fn rows_know_where_their_document_starts() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(vec![source(folder.path(), "a", &[3, 2, 30], 0, None)], Order::Sequential);
    config.data.mask_document_boundaries = true;
    let feed = Feed::open(&config).unwrap();
    let batch = feed.micro_batch(Split::Train, 0..2).unwrap();
    assert_eq!(batch.starts, [0, 0, 0, 3, 0, 1, 1, 1]);
    assert_eq!(batch.targets[..4], [1, 2, 3, 4], "the next document's first token is still predicted");
}

#[test]
fn a_lone_weight_is_blended() {
    let folder = tempfile::tempdir().unwrap();
    let lengths = [6usize; 7];
    let feed = |weight| {
        let one = source(folder.path(), "a", &lengths, 0, weight);
        Feed::open(&config(vec![one], Order::Megatron)).unwrap()
    };
    let (blended, plain) = (feed(Some(1.0)), feed(None));
    // 42 tokens are 10 samples. The blend asks for ceil(10 * 1.005) = 11, a second epoch, so the order differs.
    assert_eq!((plain.sources()[0].plan.epochs, blended.sources()[0].plan.epochs), (1, 2));
    let ids = |feed: &Feed| feed.micro_batch(Split::Train, 0..10).unwrap().ids;
    assert_ne!(ids(&blended), ids(&plain));
}

#[test]
fn splits_share_the_documents() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(vec![source(folder.path(), "a", &[10; 10], 0, None)], Order::Megatron);
    config.data.split = [8.0, 2.0, 0.0];
    config.train.eval_interval = 2;
    let feed = Feed::open(&config).unwrap();
    // (5 / 2 + 1) validations of one batch of two.
    let valid = feed.micro_batch(Split::Valid(0), 0..6).unwrap();
    assert!(valid.ids.iter().all(|&id| (80..100).contains(&id)));
    let train = feed.micro_batch(Split::Train, 0..10).unwrap();
    assert!(train.ids.iter().all(|&id| id < 80));
    config.data.split = [1.0, 0.0, 0.0];
    assert!(refusal(&config).contains("data.split = \"1,0,0\""));
    config.data.valid = vec![source(folder.path(), "v", &[50], 500, None)];
    let feed = Feed::open(&config).unwrap();
    assert!(feed.micro_batch(Split::Valid(0), 0..1).unwrap().ids[0] >= 500);
    assert_eq!(feed.sources()[0].plan.documents, 10, "with its own sources for validation, training takes all");
}

#[test]
fn unweighted_sources_are_read_once() {
    let folder = tempfile::tempdir().unwrap();
    let sources = || vec![source(folder.path(), "a", &[30], 0, None), source(folder.path(), "b", &[15], 1000, None)];
    let feed = Feed::open(&config(sources(), Order::Megatron)).unwrap();
    assert_eq!(feed.sources().iter().map(|s| s.samples).collect::<Vec<_>>(), [7, 3]);
    let mut long = config(sources(), Order::Megatron);
    long.train.steps = 6;
    assert!(refusal(&long).contains("hold 10 samples of 4 tokens but the run takes 12"));
}

#[test]
fn too_little_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let short = source(folder.path(), "a", &[2, 2], 0, None);
    assert!(refusal(&config(vec![short], Order::Sequential)).contains("data.train: "));
    let empty = source(folder.path(), "a", &[], 0, Some(1.0));
    assert!(refusal(&config(vec![empty], Order::Megatron)).contains("0 of 0 documents, with 0 tokens"));
    let few = source(folder.path(), "a", &[20; 5], 0, None);
    let mut no_share = config(vec![few], Order::Sequential);
    (no_share.data.split, no_share.train.eval_interval) = ([98.0, 2.0, 0.0], 2);
    let what = refusal(&no_share);
    assert!(what.starts_with("data.split = \"98,2,0\": ") && what.contains("the valid split has 0 of 5 doc"), "{what}");
    assert!(what.ends_with("give valid a larger share, or name files in data.valid"), "{what}");
    no_share.data.valid = vec![source(folder.path(), "v", &[3], 0, None)];
    assert!(refusal(&no_share).contains("data.valid: "));
}

/// The refusal comes before anything is allocated, and before the product overflows.
#[test]
fn more_samples_than_an_index_holds_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut absurd = config(vec![source(folder.path(), "a", &[30], 0, Some(1.0))], Order::Megatron);
    for steps in [(1 << 31) + 1, u64::MAX] {
        absurd.train.steps = steps;
        let what = refusal(&absurd);
        assert!(what.contains(&format!("train.steps = {steps}, train.global_batch_size = 2")), "{what}");
        assert!(what.contains("4294967296"), "{what}");
    }
    (absurd.train.steps, absurd.train.eval_interval, absurd.train.eval_steps) = (5, 1, 1 << 40);
    assert!(refusal(&absurd).contains("train.eval_steps = 1099511627776"));
}

#[test]
fn the_fingerprint_sees_what_matters() {
    let folder = tempfile::tempdir().unwrap();
    let two = |w: [f64; 2], tokens: u32| {
        let a = source(folder.path(), "a", &[30, 5], 0, Some(w[0]));
        let b = source(folder.path(), "b", &[15], tokens, Some(w[1]));
        Feed::open(&config(vec![a, b], Order::Megatron)).unwrap().fingerprint(5)
    };
    let first = two([0.9, 0.1], 1000);
    assert_eq!(first, two([90.0, 10.0], 1000), "the same shares");
    let differ = |other: Vec<(String, String)>| {
        first.iter().zip(&other).filter(|(a, b)| a != b).map(|(a, _)| a.0.clone()).collect::<Vec<_>>()
    };
    assert_eq!(differ(two([0.9, 0.1], 1001)), ["data.train[1].bin"]);
    assert_eq!(differ(two([0.8, 0.2], 1000)), ["data.train[0].weight", "data.train[1].weight"]);
}

#[test]
fn the_largest_id_is_found_in_any_number_of_shares() {
    let folder = tempfile::tempdir().unwrap();
    let a = source(folder.path(), "a", &[30, 5, 20], 10, Some(1.0));
    let b = source(folder.path(), "b", &[15], 7, Some(1.0));
    let feed = Feed::open(&config(vec![a, b], Order::Megatron)).unwrap();
    for parts in [1, 2, 3, 100] {
        let ids = (0..parts).filter_map(|part| feed.largest_id(part, parts).unwrap());
        let best = ids.max_by_key(|at| at.id).unwrap();
        assert_eq!((best.id, best.document, best.offset), (64, 2, 19));
        assert!(best.file.ends_with("a.bin"));
    }
}

#[test]
fn a_negative_id_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let one = source(folder.path(), "a", &[30, 5, 20], 10, None);
    let bin = folder.path().join("a.bin");
    let mut bytes = std::fs::read(&bin).unwrap();
    bytes[4 * 33..4 * 34].copy_from_slice(&(-7i32).to_le_bytes());
    std::fs::write(&bin, bytes).unwrap();
    let feed = Feed::open(&config(vec![one], Order::Sequential)).unwrap();
    let error = feed.largest_id(0, 1).unwrap_err().to_string();
    assert!(error.contains("a.bin: sequence 1, token 3: the id -7"), "{error}");
    assert!(feed.micro_batch(Split::Train, 8..9).unwrap_err().to_string().contains("the id -7 at token"));
}

/// Ids are checked at the start; what another program writes later must not reach the embedding.
#[test]
fn an_id_outside_the_vocabulary_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(vec![source(folder.path(), "a", &[30, 5, 20], 10, None)], Order::Sequential);
    (config.model.vocab_size, config.train.steps) = (50, 6);
    for pack in [false, true] {
        config.data.train[0].pack = pack;
        let feed = Feed::open(&config).unwrap();
        feed.micro_batch(Split::Train, 0..9).unwrap();
        let error = feed.micro_batch(Split::Train, 9..11).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let message = error.to_string();
        assert!(message.contains("a.bin: document 2 has the id 5"), "{message}");
        assert!(message.contains("but model.vocab_size = 50: "), "{message}");
    }
}

/// A file that is cut while it is open is an error with its name; a mapped file would end the process.
#[test]
fn a_file_that_is_cut_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let masked = source(folder.path(), "a", &[5000], 0, None);
    std::fs::write(folder.path().join("a.mask.bin"), [1; 5000]).unwrap();
    std::fs::write(folder.path().join("a.meta.json"), r#"{ "mask": true }"#).unwrap();
    for (name, bytes) in [("a.mask.bin", 4000), ("a.bin", 16_384), ("a.idx", 40)] {
        let mut config = config(vec![masked.clone()], Order::Sequential);
        config.train.steps = 600;
        let feed = Feed::open(&config).unwrap();
        feed.unchanged().unwrap();
        let read = |sample| feed.micro_batch(Split::Train, sample..sample + 1);
        read(1199).unwrap();
        let path = folder.path().join(name);
        let whole = std::fs::read(&path).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes).unwrap();
        let errors: Vec<String> = (0..1200).filter_map(|sample| Some(read(sample).err()?.to_string())).collect();
        let expected = format!("{name}: it has become shorter since it was opened");
        assert!(!errors.is_empty() && errors.iter().all(|error| error.contains(&expected)), "{name}: {errors:?}");
        let message = feed.unchanged().unwrap_err().to_string();
        assert!(message.contains(&format!("{name}: it had {} bytes", whole.len())), "{message}");
        std::fs::write(&path, whole).unwrap();
        feed.unchanged().unwrap();
        read(1199).unwrap();
    }
}

/// Only the weights of the ranges are zero: order, ids and validation stay, and so does the identity of the data.
#[test]
fn skipped_samples_keep_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(vec![source(folder.path(), "a", &[100; 5], 0, Some(1.0))], Order::Megatron);
    config.data.valid = vec![source(folder.path(), "v", &[50], 500, None)];
    config.train.eval_interval = 2;
    let plain = Feed::open(&config).unwrap();
    config.spike.skip = vec![[1, 3], [9, 1000]];
    let feed = Feed::open(&config).unwrap();
    let (was, is) = (plain.micro_batch(Split::Train, 0..10).unwrap(), feed.micro_batch(Split::Train, 0..10).unwrap());
    let weights: Vec<f32> = (0..10).flat_map(|sample| [f32::from(![1, 2, 9].contains(&sample)); 4]).collect();
    assert_eq!(is, MicroBatch { weights, ..was });
    let valid = feed.micro_batch(Split::Valid(0), 0..6).unwrap();
    assert_eq!(valid, plain.micro_batch(Split::Valid(0), 0..6).unwrap());
    assert_eq!(feed.fingerprint(5), plain.fingerprint(5));
    let note = "spike.skip: the targets of 3 of the 10 samples of this run do not count in the loss";
    assert_eq!(config.notes(), [note]);
}

#[test]
fn a_source_that_a_node_lacks_is_named_with_its_key() {
    let absent = entry("/nowhere/ja", None);
    let error = refusal(&config(vec![absent], Order::Sequential));
    assert_eq!(
        error,
        "data.train[0].prefix: /nowhere/ja.idx: it does not exist; check the path; every node must have both files of \
         a source under this path"
    );
}
