//! A file of another program's numbers for a few sequences: `input_ids`, `labels`, `loss`, `logits`, and `grad.NAME`
//! for tensors of the model.

use super::tensors::TensorFile;
use crate::error::{Error, Result};
use crate::model::rect::Rect;
use safetensors::tensor::{Dtype, TensorInfo};
use std::path::{Path, PathBuf};

/// The prefix of a gradient's name.
const GRADIENT: &str = "grad.";
/// The label of a position that does not count.
const IGNORED: i64 = -100;

/// An open file.
pub struct Reference {
    path: PathBuf,
    file: TensorFile,
}

impl Reference {
    pub fn open(path: &Path) -> Result<Reference> {
        Ok(Reference { path: path.into(), file: TensorFile::open(path)? })
    }

    /// `input_ids` `[sequences, seq]`: the length of a sequence, and the ids, each below `vocabulary`.
    pub fn ids(&self, vocabulary: usize) -> Result<(usize, Vec<u32>)> {
        let (shape, ids) = self.whole_numbers("input_ids")?;
        let &[_, seq] = &shape[..] else {
            return Err(self.bad("input_ids", &format!("its shape is {shape:?}; it must be [sequences, length]")));
        };
        if ids.is_empty() || seq < 2 {
            return Err(
                self.bad("input_ids", &format!("its shape is {shape:?}; a sequence must have two tokens or more"))
            );
        }
        let ids = ids.into_iter().map(|id| self.id("input_ids", id, vocabulary)).collect::<Result<_>>()?;
        Ok((seq, ids))
    }

    /// `labels`, in the shape of `input_ids`; `None` where a label is -100.
    pub fn labels(&self, count: usize, vocabulary: usize) -> Result<Vec<Option<u32>>> {
        let (shape, labels) = self.whole_numbers("labels")?;
        if labels.len() != count {
            return Err(self.bad("labels", &format!("its shape is {shape:?}; it must have the shape of input_ids")));
        }
        let label = |label| match label {
            IGNORED => Ok(None),
            label => self.id("labels", label, vocabulary).map(Some),
        };
        let labels: Vec<_> = labels.into_iter().map(label).collect::<Result<_>>()?;
        match labels.iter().any(Option::is_some) {
            true => Ok(labels),
            false => Err(self.bad("labels", &format!("all are {IGNORED}; there is no loss to compare"))),
        }
    }

    fn id(&self, name: &str, id: i64, vocabulary: usize) -> Result<u32> {
        let fits = u32::try_from(id).ok().filter(|&id| (id as usize) < vocabulary);
        fits.ok_or_else(|| {
            self.bad(name, &format!("it has {id}; ids must be below the model's vocab_size, {vocabulary}"))
        })
    }

    /// The names of the tensors that the file has gradients of.
    pub fn gradients(&self) -> Vec<String> {
        self.file.names().iter().filter_map(|name| name.strip_prefix(GRADIENT)).map(str::to_string).collect()
    }

    pub fn gradient(&self, name: &str, count: usize) -> Result<Vec<f32>> {
        self.numbers(&format!("{GRADIENT}{name}"), count)?.ok_or_else(|| self.bad(name, "missing"))
    }

    /// The `count` numbers of a tensor, `None` where the file does not have it.
    pub fn numbers(&self, name: &str, count: usize) -> Result<Option<Vec<f32>>> {
        let Some(info) = self.file.info(name) else { return Ok(None) };
        let len = info.shape.iter().product::<usize>();
        if len != count {
            return Err(self.bad(name, &format!("its shape is {:?}; the model's has {count} elements", info.shape)));
        }
        if !matches!(info.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) {
            return Err(self.bad(name, &format!("its dtype is {}; it must be F32, BF16 or F16", info.dtype)));
        }
        let (mut out, whole) = (vec![0.0; len], Rect::whole([1, len]));
        self.file.copy(info, &whole, &whole, &mut out)?;
        Ok(Some(out))
    }

    fn whole_numbers(&self, name: &str) -> Result<(Vec<usize>, Vec<i64>)> {
        let Some(info) = self.file.info(name) else { return Err(self.bad(name, "missing")) };
        let TensorInfo { dtype, shape, data_offsets: (start, end) } = info;
        let mut bytes = vec![0; end - start];
        self.file.read_bytes(info, 0, &mut bytes)?;
        let numbers = match dtype {
            Dtype::I64 => bytes.as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect(),
            Dtype::I32 => bytes.as_chunks().0.iter().map(|&bytes| i32::from_le_bytes(bytes) as i64).collect(),
            other => return Err(self.bad(name, &format!("its dtype is {other}; it must be I64 or I32"))),
        };
        Ok((shape.clone(), numbers))
    }

    fn bad(&self, name: &str, what: &str) -> Error {
        Error::user(format!("{}: {name}: {what}", self.path.display()))
    }
}
