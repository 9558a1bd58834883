//! Reads a Hugging Face checkpoint: `model.safetensors`, or shards with an index. Reads any rectangle of any tensor,
//! widened to f32, and needs no more memory than that rectangle. Where a file has experts packed or in MXFP4, and the
//! engine does not, parameters are read by the description in [`crate::model::stored`].

use super::finite::{NotFinite, Watch};
use super::mxfp4::{self, Mxfp4};
use super::tensors::TensorFile;
use crate::config::Model;
use crate::error::{Error, Result};
use crate::model::param_specs::{TensorSpec, matrix_shape};
use crate::model::rect::Rect;
use crate::model::stored::{Form, Stored, file_tensors};
use safetensors::tensor::{Dtype, TensorInfo};
use serde::Deserialize;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// The longest index that is read; it has one line per tensor.
pub(super) const MAX_INDEX: u64 = 1 << 28;
/// Elements compared at a time.
const CHUNK: usize = 1 << 20;

/// The embedding of all families but GPT-2, and the output layer, which a tied model shares with it.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(super) const HEAD: &str = "lm_head.weight";

/// An open Hugging Face checkpoint.
pub struct HuggingFace {
    dir: PathBuf,
    /// The names of the files, in the order of `files`.
    names: Vec<String>,
    files: Vec<TensorFile>,
    /// Tensor -> index of its file in `files`.
    file_of: HashMap<String, usize>,
    /// The embedding's name, if the model is tied and its file holds the shared weight as `lm_head.weight` only.
    embedding_is_head: Option<&'static str>,
    form: Form,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl HuggingFace {
    /// Opens the files and checks that they fit the model: every tensor is present with the right shape and a supported
    /// dtype, and there are no other tensors. The experts of a layer may be packed or not, in all layers alike.
    ///
    /// Older versions of transformers also wrote buffers (rotary frequencies, causal masks), which are ignored. A tied
    /// model may hold its shared weight as the embedding, as `lm_head.weight`, or as both if they are equal.
    pub fn open(dir: &Path, model: &Model) -> Result<HuggingFace> {
        let mut files = HuggingFace::open_files(dir)?;
        let has = |name: &str| files.file_of.contains_key(name);
        let table = model.tensor_names().table;
        files.embedding_is_head = Some(table).filter(|_| model.tie_word_embeddings && has(HEAD) && !has(table));
        files.form = Form::of(model, has).map_err(|both| files.mixed(both))?;
        files.check(model)?;
        Ok(files)
    }

    /// Opens the files, whatever model they hold.
    pub(super) fn open_files(dir: &Path) -> Result<HuggingFace> {
        let index = match dir.join(SINGLE).exists() {
            true => None,
            false => Some(read_index(dir)?),
        };
        let names: BTreeSet<String> = match &index {
            None => [SINGLE.into()].into(),
            Some(index) => index.weight_map.values().cloned().collect(),
        };
        let (mut files, mut file_of) = (Vec::new(), HashMap::new());
        for name in &names {
            let file = TensorFile::open(&dir.join(name))?;
            for tensor in file.names() {
                if let Some(other) = file_of.insert(tensor.clone(), files.len()) {
                    let other = names.iter().nth(other).expect("a file of the list");
                    return Err(Error::user(format!("{}: both {other} and {name} have {tensor}", dir.display())));
                }
            }
            files.push(file);
        }
        for (tensor, file) in index.iter().flat_map(|index| &index.weight_map) {
            let found = file_of.get(tensor).and_then(|&i| names.iter().nth(i));
            if found != Some(file) {
                return Err(Error::user(format!(
                    "{}: {tensor} is not in {file}, where the index has it",
                    dir.join(INDEX).display()
                )));
            }
        }
        let names = names.into_iter().collect();
        Ok(HuggingFace { dir: dir.into(), names, files, file_of, embedding_is_head: None, form: Form::default() })
    }

    /// How the files have experts.
    pub fn form(&self) -> Form {
        self.form
    }

    fn mixed(&self, [one, packed]: [String; 2]) -> Error {
        let what = format!("it has experts in two forms, packed ({packed}) and one by one ({one})");
        Error::user(format!("{}: {what}; save the model again in one of them", self.dir.display()))
    }

    fn check(&self, model: &Model) -> Result<()> {
        let specs: Vec<TensorSpec> = file_tensors(model, self.form).into_iter().map(|file| file.spec).collect();
        let (quantized, specs): (Vec<_>, Vec<_>) = specs.into_iter().partition(|spec| self.is_quantized(model, spec));
        quantized.iter().try_for_each(|spec| self.check_quantized(spec))?;
        let blocks: HashSet<String> = quantized.iter().flat_map(|spec| mxfp4::names(&spec.name)).collect();
        let names: HashSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        let tied_head = model.tie_word_embeddings && self.file_of.contains_key(HEAD);
        let expected = |name: &str| {
            let buffer = model.tensor_names().buffers.iter().any(|end| name.ends_with(end));
            let ignored = buffer || (tied_head && name == HEAD);
            ignored || names.contains(name) || blocks.contains(name)
        };
        let mut unexpected: Vec<&str> =
            self.file_of.keys().map(String::as_str).filter(|name| !expected(name)).collect();
        unexpected.sort_unstable();
        let missing = specs.iter().map(|spec| spec.name.as_str()).filter(|name| self.find(name).is_err());
        let missing: Vec<&str> = missing.collect();
        for (names, what) in [(missing, "missing"), (unexpected, "not part of the model that config.json describes")] {
            if let [first, ..] = names[..] {
                let more = if names.len() > 1 { format!(" and {} more", names.len() - 1) } else { String::new() };
                let remedy = self.remedy(first, model);
                return Err(Error::user(format!("{}: {first}{more}: {what}; {remedy}", self.dir.display())));
            }
        }
        specs.iter().try_for_each(|spec| self.check_tensor(spec))?;
        if tied_head && self.embedding_is_head.is_none() { self.check_tied_head(model) } else { Ok(()) }
    }

    /// Whether the files have blocks or scales of MXFP4 of a tensor that may be quantized.
    fn is_quantized(&self, model: &Model, spec: &TensorSpec) -> bool {
        let may_be = model.tensor_names().quantization.is_some() && spec.dims.len() == 3;
        may_be && mxfp4::names(&spec.name).iter().any(|name| self.file_of.contains_key(name))
    }

    fn check_quantized(&self, spec: &TensorSpec) -> Result<()> {
        let names = mxfp4::names(&spec.name);
        let refuse = |i: usize, what: String| Error::user(format!("{}: {}: {what}", self.dir.display(), names[i]));
        for (i, other) in [&names[1], &names[0]].into_iter().enumerate() {
            if self.info(other).is_none() {
                return Err(refuse(i, format!("{other} is missing, which belongs to it; take all files of the model")));
            }
        }
        if self.info(&spec.name).is_some() {
            return Err(refuse(0, format!("{} is there, too; save the model again with one of the two", spec.name)));
        }
        let infos = [&names[0], &names[1]].map(|name| self.info(name).expect("it is there"));
        mxfp4::check(infos, &spec.dims).map_err(|(i, what)| refuse(i, what))
    }

    /// The remedy that is printed for a missing or an unexpected tensor.
    fn remedy(&self, name: &str, model: &Model) -> &'static str {
        let (table, has) = (model.tensor_names().table, |name: &str| self.file_of.contains_key(name));
        match name {
            _ if !has(table) && table.split_once('.').is_some_and(|(_, bare)| has(bare)) => {
                "its tensors are those of the class without an output layer; load it in transformers with \
                 AutoModelForCausalLM, and save it again"
            }
            HEAD => "correct tie_word_embeddings in config.json, or take the checkpoint's other files too",
            _ if name.ends_with(".bias") => "correct attention_bias or mlp_bias in config.json",
            _ => "take the config.json that was saved with these tensors, and all of their files",
        }
    }

    fn check_tensor(&self, spec: &TensorSpec) -> Result<()> {
        let (_, info) = self.find(&spec.name)?;
        let refuse = |what: String| Err(Error::user(format!("{}: {}: {what}", self.dir.display(), spec.name)));
        if info.shape != spec.dims {
            return refuse(format!("its shape is {:?}; by config.json it should be {:?}", info.shape, spec.dims));
        }
        match info.dtype {
            Dtype::F32 | Dtype::BF16 | Dtype::F16 => Ok(()),
            other => refuse(format!("its dtype is {other}; it must be F32, BF16 or F16")),
        }
    }

    /// The head of a tied model that also stores its embedding must be equal to it.
    fn check_tied_head(&self, model: &Model) -> Result<()> {
        let shape = [model.vocab_size, model.hidden_size];
        let table = model.tensor_names().table;
        let head = TensorSpec { name: HEAD.into(), ..file_tensors(model, self.form)[0].spec.clone() };
        self.check_tensor(&head)?;
        let rows = (CHUNK / shape[1]).max(1);
        for first in (0..shape[0]).step_by(rows) {
            let rect = Rect { rows: first..(first + rows).min(shape[0]), cols: 0..shape[1] };
            let mut both = [table, HEAD].map(|name| (name, vec![0.0; rect.len()]));
            for (name, out) in &mut both {
                self.read(name, &rect, out)?;
            }
            if both[0].1.iter().zip(&both[1].1).any(|(a, b)| a.to_bits() != b.to_bits()) {
                return Err(Error::user(format!(
                    "{}: {HEAD} differs from {table}, but config.json has tie_word_embeddings = true",
                    self.dir.display()
                )));
            }
        }
        Ok(())
    }

    /// Fills `out` with a rectangle of a parameter, row-major. An error where one of its values is not finite.
    pub fn read_parameter(&self, tensor: &TensorSpec, rect: &Rect, out: &mut [f32]) -> Result<()> {
        if let Some(stored) = tensor.stored_in(self.form)
            && let Some(matrices) = self.quantized(&stored.name)
        {
            return self.read_quantized(stored, &matrices, rect, out);
        }
        tensor.read_stored(self.form, rect, out, |name, rect, out| self.read(name, rect, out))
    }

    /// The tensor of this name, if the files have it in MXFP4.
    fn quantized(&self, name: &str) -> Option<Mxfp4<'_>> {
        if self.file_of.contains_key(name) {
            return None;
        }
        let [blocks, scales] = mxfp4::names(name).map(|name| self.find(&name).ok());
        Some(Mxfp4::new([blocks?, scales?]))
    }

    /// Its rows are output features, as those of the parameter are.
    fn read_quantized(&self, stored: &Stored, from: &Mxfp4, rect: &Rect, out: &mut [f32]) -> Result<()> {
        let (features, above) = (stored.features(&rect.rows), stored.matrix * from.features());
        let rows = features.start + above..features.end + above;
        from.read(&rows, stored.step, &rect.cols, out)?;
        let mut values = Watch::default();
        values.look(out, |x| x);
        let [_, scales] = mxfp4::names(&stored.name);
        // The rows of the scales, and the inputs, in which the first such value is.
        let found = values.found(&scales, &Rect { rows: 0..rect.rows.len(), ..rect.clone() });
        found.map_or(Ok(()), |found| {
            let first = [rows.start + found.first[0] * stored.step, found.first[1]];
            Err(self.refuse_values(NotFinite { first, ..found }))
        })
    }

    /// Fills `out` with a rectangle of a tensor of the file, row-major. An error where one of its values is not finite.
    pub fn read(&self, name: &str, rect: &Rect, out: &mut [f32]) -> Result<()> {
        self.fill(name, rect, out)?;
        let mut values = Watch::default();
        values.look(out, |x| x);
        values.found(name, rect).map_or(Ok(()), |found| Err(self.not_finite(found)?))
    }

    /// The refusal of a tensor of which a rectangle has such values. Reads all of it, to count them.
    fn not_finite(&self, found: NotFinite) -> Result<Error> {
        let NotFinite { tensor: name, .. } = &found;
        let whole = self.whole(name)?;
        let rows = (CHUNK / whole.cols.len()).max(1);
        let (mut values, mut out) = (Watch::default(), Vec::new());
        for first in whole.rows.clone().step_by(rows) {
            let rect = Rect { rows: first..(first + rows).min(whole.rows.end), cols: whole.cols.clone() };
            out.resize(rect.len(), 0.0);
            self.fill(name, &rect, &mut out)?;
            values.look(&out, |x| x);
        }
        let found = values.found(name, &whole).unwrap_or(found);
        Ok(self.refuse_values(found))
    }

    fn refuse_values(&self, found: NotFinite) -> Error {
        let dir = self.dir.display();
        Error::user(format!("{dir}: {found}; these weights cannot be trained or used; take other ones"))
    }

    /// All of a tensor, as a rectangle.
    fn whole(&self, name: &str) -> Result<Rect> {
        let shape = matrix_shape(&self.find(name)?.1.shape);
        let what = || Error::user(format!("{}: {name} does not have one to three dimensions", self.dir.display()));
        shape.map(Rect::whole).ok_or_else(what)
    }

    fn fill(&self, name: &str, rect: &Rect, out: &mut [f32]) -> Result<()> {
        let (file, info) = self.find(name)?;
        let whole = self.whole(name)?;
        assert_eq!(whole.intersect(rect), *rect, "a part of {name}");
        file.copy(info, &whole, rect, out)
    }

    /// The files and their names.
    pub(super) fn files(&self) -> impl Iterator<Item = (&str, &TensorFile)> {
        self.names.iter().map(String::as_str).zip(&self.files)
    }

    /// A tensor's dtype and shape, if there is one of that name.
    pub(super) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.file_of.get(name).and_then(|&i| self.files[i].info(name))
    }

    fn find(&self, name: &str) -> Result<(&TensorFile, &TensorInfo)> {
        let stored = if self.embedding_is_head == Some(name) { HEAD } else { name };
        let file = self.file_of.get(stored).map(|&i| &self.files[i]);
        let found = file.and_then(|file| Some((file, file.info(stored)?)));
        found.ok_or_else(|| Error::user(format!("{}: {name}: missing", self.dir.display())))
    }

    /// A hash that distinguishes checkpoints without reading them in full: it covers the length, the header and the
    /// ends of every file.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hash = blake3::Hasher::new();
        self.files.iter().try_for_each(|file| file.fingerprint(&mut hash))?;
        Ok(hash.finalize().to_hex().to_string())
    }
}

fn read_index(dir: &Path) -> Result<Index> {
    let path = dir.join(INDEX);
    let len = fs::metadata(&path).map(|m| m.len()).map_err(|_| {
        let what = format!("it has neither {SINGLE} nor {INDEX}; save the model with safe_serialization=True");
        Error::user(format!("{}: {what}", dir.display()))
    })?;
    let refuse = |what: String| Error::user(format!("{}: {what}", path.display()));
    if len > MAX_INDEX {
        return Err(refuse(format!("{len} bytes are too long for an index")));
    }
    let text = fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let index: Index = serde_json::from_slice(&text).map_err(|e| refuse(format!("not an index of shards: {e}")))?;
    // A file's name must not lead out of the directory.
    match index.weight_map.values().find(|file| file.contains(['/', '\\']) || !file.ends_with(".safetensors")) {
        Some(file) => Err(refuse(format!("{file:?} is not the name of a .safetensors file beside it"))),
        None => Ok(index),
    }
}
