//! The classifier and its file: safetensors with the weights, and in the metadata what they are weights of.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use data::partial::{PartialFile, sync_folder_of};
use engine::error::{Error, Result};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde::{Deserialize, Serialize};

use super::features::{BUCKETS, CHARACTERS, Features, NGRAMS, normalise};

/// The only key of the file's metadata; a map with several would be written in a random order.
const KEY: &str = "classifier";

/// The format of the file, and the version that is written and read.
const FORMAT: &str = "swallow-engine linear classifier";
const VERSION: u32 = 1;

/// Names of the tensors: a weight a bucket, and the bias alone.
const WEIGHTS: &str = "weights";
const BIAS: &str = "bias";

/// Bytes of the largest file that may be a classifier.
const LONGEST_FILE: u64 = 4 * BUCKETS as u64 + (1 << 20);

/// Logistic regression over the features of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Classifier {
    /// [BUCKETS]
    pub(super) weights: Vec<f32>,
    pub(super) bias: f32,
    pub(super) origin: Origin,
}

/// What a classifier was trained on, and how it did on documents that it was not trained on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// Documents of each class, those that were held out among them.
    pub positive: u64,
    pub negative: u64,
    pub held_out: u64,
    pub accuracy: f64,
    pub auc: f64,
}

/// The metadata, as JSON.
#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
    /// The shortest and the longest n-grams of characters.
    ngrams: [usize; 2],
    buckets: usize,
    /// Characters of a text that are looked at.
    characters: usize,
    trained: Origin,
}

impl Classifier {
    /// A classifier that gives every text the score 0.5.
    pub(super) fn zero() -> Self {
        Self { weights: vec![0.0; BUCKETS], bias: 0.0, origin: Origin::default() }
    }

    /// Reads a file that `data classify train` wrote. One of another format, version or shape is refused.
    pub fn open(path: &Path) -> Result<Self> {
        let size = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
        if size > LONGEST_FILE {
            return Err(no_classifier(
                path,
                format!("it has {size} bytes, and a classifier has at most {LONGEST_FILE}"),
            ));
        }
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        Self::read(&bytes).map_err(|what| no_classifier(path, what))
    }

    fn read(bytes: &[u8]) -> std::result::Result<Self, String> {
        let (_, metadata) =
            SafeTensors::read_metadata(bytes).map_err(|e| format!("it is not a whole safetensors file ({e})"))?;
        let json = metadata.metadata().as_ref().and_then(|all| all.get(KEY));
        let json = json.ok_or_else(|| format!("its metadata has no key \"{KEY}\""))?;
        let header: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
        if header["format"] != FORMAT || header["version"] != VERSION {
            let (format, version) = (&header["format"], &header["version"]);
            return Err(format!("it has the format {format}, version {version}; \"{FORMAT}\", {VERSION} is read here"));
        }
        let header: Header = serde_json::from_value(header).map_err(|e| format!("its metadata: {e}"))?;
        let (found, expected) = ((header.ngrams, header.buckets, header.characters), (NGRAMS, BUCKETS, CHARACTERS));
        if found != expected {
            return Err(format!("its n-grams, buckets and characters are {found:?}; {expected:?} are read here"));
        }
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
        let weights = floats(&tensors, WEIGHTS, BUCKETS)?;
        let bias = floats(&tensors, BIAS, 1)?[0];
        Ok(Self { weights, bias, origin: header.trained })
    }

    /// Writes the file whole or not at all.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let (format, trained) = (FORMAT.to_string(), self.origin);
        let header =
            Header { format, version: VERSION, ngrams: NGRAMS, buckets: BUCKETS, characters: CHARACTERS, trained };
        let header = serde_json::to_string(&header).expect("texts and numbers are JSON");
        let weights: Vec<u8> = self.weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
        let bias = self.bias.to_le_bytes();
        let tensors = [(WEIGHTS, view(&weights)), (BIAS, view(&bias))];
        let file = serialize(tensors, Some(HashMap::from([(KEY.to_string(), header)]))).expect("two names");
        let mut partial = PartialFile::create(path)?;
        partial.write_all(&file).map_err(|e| partial.error(e))?;
        partial.sync()?;
        partial.rename()?;
        sync_folder_of(path)
    }

    /// The probability of the positive class.
    pub fn score(&self, text: &str) -> f32 {
        self.probability(&Features::of(&normalise(text))) as f32
    }

    /// p = 1 / (1 + exp(-(w x + b)))
    pub(super) fn probability(&self, features: &Features) -> f64 {
        let product = |&(bucket, value): &(u32, f32)| f64::from(self.weights[bucket as usize]) * f64::from(value);
        let sum: f64 = features.values.iter().map(product).sum();
        1.0 / (1.0 + (-(sum + f64::from(self.bias))).exp())
    }
}

/// A vector of f32.
fn view(bytes: &[u8]) -> TensorView<'_> {
    TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes).expect("four bytes a number")
}

fn no_classifier(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::user(format!("{}: is not a classifier of `data classify train`: {what}; train one", path.display()))
}

/// The numbers of a tensor that must have `count` of them, all finite.
fn floats(tensors: &SafeTensors, name: &str, count: usize) -> std::result::Result<Vec<f32>, String> {
    let tensor = tensors.tensor(name).map_err(|_| format!("it has no tensor \"{name}\""))?;
    if tensor.dtype() != Dtype::F32 || tensor.shape() != [count] {
        let (dtype, shape) = (tensor.dtype(), tensor.shape());
        return Err(format!("its tensor \"{name}\" is {dtype:?} of the shape {shape:?}; F32 of [{count}] is expected"));
    }
    let number = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().expect("chunks of 4 bytes"));
    let numbers: Vec<f32> = tensor.data().chunks_exact(4).map(number).collect();
    match numbers.iter().find(|number| !number.is_finite()) {
        Some(number) => Err(format!("its tensor \"{name}\" has the value {number}")),
        None => Ok(numbers),
    }
}
