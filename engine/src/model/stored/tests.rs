//! Every form of every family: tensors, rows of files made of parameters, and rectangles of parameters read from them.

use super::*;
use crate::model::init;
use crate::model::param_specs::{ExpertShare, TpShard, tensors, units, with_experts};
use std::collections::BTreeMap;

const SIZES: &str = "num_hidden_layers = 2\nnum_attention_heads = 3\nvocab_size = 23\nmax_position_embeddings = 16\n";

fn model(architecture: &str, more: &str) -> Model {
    let text = format!("[model]\narchitecture = \"{architecture}\"\n{SIZES}{more}");
    Model::from_toml(architecture.into(), &text).unwrap()
}

fn gpt() -> Model {
    let more = "hidden_size = 12\nintermediate_size = 20\nlayer_norm_epsilon = 1e-5\ntie_word_embeddings = true\n";
    model("gpt2", more)
}

/// Odd sizes: 4 experts of 5 features for 9 inputs.
fn with_these_experts(architecture: &str, more: &str) -> Model {
    let sizes = "hidden_size = 9\nhead_dim = 4\nnum_key_value_heads = 3\nnum_local_experts = 4\n\
        num_experts_per_tok = 2\nrope_theta = 10000.0\nrms_norm_eps = 1e-5\n";
    model(architecture, &format!("{sizes}{more}"))
}

fn mixtral() -> Model {
    with_these_experts("mixtral", "intermediate_size = 5\n")
}

/// The first layer is dense.
fn qwen() -> Model {
    with_these_experts("qwen3_moe", "intermediate_size = 7\nmoe_intermediate_size = 5\ndecoder_sparse_step = 2\n")
}

fn gpt_oss() -> Model {
    with_these_experts("gpt_oss", "intermediate_size = 5\nsliding_window = 8\nattention_bias = true\n")
}

fn cases() -> Vec<(Model, Form)> {
    let experts = [mixtral(), qwen(), gpt_oss()].into_iter();
    let experts = experts.flat_map(|model| [(model.clone(), Form::PerExpert), (model, Form::Packed)]);
    [(Model::tiny(), Form::PerExpert), (gpt(), Form::PerExpert)].into_iter().chain(experts).collect()
}

/// Names and dimensions of the tensors of a file.
fn listed(model: &Model, form: Form) -> BTreeMap<String, Vec<usize>> {
    let files = file_tensors(model, form);
    let names: BTreeMap<_, _> = files.iter().map(|file| (file.spec.name.clone(), file.spec.dims.clone())).collect();
    assert_eq!(names.len(), files.len(), "a name is there twice");
    names
}

fn assert_has(names: &BTreeMap<String, Vec<usize>>, prefix: &str, expected: &[(&str, &[usize])]) {
    for (name, dims) in expected {
        assert_eq!(names.get(&format!("{prefix}{name}")).map(Vec::as_slice), Some(*dims), "{name} in {names:?}");
    }
}

#[test]
fn a_file_has_its_own_tensors() {
    let names = listed(&gpt(), Form::PerExpert);
    assert_has(&names, "transformer.", &[("wte.weight", &[23, 12]), ("wpe.weight", &[16, 12])]);
    let layer: [(&str, &[usize]); 5] = [
        ("attn.c_attn.weight", &[12, 36]),
        ("attn.c_attn.bias", &[36]),
        ("mlp.c_fc.weight", &[12, 20]),
        ("mlp.c_proj.weight", &[20, 12]),
        ("ln_2.bias", &[12]),
    ];
    assert_has(&names, "transformer.h.1.", &layer);
    assert_eq!(names.len(), 2 + 2 * 12 + 2);
    let llama = file_tensors(&Model::tiny(), Form::Packed);
    assert!(llama.iter().all(|file| file.parts == [file.spec.clone()]));
}

#[test]
fn experts_are_packed_or_not() {
    let packed: [(&str, &[usize]); 3] = [
        ("mlp.gate.weight", &[4, 9]),
        ("mlp.experts.gate_up_proj", &[4, 10, 9]),
        ("mlp.experts.down_proj", &[4, 9, 5]),
    ];
    let own: [(&str, &[usize]); 3] =
        [("gate.weight", &[4, 9]), ("experts.3.w3.weight", &[5, 9]), ("experts.0.w2.weight", &[9, 5])];
    assert_has(&listed(&mixtral(), Form::PerExpert), "model.layers.1.block_sparse_moe.", &own);
    assert_has(&listed(&mixtral(), Form::Packed), "model.layers.1.", &packed);
    assert_has(&listed(&qwen(), Form::Packed), "model.layers.1.", &packed);
    assert_has(&listed(&qwen(), Form::Packed), "model.layers.0.", &[("mlp.gate_proj.weight", &[7, 9])]);
    let tensors = |model: &Model, form| listed(model, form).len();
    assert_eq!(tensors(&mixtral(), Form::PerExpert) - tensors(&mixtral(), Form::Packed), 2 * (3 * 4 - 2));
    assert_eq!(tensors(&qwen(), Form::PerExpert) - tensors(&qwen(), Form::Packed), 3 * 4 - 2);
    let oss: [(&str, &[usize]); 6] = [
        ("router.weight", &[4, 9]),
        ("router.bias", &[4]),
        ("experts.gate_up_proj", &[4, 9, 10]),
        ("experts.gate_up_proj_bias", &[4, 10]),
        ("experts.down_proj", &[4, 5, 9]),
        ("experts.down_proj_bias", &[4, 9]),
    ];
    for form in [Form::PerExpert, Form::Packed] {
        assert_has(&listed(&gpt_oss(), form), "model.layers.0.mlp.", &oss);
    }
}

/// The equations of the families, written down once more: of element `[i, j]` of a parameter of expert e.
#[test]
fn elements_lie_where_the_families_have_them() {
    let (e, d, f) = (2, 9, 5);
    let stacked = |gate: usize| move |i: usize, j: usize| (e * 2 * f + gate * f + i) * d + j;
    let alternating = |up: usize| move |i: usize, j: usize| (e * d + j) * 2 * f + 2 * i + up;
    type Index<'a> = &'a dyn Fn(usize, usize) -> usize;
    let cases: [(Model, &str, Index); 8] = [
        (mixtral(), "block_sparse_moe.experts.2.w1.weight", &stacked(0)),
        (mixtral(), "block_sparse_moe.experts.2.w3.weight", &stacked(1)),
        (qwen(), "mlp.experts.2.down_proj.weight", &|i, j| (e * d + i) * f + j),
        (gpt_oss(), "mlp.experts.2.gate_proj.weight", &alternating(0)),
        (gpt_oss(), "mlp.experts.2.up_proj.weight", &alternating(1)),
        (gpt_oss(), "mlp.experts.2.down_proj.weight", &|i, j| (e * f + j) * d + i),
        (gpt_oss(), "mlp.experts.2.up_proj.bias", &|_, i| e * 2 * f + 2 * i + 1),
        (gpt_oss(), "mlp.experts.2.down_proj.bias", &|_, i| e * d + i),
    ];
    for (model, name, index) in cases {
        let name = format!("model.layers.1.{name}");
        let part = all_tensors(&model).into_iter().find(|part| part.name == name).unwrap();
        let rect = Rect::whole(part.shape());
        let mut got = vec![0.0; rect.len()];
        let width = part.in_file(Form::Packed).shape()[1];
        let numbered = |_: &str, rect: &Rect, out: &mut [f32]| {
            out.iter_mut().zip(elements(rect, width)).for_each(|(out, at)| *out = at as f32);
            Ok(())
        };
        part.read_stored(Form::Packed, &rect, &mut got, numbered).unwrap();
        let want = rect.rows.flat_map(|i| rect.cols.clone().map(move |j| (i, j))).map(|(i, j)| index(i, j) as f32);
        assert!(want.eq(got), "{name}");
    }
}

/// The indices of a rectangle's elements in a matrix of this width.
fn elements(rect: &Rect, width: usize) -> impl Iterator<Item = usize> {
    let cols = rect.cols.clone();
    rect.rows.clone().flat_map(move |row| cols.clone().map(move |col| row * width + col))
}

/// Values of a parameter by its name.
fn fill(spec: &TensorSpec, rect: &Rect, out: &mut [f32]) -> Result<()> {
    let mut whole = vec![0.0; spec.len()];
    init::normal(3, &spec.name, 1.0, 0, &mut whole);
    out.iter_mut().zip(elements(rect, spec.shape()[1])).for_each(|(out, at)| *out = whole[at]);
    Ok(())
}

/// A file's tensor, written in bands of this many rows.
fn written(file: &FileTensor, band: usize) -> Vec<f32> {
    let [rows, cols] = file.spec.shape();
    let mut all = vec![f32::NAN; rows * cols];
    for (i, out) in all.chunks_mut(band * cols).enumerate() {
        let rect = Rect { rows: i * band..i * band + out.len() / cols, cols: 0..cols };
        file.read_rows(&rect, out, fill).unwrap();
    }
    all
}

fn assert_reads(file: &FileTensor, all: &[f32], part: &TensorSpec, rect: &Rect) {
    let (mut got, mut want) = (vec![0.0; rect.len()], vec![0.0; rect.len()]);
    let whole = Rect::whole(file.spec.shape());
    let read = |name: &str, rect: &Rect, out: &mut [f32]| {
        assert_eq!(name, file.spec.name);
        assert_eq!(rect.intersect(&whole), *rect, "{name}");
        out.iter_mut().zip(elements(rect, whole.cols.end)).for_each(|(out, at)| *out = all[at]);
        Ok(())
    };
    part.read_stored(file.form, rect, &mut got, read).unwrap();
    fill(part, rect, &mut want).unwrap();
    assert_eq!(got, want, "{} {rect:?}", part.name);
}

/// Rows of the file are made of parameters in bands of any size, and rectangles of parameters are read from it again.
#[test]
fn parameters_are_read_back_from_the_file_that_holds_them() {
    for (model, form) in cases() {
        for file in file_tensors(&model, form) {
            let rows = file.spec.shape()[0];
            let all = written(&file, rows);
            assert!(all.iter().all(|x| x.is_finite()), "{} has gaps", file.spec.name);
            for band in [1, 2, 4, 7, 11, rows - 1].into_iter().filter(|band| (1..rows).contains(band)) {
                assert_eq!(written(&file, band), all, "{} in bands of {band}", file.spec.name);
            }
            for part in &file.parts {
                let [rows, width] = part.shape();
                let rect = Rect { rows: rows / 3..rows, cols: width / 4..width };
                assert_reads(&file, &all, part, &Rect::whole(part.shape()));
                assert_reads(&file, &all, part, &rect);
                assert_reads(&file, &all, part, &Rect { cols: rect.cols.start..rect.cols.start, ..rect });
            }
        }
    }
}

/// Each expert-parallel and tensor-parallel rank reads the rectangles that it holds, whole and in slices of a bucket.
#[test]
fn ranks_read_their_own_experts_rows_and_columns() {
    for (model, form) in cases() {
        let files: Vec<_> = file_tensors(&model, form).into_iter().map(|file| (written(&file, 3), file)).collect();
        let all_units = || units(&model).into_iter().flat_map(|unit| with_experts(&model, unit));
        for (expert_ranks, tp) in [(1, 2), (2, 1), (4, 3)] {
            let mut seen = Vec::new();
            for rank in 0..expert_ranks {
                let share = ExpertShare { rank, ranks: expert_ranks };
                for part in all_units().flat_map(|unit| tensors(&model, unit, share)) {
                    let (all, file) = files.iter().find(|(_, file)| file.parts.contains(&part)).unwrap();
                    let held = (0..tp).map(|rank| part.held(rank, tp)).filter(|held| !held.is_empty());
                    for held in held {
                        assert!(part.tp_shard != TpShard::Cols || held.cols.len() < part.shape()[1] || tp == 1);
                        assert_reads(file, all, &part, &held);
                        let cut = held.len() / 3..held.len() - held.len() / 4;
                        held.slice(cut).iter().for_each(|(_, rect)| assert_reads(file, all, &part, rect));
                    }
                    seen.push(part.name);
                }
            }
            seen.sort();
            seen.dedup();
            assert_eq!(seen.len(), all_tensors(&model).len());
        }
    }
}

/// A band asks only for the experts in it.
#[test]
fn a_band_touches_the_experts_in_it() {
    for (model, rows) in [(mixtral(), 10), (gpt_oss(), 9)] {
        let files = file_tensors(&model, Form::Packed);
        let file = files.iter().find(|file| file.spec.name.ends_with("layers.1.mlp.experts.gate_up_proj")).unwrap();
        let asked = std::cell::RefCell::new(Vec::new());
        let rect = Rect { rows: 2 * rows + 1..3 * rows - 1, cols: 0..file.spec.shape()[1] };
        let read = |part: &TensorSpec, rect: &Rect, _: &mut [f32]| {
            asked.borrow_mut().push((part.name.clone(), rect.len()));
            Ok(())
        };
        file.read_rows(&rect, &mut vec![0.0; rect.len()], read).unwrap();
        let asked = asked.into_inner();
        assert!(asked.len() == 2 && asked.iter().all(|(name, _)| name.contains("experts.2.")), "{asked:?}");
        assert_eq!(asked.iter().map(|(_, len)| len).sum::<usize>(), rect.len());
    }
}

#[test]
fn the_form_is_found_from_the_names() {
    for model in [mixtral(), qwen()] {
        let names = |form| listed(&model, form);
        let (one, packed) = (names(Form::PerExpert), names(Form::Packed));
        assert_eq!(Form::of(&model, |name| one.contains_key(name)), Ok(Form::PerExpert));
        assert_eq!(Form::of(&model, |name| packed.contains_key(name)), Ok(Form::Packed));
        assert_eq!(Form::of(&model, |_| false), Ok(Form::PerExpert));
        let both = Form::of(&model, |name| one.contains_key(name) || packed.contains_key(name)).unwrap_err();
        assert!(one.contains_key(&both[0]) && packed.contains_key(&both[1]), "{both:?}");
    }
    assert_eq!(Form::of(&gpt_oss(), |_| true), Ok(Form::PerExpert));
}

/// Random weights must not change from version to version: the same seed is the same model.
#[test]
fn random_weights_stay() {
    let first = |model: &Model, name: &str| {
        let tensors = all_tensors(model);
        let tensor = tensors.iter().find(|tensor| tensor.name == name).unwrap();
        let mut out = [0.0; 3];
        init::fill(model, 7, tensor, &Rect { rows: 1..2, cols: 1..4 }, &mut out);
        out
    };
    let value = |name: &str, at: usize| {
        let mut out = [0.0];
        init::normal(7, name, 0.02, at, &mut out);
        out[0]
    };
    let w3 = "model.layers.1.block_sparse_moe.experts.2.w3.weight";
    assert_eq!(first(&mixtral(), w3), [10, 11, 12].map(|at| value(w3, at)));
    let c_attn = "transformer.h.0.attn.c_attn.weight";
    let keys = all_tensors(&gpt()).into_iter().filter(|t| t.in_file(Form::PerExpert).name == c_attn).nth(1).unwrap();
    assert_eq!(first(&gpt(), &keys.name), [1, 2, 3].map(|row| value(c_attn, row * 36 + 12 + 1)));
    let oss = "model.layers.1.mlp.experts.2.up_proj.weight";
    let file = "model.layers.1.mlp.experts.gate_up_proj";
    assert_eq!(first(&gpt_oss(), oss), [1, 2, 3].map(|j| value(file, (2 * 9 + j) * 10 + 2 + 1)));
}
