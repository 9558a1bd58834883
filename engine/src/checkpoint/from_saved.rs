//! A run's checkpoint in Hugging Face's format: what `checkpoint export` writes, and what a run writes beside its
//! checkpoints. The bytes depend on the checkpoint and the dtype alone.

use super::{Export, Saved, StateKind, export, source};
use crate::config::{Model, Precision, hf};
use crate::error::{Error, Result};
use crate::model::param_specs::{TensorSpec, all_tensors};
use crate::model::rect::Rect;
use crate::model::stored::Form;
use safetensors::tensor::Dtype;
use serde_json::{Map, Value};
use std::path::Path;

/// A checkpoint of a run, ready to be exported.
pub struct FromSaved {
    saved: Saved,
    model: Model,
    dtype: Precision,
    /// Fields of the `config.json` of the model that the run started from.
    source: Option<Map<String, Value>>,
    /// How the model that the run started from had its experts.
    form: Form,
}

impl FromSaved {
    /// `dtype` is that of the weights; `None`: that of the model that the run started from if it is bf16 or f32, else
    /// bf16.
    pub fn new(saved: Saved, dtype: Option<Precision>) -> Result<Self> {
        let manifest = saved.dir().join("manifest.json").display().to_string();
        let model = Model::from_toml(format!("{manifest}, config"), &saved.manifest().config)?;
        let source = saved.run().map(source::config).transpose()?.flatten();
        let dtype = dtype.unwrap_or_else(|| dtype_of(source.as_ref()));
        let form = saved.run().map(source::form).transpose()?.unwrap_or_default();
        Ok(FromSaved { saved, model, dtype, source, form })
    }

    pub fn dtype(&self) -> Precision {
        self.dtype
    }

    /// The completed steps of the checkpoint.
    pub fn step(&self) -> u64 {
        self.saved.manifest().position.step
    }

    pub fn parameters(&self) -> u64 {
        all_tensors(&self.model).iter().map(|tensor| tensor.len() as u64).sum()
    }

    /// Bytes of all weights in the export.
    pub fn bytes(&self) -> u64 {
        self.parameters() * bytes_of(self.dtype)
    }

    /// A remark on what transformers computes otherwise from the files.
    pub fn note(&self) -> Option<String> {
        let scale = self.model.embedding_scale;
        (scale != 1.0).then(|| {
            format!(
                "config.json has embedding_scale = {scale}, which transformers does not read: it computes another \
                 model from these files, unless the rows of the embedding are multiplied by that factor"
            )
        })
    }

    /// Writes the directory `to`, whole or not at all: see [`export()`]. `progress` gets the number of bytes of weights
    /// just written.
    pub fn write(&self, to: &Path, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let FromSaved { saved, model, dtype, source, form } = self;
        let dir = saved.dir().canonicalize().map_err(|e| Error::io(saved.dir(), e))?;
        let what = Export {
            model,
            form: *form,
            config: hf::config_json(model, source.clone(), *dtype),
            dtype: stored(*dtype),
            files: saved.run().map(source::files).unwrap_or_default(),
            origin: dir.display().to_string(),
            checkpoint: saved.manifest().checksum().to_string(),
        };
        let read =
            |tensor: &TensorSpec, rect: &Rect, out: &mut [f32]| saved.read(&tensor.name, StateKind::Master, rect, out);
        let each = bytes_of(self.dtype);
        export(&read, &what, to, &mut |elements| progress(elements * each))
    }
}

/// The dtype of the model that the run started from, where exports support it: f32 if its file names none, as
/// transformers 4 takes it, but bf16 where its weights are quantized, as transformers dequantizes them.
pub(super) fn dtype_of(source: Option<&Map<String, Value>>) -> Precision {
    if source.is_some_and(hf::is_quantized) {
        return Precision::Bf16;
    }
    match source.map(hf::dtype_of) {
        Some(None | Some("float32")) => Precision::F32,
        Some(Some(_)) | None => Precision::Bf16,
    }
}

/// The type of tensors in a file.
pub(super) fn stored(dtype: Precision) -> Dtype {
    match dtype {
        Precision::F32 => Dtype::F32,
        Precision::Bf16 => Dtype::BF16,
    }
}

/// Bytes of a number.
pub(super) fn bytes_of(dtype: Precision) -> u64 {
    match dtype {
        Precision::F32 => 4,
        Precision::Bf16 => 2,
    }
}
