//! Saving: every rank writes its own file, rank 0 the manifest; the rename comes when all is on
//! the disk and was read back. Whatever fails, all ranks learn it and `latest` stays as it was.

use super::exchange::agree;
use super::manifest::Manifest;
use super::tensors::{TensorFile, TensorWriter};
use super::{Exchange, Header, Piece, PieceEntry, directory};
use crate::error::{Error, Result};
use safetensors::tensor::Dtype;
use std::path::{Path, PathBuf};

/// Bytes of tensors after which a rank goes on in another file.
const FILE_BYTES: usize = 4 << 30;
/// Bytes kept for a file's header; a full header, too, starts another file.
const HEADER_ROOM: usize = 64 << 10;

/// One written piece, as rank 0 hears of it: the tensor's name and dimensions, and where it lies.
type Written = (String, Vec<usize>, PieceEntry);

/// Writes a checkpoint of `header.position.step` into the run's directory and makes it the latest.
///
/// Called on all ranks together. The pieces of all ranks cover every tensor once in each kind that
/// is saved; an iterator that makes them one by one keeps the memory at one piece. `keep` is how
/// many complete checkpoints stay. Every rank gets the same verdict: the checkpoint's directory,
/// or the first rank's failure; then nothing of this save remains.
pub fn save(
    run: &Path,
    comm: &impl Exchange,
    header: &Header,
    pieces: impl Iterator<Item = Piece>,
    keep: Option<usize>,
) -> Result<PathBuf> {
    save_each(run, comm, header, pieces.map(Ok), keep)
}

/// [`save`] of pieces that have to be read from somewhere first.
pub(super) fn save_each(
    run: &Path,
    comm: &impl Exchange,
    header: &Header,
    pieces: impl Iterator<Item = Result<Piece>>,
    keep: Option<usize>,
) -> Result<PathBuf> {
    let dir = directory::checkpoints(run).join(directory::step_name(header.position.step));
    let temporary = directory::temporary(&dir);
    let on_first = |work: &dyn Fn() -> Result<()>| agree(comm, if comm.rank() == 0 { work() } else { Ok(()) });
    on_first(&|| {
        directory::clean(run)?;
        directory::create_anew(&temporary)
    })?;
    let saved = agree(comm, write_pieces(&temporary, comm.rank(), pieces)).and_then(|written| {
        let written: Vec<Written> = written.into_iter().flatten().collect();
        on_first(&|| commit(run, &dir, header, written.clone()))
    });
    if saved.is_err() && comm.rank() == 0 {
        // The failure that is reported is the save's; what stays behind goes at the next save.
        let _ = directory::remove(&temporary);
    }
    saved?;
    on_first(&|| keep.map_or(Ok(()), |keep| directory::prune(run, header.position.step, keep)))?;
    Ok(dir)
}

/// Rank 0's part: the manifest, the rename, `latest`.
fn commit(run: &Path, dir: &Path, header: &Header, written: Vec<Written>) -> Result<()> {
    let temporary = directory::temporary(dir);
    for file in written.iter().map(|(_, _, piece)| &piece.file) {
        if !temporary.join(file).exists() {
            let what = "another rank wrote it, rank 0 does not see it; all ranks need the same file system there";
            return Err(Error::user(format!("{}: {what}", temporary.join(file).display())));
        }
    }
    let manifest = Manifest::new(header, written)?;
    directory::write(&temporary.join("manifest.json"), &manifest.to_json())?;
    assert_eq!(Manifest::read(&temporary)?, manifest, "the manifest reads back as it was written");
    directory::publish(dir)?;
    directory::set_latest(run, header.position.step)
}

/// Writes one rank's pieces and reads them back.
fn write_pieces(dir: &Path, rank: usize, pieces: impl Iterator<Item = Result<Piece>>) -> Result<Vec<Written>> {
    let (mut written, mut current, mut n_files, mut header_bytes) = (Vec::<Written>::new(), None, 0, 0);
    for piece in pieces {
        let piece = piece?;
        if piece.rect.is_empty() {
            continue;
        }
        assert_eq!(piece.data.len(), piece.rect.len(), "{}: elements of a piece and its rectangle", piece.name);
        // A header's entry: the name, and less than 200 bytes of numbers and keys.
        header_bytes += piece.name.len() + 200;
        let full = |file: &TensorWriter| file.len() >= FILE_BYTES || header_bytes > HEADER_ROOM;
        if let Some(file) = current.take_if(|file| full(file)) {
            file.finish(None)?;
        }
        let file = match &mut current {
            Some(file) => file,
            None => {
                let name = format!("rank-{rank:05}-{n_files}.safetensors");
                (n_files, header_bytes) = (n_files + 1, piece.name.len() + 200);
                current.insert(TensorWriter::create(&dir.join(name), HEADER_ROOM)?)
            }
        };
        written.push(write_piece(file, piece)?);
    }
    current.map_or(Ok(()), |file| file.finish(None))?;
    read_back(dir, &written)?;
    Ok(written)
}

fn write_piece(file: &mut TensorWriter, piece: Piece) -> Result<Written> {
    let bytes: &[u8] = bytemuck::cast_slice(&piece.data);
    let name = file.path().file_name().expect("a file has a name").to_string_lossy().into_owned();
    let entry = PieceEntry::new(piece.kind, &piece.rect, name, blake3::hash(bytes).to_hex().to_string());
    file.begin(entry.key(&piece.name), Dtype::F32, vec![piece.rect.rows.len(), piece.rect.cols.len()]);
    file.write(bytes)?;
    Ok((piece.name, piece.dims, entry))
}

fn read_back(dir: &Path, written: &[Written]) -> Result<()> {
    let mut open: Option<(&str, TensorFile)> = None;
    for (tensor, _, piece) in written {
        if open.as_ref().is_none_or(|(name, _)| *name != piece.file) {
            open = Some((&piece.file, TensorFile::open(&dir.join(&piece.file))?));
        }
        let (_, file) = open.as_ref().expect("opened above");
        let key = piece.key(tensor);
        let found = file.info(&key).map(|info| file.checksum(info, &mut |_| ())).transpose()?;
        if found.as_ref() != Some(&piece.blake3) {
            let path = dir.join(&piece.file);
            return Err(Error::run(format!("{}: {key} does not read back as it was written", path.display())));
        }
    }
    Ok(())
}
