//! One rank's part of a checkpoint: its files, read back from the disk, and the list of their pieces, which rank 0
//! puts into the manifest. Not collective.

use super::tensors::{TensorFile, TensorWriter};
use super::{Piece, PieceEntry, directory};
use crate::error::{Error, Result};
use crate::retry::Retry;
use safetensors::tensor::Dtype;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of tensors after which a rank starts another file. A file's pieces stay in memory until it is on the disk, so
/// that it can be written anew.
const FILE_BYTES: usize = 1 << 30;
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

/// Writes a rank's pieces and their list into `dir`, reads the pieces back, and returns the list's checksum.
pub(super) fn write(
    dir: &Path,
    rank: usize,
    writer: String,
    pieces: impl Iterator<Item = Result<Piece>>,
    retry: &Retry,
) -> Result<String> {
    retry.run(|| directory::create(dir))?;
    let pieces = write_pieces(dir, rank, pieces, retry)?;
    let list = serde_json::to_vec(&Shard { writer, pieces }).expect("numbers and strings are JSON");
    retry.run(|| directory::write(&list_path(dir, rank), &list))?;
    Ok(blake3::hash(&list).to_hex().to_string())
}

/// Reads a rank's list.
pub(super) fn read_list(dir: &Path, rank: usize, checksum: &str) -> Result<Shard> {
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
    Ok(shard)
}

/// Removes a rank's list.
pub(super) fn remove_list(dir: &Path, rank: usize) -> Result<()> {
    remove_file(&list_path(dir, rank))
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}

fn list_path(dir: &Path, rank: usize) -> PathBuf {
    dir.join(format!("rank-{rank:05}.json"))
}

fn unseen(path: &Path) -> Error {
    let what = "another rank wrote this file, and rank 0 does not see it; all ranks need the same file system there";
    Error::user(format!("{}: {what}", path.display()))
}

fn write_pieces(
    dir: &Path,
    rank: usize,
    pieces: impl Iterator<Item = Result<Piece>>,
    retry: &Retry,
) -> Result<Vec<Written>> {
    let (mut written, mut current, mut n_files, mut header_bytes) = (Vec::<Written>::new(), None, 0, 0);
    for piece in pieces {
        let piece = piece?;
        if piece.rect.is_empty() {
            continue;
        }
        // A header's entry: the name, and less than 200 bytes of numbers and keys.
        header_bytes += piece.name.len() + 200;
        let full = |file: &ShardFile| file.bytes >= FILE_BYTES || header_bytes > HEADER_ROOM;
        if let Some(file) = current.take_if(|file| full(file)) {
            written.extend(file.finish(retry)?);
        }
        let file = current.get_or_insert_with(|| {
            let name = format!("rank-{rank:05}-{n_files}.safetensors");
            (n_files, header_bytes) = (n_files + 1, piece.name.len() + 200);
            ShardFile::new(dir.join(name))
        });
        file.push(piece, retry)?;
    }
    written.extend(current.map_or(Ok(Vec::new()), |file| file.finish(retry))?);
    Ok(written)
}

/// A file that is being written: its pieces, from which it is written anew after a failure that may pass.
struct ShardFile {
    path: PathBuf,
    /// `None` before the first piece and after a failure.
    file: Option<TensorWriter>,
    pieces: Vec<Written>,
    /// The elements of all pieces, or of the last one alone where nothing is repeated.
    data: Vec<Vec<f32>>,
    bytes: usize,
}

impl ShardFile {
    fn new(path: PathBuf) -> ShardFile {
        ShardFile { path, file: None, pieces: Vec::new(), data: Vec::new(), bytes: 0 }
    }

    fn push(&mut self, piece: Piece, retry: &Retry) -> Result<()> {
        let data = piece.data.wait()?;
        assert_eq!(data.len(), piece.rect.len(), "{}: elements of a piece and its rectangle", piece.name);
        let bytes: &[u8] = bytemuck::cast_slice(&data);
        let name = self.path.file_name().expect("a file has a name").to_string_lossy().into_owned();
        let entry = PieceEntry::new(piece.kind, &piece.rect, name, blake3::hash(bytes).to_hex().to_string());
        self.bytes += bytes.len();
        self.pieces.push((piece.name, piece.dims, entry));
        if !retry.repeats() {
            self.data.clear();
        }
        self.data.push(data);
        retry.run(|| {
            let file = match self.file.take() {
                None => self.write_all(),
                Some(mut file) => self.write_last(&mut file).map(|()| file),
            };
            self.file = Some(file.inspect_err(|_| self.discard())?);
            Ok(())
        })
    }

    /// Flushes the file and reads it back; returns its pieces.
    fn finish(mut self, retry: &Retry) -> Result<Vec<Written>> {
        retry.run(|| {
            let file = self.file.take().map_or_else(|| self.write_all(), Ok);
            let finished = file.and_then(|file| file.finish(None));
            finished.and_then(|()| read_back(&self.path, &self.pieces)).inspect_err(|_| self.discard())
        })?;
        Ok(self.pieces)
    }

    /// Creates the file and writes all of its pieces.
    fn write_all(&self) -> Result<TensorWriter> {
        remove_file(&self.path)?;
        let mut file = TensorWriter::create(&self.path, HEADER_ROOM)?;
        for (piece, data) in self.pieces.iter().zip(&self.data) {
            write_piece(&mut file, piece, data)?;
        }
        Ok(file)
    }

    fn write_last(&self, file: &mut TensorWriter) -> Result<()> {
        let (piece, data) = (self.pieces.last(), self.data.last());
        write_piece(file, piece.expect("one was pushed"), data.expect("one was pushed"))
    }

    /// Gives the room of a file that is written anew back, which others may need meanwhile.
    fn discard(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn write_piece(file: &mut TensorWriter, (tensor, _, piece): &Written, data: &[f32]) -> Result<()> {
    let rect = piece.rect();
    file.begin(piece.key(tensor), Dtype::F32, vec![rect.rows.len(), rect.cols.len()]);
    file.write(bytemuck::cast_slice(data))
}

fn read_back(path: &Path, written: &[Written]) -> Result<()> {
    let file = TensorFile::open(path)?;
    for (tensor, _, piece) in written {
        let key = piece.key(tensor);
        let found = file.info(&key).map(|info| file.checksum(info, &mut |_| ())).transpose()?;
        if found.as_ref() != Some(&piece.blake3) {
            return Err(Error::run(format!("{}: {key} does not read back as it was written", path.display())));
        }
    }
    Ok(())
}
