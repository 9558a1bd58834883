//! Tests of the loader: files are the input, a [`Config`] or a message the output.

mod fuzz;
mod layouts;
mod refusals;

use super::*;
use crate::error::Result;
use crate::layout::mesh::Mesh;
use std::path::Path;

/// The keys that every file must have.
const LEAST: &str = r#"
[model]
architecture = "llama"
hidden_size = 64
intermediate_size = 172
num_hidden_layers = 5
num_attention_heads = 8
num_key_value_heads = 4
vocab_size = 512
max_position_embeddings = 512
rope_theta = 10000.0
rms_norm_eps = 1e-5

[train]
seq_length = 128
global_batch_size = 12
steps = 100

[optimizer]
lr = 1e-3

[data]
train = [ { prefix = "data/text" } ]

[checkpoint]
dir = "runs/tiny"
"#;

/// Every key that a file may have, none with its default value unless no other value is built.
const MOST: &str = r#"
[model]
architecture = "llama"
hidden_size = 64
intermediate_size = 172
num_hidden_layers = 5
num_attention_heads = 8
num_key_value_heads = 4
head_dim = 16
vocab_size = 512
max_position_embeddings = 512
rope_theta = 500000
rms_norm_eps = 1e-6
tie_word_embeddings = true
initializer_range = 0.01

[model.rope_scaling]
rope_type = "llama3"
factor = 8
low_freq_factor = 1.0
high_freq_factor = 4.0
original_max_position_embeddings = 8192

[train]
backend = "cpu"
precision = "bf16"
seq_length = 512
micro_batch_size = 2
global_batch_size = 24
steps = 100
seed = 4294967295
recompute = "none"
load = "random"
z_loss = 1e-4
eval_interval = 10
eval_steps = 3
stop_before = "71:50:00"

[parallel]
tensor = 1
pipeline = 1
context = 1
expert = 1
expert_buffer = 1.5
expert_imbalance = 1.0
virtual_pipeline = 1
layers = [5]
sequence_parallel = true
distributed_optimizer = false
order = "pp-dp-ep-cp-tp"
ranks = 12

[nccl]
tensor_ctas = 24
data_ctas = 6
pipeline_ctas = 1

[optimizer]
lr = 1e-4
min_lr = 3.3e-6
schedule = "wsd"
warmup_steps = 7
decay_steps = 20
decay_shape = "1-sqrt"
betas = [0.8, 0.99]
eps = 1e-9
weight_decay = 0
clip_grad = 0.5

[data]
train = [ { prefix = "data/ja wiki", weight = 0.9 }, { prefix = "data/\"en\"", weight = 7 } ]
valid = [ { prefix = "data/held_out" } ]
split = "949,50,1"
order = "sequential"
mask_document_boundaries = true
allow_mixed_tokenizers = true

[spike]
window = 32
threshold = 3.5
action = "skip"
skip = [ [0, 8], [8, 9], [100, 124] ]

[checkpoint]
dir = "runs/all"
interval = 50
at_end = false
keep = 3

[eval]
tasks = ["a.toml", "b.toml"]
interval = 100
limit = 20
tokenizer = "t.model"

[watchdog]
seconds = 120

[report]
peak_tflops = 312
interval = 0
cluster = "c.toml"
"#;

/// `text` as a file named `a.toml` in a directory of its own.
fn read(text: &[u8], overrides: &[&str]) -> Result<Config> {
    read_for(Ranks::Its, text, overrides)
}

fn read_for(ranks: Ranks, text: &[u8], overrides: &[&str]) -> Result<Config> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.toml");
    std::fs::write(&path, text).unwrap();
    let overrides: Vec<String> = overrides.iter().map(|flag| flag.to_string()).collect();
    Config::read_for(ranks, &path, &overrides)
}

#[test]
fn defaults_are_as_documented() {
    let config = read(LEAST.as_bytes(), &[]).unwrap();
    assert_eq!((config.model.head_dim, config.model.tie_word_embeddings), (8, false));
    assert_eq!(config.model.initializer_range, 0.02);
    assert_eq!(config.model.rope_scaling, RopeScaling::Default);
    let train = Train {
        backend: None,
        precision: None,
        seq_length: 128,
        micro_batch_size: 1,
        global_batch_size: 12,
        steps: 100,
        seed: 1234,
        recompute: Recompute::None,
        load: Load::Random,
        z_loss: 0.0,
        refuse_untrained: false,
        eval_interval: 0,
        eval_steps: 10,
        stop_before: None,
    };
    assert_eq!(config.train, train);
    assert_eq!(config.parallel, Parallel::default());
    let optimizer = Optimizer {
        lr: 1e-3,
        min_lr: 0.0,
        schedule: Schedule::Cosine,
        decay_steps: None,
        decay_shape: None,
        warmup_steps: 0,
        betas: [0.9, 0.95],
        eps: 1e-8,
        weight_decay: 0.1,
        clip_grad: 1.0,
    };
    assert_eq!(config.optimizer, optimizer);
    let source = entry("data/text", None);
    let (valid, split, order) = (vec![], [1.0, 0.0, 0.0], Order::Megatron);
    let (mask_document_boundaries, allow_mixed_tokenizers) = (false, false);
    let (stage, train) = (vec![], vec![source]);
    assert_eq!(
        config.data,
        Data { stage, train, valid, split, order, mask_document_boundaries, allow_mixed_tokenizers }
    );
    let (dir, interval, at_end, keep, export_interval) = ("runs/tiny".into(), 0, true, None, 0);
    let (keep_every, retry_seconds) = (0, 60);
    let checkpoint = Checkpoint { dir, interval, at_end, keep, export_interval, keep_every, retry_seconds };
    assert_eq!(config.checkpoint, checkpoint);
    assert_eq!(config.report, Report { peak_tflops: None, interval: None, cluster: None });
    let wsd = read(LEAST.as_bytes(), &["optimizer.schedule=wsd"]).unwrap().optimizer;
    assert_eq!((wsd.decay_steps, wsd.decay_shape), (Some(10), Some(DecayShape::Linear)));
}

#[test]
fn every_key_is_taken() {
    let config = read(MOST.as_bytes(), &[]).unwrap();
    let scaling = RopeScaling::Llama3(Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    });
    assert_eq!((config.model.head_dim, config.model.rope_theta), (16, Some(500_000.0)));
    assert_eq!(config.model.rope_scaling, scaling);
    assert_eq!((config.train.backend, config.train.precision), (Some(BackendKind::Cpu), Some(Precision::Bf16)));
    assert_eq!((config.train.seed, config.train.eval_interval, config.train.eval_steps), (u32::MAX, 10, 3));
    let order = [Axis::Pipeline, Axis::Data, Axis::Expert, Axis::Context, Axis::Tensor];
    assert_eq!((config.parallel.order, config.parallel.layers), (order, Some(vec![5])));
    assert_eq!(config.parallel.ranks, Some(12));
    let o = &config.optimizer;
    assert_eq!((o.schedule, o.decay_steps, o.decay_shape), (Schedule::Wsd, Some(20), Some(DecayShape::OneMinusSqrt)));
    assert_eq!(o.betas, [0.8, 0.99]);
    assert_eq!(config.data.train[1], entry("data/\"en\"", Some(7.0)));
    assert_eq!((config.data.split, config.data.order), ([949.0, 50.0, 1.0], Order::Sequential));
    let spike = Spike { window: 32, threshold: 3.5, action: SpikeAction::Skip, skip: vec![[0, 8], [8, 9], [100, 124]] };
    assert_eq!(config.spike, spike);
    assert_eq!([0, 5, 8, 9, 110, 1000].map(|samples| spike.skipped(samples)), [0, 5, 8, 9, 19, 33]);
    assert_eq!([0, 8, 9, 99, 100, 124].map(|sample| spike.skips(sample)), [true, true, false, false, true, false]);
    assert_eq!(config.nccl, Nccl { tensor_ctas: 24, data_ctas: 6, pipeline_ctas: 1 });
    assert_eq!(
        (config.checkpoint.keep, config.report),
        (Some(3), Report { peak_tflops: Some(312.0), interval: Some(0), cluster: Some("c.toml".into()) })
    );
}

fn entry(prefix: &str, weight: Option<f64>) -> Source {
    Source { prefix: prefix.into(), weight, name: None, max_epochs: None, pack: false }
}

#[test]
fn flags_override_the_file() {
    let flags = [
        "train.steps = 7",
        "train.backend=cpu",
        "train.load=hf:/x",
        "checkpoint.dir=2024-01-01",
        "model.rope_scaling={rope_type=\"default\"}",
        "report.peak_tflops=1.5",
        "data.train=[{prefix=\"b\"}]",
        "optimizer.warmup_steps=1",
        "optimizer.decay_steps=2",
    ];
    let config = read(MOST.as_bytes(), &flags).unwrap();
    assert_eq!((config.train.steps, config.train.backend), (7, Some(BackendKind::Cpu)));
    assert_eq!(config.train.load, Load::HuggingFace("/x".into()));
    assert_eq!((config.checkpoint.dir, config.report.peak_tflops), ("2024-01-01".into(), Some(1.5)));
    assert_eq!(config.model.rope_scaling, RopeScaling::Default);
    assert_eq!(config.data.train, [entry("b", None)]);
}

#[test]
fn a_flag_is_a_text_as_typed_where_the_key_needs_one() {
    let dir = |value: &str| {
        let flags = [&format!("checkpoint.dir={value}")[..], "train.steps=7"];
        read(LEAST.as_bytes(), &flags).unwrap().checkpoint.dir
    };
    for value in
        ["1234567", "20240401", "2024-04-01", "12:30:00", "1e5", "0x10", "+1", "true", "nan", "[a]", "[1]", "{}"]
    {
        assert_eq!(dir(value), Path::new(value));
    }
    assert_eq!((dir(" 5 "), dir("\"5\""), dir("'a b'")), ("5".into(), "5".into(), "a b".into()));
    // The last of several flags counts; a file has to quote a string.
    let flags = ["checkpoint.dir=1", "checkpoint.dir=abc", "checkpoint.dir=2"];
    assert_eq!(read(LEAST.as_bytes(), &flags).unwrap().checkpoint.dir, Path::new("2"));
    let refusal = read(LEAST.replace("\"runs/tiny\"", "5").as_bytes(), &[]).unwrap_err().to_string();
    assert!(refusal.ends_with("checkpoint.dir = 5: must be a text in quotes"), "{refusal}");
    let refusal = read(LEAST.as_bytes(), &["model.hf=1234567"]).unwrap_err().to_string();
    assert_eq!(refusal, "--set model.hf = 1234567: there is no config.json in this directory");
    let refusal = read(LEAST.as_bytes(), &["train.recompute=1"]).unwrap_err().to_string();
    assert_eq!(refusal, "--set train.recompute = \"1\": must be one of none, selective, full");
}

/// The order of the keys and the spelling of the values stay: users compare the `config.toml` of their runs.
#[test]
fn the_resolved_text_has_every_key() {
    let text = r#"[model]
architecture = "llama"
hidden_size = 64
intermediate_size = 172
num_hidden_layers = 5
num_attention_heads = 8
num_key_value_heads = 4
head_dim = 8
vocab_size = 512
max_position_embeddings = 512
rope_theta = 10000.0
rope_scaling = { rope_type = "default" }
attention_bias = false
mlp_bias = false
rms_norm_eps = 0.00001
embedding_scale = 1.0
tie_word_embeddings = false
initializer_range = 0.02

[train]
seq_length = 128
micro_batch_size = 1
global_batch_size = 12
steps = 100
seed = 1234
recompute = "none"
load = "hf:/x"
z_loss = 0.0
refuse_untrained = false
eval_interval = 0
eval_steps = 10

[parallel]
tensor = 1
pipeline = 1
context = 1
expert = 1
expert_buffer = 1.5
expert_imbalance = 1.0
virtual_pipeline = 1
layers = [5]
sequence_parallel = false
distributed_optimizer = true
gradient_precision = "f32"
order = "tp-cp-ep-dp-pp"

[nccl]
tensor_ctas = 16
data_ctas = 8
pipeline_ctas = 4

[optimizer]
lr = 0.001
min_lr = 0.0
schedule = "wsd"
decay_steps = 10
decay_shape = "linear"
warmup_steps = 0
betas = [0.9, 0.95]
eps = 0.00000001
weight_decay = 0.1
clip_grad = 1.0

[data]
stage = []
train = [{ pack = false, prefix = "data/text" }]
valid = []
split = "1,0,0"
order = "megatron"
mask_document_boundaries = false
allow_mixed_tokenizers = false

[spike]
window = 128
threshold = 6.0
action = "log"
skip = []

[checkpoint]
dir = "runs/tiny"
interval = 0
at_end = true
export_interval = 0
keep_every = 0
retry_seconds = 60

[eval]
tasks = []
interval = 0

[watchdog]

[report]
"#;
    let flags = ["parallel.layers=[5]", "optimizer.schedule=wsd", "train.load=hf:/x"];
    assert_eq!(read(LEAST.as_bytes(), &flags).unwrap().to_toml(), text);
    let all: Table = read(MOST.as_bytes(), &[]).unwrap().to_toml().parse().unwrap();
    for (table, keys) in tables() {
        let left_out: Vec<&str> = keys.into_iter().filter(|key| all[table].get(key).is_none()).collect();
        // Keys of other families.
        let refused = [
            "hf",
            "use_sliding_window",
            "sliding_window",
            "max_window_layers",
            "layer_types",
            "layer_norm_epsilon",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "query_pre_attn_scalar",
            "num_local_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
            "swiglu_limit",
            "norm_topk_prob",
            "decoder_sparse_step",
            "mlp_only_layers",
            "router_aux_loss_coef",
            "router_z_loss_coef",
            "num_experts",
        ];
        assert_eq!(left_out, if table == "model" { &refused[..] } else { &[] }, "[{table}]");
    }
}

#[test]
fn the_resolved_text_loads_back() {
    for text in [LEAST, MOST] {
        let config = read(text.as_bytes(), &[]).unwrap();
        let resolved = config.to_toml();
        assert_eq!(read(resolved.as_bytes(), &[]).unwrap(), config, "{resolved}");
        assert_eq!(read(resolved.as_bytes(), &[]).unwrap().to_toml(), resolved);
    }
}

/// All layers of a Llama are the same.
#[test]
fn a_model_describes_its_layers() {
    let model = Model::tiny();
    let layers: Vec<Layer> = model.layers().collect();
    let feed_forward = FeedForward::Dense(Mlp { activation: Activation::SwiGlu, intermediate_size: 20 });
    let biases = Biases { qkv: false, out: false, mlp: false };
    let (attention, norm) = (AttentionKind::Full, NormKind::Rms);
    assert_eq!(
        layers,
        [Layer { attention, sinks: false, head_norms: false, biases, norm, post_norms: false, feed_forward }; 2]
    );
    assert_eq!((model.head_dim, Model::from_toml("a.toml".into(), &model.to_toml()).unwrap()), (4, model));
}

#[test]
fn missing_files_are_named_by_load_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (file, prefix) = (dir.path().join("a.toml"), dir.path().join("text"));
    let at = |prefix: &Path| LEAST.replace("data/text", prefix.to_str().unwrap());
    std::fs::write(&file, at(&prefix)).unwrap();
    let refusal = |file: &Path| Config::load(file, &[]).unwrap_err().to_string();
    assert!(refusal(&file).contains("data.train[0].prefix"), "{}", refusal(&file));
    assert!(Config::read(&file, &[]).is_ok());
    std::fs::write(prefix.with_extension("idx"), "").unwrap();
    assert!(refusal(&file).contains("text.bin; write it with"), "{}", refusal(&file));
    std::fs::write(prefix.with_extension("bin"), "").unwrap();
    assert!(Config::load(&file, &[]).is_ok());
    let unloadable = Config::load(&file, &["train.load=hf:/nowhere".to_string()]).unwrap_err().to_string();
    assert_eq!(unloadable, "train.load = \"hf:/nowhere\": there is no config.json in this directory");
    std::fs::write(&file, at(&prefix.with_extension("bin"))).unwrap();
    assert!(refusal(&file).contains("leave .bin or .idx out"), "{}", refusal(&file));
}

#[test]
fn ranks_that_do_not_divide_are_refused_with_the_nearest() {
    let config = read(LEAST.as_bytes(), &["train.micro_batch_size=2"]).unwrap();
    assert_eq!(config.mesh(3).unwrap().replicas(), 3);
    let refusal = config.mesh(4).unwrap_err().to_string();
    assert!(refusal.contains("micro_batch_size (2) x data-parallel ranks (4)"), "{refusal}");
    assert!(refusal.contains("the nearest are 8 and 16, or keep it and run on 3 or 6 ranks"), "{refusal}");
    let refusal = read(LEAST.as_bytes(), &["train.global_batch_size=1"]).unwrap().mesh(2).unwrap_err().to_string();
    assert!(refusal.ends_with("the nearest is 2, or keep it and run on 1 rank"), "{refusal}");
    let mut config = config;
    config.parallel.tensor = 4;
    let refusal = config.mesh(6).unwrap_err().to_string();
    let want = "mpirun -n 6: parallel.tensor 4 x pipeline 1 x context 1 needs a multiple of 4 ranks; the nearest that \
                fit: 4 or 8; on 6 ranks the nearest that fit: tensor 2 x pipeline 1 or tensor 1 x pipeline 1";
    assert_eq!(refusal, want);
    let refusal = config.mesh_as_asked(6, "--ranks 6").unwrap_err().to_string();
    assert!(refusal.starts_with("--ranks 6: parallel.tensor 4"), "{refusal}");
    assert!(config.mesh(0).is_err());
    assert_eq!(config.mesh(4).unwrap().ranks(), Mesh::new(4, &config.parallel).unwrap().ranks());
}

#[test]
fn the_backend_follows_the_machine() {
    let config = read(LEAST.as_bytes(), &[]).unwrap();
    assert_eq!(config.backend(true).unwrap(), (BackendKind::Cuda, Precision::Bf16));
    assert_eq!(config.backend(false).unwrap(), (BackendKind::Cpu, Precision::F32));
    let f32 = read(LEAST.as_bytes(), &["train.precision=f32"]).unwrap();
    assert!(f32.backend(true).unwrap_err().to_string().contains("write train.backend = \"cpu\""));
    assert_eq!(f32.backend(false).unwrap(), (BackendKind::Cpu, Precision::F32));
}

#[test]
fn the_project_s_own_files_load() {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let files = std::fs::read_dir(configs).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "toml")).collect();
    assert!(!files.is_empty());
    for file in files {
        Config::read(&file, &[]).unwrap();
    }
}
