//! Making a run's checkpoint at step 0 from a Hugging Face checkpoint: master weights and no
//! moments, which are zero then.

use super::{Header, HuggingFace, Piece, Saver, Solo, StateKind, directory, source};
use crate::config::Model;
use crate::error::{Error, Result};
use crate::model::param_specs::{TensorSpec, all_tensors};
use crate::model::rect::Rect;
use crate::mpi::host;
use std::path::{Path, PathBuf};

/// Elements of a piece: 64 MiB; three are in memory at a time.
const PIECE: usize = 16 << 20;

/// Imports `from` into the run's directory, which has no checkpoint yet; the new checkpoint's
/// directory comes back. `progress` is told of the elements of every piece.
pub fn import(
    from: &Path,
    run: &Path,
    model: &Model,
    header: &Header,
    progress: &mut dyn FnMut(u64),
) -> Result<PathBuf> {
    if let Some(latest) = directory::latest(run)? {
        let what = "the run has a checkpoint already; import into a directory of its own";
        return Err(Error::user(format!("{}: {what}", latest.display())));
    }
    let hf = HuggingFace::open(from, model)?;
    source::keep(from, run)?;
    let specs = all_tensors(model);
    let pieces = specs.iter().flat_map(|spec| bands(spec, PIECE).map(move |rect| (spec, rect))).map(|(spec, rect)| {
        let mut data = vec![0.0; rect.len()];
        hf.read(&spec.name, &rect, &mut data)?;
        progress(rect.len() as u64);
        Ok(Piece { name: spec.name.clone(), dims: spec.dims.clone(), rect, kind: StateKind::Master, data: data.into() })
    });
    let writer = format!("checkpoint import on {}", host());
    Saver::new(run, None, writer).save(&Solo, header, pieces)
}

/// A tensor in bands of whole rows, of about `len` elements at most.
pub(super) fn bands(spec: &TensorSpec, len: usize) -> impl Iterator<Item = Rect> {
    let [rows, cols] = spec.shape();
    let each = (len / cols).max(1);
    (0..rows).step_by(each).map(move |first| Rect { rows: first..(first + each).min(rows), cols: 0..cols })
}
