//! The loader from outside: files in, a [`Config`] or a message out.

use super::*;
use crate::error::{Error, Result};
use crate::mesh::Mesh;
use proptest::prelude::*;
use std::path::Path;

/// Everything a file must have.
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

/// Every key of a file, none at its default where it has one that is built.
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
rope_scaling = { rope_type = "llama3", factor = 8, low_freq_factor = 1.0, high_freq_factor = 4.0, original_max_position_embeddings = 8192 }
rms_norm_eps = 1e-6
tie_word_embeddings = true
initializer_range = 0.01

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

[parallel]
tensor = 1
pipeline = 1
context = 1
expert = 1
virtual_pipeline = 1
layers = [5]
sequence_parallel = true
distributed_optimizer = false
order = "pp-dp-ep-cp-tp"

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

[checkpoint]
dir = "runs/all"
interval = 50
keep = 3

[report]
peak_tflops = 312
"#;

/// `text` as a file named `a.toml` in a directory of its own.
fn read(text: &[u8], overrides: &[&str]) -> Result<Config> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.toml");
    std::fs::write(&path, text).unwrap();
    let overrides: Vec<String> = overrides.iter().map(|flag| flag.to_string()).collect();
    Config::read(&path, &overrides)
}

/// The message that refuses `text` with `overrides`, from the file's name on.
fn refusal(text: &str, overrides: &[&str]) -> String {
    match read(text.as_bytes(), overrides) {
        Err(Error::User(message)) => match message.find("a.toml") {
            Some(at) => message[at..].to_string(),
            None => message,
        },
        other => panic!("{overrides:?} gave {other:?}"),
    }
}

#[test]
fn defaults_are_the_interface_s() {
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
        eval_interval: 0,
        eval_steps: 10,
    };
    assert_eq!(config.train, train);
    assert_eq!(config.parallel, Parallel::default());
    let optimizer = Optimizer {
        lr: 1e-3,
        min_lr: 0.0,
        schedule: Schedule::Cosine,
        warmup_steps: 0,
        betas: [0.9, 0.95],
        eps: 1e-8,
        weight_decay: 0.1,
        clip_grad: 1.0,
    };
    assert_eq!(config.optimizer, optimizer);
    let source = Source { prefix: "data/text".into(), weight: None };
    let (valid, split, order) = (vec![], [1.0, 0.0, 0.0], Order::Megatron);
    assert_eq!(config.data, Data { train: vec![source], valid, split, order, mask_document_boundaries: false });
    assert_eq!(config.checkpoint, Checkpoint { dir: "runs/tiny".into(), interval: 0, keep: None });
    assert_eq!(config.report, Report { peak_tflops: None });
    let wsd = read(LEAST.as_bytes(), &["optimizer.schedule=wsd"]).unwrap().optimizer.schedule;
    assert_eq!(wsd, Schedule::Wsd { decay_steps: 10, shape: DecayShape::Linear });
}

#[test]
fn every_key_is_taken() {
    let config = read(MOST.as_bytes(), &[]).unwrap();
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!((config.model.head_dim, config.model.rope_theta), (16, 500_000.0));
    assert_eq!(config.model.rope_scaling, scaling);
    assert_eq!((config.train.backend, config.train.precision), (Some(BackendKind::Cpu), Some(Precision::Bf16)));
    assert_eq!((config.train.seed, config.train.eval_interval, config.train.eval_steps), (u32::MAX, 10, 3));
    let order = [Axis::Pipeline, Axis::Data, Axis::Expert, Axis::Context, Axis::Tensor];
    assert_eq!((config.parallel.order, config.parallel.layers), (order, Some(vec![5])));
    let schedule = Schedule::Wsd { decay_steps: 20, shape: DecayShape::OneMinusSqrt };
    assert_eq!((config.optimizer.schedule, config.optimizer.betas), (schedule, [0.8, 0.99]));
    assert_eq!(config.data.train[1], Source { prefix: "data/\"en\"".into(), weight: Some(7.0) });
    assert_eq!((config.data.split, config.data.order), ([949.0, 50.0, 1.0], Order::Sequential));
    assert_eq!((config.checkpoint.keep, config.report.peak_tflops), (Some(3), Some(312.0)));
}

#[test]
fn flags_rule_over_the_file() {
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
    assert_eq!(config.data.train, [Source { prefix: "b".into(), weight: None }]);
}

#[test]
fn refusals_name_place_value_and_remedy() {
    let cases = [
        ("train.steps=1.5", "--set train.steps = 1.5: a whole number, not negative, is needed"),
        ("train.steps=abc", "--set train.steps = \"abc\": a whole number"),
        ("train.steps=-1", "--set train.steps = -1: a whole number"),
        ("train.steps=0", "--set train.steps = 0: must lie in 1 ..= "),
        ("train.stepz=5", "--set train.stepz: [train] has no key \"stepz\"; did you mean \"steps\"?"),
        ("trian.steps=5", "--set trian.steps=5: \"trian\" is no table; did you mean \"train\"?"),
        ("steps=5", "--set steps=5: wants the key as TABLE.KEY"),
        ("train.steps", "--set train.steps: wants KEY=VALUE"),
        ("train.steps.x=1", "--set train.steps.x=1: steps is a value, not a table"),
        ("a.b.c.d=1", "--set a.b.c.d=1: wants the key as TABLE.KEY"),
        ("train=5", "wants the key as TABLE.KEY"),
        ("train.backend=gpu", "--set train.backend = \"gpu\": must be one of cuda, cpu; did you mean \"cpu\"?"),
        ("train.precision=fp16", "must be one of bf16, f32"),
        ("train.seed=4294967296", "must lie in 0 ..= 4294967295"),
        ("train.seq_length=513", "must be at most model.max_position_embeddings (512)"),
        ("train.global_batch_size=0", "must lie in 1 ..= "),
        (
            "train.micro_batch_size=5",
            "global_batch_size = 12: must be a multiple of train.micro_batch_size (5); the nearest are 10 and 15",
        ),
        ("train.steps=1099511627777", "must lie in 1 ..= 1099511627776"),
        ("train.load=DIR", "must be \"random\" or \"hf:DIR\""),
        ("train.load=hf:", "must be \"random\" or \"hf:DIR\""),
        ("train.z_loss=nan", "--set train.z_loss = nan: a finite number is needed"),
        ("train.eval_interval=5", "there is nothing to validate on"),
        ("train.recompute=some", "must be one of none, selective, full"),
        ("model.architecture=gpt2", "must be one of llama"),
        ("model.hidden_size=60", "--set model.hidden_size = 60: must be a multiple of num_attention_heads (8)"),
        ("model.hidden_size=0", "must lie in 1 ..= "),
        ("model.hidden_size=72", "model.head_dim = 9: must be even"),
        ("model.num_key_value_heads=3", "must divide num_attention_heads (8)"),
        ("model.vocab_size=2147483648", "must lie in 1 ..= 2147483647"),
        ("model.rope_theta=0", "must lie between 1 and 1e30"),
        ("model.rms_norm_eps=1e-50", "must lie between 1e-37 and 1"),
        ("model.rope_scaling=yarn", "a table is needed"),
        ("model.rope_scaling.rope_type=yarn", "must be one of default, llama3"),
        ("model.rope_scaling.factor=8", "rope_scaling.rope_type is missing"),
        ("model.tie_word_embeddings=1", "true or false is needed"),
        ("optimizer.min_lr=1", "--set optimizer.min_lr = 1: must be at most optimizer.lr (0.001)"),
        ("optimizer.lr=-1", "must not be negative"),
        ("optimizer.warmup_steps=100", "must be below train.steps (100)"),
        ("optimizer.betas=[0.9,1.0]", "[0.9, 1.0]: must be two numbers, from 0 to below 1"),
        ("optimizer.betas=[0.9]", "must be two numbers"),
        ("optimizer.decay_steps=5", "belongs to schedule = \"wsd\", not \"cosine\"; leave it out"),
        ("optimizer.decay_shape=linear", "\"linear\": belongs to schedule = \"wsd\""),
        ("optimizer.schedule=cosin", "must be one of cosine, linear, constant, wsd; did you mean \"cosine\"?"),
        ("parallel.order=tp-dp-pp", "must name each axis once"),
        ("parallel.order=tp-tp-ep-dp-pp", "must name each axis once"),
        ("parallel.layers=[2,3]", "[2, 3]: must have pipeline x virtual_pipeline = 1 entries"),
        ("parallel.layers=[4]", "[4]: each must be at least 1, all together num_hidden_layers (5)"),
        ("data.train=[]", "must name a source"),
        ("data.train=[{prefix=\"a\",weight=-1}]", "data.train[0].weight = -1: must be positive"),
        ("data.train=[{prefix=\"a\",weight=nan}]", "weight = nan: a finite number is needed"),
        (
            "data.train=[{prefix=\"a\",weight=1},{prefix=\"b\"}]",
            "data.train[1].weight is missing: give every source a weight, or none",
        ),
        ("data.train=[{prefix=\"a\",wight=1}]", "[data.train[0]] has no key \"wight\"; did you mean \"weight\"?"),
        ("data.split=1,2", "must be three shares"),
        ("data.split=0,1,1", "must be three shares"),
        ("data.split=1,-2,1", "must be three shares"),
        ("data.split=1,nan,1", "must be three shares"),
        ("checkpoint.keep=0", "must lie in 1 ..= "),
        ("checkpoint.dir=", "must name a path"),
        ("report.peak_tflops=0", "must be positive"),
    ];
    for (flag, want) in cases {
        let got = refusal(LEAST, &[flag]);
        assert!(got.contains(want), "--set {flag} said\n{got}\nwithout\n{want}");
    }
    let decay = refusal(LEAST, &["optimizer.schedule=wsd", "optimizer.decay_steps=99", "optimizer.warmup_steps=2"]);
    assert_eq!(decay, "--set optimizer.decay_steps = 99: must lie in 1 ..= 98 (train.steps less the warm-up)");
    let f32_on_cuda = refusal(LEAST, &["train.backend=cuda", "train.precision=f32"]);
    assert!(f32_on_cuda.contains("is for the CPU"), "{f32_on_cuda}");
}

#[test]
fn refusals_in_the_file_name_its_line() {
    let edit = |old: &str, new: &str| refusal(&LEAST.replace(old, new), &[]);
    assert_eq!(
        edit("steps = 100", "steps = 1e2"),
        "a.toml line 18: train.steps = 100.0: a whole number, not negative, is needed"
    );
    assert_eq!(
        edit("lr =", "learning_rate ="),
        "a.toml line 21: optimizer.learning_rate: [optimizer] has no key \"learning_rate\"; known are lr, min_lr, schedule, warmup_steps, decay_steps, decay_shape, betas, eps, weight_decay, clip_grad"
    );
    assert_eq!(
        edit("\n[model]", "steps = 5\n[model]"),
        "a.toml line 1: steps: the file has no key \"steps\"; it belongs to [train]"
    );
    assert_eq!(edit("[data]", "[date]"), "a.toml line 23: date: the file has no key \"date\"; did you mean \"data\"?");
    assert_eq!(
        edit("rope_theta = 10000.0", ""),
        "a.toml: model.rope_theta is missing: write rope_theta = 10000.0 (Llama 2) or what the model has"
    );
    assert!(edit("steps = 100", "steps = = 100").contains("TOML parse error at line 18"));
    let latin = read(b"[model]\n# caf\xe9", &[]).unwrap_err().to_string();
    assert!(latin.contains("byte 13 is not UTF-8"), "{latin}");
    let absent = Config::load(Path::new("/nowhere/a.toml"), &[]).unwrap_err();
    assert_eq!(absent.exit_code(), 2);
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let cases = [
        ("model.architecture=mistral", "model.architecture = mistral: this architecture is not built yet"),
        ("model.architecture=mixtral", "not built yet"),
        ("model.sliding_window=4096", "sliding windows are not built yet"),
        ("model.num_local_experts=8", "experts are not built yet"),
        ("model.num_experts_per_tok=2", "experts are not built yet"),
        ("model.embedding_scale=2.0", "scaled embeddings are not built yet"),
        ("train.recompute=full", "recomputation is not built yet"),
        ("train.recompute=selective", "recomputation is not built yet"),
        ("parallel.tensor=2", "--set parallel.tensor = 2: tensor parallelism is not built yet; write 1"),
        ("parallel.pipeline=2", "pipeline parallelism is not built yet"),
        ("parallel.context=2", "context parallelism is not built yet"),
        ("parallel.expert=2", "expert parallelism is not built yet"),
        ("parallel.virtual_pipeline=2", "interleaving is not built yet"),
    ];
    for (flag, want) in cases {
        let got = refusal(LEAST, &[flag]);
        assert!(got.contains(want), "--set {flag} said\n{got}\nwithout\n{want}");
    }
    assert!(read(LEAST.as_bytes(), &["model.embedding_scale=1"]).is_ok());
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
    std::fs::write(&file, at(&prefix.with_extension("bin"))).unwrap();
    assert!(refusal(&file).contains("leave .bin or .idx away"), "{}", refusal(&file));
}

#[test]
fn ranks_that_do_not_divide_are_told_what_would() {
    let config = read(LEAST.as_bytes(), &["train.micro_batch_size=2"]).unwrap();
    assert_eq!(config.mesh(3).unwrap().size(Axis::Data), 3);
    let refusal = config.mesh(4).unwrap_err().to_string();
    assert!(refusal.contains("micro_batch_size (2) x data-parallel ranks (4)"), "{refusal}");
    assert!(refusal.contains("the nearest are 8 and 16, or keep it and run on 3 or 6 ranks"), "{refusal}");
    let mut config = config;
    config.parallel.tensor = 4;
    let refusal = config.mesh(6).unwrap_err().to_string();
    assert!(refusal.contains("a multiple of 4 ranks; the nearest are 4 and 8"), "{refusal}");
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

/// A valid file with some of its bytes or lines changed.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let pieces = prop::sample::select(vec![
        "0",
        "-1",
        "9223372036854775807",
        "1e308",
        "nan",
        "\"\"",
        "[]",
        "{}",
        "=",
        "\n",
        "true",
        "[[data]]",
        "1979-05-27",
        "日",
    ]);
    let edit = (any::<prop::sample::Index>(), 0usize..12, pieces);
    (prop::sample::select(vec![LEAST, MOST]), prop::collection::vec(edit, 1..5)).prop_map(|(text, edits)| {
        let mut bytes = text.as_bytes().to_vec();
        for (at, cut, piece) in edits {
            let at = at.index(bytes.len());
            let end = (at + cut).min(bytes.len());
            bytes.splice(at..end, piece.bytes());
        }
        bytes
    })
}

/// A valid file with one value replaced: the text stays TOML, so that the checks are reached.
fn revalued() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        (0i64..64).prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|x| toml::Value::from(x).to_string()),
        Just("[1, 2]".to_string()),
        Just("\"wsd\"".to_string()),
    ];
    let change = (any::<prop::sample::Index>(), value);
    prop::collection::vec(change, 1..4).prop_map(|changes| {
        let mut lines: Vec<String> = MOST.lines().map(str::to_string).collect();
        let keyed: Vec<usize> = (0..lines.len()).filter(|&i| lines[i].contains(" = ")).collect();
        for (at, value) in changes {
            let line = &mut lines[keyed[at.index(keyed.len())]];
            let key = line.split(" = ").next().unwrap().to_string();
            *line = format!("{key} = {value}");
        }
        lines.join("\n")
    })
}

proptest! {
    #[test]
    fn no_text_panics_the_loader(text in mutated(), flag in "([a-z_.]{0,12}=)?.{0,8}") {
        if let Err(e) = read(&text, &[]) {
            prop_assert_eq!(e.exit_code(), 2);
        }
        let _ = read(LEAST.as_bytes(), &[&flag]);
    }

    #[test]
    fn what_loads_loads_back_and_meets_any_ranks(text in revalued(), ranks in 0usize..100) {
        if let Ok(config) = read(text.as_bytes(), &[]) {
            prop_assert_eq!(&read(config.to_toml().as_bytes(), &[]).unwrap(), &config);
            let _ = config.mesh(ranks);
            crate::flops::parameters(&config.model);
            for step in [1, config.train.steps] {
                let rate = crate::lr::learning_rate(&config.optimizer, config.train.steps, step);
                prop_assert!(rate >= 0.0 && rate <= config.optimizer.lr * (1.0 + 1e-12));
            }
        }
    }
}
