//! Gives a Hugging Face checkpoint rows for a larger vocabulary: in the embedding and in the output layer, which grow
//! alike. Every other byte is copied. Rows are read and written in bands, so memory does not grow with the model, and
//! no value depends on the number of threads.

use super::hf::{EMBEDDING, HEAD, INDEX, MAX_INDEX};
use super::tensors::{TensorFile, TensorWriter, header};
use super::{HuggingFace, directory, round, source};
use crate::error::{Error, Result};
use crate::model::init;
use crate::model::rect::Rect;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorInfo};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Elements of new rows in memory at a time.
const BAND: usize = 1 << 20;
/// Bytes copied at a time.
const CHUNK: usize = 4 << 20;
const CONFIG: &str = "config.json";
/// GPT-2's embedding, and its name in files of its class without an output layer.
const GPT2_EMBEDDING: &str = "transformer.wte.weight";
const EMBEDDINGS: [&str; 3] = [EMBEDDING, GPT2_EMBEDDING, "wte.weight"];
/// Endings of weights in other formats, which would keep the old vocabulary.
const WEIGHTS: [&str; 9] = [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".index.json"];

/// The values of the new rows.
pub enum Init {
    /// For each new id, the ids of old rows whose mean its row is: their sum in this order in f64, divided by their
    /// number, rounded once.
    Pieces(Vec<Vec<u32>>),
    /// The mean of the rows of the old vocabulary, without padding.
    Mean,
    /// The values that the tensor's elements get when a model is trained from scratch.
    Random { seed: u32 },
}

pub struct ExpandVocab<'a> {
    /// The checkpoint's directory.
    pub from: &'a Path,
    /// The directory to write, which must be absent or empty.
    pub to: &'a Path,
    /// The ids of the old and of the new tokenizer. Rows beyond the old ones are padding.
    pub old_size: usize,
    pub new_size: usize,
    pub init: Init,
    /// The new tokenizer's files, copied unchanged; those of the old one are left out.
    pub tokenizer: Vec<PathBuf>,
}

/// The result of an expansion.
#[derive(Debug, PartialEq)]
pub struct Rows {
    /// Rows of the embedding before and after.
    pub before: usize,
    pub after: usize,
    pub width: usize,
    pub dtype: Dtype,
    /// The tensors that have new rows.
    pub tensors: Vec<String>,
    /// Files and directories that were not carried over.
    pub left_out: Vec<String>,
}

/// Writes the expanded checkpoint, whole or not at all. `progress` gets the bytes done and the bytes of all tensors.
pub fn expand_vocab(what: &ExpandVocab, progress: &mut dyn FnMut(u64, u64)) -> Result<Rows> {
    assert!(what.new_size > what.old_size, "{} pieces instead of {}", what.new_size, what.old_size);
    let to = directory::new_path(what.to, "--output")?;
    let plan = Plan::new(what)?;
    let total = plan.hf.files().map(|(_, file)| file.data_len()).sum::<usize>() + plan.added_bytes();
    let mut done = 0;
    let mut left_out = Vec::new();
    directory::write_whole(&to, |dir| {
        for (name, file) in plan.hf.files() {
            write_file(&plan, file, &dir.join(name), &mut |bytes| {
                done += bytes;
                progress(done, total as u64);
            })?;
        }
        write_index(&plan, dir)?;
        let mut config = plan.config.clone();
        config.insert("vocab_size".into(), json!(plan.rows.1));
        directory::write_json(&dir.join(CONFIG), &config.into())?;
        source::copy(&what.tokenizer, dir)?;
        left_out = carry_over(&plan, dir)?;
        Ok(())
    })?;
    let tensors = plan.grown.iter().map(|(name, _)| name.clone()).collect();
    let Plan { rows: (before, after), width, .. } = plan;
    Ok(Rows { before, after, width, dtype: plan.grown[0].1.dtype, tensors, left_out })
}

/// The tensors that grow, and their new number of rows.
struct Plan<'a> {
    what: &'a ExpandVocab<'a>,
    hf: HuggingFace,
    config: Map<String, Value>,
    /// The tensors that grow, the embedding first.
    grown: Vec<(String, TensorInfo)>,
    /// Rows before and after.
    rows: (usize, usize),
    width: usize,
}

impl<'a> Plan<'a> {
    fn new(what: &'a ExpandVocab<'a>) -> Result<Plan<'a>> {
        let refuse = |what_is_wrong: String| Err(Error::user(format!("{}: {what_is_wrong}", what.from.display())));
        let config = read_config(what.from)?;
        let hf = HuggingFace::open_files(what.from)?;
        let names = EMBEDDINGS.iter().chain(&[HEAD]);
        let grown: Vec<(String, TensorInfo)> =
            names.filter_map(|name| Some((name.to_string(), hf.info(name)?.clone()))).collect();
        let Some((_, first)) = grown.first() else {
            let names = EMBEDDINGS.join(" or ");
            return refuse(format!("it has no {names}; only models with such an embedding are expanded"));
        };
        let &[rows, width] = &first.shape[..] else {
            return refuse(format!("the embedding's shape is {:?}; it must have rows and columns", first.shape));
        };
        if config.get("tie_word_embeddings") == Some(&json!(false)) && hf.info(HEAD).is_none() {
            return refuse(format!("it has no {HEAD}, and {CONFIG} has \"tie_word_embeddings\": false"));
        }
        if hf.info("lm_head.bias").is_some() {
            return refuse("it has lm_head.bias; output layers with a bias are not expanded".into());
        }
        for (name, info) in &grown {
            if info.shape != [rows, width] {
                return refuse(format!("{name}: its shape is {:?}, the embedding's is [{rows}, {width}]", info.shape));
            }
            if !matches!(info.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) {
                return refuse(format!("{name}: its dtype is {}; it must be F32, BF16 or F16", info.dtype));
            }
        }
        if config.get("vocab_size") != Some(&json!(rows)) {
            let value = config.get("vocab_size").unwrap_or(&Value::Null);
            return refuse(format!("{CONFIG} has \"vocab_size\": {value}, but the embedding has {rows} rows"));
        }
        if what.old_size > rows {
            return refuse(format!(
                "its tokenizer has {} pieces, but its embedding only {rows} rows; it is another model's tokenizer",
                what.old_size
            ));
        }
        Ok(Plan { what, hf, config, grown, rows: (rows, rows.max(what.new_size)), width })
    }

    fn added_bytes(&self) -> usize {
        let added = (self.rows.1 - self.rows.0) * self.width;
        self.grown.iter().map(|(_, info)| added * info.dtype.bitsize() / 8).sum()
    }

    fn grows(&self, name: &str) -> bool {
        self.grown.iter().any(|(grown, _)| grown == name)
    }

    /// The shape that a tensor is written with.
    fn shape(&self, name: &str, info: &TensorInfo) -> Vec<usize> {
        if self.grows(name) { vec![self.rows.1, self.width] } else { info.shape.clone() }
    }

    /// The name by which the engine initialises a tensor: a tied model may hold its embedding as its head.
    fn initialised_as<'n>(&self, name: &'n str) -> &'n str {
        let gpt2 = self.config.get("model_type") == Some(&json!("gpt2"));
        // Where the file says nothing, GPT-2's are tied.
        let tied = self.config.get("tie_word_embeddings").map_or(gpt2, |tied| tied == &json!(true));
        match name {
            HEAD if !tied => HEAD,
            HEAD | GPT2_EMBEDDING | "wte.weight" if gpt2 => GPT2_EMBEDDING,
            HEAD => EMBEDDING,
            _ => name,
        }
    }

    fn row(&self, name: &str, row: usize, out: &mut [f32]) -> Result<()> {
        self.hf.read(name, &Rect { rows: row..row + 1, cols: 0..self.width }, out)
    }
}

fn read_config(dir: &Path) -> Result<Map<String, Value>> {
    let path = dir.join(CONFIG);
    let text = fs::read(&path).map_err(|e| Error::io(&path, e))?;
    serde_json::from_slice(&text).map_err(|e| Error::user(format!("{}: not a JSON object: {e}", path.display())))
}

/// Writes one safetensors file: the tensors in the order in which they lie, and the metadata.
fn write_file(plan: &Plan, file: &TensorFile, path: &Path, progress: &mut dyn FnMut(u64)) -> Result<()> {
    let (mut infos, mut end) = (Vec::new(), 0);
    for name in file.names() {
        let info = file.info(&name).expect("a tensor of the file");
        let shape = plan.shape(&name, info);
        let start = end;
        end += shape.iter().product::<usize>() * info.dtype.bitsize() / 8;
        infos.push((name, TensorInfo { dtype: info.dtype, shape, data_offsets: (start, end) }));
    }
    let mut writer = TensorWriter::create(path, header(infos.clone(), file.metadata()).len())?;
    for (name, TensorInfo { dtype, shape, .. }) in infos {
        let info = file.info(&name).expect("a tensor of the file");
        writer.begin(name.clone(), dtype, shape);
        if !plan.grows(&name) {
            let len = info.data_offsets.1 - info.data_offsets.0;
            copy(file, info, 0..len, &mut writer, progress)?;
            continue;
        }
        let row = plan.width * dtype.bitsize() / 8;
        copy(file, info, 0..plan.what.old_size * row, &mut writer, progress)?;
        write_rows(plan, &name, dtype, &mut writer, progress)?;
        copy(file, info, plan.what.new_size * row..plan.rows.0 * row, &mut writer, progress)?;
    }
    writer.finish(file.metadata())
}

/// Copies a range of a tensor's bytes; an empty or reversed range has none.
fn copy(
    file: &TensorFile,
    info: &TensorInfo,
    bytes: std::ops::Range<usize>,
    writer: &mut TensorWriter,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let mut buffer = vec![0; CHUNK.min(bytes.len())];
    for first in bytes.clone().step_by(CHUNK) {
        let part = &mut buffer[..CHUNK.min(bytes.end - first)];
        file.read_bytes(info, first, part)?;
        writer.write(part)?;
        progress(part.len() as u64);
    }
    Ok(())
}

/// Writes the rows of the new ids.
fn write_rows(
    plan: &Plan,
    name: &str,
    dtype: Dtype,
    writer: &mut TensorWriter,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let (width, old) = (plan.width, plan.what.old_size);
    let mean = match &plan.what.init {
        Init::Mean => mean(plan, name)?,
        _ => Vec::new(),
    };
    let each = (BAND / width).max(1);
    let mut values = Vec::new();
    for first in (old..plan.what.new_size).step_by(each) {
        let rows = each.min(plan.what.new_size - first);
        values.resize(rows * width, 0.0);
        match &plan.what.init {
            Init::Pieces(pieces) => {
                let filled = values.par_chunks_exact_mut(width).enumerate();
                filled.try_for_each(|(i, out)| mean_of(plan, name, &pieces[first - old + i], out))?;
            }
            Init::Mean => values.chunks_exact_mut(width).for_each(|row| row.copy_from_slice(&mean)),
            Init::Random { seed } => random(plan, name, *seed, first, &mut values),
        }
        let bytes = round::to_bytes(&values, dtype);
        writer.write(&bytes)?;
        progress(bytes.len() as u64);
    }
    Ok(())
}

/// out = (sum of the rows in their order) / their number, in f64
fn mean_of(plan: &Plan, name: &str, rows: &[u32], out: &mut [f64]) -> Result<()> {
    let mut row = vec![0.0; plan.width];
    out.fill(0.0);
    for &id in rows {
        plan.row(name, id as usize, &mut row)?;
        out.iter_mut().zip(&row).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    out.iter_mut().for_each(|sum| *sum /= rows.len() as f64);
    Ok(())
}

/// The mean row of the old vocabulary; each column is summed row by row.
fn mean(plan: &Plan, name: &str) -> Result<Vec<f64>> {
    let (width, old) = (plan.width, plan.what.old_size);
    let each = (BAND / width).max(1);
    let (mut sum, mut band) = (vec![0.0; width], Vec::new());
    for first in (0..old).step_by(each) {
        let rows = first..(first + each).min(old);
        band.resize(rows.len() * width, 0.0);
        plan.hf.read(name, &Rect { rows, cols: 0..width }, &mut band)?;
        for row in band.chunks_exact(width) {
            sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
        }
    }
    sum.iter_mut().for_each(|sum| *sum /= old as f64);
    Ok(sum)
}

/// The engine's own initialisation of the rows from `first` on.
fn random(plan: &Plan, name: &str, seed: u32, first: usize, out: &mut [f64]) {
    let std = plan.config.get("initializer_range").and_then(Value::as_f64).unwrap_or(0.02);
    let mut values = vec![0.0; out.len()];
    init::normal(seed, plan.initialised_as(name), std, first * plan.width, &mut values);
    out.iter_mut().zip(values).for_each(|(out, value)| *out = f64::from(value));
}

/// Copies the index with its sums brought up to date; a checkpoint in one file has none.
fn write_index(plan: &Plan, dir: &Path) -> Result<()> {
    let path = plan.what.from.join(INDEX);
    // A model in one file may have a leftover index, which is not used.
    if plan.hf.files().any(|(name, _)| name == super::hf::SINGLE) || !path.exists() {
        return Ok(());
    }
    let len = fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
    assert!(len <= MAX_INDEX, "an index of {len} bytes was read before");
    let text = fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let refuse = |e| Error::user(format!("{}: not JSON: {e}", path.display()));
    let mut index: Value = serde_json::from_slice(&text).map_err(refuse)?;
    let elements = plan.grown.len() * (plan.rows.1 - plan.rows.0) * plan.width;
    for (key, added) in [("total_size", plan.added_bytes()), ("total_parameters", elements)] {
        if let Some(sum) = index["metadata"].get(key).and_then(Value::as_u64) {
            index["metadata"][key] = json!(sum + added as u64);
        }
    }
    directory::write_json(&dir.join(INDEX), &index)
}

/// Copies what else lies in the checkpoint's directory. Returns what was left out: the old tokenizer, weights in other
/// formats, directories, and the mark of an export, since this is none.
fn carry_over(plan: &Plan, dir: &Path) -> Result<Vec<String>> {
    let from = plan.what.from;
    let mut names = directory::names(from)?;
    names.sort_unstable();
    let mut left_out = Vec::new();
    for name in names {
        let is_written = plan.hf.files().any(|(file, _)| file == name) || [CONFIG, INDEX].contains(&name.as_str());
        if is_written || dir.join(&name).exists() || name == super::export::MARK {
            continue;
        }
        let stale = WEIGHTS.iter().any(|ending| name.ends_with(ending)) || source::is_tokenizer(&name);
        if stale || from.join(&name).is_dir() {
            left_out.push(name);
            continue;
        }
        let to = dir.join(&name);
        fs::copy(from.join(&name), &to).map_err(|e| Error::io(&from.join(&name), e))?;
        fs::File::open(&to).and_then(|file| file.sync_all()).map_err(|e| Error::io(&to, e))?;
    }
    Ok(left_out)
}

#[cfg(test)]
mod tests;
