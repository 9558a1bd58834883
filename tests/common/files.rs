//! Reading the files of a run, and writing small token files.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::process::{engine, finish};

/// Tensors by their Hugging Face names, as f32.
pub type Tensors = BTreeMap<String, Vec<f32>>;

/// The metrics of each step in order. The last line of a step counts; the torn line of a killed run does not.
pub fn metrics(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    BTreeMap::from_iter(lines.map(|line| (line["step"].as_u64().unwrap(), line))).into_values().collect()
}

/// Exports the newest checkpoint of `run` to `to` as f32 and reads it.
#[track_caller]
pub fn export(run: &Path, to: &Path) -> Tensors {
    finish(engine().args(["checkpoint", "export", "--dtype", "f32", "--from"]).arg(run).arg("--to").arg(to))
        .succeeded();
    read_tensors(&to.join("model.safetensors"))
}

/// All tensors of a file of f32 tensors.
pub fn read_tensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |view: safetensors::tensor::TensorView| -> Vec<f32> {
        assert_eq!(view.dtype(), Dtype::F32);
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    file.iter().map(|(name, view)| (name.to_string(), floats(view))).collect()
}

/// |a - b|
pub fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum::<f64>().sqrt()
}

/// Writes `documents` as Megatron's `prefix.bin` and `prefix.idx`, with 32-bit tokens.
pub fn write_tokens(prefix: &Path, documents: &[Vec<u32>]) {
    let bytes = documents.iter().flatten().flat_map(|t| t.to_le_bytes()).collect::<Vec<_>>();
    std::fs::write(prefix.with_extension("bin"), bytes).unwrap();
    let n = documents.len();
    let starts = documents.iter().scan(0, |at, d| Some(std::mem::replace(at, *at + 4 * d.len() as u64)));
    let mut index = b"MMIDIDX\0\0\x01\0\0\0\0\0\0\0\x04".to_vec();
    index.extend([n as u64, n as u64 + 1].iter().flat_map(|x| x.to_le_bytes()));
    index.extend(documents.iter().flat_map(|d| (d.len() as u32).to_le_bytes()));
    index.extend(starts.chain(0..=n as u64).flat_map(|x| x.to_le_bytes()));
    std::fs::write(prefix.with_extension("idx"), index).unwrap();
}
