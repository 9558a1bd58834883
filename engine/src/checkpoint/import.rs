//! Makes a run's checkpoint of step 0 from a Hugging Face checkpoint. It holds master weights only; the moments of
//! step 0 are zero.

use super::{Header, HuggingFace, Options, Piece, Saver, Solo, StateKind, directory, source};
use crate::config::Model;
use crate::error::{Error, Result};
use crate::model::param_specs::{TensorSpec, all_tensors};
use crate::model::rect::Rect;
use crate::mpi::host;
use std::path::{Path, PathBuf};

/// Elements of a piece: 64 MiB. Three pieces are in memory at a time.
const PIECE: usize = 16 << 20;

/// Imports `from` into the run's directory, which must have no checkpoint, and returns the new checkpoint's
/// directory. `progress` gets the number of elements of every piece read.
pub fn import(
    from: &Path,
    run: &Path,
    model: &Model,
    header: &Header,
    progress: &mut dyn FnMut(u64),
) -> Result<PathBuf> {
    remove_unfinished(run)?;
    if let Some(latest) = directory::latest(run)? {
        let what = "this run has a checkpoint already; import into another directory";
        return Err(Error::user(format!("{}: {what}", latest.display())));
    }
    let hf = HuggingFace::open(from, model)?;
    source::keep(from, run, hf.form())?;
    let specs = all_tensors(model);
    let pieces = specs.iter().flat_map(|spec| bands(spec, PIECE).map(move |rect| (spec, rect))).map(|(spec, rect)| {
        let mut data = vec![0.0; rect.len()];
        hf.read_parameter(spec, &rect, &mut data)?;
        progress(rect.len() as u64);
        Ok(Piece { name: spec.name.clone(), dims: spec.dims.clone(), rect, kind: StateKind::Master, data: data.into() })
    });
    let writer = format!("checkpoint import on {}", host());
    Saver::new(run, Options::default(), writer).save(&Solo, header, pieces).inspect_err(|_| {
        // The error of the save is reported, not one of this removal.
        let _ = directory::remove_only(run, 0).and_then(|()| source::remove(run));
        let _ = std::fs::remove_dir(directory::checkpoints(run));
    })
}

/// Removes the checkpoint of an import that ended before `latest` named it. A run in training has later ones.
fn remove_unfinished(run: &Path) -> Result<()> {
    match (directory::latest_step(run)?, &directory::steps(run)?[..]) {
        (None, [0]) => directory::remove_whole(&directory::checkpoints(run).join(directory::step_name(0))),
        _ => Ok(()),
    }
}

/// The bands of whole rows of a tensor, each of about `len` elements at most.
pub(super) fn bands(spec: &TensorSpec, len: usize) -> impl Iterator<Item = Rect> {
    let [rows, cols] = spec.shape();
    let each = (len / cols).max(1);
    (0..rows).step_by(each).map(move |first| Rect { rows: first..(first + each).min(rows), cols: 0..cols })
}
