//! `manifest.json`: the position, configuration and identity of a checkpoint, and the file and checksum of every piece.
//! It is written last, contains its own checksum, and is used only after all of it was checked.

use super::shard::{Shard, Written};
use super::{AcceptedSteps, Header, Position, StateKind};
use crate::error::{Error, Result};
use crate::model::param_specs::matrix_shape;
use crate::model::rect::Rect;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

const FORMAT: &str = "swallow-engine checkpoint 2";
/// An older format that is still read; it does not record which rank wrote each file.
const FORMAT_1: &str = "swallow-engine checkpoint 1";
/// The longest manifest that is read; a million pieces take about 200 MB.
const MAX_BYTES: u64 = 1 << 30;

/// The result of a check; its error message lacks the file's path.
type Check = std::result::Result<(), String>;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    format: String,
    pub position: Position,
    pub identity: Vec<(String, String)>,
    pub config: String,
    /// The kinds of state that are saved for every tensor; moments that are not saved are zero.
    pub kinds: Vec<StateKind>,
    pub tensors: Vec<TensorEntry>,
    /// The writer of each file, by file name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub writers: BTreeMap<String, String>,
    /// Older checkpoints have none.
    #[serde(default, skip_serializing_if = "AcceptedSteps::is_empty")]
    pub accepted: AcceptedSteps,
    /// blake3 of the manifest with this field empty.
    checksum: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// The Hugging Face name.
    pub name: String,
    /// The one or two dimensions of the whole, unpadded tensor.
    pub dims: Vec<usize>,
    /// Always F32.
    dtype: String,
    pub pieces: Vec<PieceEntry>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PieceEntry {
    pub kind: StateKind,
    /// The first row, and the row after the last.
    rows: [usize; 2],
    cols: [usize; 2],
    /// The safetensors file beside the manifest.
    pub file: String,
    /// Hash of the piece's bytes.
    pub blake3: String,
}

impl PieceEntry {
    pub fn new(kind: StateKind, rect: &Rect, file: String, blake3: String) -> Self {
        let ([rows, cols], kind) = ([&rect.rows, &rect.cols].map(|r| [r.start, r.end]), kind);
        PieceEntry { kind, rows, cols, file, blake3 }
    }

    pub fn rect(&self) -> Rect {
        Rect { rows: self.rows[0]..self.rows[1], cols: self.cols[0]..self.cols[1] }
    }

    /// The name of the piece's tensor in its file.
    pub fn key(&self, tensor: &str) -> String {
        let ([r0, r1], [c0, c1]) = (self.rows, self.cols);
        format!("{tensor}/{}[{r0}:{r1},{c0}:{c1}]", self.kind.name())
    }
}

impl TensorEntry {
    /// The tensor as a matrix: see [`matrix_shape`].
    pub fn shape(&self) -> [usize; 2] {
        matrix_shape(&self.dims).expect("the dimensions were checked when the manifest was read")
    }

    /// Checks that the dimensions are valid and that the pieces of each kind cover the tensor exactly once.
    fn check(&self, kinds: &[StateKind]) -> Check {
        let len = matrix_shape(&self.dims).map(|[rows, cols]| rows * cols);
        let Some(len) = len.filter(|&len| len > 0 && len < 1 << 60) else {
            return Err(format!("dimensions {:?} are not one to three sizes of a tensor", self.dims));
        };
        if self.dtype != "F32" {
            return Err(format!("dtype {:?} should be \"F32\"", self.dtype));
        }
        if let Some(piece) = self.pieces.iter().find(|piece| !kinds.contains(&piece.kind)) {
            return Err(format!("a piece of kind {}, which the checkpoint does not list", piece.kind.name()));
        }
        let whole = Rect::whole(self.shape());
        kinds.iter().try_for_each(|&kind| {
            let rects = self.pieces.iter().filter(|piece| piece.kind == kind).map(PieceEntry::rect);
            check_tiling(&whole, len, rects.collect()).map_err(|what| format!("{}: {what}", kind.name()))
        })
    }
}

/// Checks that rectangles cover the whole exactly once: they lie inside it, do not overlap and have its area in total.
fn check_tiling(whole: &Rect, len: usize, mut rects: Vec<Rect>) -> Check {
    let show = |r: &Rect| format!("rows {}..{}, columns {}..{}", r.rows.start, r.rows.end, r.cols.start, r.cols.end);
    for rect in &rects {
        if rect.rows.is_empty() || rect.cols.is_empty() || rect.intersect(whole) != *rect {
            return Err(format!("a piece of {} does not lie in {}", show(rect), show(whole)));
        }
    }
    rects.sort_by_key(|rect| (rect.rows.start, rect.cols.start));
    for (i, rect) in rects.iter().enumerate() {
        let below = rects[i + 1..].iter().take_while(|other| other.rows.start < rect.rows.end);
        if let Some(other) = below.into_iter().find(|other| !rect.intersect(other).is_empty()) {
            return Err(format!("pieces overlap: {} and {}", show(rect), show(other)));
        }
    }
    let covered: usize = rects.iter().map(Rect::len).sum();
    if covered != len {
        return Err(format!("its pieces hold {covered} of {len} elements"));
    }
    Ok(())
}

impl Manifest {
    /// The total bytes of all pieces.
    pub fn bytes(&self) -> u64 {
        let pieces = self.tensors.iter().flat_map(|tensor| &tensor.pieces);
        pieces.map(|piece| piece.rect().len() as u64 * 4).sum()
    }

    /// Assembles a manifest from the lists of all ranks, which name pieces of any tensors in any order.
    pub(super) fn new(header: &Header, shards: Vec<Shard>) -> Result<Manifest> {
        let mut writers = BTreeMap::new();
        for Shard { writer, pieces } in &shards {
            writers.extend(pieces.iter().map(|(_, _, piece)| (piece.file.clone(), writer.clone())));
        }
        let tensors = gather(shards.into_iter().flat_map(|shard| shard.pieces))?;
        let mut kinds: Vec<StateKind> = tensors.iter().flat_map(|t| t.pieces.iter().map(|piece| piece.kind)).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let Header { position, config, identity, accepted } = header.clone();
        let (format, checksum) = (FORMAT.into(), String::new());
        let mut manifest = Manifest { format, position, identity, config, kinds, tensors, writers, accepted, checksum };
        manifest.check().map_err(|what| Error::run(format!("this checkpoint would be incomplete: {what}")))?;
        manifest.checksum = manifest.digest();
        Ok(manifest)
    }

    /// The names of all files beside the manifest.
    pub fn files(&self) -> BTreeSet<&str> {
        self.tensors.iter().flat_map(|tensor| tensor.pieces.iter().map(|piece| piece.file.as_str())).collect()
    }

    /// The hash that identifies this checkpoint: it covers the position, the configuration and every piece's hash.
    pub fn checksum(&self) -> &str {
        &self.checksum
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("numbers and strings are JSON")
    }

    /// Reads and checks the manifest in a checkpoint's directory.
    pub(super) fn read(dir: &Path) -> Result<Manifest> {
        let path = dir.join("manifest.json");
        let refuse = |what: String| Error::user(format!("{}: {what}", path.display()));
        let len = fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
        if len > MAX_BYTES {
            return Err(refuse(format!("{len} bytes are too long for a manifest")));
        }
        let text = fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let manifest: Manifest = serde_json::from_slice(&text)
            .map_err(|e| refuse(format!("not a checkpoint's manifest, or damaged: {e}")))?;
        if ![FORMAT, FORMAT_1].contains(&manifest.format.as_str()) {
            return Err(refuse(format!("format {:.60?} should be {FORMAT:?}", manifest.format)));
        }
        if manifest.digest() != manifest.checksum {
            return Err(refuse("does not have its own checksum; it is damaged or was edited".into()));
        }
        manifest.check().map_err(refuse)?;
        Ok(manifest)
    }

    fn check(&self) -> Check {
        let AcceptedSteps { losses, grad_norms } = &self.accepted;
        if losses.len() != grad_norms.len() || !losses.iter().chain(grad_norms).all(|x| x.is_finite()) {
            return Err("its accepted steps are not pairs of finite numbers".into());
        }
        if !self.kinds.contains(&StateKind::Master) {
            return Err("it has no master weights".into());
        }
        let mut names: Vec<&str> = self.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("{} is listed twice", twice[0]));
        }
        for tensor in &self.tensors {
            tensor.check(&self.kinds).map_err(|what| format!("{}: {what}", tensor.name))?;
            // A file's name must not lead out of the directory.
            if let Some(piece) =
                tensor.pieces.iter().find(|p| p.file.contains(['/', '\\']) || !p.file.ends_with(".safetensors"))
            {
                return Err(format!("{}: {:?} cannot be a file of a checkpoint", tensor.name, piece.file));
            }
        }
        Ok(())
    }

    pub(super) fn digest(&self) -> String {
        let blank = Manifest { checksum: String::new(), ..self.clone() };
        blake3::hash(&serde_json::to_vec(&blank).expect("numbers and strings are JSON")).to_hex().to_string()
    }
}

/// The pieces by tensor, with the tensors in the order of the layers.
fn gather(written: impl Iterator<Item = Written>) -> Result<Vec<TensorEntry>> {
    let mut tensors: BTreeMap<(Vec<String>, String), TensorEntry> = BTreeMap::new();
    for (name, dims, piece) in written {
        let new = || TensorEntry { name: name.clone(), dims: dims.clone(), dtype: "F32".into(), pieces: Vec::new() };
        let entry = tensors.entry((natural_order(&name), name.clone())).or_insert_with(new);
        if entry.dims != dims {
            let was = &entry.dims;
            return Err(Error::run(format!("{name} was saved as {was:?} by one rank, {dims:?} by another")));
        }
        entry.pieces.push(piece);
    }
    let mut tensors: Vec<TensorEntry> = tensors.into_values().collect();
    for tensor in &mut tensors {
        tensor.pieces.sort_by_key(|piece| (piece.kind, piece.rows, piece.cols));
    }
    Ok(tensors)
}

/// A sort key that puts layer 2 before layer 10.
fn natural_order(name: &str) -> Vec<String> {
    name.split('.').map(|part| part.parse::<u64>().map_or_else(|_| part.into(), |n| format!("{n:020}"))).collect()
}
