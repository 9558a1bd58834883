//! Writing a Hugging Face checkpoint, a band of rows at a time: `config.json`, `model.safetensors` or shards with an
//! index, and the source's other files. Tensors are sorted by name as the safetensors library does, so that an
//! unchanged model gives an unchanged file.

use super::finite::Watch;
use super::hf::{INDEX, SINGLE};
use super::import::bands;
use super::tensors::{TensorWriter, header};
use super::{HuggingFace, directory, source};
use crate::config::Model;
use crate::error::{Error, Result};
use crate::model::param_specs::TensorSpec;
use crate::model::rect::Rect;
use crate::model::stored::{FileTensor, Form, file_tensors};
use half::slice::HalfFloatSliceExt;
use safetensors::tensor::{Dtype, TensorInfo};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// Bytes above which a model is split into several files.
const SHARD: usize = 5_000_000_000;
/// Elements in memory at a time.
const BAND: usize = 4 << 20;
/// The file that marks a directory as an export, which another export may replace, and lists the files of the export.
pub(super) const MARK: &str = "swallow_engine.json";

/// Fills the last argument with a rectangle of a tensor, row-major.
pub type Read<'a> = dyn Fn(&TensorSpec, &Rect, &mut [f32]) -> Result<()> + 'a;

/// The contents of an export besides the weights.
pub struct Export<'a> {
    pub model: &'a Model,
    /// How the files have the experts.
    pub form: Form,
    /// The whole `config.json`.
    pub config: Value,
    /// The dtype of the weights, F32, BF16 or F16: the latter two round f32 values to nearest even.
    pub dtype: Dtype,
    /// Files that are copied unchanged.
    pub files: Vec<PathBuf>,
    /// The checkpoint that the weights come from, recorded beside them: its directory, and its manifest's checksum.
    pub origin: String,
    pub checkpoint: String,
}

/// Writes the weights that `read` gives into the directory `to`, which appears whole or not at all. It must be new,
/// empty, or an earlier export to which no file was added. An error where a weight is not finite, also after rounding.
/// `progress` gets the number of elements just written.
pub fn export(read: &Read, what: &Export, to: &Path, progress: &mut dyn FnMut(u64)) -> Result<()> {
    export_in_shards(SHARD, read, what, to, progress)
}

pub(super) fn export_in_shards(
    shard_bytes: usize,
    read: &Read,
    what: &Export,
    to: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    put_back(to)?;
    let to = target(to)?;
    directory::write_whole(&to, |temporary| write_all(shard_bytes, read, what, temporary, progress))
}

/// Gives an earlier export at `to` its name back, where an export over it was stopped between its two renames.
fn put_back(to: &Path) -> Result<()> {
    if to.file_name().is_none() {
        return Ok(());
    }
    let old = directory::set_aside(to);
    if to.exists() || !old.join(MARK).exists() { Ok(()) } else { directory::rename(&old, to) }
}

/// The full path of `to`, if an export may write to it.
fn target(to: &Path) -> Result<PathBuf> {
    let refuse = |what: &str| Err(Error::user(format!("{}: {what}", to.display())));
    if to.exists() {
        let path = to.canonicalize().map_err(|e| Error::io(to, e))?;
        if path.file_name().is_none() {
            return refuse("an export cannot replace this directory");
        }
        let mut names = directory::names(&path)?;
        names.sort_unstable();
        if !names.is_empty() && !path.join(MARK).exists() {
            return refuse("this directory is not empty and not an earlier export; name another directory");
        }
        let ours = listed(&path.join(MARK));
        return match names.iter().find(|name| !ours.contains(name)) {
            Some(name) => {
                refuse(&format!("an export to this directory would delete {name}, which no export wrote; move it away"))
            }
            None => Ok(path),
        };
    }
    match to.file_name() {
        Some(_) => std::path::absolute(to).map_err(|e| Error::io(to, e)),
        None => refuse("this is not a name for a directory"),
    }
}

/// The files that the export of this mark lists; empty if the mark lists none.
fn listed(mark: &Path) -> Vec<String> {
    serde_json::from_value(read_mark(mark)["files"].clone()).unwrap_or_default()
}

/// The manifest's checksum of the checkpoint that the export in `dir` was made from, if one is recorded.
pub(super) fn recorded_checkpoint(dir: &Path) -> Option<String> {
    Some(read_mark(&dir.join(MARK))["checkpoint"].as_str()?.to_string())
}

/// The contents of a mark; null if there is none that can be read.
fn read_mark(mark: &Path) -> Value {
    fs::read(mark).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn write_all(shard_bytes: usize, read: &Read, what: &Export, dir: &Path, progress: &mut dyn FnMut(u64)) -> Result<()> {
    let (tensors, dtype) = (file_tensors(what.model, what.form), what.dtype);
    let shards = shards(tensors, dtype.bitsize() / 8, shard_bytes);
    let mut weight_map = BTreeMap::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => SINGLE.to_string(),
            n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        write_shard(read, shard, what, &dir.join(&name), progress)?;
        weight_map.extend(shard.iter().map(|tensor| (tensor.spec.name.clone(), name.clone())));
    }
    if shards.len() > 1 {
        let bytes = shards.iter().flatten().map(|tensor| tensor.spec.len()).sum::<usize>() * dtype.bitsize() / 8;
        directory::write_json(
            &dir.join(INDEX),
            &json!({ "metadata": { "total_size": bytes }, "weight_map": weight_map }),
        )?;
    }
    directory::write_json(&dir.join("config.json"), &what.config)?;
    source::copy(&what.files, dir)?;
    let mut files = directory::names(dir)?;
    files.push(MARK.to_string());
    files.sort_unstable();
    let mark = json!({ "origin": what.origin, "checkpoint": what.checkpoint, "dtype": dtype, "files": files });
    directory::write_json(&dir.join(MARK), &mark)?;
    HuggingFace::open(dir, what.model).map(|_| ())
}

/// The tensors in the order of the model, split into files of at most `limit` bytes, sorted by name in each file.
fn shards(tensors: Vec<FileTensor>, size: usize, limit: usize) -> Vec<Vec<FileTensor>> {
    let (mut shards, mut bytes) = (vec![Vec::<FileTensor>::new()], 0);
    for tensor in tensors {
        if bytes > 0 && bytes + tensor.spec.len() * size > limit {
            shards.push(Vec::new());
            bytes = 0;
        }
        bytes += tensor.spec.len() * size;
        shards.last_mut().expect("there is one from the start").push(tensor);
    }
    shards.iter_mut().for_each(|shard| shard.sort_by(|a, b| a.spec.name.cmp(&b.spec.name)));
    shards
}

fn write_shard(
    read: &Read,
    shard: &[FileTensor],
    what: &Export,
    path: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let dtype = what.dtype;
    let metadata = || Some(HashMap::from([("format".to_string(), "pt".to_string())]));
    let mut file = TensorWriter::create(path, header(infos(shard, dtype), metadata()).len())?;
    let (mut band, mut halves) = (Vec::new(), Vec::new());
    for stored in shard {
        let tensor = &stored.spec;
        file.begin(tensor.name.clone(), dtype, tensor.dims.clone());
        let mut values = Watch::default();
        for rect in bands(tensor, BAND) {
            band.resize(rect.len(), 0.0);
            stored.read_rows(&rect, &mut band, read)?;
            file.write(to_bytes(&band, dtype, &mut halves, &mut values))?;
            progress(rect.len() as u64);
        }
        if let Some(found) = values.found(&tensor.name, &Rect::whole(tensor.shape())) {
            let remedy =
                "these weights cannot be used; export an earlier checkpoint, with --from RUN/checkpoints/step-N";
            return Err(Error::user(format!("{}: {found} (as {dtype}); {remedy}", what.origin)));
        }
    }
    file.finish(metadata())
}

/// The bytes of values in a dtype, each rounded to nearest even and then looked at. `halves` holds those of 16 bits.
fn to_bytes<'b>(band: &'b [f32], dtype: Dtype, halves: &'b mut Vec<u16>, values: &mut Watch) -> &'b [u8] {
    halves.resize(if dtype == Dtype::F32 { 0 } else { band.len() }, 0);
    match dtype {
        Dtype::F32 => {
            values.look(band, |x| x);
            return bytemuck::cast_slice(band);
        }
        Dtype::BF16 => {
            let rounded: &mut [half::bf16] = bytemuck::cast_slice_mut(halves);
            rounded.convert_from_f32_slice(band);
            values.look(rounded, half::bf16::to_f32);
        }
        Dtype::F16 => {
            let rounded: &mut [half::f16] = bytemuck::cast_slice_mut(halves);
            rounded.convert_from_f32_slice(band);
            values.look(rounded, half::f16::to_f32);
        }
        other => panic!("{other} is not a type of exported weights"),
    }
    bytemuck::cast_slice(halves)
}

/// The header entries of tensors stored one after another.
fn infos(shard: &[FileTensor], dtype: Dtype) -> Vec<(String, TensorInfo)> {
    let mut end = 0;
    let info = |FileTensor { spec: tensor, .. }: &FileTensor| {
        let start = end;
        end += tensor.len() * dtype.bitsize() / 8;
        (tensor.name.clone(), TensorInfo { dtype, shape: tensor.dims.clone(), data_offsets: (start, end) })
    };
    shard.iter().map(info).collect()
}
