//! Checkpoints with packed experts: exported, read, imported and exported again.

use super::*;
use crate::checkpoint::tensors::TensorFile;
use crate::config::{Precision, hf};
use crate::model::param_specs::{ExpertShare, tensors, units, with_experts};
use crate::model::stored::Form;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;

/// Of each tensor: dtype, dimensions, bytes.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn model(architecture: &str, more: &str) -> Model {
    let text = format!(
        "[model]\narchitecture = \"{architecture}\"\nnum_hidden_layers = 2\nnum_attention_heads = 3\nvocab_size = 23\n\
         max_position_embeddings = 16\nhead_dim = 4\nnum_key_value_heads = 3\nnum_local_experts = 4\n\
         num_experts_per_tok = 2\nrope_theta = 10000.0\nrms_norm_eps = 1e-5\n{more}"
    );
    Model::from_toml(architecture.into(), &text).unwrap()
}

fn mixtral() -> Model {
    model("mixtral", "hidden_size = 9\nintermediate_size = 5\n")
}

fn qwen() -> Model {
    let more = "hidden_size = 9\nintermediate_size = 7\nmoe_intermediate_size = 5\ndecoder_sparse_step = 2\n";
    model("qwen3_moe", more)
}

fn gpt_oss() -> Model {
    let more = "hidden_size = 64\nintermediate_size = 32\nsliding_window = 8\nattention_bias = true\n";
    model("gpt_oss", more)
}

fn masters(tensor: &TensorSpec, rect: &Rect, out: &mut [f32]) -> crate::error::Result<()> {
    out.copy_from_slice(&state(tensor, StateKind::Master, rect));
    Ok(())
}

/// Exports the model's state in a form, with its `config.json`.
fn write(model: &Model, form: Form, to: &Path) {
    let config = hf::config_json(model, None, Precision::F32);
    let (origin, checkpoint, dtype) = ("a test".into(), "none".into(), safetensors::tensor::Dtype::F32);
    let what = Export { model, config, dtype, files: Vec::new(), origin, checkpoint };
    export_as(form, &masters, &what, to, &mut |_| ()).unwrap();
}

fn read_all(dir: &Path) -> Tensors {
    let file = TensorFile::open(&dir.join("model.safetensors")).unwrap();
    let tensor = |name: String| {
        let info = file.info(&name).unwrap();
        let mut bytes = vec![0; info.data_offsets.1 - info.data_offsets.0];
        file.read_bytes(info, 0, &mut bytes).unwrap();
        (name, (info.dtype, info.shape.clone(), bytes))
    };
    file.names().into_iter().map(tensor).collect()
}

fn write_all(tensors: &Tensors, dir: &Path) {
    let views = tensors.iter().map(|(n, (t, d, b))| (n.clone(), TensorView::new(*t, d.clone(), b).unwrap()));
    serialize_to_file(views, None::<HashMap<String, String>>, &dir.join("model.safetensors")).unwrap();
}

/// Imports a directory and exports it from the run, as the dtype or as that of the source.
fn through_a_run(from: &Path, model: &Model, dtype: Option<Precision>) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let header = Header { config: model.to_toml(), ..header(0) };
    let step = import(from, &dir.path().join("run"), model, &header, &mut |_| ()).unwrap();
    let to = dir.path().join("out");
    FromSaved::new(Saved::open(&step).unwrap(), dtype).unwrap().write(&to, &mut |_| ()).unwrap();
    (dir, to)
}

#[test]
fn what_came_packed_is_exported_packed() {
    for model in [mixtral(), qwen(), gpt_oss()] {
        for form in [Form::PerExpert, Form::Packed] {
            let dir = tempfile::tempdir().unwrap();
            write(&model, form, dir.path());
            let (run, to) = through_a_run(dir.path(), &model, None);
            for name in ["model.safetensors", "config.json"] {
                assert_eq!(
                    fs::read(to.join(name)).unwrap(),
                    fs::read(dir.path().join(name)).unwrap(),
                    "{name} {form:?}"
                );
            }
            let packed = read_all(&to).contains_key("model.layers.1.mlp.experts.gate_up_proj");
            assert_eq!(packed, form == Form::Packed || model == gpt_oss());
            // A later export of the run, of another checkpoint.
            let again = run.path().join("run/exports/step-00000002");
            let pieces = all_tensors(&model).into_iter().map(|t| piece(&t, StateKind::Master, Rect::whole(t.shape())));
            let header = Header { config: model.to_toml(), ..header(2) };
            let options = Options { export_interval: 2, ..Options::default() };
            saver_with(&run.path().join("run"), &Solo, options).save(&Solo, &header, pieces.map(Ok)).unwrap();
            assert_eq!(read_all(&again), read_all(dir.path()), "{form:?}");
        }
    }
}

/// The engine's own checkpoints are the same whatever form the source has, and so is what any rank reads.
#[test]
fn a_packed_model_is_the_same_model() {
    for model in [mixtral(), qwen()] {
        let [one, packed] = [Form::PerExpert, Form::Packed].map(|form| {
            let dir = tempfile::tempdir().unwrap();
            write(&model, form, dir.path());
            let hf = HuggingFace::open(dir.path(), &model).unwrap();
            assert_eq!(hf.form(), form);
            (dir, hf)
        });
        assert_ne!(read_all(one.0.path()), read_all(packed.0.path()));
        for (rank, ranks, tp) in [(0, 1, 1), (1, 2, 3), (3, 4, 2)] {
            let units = units(&model).into_iter().flat_map(|unit| with_experts(&model, unit));
            for tensor in units.flat_map(|unit| tensors(&model, unit, ExpertShare { rank, ranks })) {
                for rect in (0..tp).map(|rank| tensor.held(rank, tp)) {
                    for (_, hf) in [&one, &packed] {
                        let mut out = vec![0.0; rect.len()];
                        hf.read_parameter(&tensor, &rect, &mut out).unwrap();
                        assert_eq!(bits(&out), bits(&state(&tensor, StateKind::Master, &rect)), "{}", tensor.name);
                    }
                }
            }
        }
    }
}

#[test]
fn both_forms_at_once_are_refused() {
    let [one, packed] = [Form::PerExpert, Form::Packed].map(|form| {
        let dir = tempfile::tempdir().unwrap();
        write(&mixtral(), form, dir.path());
        read_all(dir.path())
    });
    let dir = tempfile::tempdir().unwrap();
    let try_with = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = packed.clone();
        change(&mut tensors);
        write_all(&tensors, dir.path());
        HuggingFace::open(dir.path(), &mixtral())
    };
    let w3 = "model.layers.1.block_sparse_moe.experts.2.w3.weight";
    let what = refusal(try_with(&|tensors| drop(tensors.insert(w3.into(), one[w3].clone()))));
    let folder = dir.path().display();
    let expected = format!(
        "{folder}: it has {w3}, of a form with tensors for each expert, and model.layers.0.mlp.gate.weight, of packed \
         experts; keep the files of one of the two forms"
    );
    assert_eq!(what, expected);
    let down = "model.layers.1.mlp.experts.down_proj";
    let what = refusal(try_with(&|tensors| drop(tensors.remove(down))));
    assert!(what.contains(&format!("{folder}: {down}: missing")), "{what}");
    let what = refusal(try_with(&|tensors| tensors.get_mut(down).unwrap().1 = vec![4, 5, 9]));
    assert!(what.contains("its shape is [4, 5, 9]; by config.json it should be [4, 9, 5]"), "{what}");
    try_with(&|_| ()).unwrap();
}

/// transformers wrote the file.
#[test]
fn a_gpt_oss_of_transformers_goes_in_and_out() {
    let from = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/gpt_oss/init"));
    let model = hf::read_model(from).unwrap();
    let (_keep, to) = through_a_run(from, &model, None);
    assert_eq!(read_all(&to), read_all(from));
    let json = |dir: &Path| serde_json::from_slice::<Value>(&fs::read(dir.join("config.json")).unwrap()).unwrap();
    assert_eq!(json(&to), json(from));
}
