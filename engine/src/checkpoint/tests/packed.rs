//! Checkpoints with packed experts, and with MXFP4: exported, read, imported and exported again.

use super::*;
use crate::checkpoint::tensors::TensorFile;
use crate::config::{Precision, hf};
use crate::model::param_specs::{ExpertShare, tensors, units, with_experts};
use crate::model::stored::{Form, file_tensors};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;

/// The dtype, dimensions and bytes of each tensor, by name.
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
    let what = Export { model, form, config, dtype, files: Vec::new(), origin, checkpoint };
    export(&masters, &what, to, &mut |_| ()).unwrap();
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
        "{folder}: it has experts in two forms, packed (model.layers.0.mlp.experts.gate_up_proj) and one by one \
         ({w3}); save the model again in one of them"
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

/// Makes the packed matrices of a file MXFP4, of random bytes, and returns their values by the format's definition.
fn quantized(tensors: &mut Tensors) -> BTreeMap<String, Vec<f32>> {
    let packed: Vec<_> =
        tensors.iter().filter(|(_, (_, dims, _))| dims.len() == 3).map(|(n, t)| (n.clone(), t.1.clone())).collect();
    let mut values = BTreeMap::new();
    for (name, dims) in packed {
        let &[experts, inputs, features] = &dims[..] else { unreachable!() };
        let mut random = blake3::Hasher::new().update(name.as_bytes()).finalize_xof();
        let mut blocks = vec![0; experts * features * inputs / 2];
        random.fill(&mut blocks);
        let mut scales = vec![0; blocks.len() / 16];
        random.fill(&mut scales);
        scales.iter_mut().for_each(|scale| *scale = 120 + *scale % 8);
        let number = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0f32];
        let at = |e: usize, input: usize, feature: usize| {
            let i = (e * features + feature) * inputs + input;
            let code = blocks[i / 2] >> (4 * (i % 2)) & 15;
            let sign = if code < 8 { 1.0 } else { -1.0 };
            sign * number[code as usize % 8] * f32::powi(2.0, scales[i / 32] as i32 - 127)
        };
        let each = (0..experts).flat_map(|e| (0..inputs).flat_map(move |i| (0..features).map(move |f| (e, i, f))));
        values.insert(name.clone(), each.map(|(e, i, f)| at(e, i, f)).collect());
        tensors.remove(&name);
        let groups = inputs / 32;
        tensors.insert(format!("{name}_blocks"), (Dtype::U8, vec![experts, features, groups, 16], blocks));
        tensors.insert(format!("{name}_scales"), (Dtype::U8, vec![experts, features, groups], scales));
    }
    values
}

/// The small GPT-OSS in MXFP4, with the fields of a published `config.json`, and the values of its experts.
fn published(dir: &Path) -> BTreeMap<String, Vec<f32>> {
    write(&gpt_oss(), Form::PerExpert, dir);
    let mut tensors = read_all(dir);
    let values = quantized(&mut tensors);
    write_all(&tensors, dir);
    let mut config = hf::read_source(dir).unwrap();
    config.retain(|key, _| !key.ends_with("dtype"));
    let method = json!({ "quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"] });
    config.insert("quantization_config".into(), method);
    fs::write(dir.join("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    values
}

#[test]
fn mxfp4_is_read_by_every_rank() {
    let dir = tempfile::tempdir().unwrap();
    let (values, model) = (published(dir.path()), hf::read_model(dir.path()).unwrap());
    assert_eq!(model.layers().collect::<Vec<_>>(), gpt_oss().layers().collect::<Vec<_>>());
    let hf = HuggingFace::open(dir.path(), &model).unwrap();
    let mut quantized = 0;
    for (rank, ranks, tp) in [(0, 1, 1), (1, 2, 2), (3, 4, 3)] {
        let units = units(&model).into_iter().flat_map(|unit| with_experts(&model, unit));
        for tensor in units.flat_map(|unit| tensors(&model, unit, ExpertShare { rank, ranks })) {
            let Some(values) = values.get(&tensor.in_file(Form::PerExpert).name) else { continue };
            let width = tensor.in_file(Form::PerExpert).shape()[1];
            for rect in (0..tp).map(|rank| tensor.held(rank, tp)) {
                let (mut got, mut want) = (vec![0.0; rect.len()], vec![0.0; rect.len()]);
                hf.read_parameter(&tensor, &rect, &mut got).unwrap();
                let read = |_: &str, rect: &Rect, out: &mut [f32]| {
                    out.iter_mut().zip(elements(rect, width)).for_each(|(out, at)| *out = values[at]);
                    Ok(())
                };
                tensor.read_stored(Form::PerExpert, &rect, &mut want, read).unwrap();
                assert_eq!(got, want, "{} {rect:?}", tensor.name);
                quantized += 1;
            }
        }
    }
    // Three matrices an expert and layer.
    assert_eq!(quantized, 2 * 3 * (4 + 2 * 2 + 3));
}

#[test]
fn mxfp4_is_exported_dequantized() {
    let dir = tempfile::tempdir().unwrap();
    let values = published(dir.path());
    let model = hf::read_model(dir.path()).unwrap();
    for (dtype, stored) in [(None, Dtype::BF16), (Some(Precision::F32), Dtype::F32)] {
        let (_keep, to) = through_a_run(dir.path(), &model, dtype);
        let (tensors, config) = (read_all(&to), hf::read_source(&to).unwrap());
        assert!(!config.contains_key("quantization_config"));
        assert_eq!(hf::dtype_of(&config), dtype.is_none().then_some("bfloat16"));
        let names: Vec<_> = file_tensors(&model, Form::PerExpert).into_iter().map(|file| file.spec.name).collect();
        assert!(names.len() == tensors.len() && names.iter().all(|name| tensors.contains_key(name)));
        for (name, want) in &values {
            let (dtype, _, bytes) = &tensors[name];
            let wide = |pair: &[u8]| half::bf16::from_le_bytes([pair[0], pair[1]]).to_f32();
            let got: Vec<f32> = match dtype {
                Dtype::F32 => bytemuck::pod_collect_to_vec(bytes),
                _ => bytes.chunks_exact(2).map(wide).collect(),
            };
            assert_eq!((*dtype, &got), (stored, want), "{name}");
        }
    }
}

#[test]
fn bad_blocks_are_named() {
    let dir = tempfile::tempdir().unwrap();
    published(dir.path());
    let (model, good) = (gpt_oss(), read_all(dir.path()));
    let name = "model.layers.1.mlp.experts.down_proj";
    let [blocks, scales] = [format!("{name}_blocks"), format!("{name}_scales")];
    let refused = |model: &Model, change: &dyn Fn(&mut Tensors)| {
        let mut tensors = good.clone();
        change(&mut tensors);
        write_all(&tensors, dir.path());
        refusal(HuggingFace::open(dir.path(), model))
    };
    let is = |what: String, expected: &str| {
        assert!(what.starts_with(&format!("{}: {expected}", dir.path().display())), "{what}")
    };
    let at = |tensors: &mut Tensors, name: &str, dims: &[usize]| tensors.get_mut(name).unwrap().1 = dims.to_vec();
    is(refused(&model, &|t| drop(t.remove(&scales))), &format!("{blocks}: {scales} is missing, which belongs to it"));
    is(refused(&model, &|t| drop(t.remove(&blocks))), &format!("{scales}: {blocks} is missing, which belongs to it"));
    is(
        refused(&model, &|t| t.retain(|name, _| name != &blocks && name != &scales)),
        &format!("{name}: missing; take the config.json"),
    );
    is(
        refused(&model, &|t| drop(t.insert(name.into(), (Dtype::BF16, vec![1], vec![0; 2])))),
        &format!("{blocks}: {name} is there, too"),
    );
    is(
        refused(&model, &|t| at(t, &blocks, &[4, 64, 16])),
        &format!("{blocks}: its shape is [4, 64, 16]; by config.json it should be [4, 64, 1, 16]"),
    );
    is(
        refused(&model, &|t| at(t, &scales, &[4, 1, 64])),
        &format!("{scales}: its shape is [4, 1, 64]; by config.json it should be [4, 64, 1]"),
    );
    is(
        refused(&model, &|t| t.get_mut(&scales).unwrap().0 = Dtype::I8),
        &format!("{scales}: its dtype is I8; it must be U8"),
    );
    let odd = Model { hidden_size: 33, ..model.clone() };
    let first = "model.layers.0.mlp.experts.gate_up_proj_blocks";
    is(refused(&odd, &|_| ()), &format!("{first}: a block has 32 inputs, which do not divide the 33 of config.json"));
    // Values that are infinite by their scale.
    let mut tensors = good.clone();
    let (_, _, bytes) = tensors.get_mut(&scales).unwrap();
    bytes[2 * 64 + 7] = 255;
    write_all(&tensors, dir.path());
    let hf = HuggingFace::open(dir.path(), &model).unwrap();
    let down = all_tensors(&model).into_iter().find(|t| t.name == "model.layers.1.mlp.experts.2.down_proj.weight");
    let (down, rect) = (down.unwrap(), Rect { rows: 5..64, cols: 1..32 });
    let what = refusal(hf.read_parameter(&down, &rect, &mut vec![0.0; rect.len()]));
    assert!(what.contains(&format!("{scales}: ")) && what.contains(" in row 135, column "), "{what}");
}
