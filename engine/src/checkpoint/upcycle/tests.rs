//! Small dense checkpoints, upcycled, against what their definition says element by element.

use super::*;
use crate::checkpoint::directory;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

/// D and F of the small models.
const D: usize = 12;
const F: usize = 21;

const SEED: u32 = 5;

const LLAMA: &str = "architecture = \"llama\"\n";
const MISTRAL: &str = "architecture = \"mistral\"\nsliding_window = 7\n";
const QWEN3: &str = "architecture = \"qwen3\"\nhead_dim = 6\ntie_word_embeddings = true\n";

/// A dense model of two layers.
fn dense(family: &str, hidden: usize, width: usize) -> Model {
    let text = format!(
        "[model]\n{family}hidden_size = {hidden}\nintermediate_size = {width}\nnum_hidden_layers = 2\n\
         num_attention_heads = 3\nnum_key_value_heads = 1\nvocab_size = 23\nmax_position_embeddings = 16\n\
         rope_theta = 10000.0\nrms_norm_eps = 1e-5\ninitializer_range = 0.25\n"
    );
    Model::from_toml("a test".into(), &text).unwrap()
}

fn small(family: &str) -> Model {
    dense(family, D, F)
}

/// Values whose mean and deviation differ from matrix to matrix and from column to column.
fn fill(tensor: &TensorSpec, rect: &Rect, out: &mut [f32]) -> Result<()> {
    let mut whole = vec![0.0; tensor.len()];
    init::normal(77, &tensor.name, 1.0, 0, &mut whole);
    let cols = tensor.shape()[1];
    let offset = ["gate_proj", "up_proj", "down_proj"].iter().position(|name| tensor.name.contains(name));
    let places = rect.rows.clone().flat_map(|row| rect.cols.clone().map(move |col| (row, col)));
    for (out, (row, col)) in out.iter_mut().zip(places) {
        let column = if tensor.name.contains("down_proj") { col } else { row };
        *out = whole[row * cols + col] * (0.5 + column as f32 / 16.0) + 3.0 * offset.unwrap_or_default() as f32;
    }
    Ok(())
}

/// A dense checkpoint's directory, and those of its upcycled ones beside it.
struct Desk {
    dir: tempfile::TempDir,
    dense: Model,
}

impl Desk {
    fn new(dense: Model, dtype: Dtype) -> Desk {
        let desk = Desk { dir: tempfile::tempdir().unwrap(), dense };
        let precision = if dtype == Dtype::F32 { Precision::F32 } else { Precision::Bf16 };
        let what = Export {
            model: &desk.dense,
            form: Form::PerExpert,
            config: hf::config_json(&desk.dense, None, precision),
            dtype,
            files: Vec::new(),
            origin: "a test".into(),
            checkpoint: "none".into(),
        };
        export(&fill, &what, &desk.path("dense"), &mut |_| ()).unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Sets fields of the dense model's `config.json`.
    fn set(&self, fields: Value) {
        let path = self.path("dense/config.json");
        let mut config = hf::read_source(&self.path("dense")).unwrap();
        config.extend(fields.as_object().unwrap().clone());
        fs::write(path, Value::Object(config).to_string()).unwrap();
    }

    fn upcycle(&self, what: &Upcycle, to: &str) -> Result<Upcycled> {
        let (mut done, mut total) = (0, 1);
        let upcycled = upcycle(what, &self.path("dense"), &self.path(to), &mut |n, of| (done, total) = (n, of))?;
        assert_eq!(done, total, "the progress ends at its total");
        Ok(upcycled)
    }

    /// A tensor of the dense checkpoint.
    fn before(&self, name: &str) -> Vec<f32> {
        read(&self.path("dense"), &self.dense, name)
    }

    /// The message that refuses `what`; nothing was written.
    fn refusal(&self, what: &Upcycle) -> String {
        let error = self.upcycle(what, "refused").unwrap_err();
        assert_eq!((error.exit_code(), self.path("refused").exists()), (2, false));
        error.to_string()
    }
}

fn read(dir: &Path, model: &Model, name: &str) -> Vec<f32> {
    let tensor = all_tensors(model).into_iter().find(|tensor| tensor.name == name).unwrap();
    let mut out = vec![0.0; tensor.len()];
    HuggingFace::open(dir, model).unwrap().read_parameter(&tensor, &Rect::whole(tensor.shape()), &mut out).unwrap();
    out
}

fn what(reinit_ratio: f64) -> Upcycle {
    Upcycle { experts: 3, per_token: 2, reinit_ratio, seed: SEED }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// The names of an expert's gate, up and down, and of the dense ones.
fn matrices(model: &Model, l: usize, e: usize) -> [(String, String); 3] {
    let names = match model.architecture {
        Architecture::Mixtral => ["w1", "w3", "w2"].map(|name| format!("block_sparse_moe.experts.{e}.{name}")),
        _ => ["gate_proj", "up_proj", "down_proj"].map(|name| format!("mlp.experts.{e}.{name}")),
    };
    let dense = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];
    let full = |name: &str| format!("model.layers.{l}.{name}.weight");
    [0, 1, 2].map(|i| (full(&names[i]), full(dense[i])))
}

/// The intermediate columns, of `width`, in which two matrices differ; each of their elements must then differ.
fn changed(name: &str, before: &[f32], after: &[f32], width: usize) -> BTreeSet<usize> {
    let column =
        |i: usize| if name.contains("w2") || name.contains("down") { i % width } else { i / (before.len() / width) };
    let differs: Vec<usize> = (0..before.len()).filter(|&i| before[i].to_bits() != after[i].to_bits()).collect();
    let columns: BTreeSet<usize> = differs.iter().map(|&i| column(i)).collect();
    assert_eq!(differs.len(), columns.len() * before.len() / width, "{name}: a column changes as a whole");
    columns
}

#[test]
fn experts_are_copies_and_the_rest_is_carried_over() {
    for (family, dtype) in [
        (LLAMA, Dtype::F32),
        (MISTRAL, Dtype::BF16),
        (QWEN3, Dtype::F16),
        ("architecture = \"qwen3\"\nattention_bias = true\n", Dtype::BF16),
    ] {
        let desk = Desk::new(small(family), dtype);
        for name in ["tokenizer.json", "generation_config.json", "README.md"] {
            fs::write(desk.path("dense").join(name), name).unwrap();
        }
        let Upcycled { model, dtype: kept, columns } = desk.upcycle(&what(0.0), "out").unwrap();
        assert_eq!((kept, columns, model.experts(), model.layer(1).experts().unwrap().per_token), (dtype, 0, 3, 2));
        assert!(model.layers().zip(desk.dense.layers()).all(|(new, old)| new.attention == old.attention));
        let out = desk.path("out");
        let hf = HuggingFace::open(&out, &model).unwrap();
        let mut copied = BTreeSet::new();
        for (l, e) in (0..2).flat_map(|l| (0..3).map(move |e| (l, e))) {
            for (name, dense) in matrices(&model, l, e) {
                assert_eq!(bits(&read(&out, &model, &name)), bits(&desk.before(&dense)), "{name}");
                copied.insert(name);
            }
        }
        for tensor in all_tensors(&model).into_iter().filter(|tensor| !copied.contains(&tensor.name)) {
            let got = read(&out, &model, &tensor.name);
            assert_eq!(hf.info(&tensor.name).unwrap().dtype, dtype, "{}", tensor.name);
            if tensor.name.ends_with("gate.weight") {
                let mut drawn = vec![0.0; 3 * D];
                init::normal(SEED, &tensor.name, 0.25, 0, &mut drawn);
                let near = got.iter().zip(&drawn).all(|(a, b)| (a - b).abs() <= 0.005 * b.abs());
                assert!(near, "{}: {got:?} instead of {drawn:?}", tensor.name);
            } else {
                assert_eq!(bits(&got), bits(&desk.before(&tensor.name)), "{}", tensor.name);
            }
        }
        assert_eq!(fs::read(out.join("tokenizer.json")).unwrap(), b"tokenizer.json");
        assert_eq!(fs::read(out.join("generation_config.json")).unwrap(), b"generation_config.json");
        assert!(!out.join("README.md").exists());
    }
}

/// floor(0.5 x 21) columns, the same in the three matrices, others for each expert and layer.
#[test]
fn columns_are_drawn_anew() {
    for (family, ratio, count) in [(LLAMA, 0.5, 10), (QWEN3, 0.3, 6), (MISTRAL, 1.0, F), (LLAMA, 0.0, 0)] {
        let desk = Desk::new(small(family), Dtype::F32);
        let Upcycled { model, columns, .. } = desk.upcycle(&what(ratio), "out").unwrap();
        assert_eq!(columns, count);
        let mut sets = BTreeSet::new();
        for (l, e) in (0..2).flat_map(|l| (0..3).map(move |e| (l, e))) {
            let of = |(name, dense): &(String, String)| {
                changed(name, &desk.before(dense), &read(&desk.path("out"), &model, name), F)
            };
            let [gate, up, down] = matrices(&model, l, e).each_ref().map(of);
            assert_eq!(gate.len(), count);
            assert_eq!((&gate, &gate), (&up, &down), "layer {l}, expert {e}");
            sets.insert(gate);
        }
        assert_eq!(sets.len(), if count == 0 || count == F { 1 } else { 6 }, "{sets:?}");
        let norm = "model.layers.1.post_attention_layernorm.weight";
        assert_eq!(bits(&read(&desk.path("out"), &model, norm)), bits(&desk.before(norm)));
    }
}

/// Mean and deviation of some values, by two passes.
fn moments(values: &[f64]) -> [f64; 2] {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    [mean, (values.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n).sqrt()]
}

/// Within six standard errors of those of the dense matrix's same columns.
#[test]
fn new_columns_have_the_mean_and_the_deviation_of_the_old_ones() {
    const WIDTH: usize = 64;
    let desk = Desk::new(dense(LLAMA, 96, WIDTH), Dtype::F32);
    let Upcycled { model, .. } = desk.upcycle(&what(0.5), "out").unwrap();
    for (l, e) in [(0, 0), (0, 2), (1, 1)] {
        for (name, dense) in matrices(&model, l, e) {
            let (before, after) = (desk.before(&dense), read(&desk.path("out"), &model, &name));
            let columns = changed(&name, &before, &after, WIDTH);
            let places = (0..before.len()).filter(|&i| before[i].to_bits() != after[i].to_bits());
            let places: Vec<usize> = places.collect();
            let of = |all: &[f32]| moments(&places.iter().map(|&i| f64::from(all[i])).collect::<Vec<_>>());
            let ([mean, deviation], [new_mean, new_deviation]) = (of(&before), of(&after));
            let n = (columns.len() * 96) as f64;
            assert!((new_mean - mean).abs() < 6.0 * deviation / n.sqrt(), "{name}: mean {new_mean} for {mean}");
            let error = (new_deviation - deviation).abs();
            assert!(error < 6.0 * deviation / (2.0 * n).sqrt(), "{name}: deviation {new_deviation} for {deviation}");
        }
    }
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = directory::names(dir).unwrap();
    names.sort();
    names.into_iter().map(|name| (name.clone(), fs::read(dir.join(name)).unwrap())).collect()
}

#[test]
fn the_seed_decides() {
    let desk = Desk::new(small(LLAMA), Dtype::F32);
    let Upcycled { model, .. } = desk.upcycle(&what(0.5), "a").unwrap();
    desk.upcycle(&what(0.5), "b").unwrap();
    assert!(files(&desk.path("a")) == files(&desk.path("b")), "the same seed gives the same bytes");
    desk.upcycle(&Upcycle { seed: SEED + 1, ..what(0.5) }, "c").unwrap();
    let read = |dir: &str, name: &str| read(&desk.path(dir), &model, name);
    let [(gate, dense), ..] = matrices(&model, 0, 0);
    for name in ["model.layers.0.block_sparse_moe.gate.weight", &gate] {
        assert_ne!(read("a", name), read("c", name), "{name}");
    }
    let columns = |dir| changed(&gate, &desk.before(&dense), &read(dir, &gate), F);
    assert_ne!(columns("a"), columns("c"));
    let [(other, _), ..] = matrices(&model, 0, 1);
    assert_ne!(read("a", &gate), read("a", &other));
}

/// Single rows, single columns and corners, with columns that are summed in bands of one row, against whole tensors.
#[test]
fn bands_change_nothing() {
    let desk = Desk::new(small(QWEN3), Dtype::BF16);
    let (what, from) = (what(0.5), desk.path("dense"));
    let model = what.model(&desk.dense, &from).unwrap();
    let hf = HuggingFace::open(&from, &desk.dense).unwrap();
    let [whole, banded] = [BAND, 1].map(|band| Weights::new(&what, &hf, &desk.dense, &model, band));
    for tensor in all_tensors(&model) {
        let [rows, cols] = tensor.shape();
        let mut all = vec![0.0; rows * cols];
        whole.read(&tensor, &Rect::whole([rows, cols]), &mut all).unwrap();
        let row = (0..rows).map(|r| Rect { rows: r..r + 1, cols: 0..cols });
        let column = (0..cols).map(|c| Rect { rows: 0..rows, cols: c..c + 1 });
        let corner = [Rect { rows: rows / 3..rows, cols: cols / 4..cols - 1 }];
        for rect in row.chain(column).chain(corner) {
            let mut part = vec![0.0; rect.len()];
            banded.read(&tensor, &rect, &mut part).unwrap();
            let places = rect.rows.clone().flat_map(|r| rect.cols.clone().map(move |c| r * cols + c));
            let wanted: Vec<f32> = places.map(|i| all[i]).collect();
            assert_eq!(bits(&part), bits(&wanted), "{} {rect:?}", tensor.name);
        }
    }
}

#[test]
fn a_llamas_config_becomes_a_mixtrals() {
    let desk = Desk::new(small(LLAMA), Dtype::F16);
    // transformers ignores the window of a Llama's file.
    desk.set(json!({ "bos_token_id": 5, "eos_token_id": [6, 7], "sliding_window": 7, "pretraining_tp": 2,
        "use_cache": false, "auto_map": { "AutoModel": "theirs.py" }, "torch_dtype": "float16", "rope_theta": 5e5,
        "rope_parameters": null, "rope_scaling": { "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8 } }));
    let Upcycled { model, .. } = desk.upcycle(&what(0.0), "out").unwrap();
    assert_eq!(Model { hf: None, ..hf::read_model(&desk.path("out")).unwrap() }, model);
    let dense = hf::read_model(&desk.path("dense")).unwrap();
    let config = hf::read_source(&desk.path("out")).unwrap();
    let wanted = json!({ "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "bos_token_id": 5,
        "eos_token_id": [6, 7], "sliding_window": null, "use_cache": false, "torch_dtype": "float16",
        "dtype": "float16", "num_local_experts": 3, "num_experts_per_tok": 2, "intermediate_size": F, "head_dim": 4,
        "max_position_embeddings": 16, "rope_theta": 5e5, "tie_word_embeddings": false, "hidden_act": "silu",
        "initializer_range": 0.25 });
    for (key, value) in wanted.as_object().unwrap() {
        assert_eq!(config.get(key), Some(value), "{key}");
    }
    for key in ["pretraining_tp", "auto_map", "mlp_bias", "attention_bias", "layer_types"] {
        assert_eq!(config.get(key), None, "{key}");
    }
    assert_eq!((&model.rope_scaling, model.rope_theta), (&dense.rope_scaling, Some(5e5)));
    assert_eq!(model.layer(0), crate::config::Layer { feed_forward: model.layer(0).feed_forward, ..dense.layer(0) });
}

#[test]
fn a_qwens_config_becomes_a_qwens_with_experts() {
    let desk = Desk::new(small(QWEN3), Dtype::F32);
    for (fields, window) in [
        (json!({ "sliding_window": 5 }), AttentionKind::Full),
        (json!({ "use_sliding_window": true, "layer_types": null, "max_window_layers": 0 }), AttentionKind::Window(5)),
    ] {
        desk.set(fields);
        let Upcycled { model, .. } = desk.upcycle(&what(0.0), "out").unwrap();
        assert_eq!(Model { hf: None, ..hf::read_model(&desk.path("out")).unwrap() }, model);
        assert!(model.layers().all(|layer| layer.attention == window && layer.head_norms));
        let experts = model.layer(0).experts().unwrap();
        assert_eq!(experts.weights, crate::config::RouterWeights::OfChosen);
        assert_eq!((experts.count, experts.mlp.intermediate_size, model.head_dim), (3, F, 6));
        let config = hf::read_source(&desk.path("out")).unwrap();
        let wanted = json!({ "model_type": "qwen3_moe", "moe_intermediate_size": F, "intermediate_size": F,
            "num_experts": 3, "num_local_experts": 3, "norm_topk_prob": true, "decoder_sparse_step": 1,
            "mlp_only_layers": [], "head_dim": 6, "tie_word_embeddings": true });
        for (key, value) in wanted.as_object().unwrap() {
            assert_eq!(config.get(key), Some(value), "{key}");
        }
        assert_eq!((config.get("layer_types"), config.get("max_window_layers")), (None, None));
    }
}

#[test]
fn numbers_that_no_model_has_are_refused() {
    let desk = Desk::new(small(LLAMA), Dtype::F32);
    let sized = |experts, per_token| Upcycle { experts, per_token, ..what(0.0) };
    for (what, needles) in [
        (sized(0, 1), ["--experts 0", "1 ..= 4096"]),
        (sized(4, 0), ["--top-k 0", "1 ..= 4"]),
        (sized(4, 5), ["--top-k 5", "1 ..= 4"]),
        (sized(5000, 2), ["--experts 5000", "4096"]),
        (sized(100, 70), ["--top-k 70", "64"]),
        (what(f64::NAN), ["--reinit-ratio NaN", "between 0"]),
        (what(-0.1), ["--reinit-ratio -0.1", "between 0"]),
        (what(1.01), ["--reinit-ratio 1.01", "and 1"]),
        (what(0.04), ["--reinit-ratio 0.04", "one of 21 columns"]),
    ] {
        let message = desk.refusal(&what);
        assert!(needles.iter().all(|needle| message.contains(needle)), "{message}");
    }
    let message = desk.upcycle(&what(0.0), "dense").unwrap_err().to_string();
    assert!(message.contains("--output") && message.contains("--model"), "{message}");
    fs::create_dir(desk.path("full")).unwrap();
    fs::write(desk.path("full/thesis.txt"), "mine").unwrap();
    let message = desk.upcycle(&what(0.0), "full").unwrap_err().to_string();
    assert!(message.contains("not empty"), "{message}");
}

#[test]
fn models_that_cannot_be_upcycled_are_refused() {
    let refusal = |family: &str, fields: Value| {
        let desk = Desk::new(small(family), Dtype::F32);
        desk.set(fields);
        desk.refusal(&what(0.0))
    };
    let mixed = json!({ "use_sliding_window": true, "sliding_window": 5, "layer_types": null, "max_window_layers": 1 });
    let gemma = "architecture = \"gemma2\"\nsliding_window = 5\n";
    let moe = "architecture = \"mixtral\"\nnum_local_experts = 2\nnum_experts_per_tok = 1\n";
    for (family, fields, needles) in [
        ("architecture = \"llama\"\nattention_bias = true\n", json!({}), ["attention_bias = true", "without them"]),
        ("architecture = \"llama\"\nmlp_bias = true\n", json!({}), ["mlp_bias = true", "without them"]),
        (QWEN3, mixed, ["use_sliding_window = true: 1 of 2 layers", "layer_types of one kind"]),
        ("architecture = \"qwen2\"\n", json!({}), ["model_type = \"qwen2\"", "a qwen3"]),
        (gemma, json!({}), ["model_type = \"gemma2\"", "a qwen3"]),
        (moe, json!({}), ["model_type = \"mixtral\"", "experts already"]),
    ] {
        let message = refusal(family, fields);
        let named = needles.iter().chain(&["config.json"]).all(|needle| message.contains(needle));
        assert!(named, "{message}");
    }
}
