//! Configurations that are refused, and the messages.

use super::{LEAST, read};
use crate::config::Config;
use crate::error::Error;
use std::path::Path;

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
fn refusals_name_place_value_and_remedy() {
    let cases = [
        ("train.steps=1.5", "--set train.steps = 1.5: must be a whole number from 0 to 9223372036854775807"),
        ("train.steps=abc", "--set train.steps = \"abc\": must be a whole number"),
        ("train.steps=-1", "--set train.steps = -1: must be a whole number"),
        (
            "train.global_batch_size=99999999999999999999",
            "= \"99999999999999999999\": must be a whole number from 0 to 9223372036854775807",
        ),
        ("train.steps=0", "--set train.steps = 0: must lie in 1 ..= "),
        ("train.stepz=5", "--set train.stepz: [train] has no key \"stepz\"; did you mean \"steps\"?"),
        ("trian.steps=5", "--set trian.steps: a configuration has no key \"trian\"; did you mean \"train\"?"),
        ("steps=5", "--set steps=5: the key must be TABLE.KEY"),
        ("train.steps", "--set train.steps: must be KEY=VALUE"),
        ("train.steps.x=1", "--set train.steps.x=1: steps is a value, not a table"),
        ("a.b.c.d=1", "--set a.b.c.d=1: the key must be TABLE.KEY"),
        ("train=5", "the key must be TABLE.KEY"),
        ("train.backend=gpu", "--set train.backend = \"gpu\": must be one of cuda, cpu; did you mean \"cpu\"?"),
        ("train.precision=fp16", "must be one of bf16, f32"),
        ("train.seed=4294967296", "must be a whole number from 0 to 4294967295"),
        ("train.seq_length=513", "must be at most model.max_position_embeddings (512)"),
        ("train.global_batch_size=0", "must lie in 1 ..= "),
        (
            "train.micro_batch_size=5",
            "global_batch_size = 12: must be a multiple of train.micro_batch_size (5); the nearest are 10 and 15",
        ),
        ("train.steps=1099511627777", "must lie in 1 ..= 1099511627776"),
        ("train.load=DIR", "must be \"random\" or \"hf:DIR\""),
        ("train.load=hf:", "must be \"random\" or \"hf:DIR\""),
        ("train.z_loss=nan", "--set train.z_loss = nan: must be a finite number"),
        ("train.eval_interval=5", "there is no validation data"),
        ("train.recompute=some", "must be one of none, selective, full"),
        ("spike.window=1", "--set spike.window = 1: must lie in 2 ..= "),
        ("spike.threshold=-1", "--set spike.threshold = -1: must not be negative"),
        ("spike.action=stop", "--set spike.action = \"stop\": must be one of log, skip"),
        ("spike.skip=[[0,8,9]]", "spike.skip[0] = [0, 8, 9]: must be two numbers: the first sample"),
        ("spike.skip=[[8,8]]", "--set spike.skip = [[8, 8]]: must be ranges [first, end) of samples, ascending"),
        ("spike.skip=[[0,9],[8,12]]", "must be ranges [first, end) of samples, ascending and apart"),
        ("spike.skip=[[-1,9]]", "must be a whole number"),
        ("model.architecture=gptj", "must be one of llama"),
        ("model.hidden_size=60", "model.num_attention_heads = 8: must divide hidden_size (60)"),
        ("model.hidden_size=0", "must lie in 1 ..= "),
        ("model.hidden_size=72", "model.head_dim = 9: must be even"),
        ("model.num_key_value_heads=3", "must divide num_attention_heads (8)"),
        ("model.vocab_size=2147483648", "must lie in 1 ..= 2147483647"),
        ("model.rope_theta=0", "must lie between 1 and 1e30"),
        ("model.rms_norm_eps=1e-50", "must lie between 1e-37 and 1e38"),
        ("model.rope_scaling=yarn", "must be a table"),
        ("model.rope_scaling.rope_type=longrope", "is not built yet; must be one of default, linear, llama3, yarn"),
        ("model.rope_scaling.factor=8", "rope_scaling.rope_type is missing"),
        ("model.tie_word_embeddings=1", "must be true or false"),
        ("optimizer.min_lr=1", "--set optimizer.min_lr = 1: must be at most optimizer.lr (0.001)"),
        ("optimizer.lr=-1", "must not be negative"),
        ("optimizer.betas=[0.9,1.0]", "[0.9, 1.0]: must be two numbers, from 0 to below 1"),
        ("optimizer.betas=[0.9]", "must be two numbers"),
        ("optimizer.decay_steps=5", "belongs to schedule = \"wsd\", not \"cosine\"; leave it out"),
        ("optimizer.decay_shape=linear", "\"linear\": belongs to schedule = \"wsd\""),
        ("optimizer.schedule=cosin", "must be one of cosine, linear, constant, wsd; did you mean \"cosine\"?"),
        ("parallel.order=tp-dp-pp", "must name each axis once"),
        ("parallel.order=tp-tp-ep-dp-pp", "must name each axis once"),
        ("parallel.layers=[2,3]", "[2, 3]: must have pipeline x virtual_pipeline = 1 entries"),
        ("parallel.layers=[4]", "[4]: each must be at least 1, and their sum num_hidden_layers (5)"),
        ("parallel.ranks=0", "--set parallel.ranks = 0: must lie in 1 ..= 1048576"),
        ("data.train=[]", "must name a source"),
        ("data.train=[{prefix=\"a\",weight=-1}]", "--set data.train[0].weight = -1: must be positive"),
        ("data.train=[{prefix=\"a\",weight=nan}]", "weight = nan: must be a finite number"),
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
        ("checkpoint.export_interval=4", "= 4: an export is made from a checkpoint, and checkpoint.interval is 0"),
        (
            "checkpoint.keep_every=4",
            "keep_every = 4: only checkpoints can be kept, and checkpoint.interval is 0; set that",
        ),
        ("checkpoint.retry_seconds=1000000", "checkpoint.retry_seconds = 1000000: must lie in 0 ..= 604800"),
        ("checkpoint.dir=", "must be a path"),
        ("eval.interval=4", "eval.interval = 4: there is nothing to evaluate; name task files in eval.tasks"),
        ("eval.tasks=[\"a.toml\"]", "eval.interval = 0: tasks are scored where a checkpoint is saved, and"),
        ("eval.task=[]", "[eval] has no key \"task\"; did you mean \"tasks\"?"),
        ("report.peak_tflops=0", "must be positive"),
    ];
    for (flag, want) in cases {
        let got = refusal(LEAST, &[flag]);
        assert!(got.contains(want), "--set {flag} said\n{got}\nwithout\n{want}");
    }
    let got = refusal(LEAST, &["checkpoint.interval=4", "checkpoint.export_interval=6"]);
    assert!(got.ends_with("checkpoint.export_interval = 6: must be a multiple of checkpoint.interval (4)"), "{got}");
    let got = refusal(LEAST, &["checkpoint.interval=4", "checkpoint.keep_every=6"]);
    assert!(got.ends_with("checkpoint.keep_every = 6: must be a multiple of checkpoint.interval (4)"), "{got}");
    let got = refusal(LEAST, &["checkpoint.interval=4", "eval.tasks=[\"a.toml\"]", "eval.interval=6"]);
    assert!(got.ends_with("eval.interval = 6: must be a multiple of checkpoint.interval (4), and not 0"), "{got}");
    let got = refusal(LEAST, &["spike.threshold=0", "spike.action=skip"]);
    assert!(got.contains("spike.action = \"skip\": skips nothing, since spike.threshold is 0; set"), "{got}");
    let decay = refusal(LEAST, &["optimizer.schedule=wsd", "optimizer.decay_steps=99", "optimizer.warmup_steps=2"]);
    assert_eq!(decay, "--set optimizer.decay_steps = 99: must lie in 1 ..= 98 (train.steps less the warm-up)");
    let layouts: [(&[&str], &str); _] = [
        (
            &["parallel.tensor=3"],
            "--set parallel.tensor = 3: must divide model.num_attention_heads (8); the nearest are 2 and 4",
        ),
        (
            &["parallel.tensor=16"],
            "--set parallel.tensor = 16: must divide model.num_attention_heads (8); the nearest is 4",
        ),
        (
            &[
                "parallel.tensor=4",
                "model.hidden_size=96",
                "model.num_attention_heads=24",
                "model.num_key_value_heads=6",
            ],
            "--set parallel.tensor = 4: must divide model.num_key_value_heads (6) or be a multiple of it; the \
             nearest is 2",
        ),
        (
            &["parallel.tensor=8"],
            "--set parallel.tensor = 8: must divide model.intermediate_size (172); the nearest is 4",
        ),
        (
            &["parallel.tensor=4", "model.vocab_size=5"],
            "--set parallel.tensor = 4: model.vocab_size (5) in shares of 2 rows leaves the last rank none; the \
             nearest is 2",
        ),
        (
            &["parallel.tensor=4", "train.seq_length=126"],
            "--set parallel.tensor = 4: sequence parallelism needs it to divide train.micro_batch_size (1) x \
             seq_length (126); the nearest is 2, or keep it with micro_batch_size (the nearest is 2) or \
             parallel.sequence_parallel = false",
        ),
        (
            &["parallel.pipeline=6"],
            "--set parallel.pipeline = 6: x virtual_pipeline (1) makes more chunks than model.num_hidden_layers (5); \
             the nearest: pipeline 5 x virtual_pipeline 1 or pipeline 4 x virtual_pipeline 1",
        ),
        (
            &["parallel.pipeline=2", "parallel.virtual_pipeline=4"],
            "--set parallel.pipeline = 2: x virtual_pipeline (4) makes more chunks than model.num_hidden_layers (5); \
             the nearest: pipeline 2 x virtual_pipeline 2 or pipeline 2 x virtual_pipeline 1",
        ),
        (
            &["parallel.virtual_pipeline=2"],
            "--set parallel.virtual_pipeline = 2: interleaving needs parallel.pipeline > 1; write 1",
        ),
        (
            &["parallel.pipeline=2", "parallel.virtual_pipeline=2", "train.micro_batch_size=4"],
            "--set parallel.virtual_pipeline = 2: interleaving needs train.global_batch_size (12) to be a multiple of \
             micro_batch_size (4) x pipeline (2); the nearest are 8 and 16, or keep it with virtual_pipeline = 1",
        ),
    ];
    for (flags, want) in layouts {
        assert_eq!(refusal(LEAST, flags), want);
    }
    let ranks = refusal(LEAST, &["parallel.tensor=2", "parallel.pipeline=2", "parallel.ranks=6"]);
    let want = "parallel.ranks = 6: must be a multiple of tensor x pipeline x context (4); the nearest are 4 and 8";
    assert!(ranks.contains(want), "{ranks}");
    let f32_on_cuda = refusal(LEAST, &["train.backend=cuda", "train.precision=f32"]);
    assert!(f32_on_cuda.contains("is for the CPU"), "{f32_on_cuda}");
}

#[test]
fn refusals_in_the_file_name_its_line() {
    let edit = |old: &str, new: &str| refusal(&LEAST.replace(old, new), &[]);
    assert_eq!(
        edit("steps = 100", "steps = 1e2"),
        "a.toml line 17: train.steps = 100.0: must be a whole number from 0 to 9223372036854775807"
    );
    assert_eq!(
        edit("lr =", "learning_rate ="),
        "a.toml line 20: optimizer.learning_rate: [optimizer] has no key \"learning_rate\"; known keys are lr, min_lr, \
         schedule, decay_steps, decay_shape, warmup_steps, betas, eps, weight_decay, clip_grad"
    );
    assert_eq!(
        edit("\n[model]", "steps = 5\n[model]"),
        "a.toml line 1: steps: a configuration has no key \"steps\"; it belongs to [train]"
    );
    assert_eq!(
        edit("[data]", "[date]"),
        "a.toml line 22: date: a configuration has no key \"date\"; did you mean \"data\"?"
    );
    assert_eq!(
        edit("rope_theta = 10000.0", ""),
        "a.toml: model.rope_theta is missing: write rope_theta = 10000.0 (Llama 2) or what the model was trained with"
    );
    assert!(edit("steps = 100", "steps = = 100").contains("TOML parse error at line 17"));
    let latin = read(b"[model]\n# caf\xe9", &[]).unwrap_err().to_string();
    assert!(latin.contains("byte 13 is not UTF-8"), "{latin}");
    let absent = Config::load(Path::new("/nowhere/a.toml"), &[]).unwrap_err();
    assert_eq!(absent.exit_code(), 2);
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let cases = [
        (
            "model.sliding_window=4096",
            "a llama has no sliding_window; leave it out (it is a key of mistral, qwen2, qwen3, gemma2, mixtral, ",
        ),
        (
            "model.num_local_experts=8",
            "a llama has no num_local_experts; leave it out (it is a key of mixtral, qwen3_moe, gpt_oss)",
        ),
        ("model.num_experts=8", "a llama has no num_local_experts"),
        ("model.num_experts_per_tok=2", "a llama has no num_experts_per_tok"),
        ("model.router_aux_loss_coef=0.1", "a llama has no router_aux_loss_coef"),
        ("model.embedding_scale=0.0", "model.embedding_scale = 0.0: must lie between 1e-9 and 1e9"),
        ("parallel.context=2", "context parallelism is not built yet"),
        ("parallel.expert=2", "parallel.expert = 2: the model has no experts to share; the nearest"),
    ];
    for (flag, want) in cases {
        let got = refusal(LEAST, &[flag]);
        assert!(got.contains(want), "--set {flag} said\n{got}\nwithout\n{want}");
    }
    assert!(read(LEAST.as_bytes(), &["model.embedding_scale=1"]).is_ok());
}

/// Keys of models with experts, and ranks that share them.
#[test]
fn experts_that_do_not_fit_are_refused() {
    let experts = LEAST.replace(
        "architecture = \"llama\"",
        "architecture = \"qwen3_moe\"\nmoe_intermediate_size = 24\nnum_experts = 12\nnum_experts_per_tok = 3",
    );
    let config = read(experts.as_bytes(), &["parallel.expert=4"]).unwrap();
    assert_eq!((config.model.experts(), config.model.expert_layers().count()), (12, 5));
    assert!(config.mesh(4).is_ok() && config.mesh(12).is_ok() && config.mesh(6).is_err());
    for (flags, want) in [
        (&["model.num_experts=0"][..], "model.num_experts = 0: must lie in 1 ..= 4096"),
        (&["model.num_local_experts=8"], "model.num_experts = 12: differs from num_local_experts, its other name"),
        (&["model.num_experts_per_tok=13"], "must be at most num_local_experts (12)"),
        (&["model.num_experts_per_tok=0"], "model.num_experts_per_tok = 0: must lie in 1 ..= 64"),
        (&["model.mlp_only_layers=[5]"], "must be numbers of layers below num_hidden_layers (5)"),
        (&["model.decoder_sparse_step=0"], "model.decoder_sparse_step = 0: must lie in 1 ..= "),
        (&["model.router_aux_loss_coef=-1"], "must not be negative"),
        (&["parallel.expert=5"], "must divide model.num_local_experts (12); the nearest are 4 and 6"),
        (&["parallel.expert_buffer=0"], "must lie between 1e-3 and 1e6"),
        (&["parallel.tensor=4", "model.moe_intermediate_size=22"], "must divide model.moe_intermediate_size (22)"),
        (&["parallel.expert=4", "parallel.ranks=6"], "tensor x pipeline x context x expert (4)"),
    ] {
        let got = refusal(&experts, flags);
        assert!(got.contains(want), "{flags:?} said\n{got}\nwithout\n{want}");
    }
    let sparse = read(experts.as_bytes(), &["model.decoder_sparse_step=2", "model.mlp_only_layers=[3]"]).unwrap();
    assert_eq!(sparse.model.expert_layers().collect::<Vec<_>>(), [1]);
}
