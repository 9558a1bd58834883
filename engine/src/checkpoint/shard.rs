//! One rank's part of a checkpoint: its files, read back from the disk, and the list of their pieces, which rank 0
//! puts into the manifest. Not collective.

use super::tensors::{TensorFile, TensorWriter};
use super::{Piece, PieceEntry, directory};
use crate::error::{Error, Result};
use safetensors::tensor::Dtype;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of tensors after which a rank starts another file.
const FILE_BYTES: usize = 4 << 30;
/// Bytes reserved for a file's header; a full header also starts another file.
const HEADER_ROOM: usize = 64 << 10;

/// One written piece: the tensor's name and dimensions, and the entry of the manifest.
pub(super) type Written = (String, Vec<usize>, PieceEntry);

/// The list of the pieces that one rank wrote. Rank 0 gets it as a file: with hundreds of ranks it is too long to send
/// between two steps, and a background thread must not call MPI.
#[derive(Serialize, Deserialize)]
pub(super) struct Shard {
    pub writer: String,
    pub pieces: Vec<Written>,
}

/// Writes a rank's pieces and their list, reads the pieces back, and returns the list's checksum.
pub(super) fn write(
    dir: &Path,
    rank: usize,
    writer: String,
    pieces: impl Iterator<Item = Result<Piece>>,
) -> Result<String> {
    let pieces = write_pieces(dir, rank, pieces)?;
    read_back(dir, &pieces)?;
    let list = serde_json::to_vec(&Shard { writer, pieces }).expect("numbers and strings are JSON");
    directory::write(&list_path(dir, rank), &list)?;
    Ok(blake3::hash(&list).to_hex().to_string())
}

/// Reads a rank's list and removes its file.
pub(super) fn take_list(dir: &Path, rank: usize, checksum: &str) -> Result<Shard> {
    let path = list_path(dir, rank);
    let list = fs::read(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => unseen(&path),
        _ => Error::io(&path, e),
    })?;
    let shard: Option<Shard> = serde_json::from_slice(&list).ok();
    let shard = shard.filter(|_| blake3::hash(&list).to_hex().as_str() == checksum);
    let shard = shard.ok_or_else(|| Error::run(format!("{} does not read back as it was written", path.display())))?;
    let mut files: Vec<&str> = shard.pieces.iter().map(|(_, _, piece)| piece.file.as_str()).collect();
    files.dedup();
    if let Some(file) = files.into_iter().find(|file| !dir.join(file).exists()) {
        return Err(unseen(&dir.join(file)));
    }
    fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
    Ok(shard)
}

fn list_path(dir: &Path, rank: usize) -> PathBuf {
    dir.join(format!("rank-{rank:05}.json"))
}

fn unseen(path: &Path) -> Error {
    let what = "another rank wrote this file, and rank 0 does not see it; all ranks need the same file system there";
    Error::user(format!("{}: {what}", path.display()))
}

fn write_pieces(dir: &Path, rank: usize, pieces: impl Iterator<Item = Result<Piece>>) -> Result<Vec<Written>> {
    let (mut written, mut current, mut n_files, mut header_bytes) = (Vec::<Written>::new(), None, 0, 0);
    for piece in pieces {
        let piece = piece?;
        if piece.rect.is_empty() {
            continue;
        }
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
    Ok(written)
}

fn write_piece(file: &mut TensorWriter, piece: Piece) -> Result<Written> {
    let data = piece.data.wait()?;
    assert_eq!(data.len(), piece.rect.len(), "{}: elements of a piece and its rectangle", piece.name);
    let bytes: &[u8] = bytemuck::cast_slice(&data);
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
