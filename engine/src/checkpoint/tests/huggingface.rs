//! Hugging Face checkpoints: exported, read, imported, and exported again.

use super::*;
use crate::checkpoint::export::export_in_shards;
use crate::model::stored::Form;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::json;
use std::collections::HashMap;
use std::fs;

fn tied() -> Model {
    Model { tie_word_embeddings: true, ..model() }
}

fn masters(tensor: &TensorSpec, rect: &Rect, out: &mut [f32]) -> crate::error::Result<()> {
    out.copy_from_slice(&state(tensor, StateKind::Master, rect));
    Ok(())
}

fn request(model: &Model, dtype: Dtype) -> Export<'_> {
    let (config, origin, checkpoint) = (json!({"model_type": "llama"}), "a test".into(), "none".into());
    Export { model, form: Form::PerExpert, config, dtype, files: Vec::new(), origin, checkpoint }
}

/// The small model in five files.
pub(super) fn export_small_shards(to: &Path) {
    export_in_shards(2500, &masters, &request(&model(), Dtype::F32), to, &mut |_| ()).unwrap();
}

type Tensors = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

/// The master weights of a model as f32 tensors.
fn tensors(model: &Model) -> Tensors {
    let bytes = |t: &TensorSpec| bytemuck::cast_slice(&state(t, StateKind::Master, &Rect::whole(t.shape()))).to_vec();
    all_tensors(model).iter().map(|t| (t.name.clone(), Dtype::F32, t.dims.clone(), bytes(t))).collect()
}

fn write(tensors: &Tensors, path: &Path) {
    let views = tensors.iter().map(|(n, t, d, b)| (n.clone(), TensorView::new(*t, d.clone(), b).unwrap()));
    let format = HashMap::from([("format".to_string(), "pt".to_string())]);
    serialize_to_file(views, Some(format), path).unwrap();
}

#[test]
fn an_export_is_the_file_that_the_library_writes() {
    for model in [model(), tied()] {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs.safetensors"));
        export(&masters, &request(&model, Dtype::F32), &ours, &mut |_| ()).unwrap();
        write(&tensors(&model), &theirs);
        assert_eq!(fs::read(ours.join("model.safetensors")).unwrap(), fs::read(theirs).unwrap());
        let hf = HuggingFace::open(&ours, &model).unwrap();
        assert_eq!(
            hf.read("lm_head.weight", &Rect::whole([23, 12]), &mut [0.0; 276]).is_err(),
            model.tie_word_embeddings
        );
    }
}

#[test]
fn shards_have_an_index_and_read_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let model = model();
    let to = dir.path().join("out");
    export_small_shards(&to);
    let hf = HuggingFace::open(&to, &model).unwrap();
    let mut files = 0;
    for tensor in all_tensors(&model) {
        let rect = Rect { rows: 0..tensor.shape()[0], cols: 3..11 };
        let mut out = vec![0.0; rect.len()];
        hf.read(&tensor.name, &rect, &mut out).unwrap();
        assert_eq!(bits(&out), bits(&state(&tensor, StateKind::Master, &rect)));
    }
    for entry in fs::read_dir(&to).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().ends_with(".safetensors") {
            files += 1;
            assert!(entry.metadata().unwrap().len() < 2500 + 1000);
        }
    }
    assert!(files == 5, "{files} files");
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(to.join("model.safetensors.index.json")).unwrap()).unwrap();
    let total: usize = all_tensors(&model).iter().map(|t| t.len() * 4).sum();
    assert_eq!(index["metadata"]["total_size"], total);
    assert_eq!(index["weight_map"]["lm_head.weight"], format!("model-{files:05}-of-{files:05}.safetensors"));
}

#[test]
fn bf16_rounds_to_nearest_even() {
    let dir = tempfile::tempdir().unwrap();
    let model = model();
    let values = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -1.001, f32::from_bits(0x7f7e_8000), 1e-40, 0.0];
    let read = |_: &TensorSpec, _: &Rect, out: &mut [f32]| {
        out.iter_mut().enumerate().for_each(|(i, out)| *out = values[i % 6]);
        Ok(())
    };
    let to = dir.path().join("bf16");
    export(&read, &request(&model, Dtype::BF16), &to, &mut |_| ()).unwrap();
    let mut out = [0.0; 6];
    let rect = Rect { rows: 0..1, cols: 0..6 };
    HuggingFace::open(&to, &model).unwrap().read("model.norm.weight", &rect, &mut out).unwrap();
    assert_eq!(
        out,
        [1.0, 1.0 + 4.0 / 256.0, -1.0, f32::from_bits(0x7f7e_0000), half::bf16::from_f32(1e-40).to_f32(), 0.0]
    );
}

#[test]
fn half_precision_is_widened() {
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = tensors(&model());
    let (i, j) = (0, 1);
    tensors[i].1 = Dtype::BF16;
    tensors[i].3 = (0..276u16).flat_map(|n| half::bf16::from_f32(n as f32).to_le_bytes()).collect();
    tensors[j].1 = Dtype::F16;
    tensors[j].3 = (0..144u16).flat_map(|n| half::f16::from_f32(n as f32 / 8.0).to_le_bytes()).collect();
    write(&tensors, &dir.path().join("model.safetensors"));
    let hf = HuggingFace::open(dir.path(), &model()).unwrap();
    let rect = Rect { rows: 1..3, cols: 10..12 };
    let mut out = [0.0; 4];
    hf.read(&tensors[i].0, &rect, &mut out).unwrap();
    assert_eq!(out, [22.0, 23.0, 34.0, 35.0]);
    hf.read(&tensors[j].0, &rect, &mut out).unwrap();
    assert_eq!(out, [22.0 / 8.0, 23.0 / 8.0, 34.0 / 8.0, 35.0 / 8.0]);
}

#[test]
fn a_tensor_that_does_not_fit_the_model_is_named() {
    type Change = fn(&mut Tensors);
    let cases: [(Model, Change, &str); 7] = [
        (model(), |t| drop(t.remove(3)), "model.layers.0.self_attn.v_proj.weight: missing"),
        (model(), |t| drop(t.drain(3..5)), "model.layers.0.self_attn.v_proj.weight and 1 more: missing"),
        (model(), |t| t[2].0 = "model.layers.0.self_attn.k_proj.bias".into(), "k_proj.weight: missing"),
        (
            Model { num_hidden_layers: 1, ..model() },
            |_| (),
            "model.layers.1.input_layernorm.weight and 8 more: not part of the model",
        ),
        (
            model(),
            |t| t[0].2 = vec![12, 23],
            "embed_tokens.weight: its shape is [12, 23]; by config.json it should be [23, 12]",
        ),
        (model(), |t| t[0].1 = Dtype::I32, "its dtype is I32"),
        (tied(), |_| (), "lm_head.weight differs from model.embed_tokens.weight"),
    ];
    for (model, change, message) in cases {
        let dir = tempfile::tempdir().unwrap();
        let mut tensors = tensors(&super::model());
        change(&mut tensors);
        write(&tensors, &dir.path().join("model.safetensors"));
        let what = refusal(HuggingFace::open(dir.path(), &model));
        assert!(what.contains(message), "{what}");
    }
}

/// Some tied checkpoints hold the shared weight as `lm_head.weight` only; transformers loads it as the embedding.
#[test]
fn a_tied_head_is_read_as_the_embedding() {
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = tensors(&tied());
    let embedding = tensors[0].0.clone();
    tensors[0].0 = "lm_head.weight".into();
    write(&tensors, &dir.path().join("model.safetensors"));
    let rect = Rect { rows: 2..5, cols: 1..9 };
    let mut out = vec![0.0; rect.len()];
    HuggingFace::open(dir.path(), &tied()).unwrap().read(&embedding, &rect, &mut out).unwrap();
    assert_eq!(bits(&out), bits(&state(&all_tensors(&tied())[0], StateKind::Master, &rect)));

    // Its shape is checked, and a model that is not tied still needs both.
    let what = refusal(HuggingFace::open(dir.path(), &Model { vocab_size: 24, ..tied() }));
    assert!(what.contains("its shape is [23, 12]"), "{what}");
    let what = refusal(HuggingFace::open(dir.path(), &model()));
    assert!(what.contains("model.embed_tokens.weight: missing"), "{what}");
}

#[test]
fn a_fingerprint_tells_checkpoints_apart() {
    let dir = tempfile::tempdir().unwrap();
    let fingerprint = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = tensors(&model());
        change(&mut tensors);
        write(&tensors, &dir.path().join("model.safetensors"));
        HuggingFace::open(dir.path(), &model()).unwrap().fingerprint().unwrap()
    };
    assert_eq!(fingerprint(&|_| ()), fingerprint(&|_| ()));
    assert_ne!(fingerprint(&|_| ()), fingerprint(&|tensors| tensors[0].3[7] ^= 1));
}

#[test]
fn tensors_of_older_versions_are_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = tensors(&tied());
    let head = ("lm_head.weight".to_string(), Dtype::F32, vec![23, 12], tensors[0].3.clone());
    let frequencies = ("model.layers.0.self_attn.rotary_emb.inv_freq".to_string(), Dtype::F32, vec![2], vec![0; 8]);
    tensors.extend([head, frequencies]);
    write(&tensors, &dir.path().join("model.safetensors"));
    HuggingFace::open(dir.path(), &tied()).unwrap();
}

#[test]
fn a_bad_index_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    assert!(refusal(HuggingFace::open(at, &model())).contains("neither model.safetensors nor"));
    write(&tensors(&model()), &at.join("a.safetensors"));
    let map = |text: &str| fs::write(at.join("model.safetensors.index.json"), text).unwrap();
    for (text, message) in [
        ("{", "not an index"),
        ("{\"weight_map\": {\"x\": \"../a.safetensors\"}}", "is not the name of a .safetensors file"),
        ("{\"weight_map\": {\"x\": \"b.safetensors\"}}", "b.safetensors"),
        ("{\"weight_map\": {\"x\": \"a.safetensors\"}}", "x is not in a.safetensors, where the index has it"),
    ] {
        map(text);
        let what = refusal(HuggingFace::open(at, &model()));
        assert!(what.contains(message), "{what}");
    }
    fs::copy(at.join("a.safetensors"), at.join("b.safetensors")).unwrap();
    map("{\"weight_map\": {\"lm_head.weight\": \"a.safetensors\", \"model.norm.weight\": \"b.safetensors\"}}");
    assert!(refusal(HuggingFace::open(at, &model())).contains("both a.safetensors and b.safetensors have"));
}

#[test]
fn an_export_replaces_only_an_export() {
    let dir = tempfile::tempdir().unwrap();
    let (model, to) = (model(), dir.path().join("out"));
    let run = || export(&masters, &request(&model, Dtype::F32), &to, &mut |_| ());
    fs::create_dir(&to).unwrap();
    run().unwrap();
    run().unwrap();
    let failing = |_: &TensorSpec, _: &Rect, _: &mut [f32]| Err(Error::user("torn"));
    assert_eq!(refusal(export(&failing, &request(&model, Dtype::F32), &to, &mut |_| ())), "torn");
    HuggingFace::open(&to, &model).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    fs::write(to.join("README.md"), "the user's").unwrap();
    assert!(refusal(run()).contains("would delete README.md, which no export wrote"));
    fs::remove_file(to.join("README.md")).unwrap();
    run().unwrap();
    fs::remove_file(to.join("swallow_engine.json")).unwrap();
    assert!(refusal(run()).contains("not empty and not an earlier export"));
}

/// Imports the checkpoint in `from`, then exports it from the run.
fn round_trip(from: &Path, model: &Model, dtype: Dtype) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (run, to) = (dir.path().join("run"), dir.path().join("out"));
    let step = import(from, &run, model, &header(0), &mut |_| ()).unwrap();
    assert!(refusal(import(from, &run, model, &header(0), &mut |_| ())).contains("has a checkpoint already"));
    let saved = Saved::open(&step).unwrap();
    let read = |t: &TensorSpec, rect: &Rect, out: &mut [f32]| saved.read(&t.name, StateKind::Master, rect, out);
    let config = source::config(saved.run().unwrap()).unwrap().unwrap().into();
    let files = source::files(&run);
    export(&read, &Export { config, files, ..request(model, dtype) }, &to, &mut |_| ()).unwrap();
    (dir, to)
}

#[test]
fn imported_and_exported_bit_for_bit() {
    for model in [model(), tied()] {
        let dir = tempfile::tempdir().unwrap();
        write(&tensors(&model), &dir.path().join("model.safetensors"));
        fs::write(dir.path().join("config.json"), "{\"field\": \"of another program\"}").unwrap();
        fs::write(dir.path().join("tokenizer.model"), "pieces").unwrap();
        fs::write(dir.path().join("README.md"), "not ours").unwrap();
        let (_keep, to) = round_trip(dir.path(), &model, Dtype::F32);
        for (name, same) in [("model.safetensors", true), ("tokenizer.model", true), ("README.md", false)] {
            assert_eq!(fs::read(to.join(name)).ok(), fs::read(dir.path().join(name)).ok().filter(|_| same), "{name}");
        }
        assert!(fs::read_to_string(to.join("config.json")).unwrap().contains("of another program"));
    }
}

#[test]
fn a_real_model_goes_in_and_out_bit_for_bit() {
    let from = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/stories260K/hf"));
    if !from.exists() {
        return eprintln!("skipped: {} does not exist", from.display());
    }
    let shape = Model {
        hidden_size: 64,
        intermediate_size: 172,
        num_hidden_layers: 5,
        num_attention_heads: 8,
        num_key_value_heads: 4,
        head_dim: 8,
        vocab_size: 512,
        max_position_embeddings: 512,
        ..tied()
    };
    let (_keep, to) = round_trip(from, &shape, Dtype::F32);
    for name in ["model.safetensors", "tokenizer.model", "generation_config.json"] {
        assert!(fs::read(to.join(name)).unwrap() == fs::read(from.join(name)).unwrap(), "{name} differs");
    }
}
