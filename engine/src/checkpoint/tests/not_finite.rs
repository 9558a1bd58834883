//! Weights that are not finite: `verify` reports them, and exports, imports and loads refuse them.

use super::*;
use crate::model::stored::Form;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::json;
use std::collections::HashMap;
use std::fs;

const NAME: &str = "model.layers.0.mlp.down_proj.weight";

/// The state of a tensor with these values in one tensor, by row and column.
fn with(values: &[(usize, usize, f32)], tensor: &TensorSpec, rect: &Rect) -> Vec<f32> {
    let mut data = state(tensor, StateKind::Master, rect);
    for &(row, col, value) in values {
        if tensor.name == NAME && rect.rows.contains(&row) && rect.cols.contains(&col) {
            data[(row - rect.rows.start) * rect.cols.len() + col - rect.cols.start] = value;
        }
    }
    data
}

/// The checksums hold, and the values of all pieces of a tensor are counted together.
#[test]
fn verify_counts_them_over_all_pieces() {
    let run = tempfile::tempdir().unwrap();
    let values = [(7, 3, f32::NAN), (9, 0, f32::INFINITY), (2, 11, f32::NEG_INFINITY)];
    let pieces = all_tensors(&model()).into_iter().flat_map(|tensor| {
        let [rows, cols] = tensor.shape();
        // The later rows come first.
        [rows / 2..rows, 0..rows / 2].map(|rows| {
            let rect = Rect { rows, cols: 0..cols };
            let data = with(&values, &tensor, &rect).into();
            Piece { name: tensor.name.clone(), dims: tensor.dims.clone(), rect, kind: StateKind::Master, data }
        })
    });
    save(run.path(), &Solo, &header(1), pieces, None).unwrap();
    let found = Saved::latest(run.path()).unwrap().unwrap().verify(&mut |_| ()).unwrap();
    let found: Vec<String> = found.iter().map(NotFinite::to_string).collect();
    assert_eq!(found, [format!("{NAME}: 3 values are not finite, the first is -inf in row 2, column 11")]);
}

#[test]
fn an_export_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("out");
    let refused = |values: &[(usize, usize, f32)], dtype: Dtype| {
        let (config, origin, checkpoint) = (json!({}), "runs/a".into(), "none".into());
        let (model, form) = (model(), Form::PerExpert);
        let what = Export { model: &model, form, config, dtype, files: Vec::new(), origin, checkpoint };
        let read = |tensor: &TensorSpec, rect: &Rect, out: &mut [f32]| {
            out.copy_from_slice(&with(values, tensor, rect));
            Ok(())
        };
        let done = export(&read, &what, &to, &mut |_| ());
        let refused = done.is_err().then(|| refusal(done));
        assert_eq!(to.exists(), refused.is_none(), "an export is complete or absent");
        refused
    };
    let message = refused(&[(3, 4, f32::NAN), (4, 0, f32::NAN)], Dtype::F32).unwrap();
    let expected = format!("runs/a: {NAME}: 2 values are not finite, the first is NaN in row 3, column 4 (as F32); ");
    assert!(message.starts_with(&expected), "{message}");
    // The largest f32 is finite, and bf16 rounds it up.
    let message = refused(&[(0, 1, f32::MAX)], Dtype::BF16).unwrap();
    assert!(message.contains("1 value is not finite, the first is inf in row 0, column 1 (as BF16)"), "{message}");
    assert_eq!(refused(&[(0, 1, f32::MAX)], Dtype::F32), None);
}

#[test]
fn a_hugging_face_checkpoint_is_refused() {
    let (dir, model) = (tempfile::tempdir().unwrap(), model());
    let values = [(1, 5, f32::NAN), (9, 2, f32::INFINITY)];
    let tensors = all_tensors(&model).into_iter().map(|tensor| {
        let data = with(&values, &tensor, &Rect::whole(tensor.shape()));
        (tensor.name, tensor.dims, bytemuck::cast_slice::<f32, u8>(&data).to_vec())
    });
    let tensors: Vec<_> = tensors.collect();
    let views = tensors.iter().map(|(n, d, b)| (n.clone(), TensorView::new(Dtype::F32, d.clone(), b).unwrap()));
    serialize_to_file(views, None::<HashMap<String, String>>, &dir.path().join("model.safetensors")).unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    let hf = HuggingFace::open(dir.path(), &model).unwrap();
    let read = |rows| {
        let rect = Rect { rows, cols: 0..6 };
        hf.read(NAME, &rect, &mut vec![0.0; rect.len()])
    };
    // A rank that reads one of the two names both.
    let message = refusal(read(8..10));
    let expected = format!("{NAME}: 2 values are not finite, the first is NaN in row 1, column 5; ");
    assert!(message.contains(&expected), "{message}");
    read(2..9).unwrap();
    let run = dir.path().join("run");
    let message = refusal(import(dir.path(), &run, &model, &header(0), &mut |_| ()));
    assert!(message.contains(&expected), "{message}");
    assert!(Saved::latest(&run).unwrap().is_none() && !run.join("source/config.json").exists());
}
