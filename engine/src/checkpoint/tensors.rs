//! One safetensors file: reads rectangles of it as f32, and writes it without knowing the tensors in advance. Nothing
//! is memory-mapped, and nothing is allocated beyond the header's true length.

use crate::error::{Error, Result};
use crate::model::rect::Rect;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The longest header that safetensors itself reads.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes per read if the elements are converted or only hashed.
const CHUNK: usize = 1 << 20;
/// Bytes of one read that covers many rows.
const BLOCK: usize = 4 << 20;
/// The largest gap in bytes that is read and thrown away rather than skipped: about what a disk or a network delivers
/// in the time of another request.
const GAP: usize = 256 << 10;

/// Bytes of each part of a file that its fingerprint reads.
const SAMPLE: u64 = 64 << 10;

/// An open file whose header agrees with its length.
pub(super) struct TensorFile {
    path: PathBuf,
    file: File,
    /// The offset of the first tensor's bytes.
    data: u64,
    header: Metadata,
}

impl TensorFile {
    pub fn open(path: &Path) -> Result<TensorFile> {
        let io = |e| Error::io(path, e);
        let refuse = |what: String| Error::user(format!("{}: {what}", path.display()));
        let file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        let mut first = [0; 8];
        if len < 8 {
            return Err(refuse(format!("{len} bytes are not a safetensors file; it is cut short or empty")));
        }
        file.read_exact_at(&mut first, 0).map_err(io)?;
        let header_len = u64::from_le_bytes(first);
        if header_len > MAX_HEADER.min(len - 8) {
            return Err(refuse(format!(
                "a header of {header_len} bytes in a file of {len}; it is cut short or damaged"
            )));
        }
        let mut text = vec![0; header_len as usize];
        file.read_exact_at(&mut text, 8).map_err(io)?;
        let header: Metadata =
            serde_json::from_slice(&text).map_err(|e| refuse(format!("the safetensors header is damaged: {e}")))?;
        let data = 8 + header_len;
        let described = data.saturating_add(header.data_len() as u64);
        if described != len {
            return Err(refuse(format!(
                "the header describes {described} bytes, the file has {len}; it is cut short or damaged"
            )));
        }
        Ok(TensorFile { path: path.into(), file, data, header })
    }

    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.header.info(name)
    }

    /// Bytes of all tensors.
    pub fn data_len(&self) -> usize {
        self.header.data_len()
    }

    /// The metadata of the file's header.
    pub fn metadata(&self) -> Option<HashMap<String, String>> {
        self.header.metadata().clone()
    }

    /// Fills `out` with a tensor's bytes from `first` on.
    pub fn read_bytes(&self, info: &TensorInfo, first: usize, out: &mut [u8]) -> Result<()> {
        let at = self.data + (info.data_offsets.0 + first) as u64;
        self.file.read_exact_at(out, at).map_err(|e| Error::io(&self.path, e))
    }

    /// The tensors' names in the order of their bytes.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// Fills the part of `out` (the rectangle `wanted`, row-major) that the stored tensor covers; the stored tensor
    /// is the rectangle `stored` of the same whole tensor. Reads F32, BF16 and F16.
    pub fn copy(&self, info: &TensorInfo, stored: &Rect, wanted: &Rect, out: &mut [f32]) -> Result<()> {
        assert_eq!(out.len(), wanted.len(), "{} elements for a rectangle of {}", out.len(), wanted.len());
        let common = stored.intersect(wanted);
        if common.is_empty() {
            return Ok(());
        }
        // The index of the common rectangle's first element of `row`, in a row-major rectangle.
        let index = |within: &Rect, row: usize| {
            (row - within.rows.start) * within.cols.len() + common.cols.start - within.cols.start
        };
        // Rows that are contiguous on both sides are read at once.
        if stored.cols == wanted.cols {
            let at = index(wanted, common.rows.start);
            return self.read_run(info, index(stored, common.rows.start), &mut out[at..at + common.len()]);
        }
        let (each, len) = (rows_a_read(stored, &common, info.dtype.bitsize() / 8), common.cols.len());
        let mut scratch = Vec::new();
        for first in common.rows.clone().step_by(each) {
            let rows = first..(first + each).min(common.rows.end);
            if rows.len() == 1 {
                let at = index(wanted, first);
                self.read_run(info, index(stored, first), &mut out[at..at + len])?;
                continue;
            }
            let start = index(stored, first);
            scratch.resize(index(stored, rows.end - 1) + len - start, 0.0);
            self.read_run(info, start, &mut scratch)?;
            for row in rows {
                let (from, to) = (index(stored, row) - start, index(wanted, row));
                out[to..to + len].copy_from_slice(&scratch[from..from + len]);
            }
        }
        Ok(())
    }

    /// Reads the elements `first ..` of a tensor into `out`.
    fn read_run(&self, info: &TensorInfo, first: usize, out: &mut [f32]) -> Result<()> {
        let size = info.dtype.bitsize() / 8;
        let at = self.data + (info.data_offsets.0 + first * size) as u64;
        let io = |e| Error::io(&self.path, e);
        let widen: fn([u8; 2]) -> f32 = match info.dtype {
            Dtype::F32 => return self.file.read_exact_at(bytemuck::cast_slice_mut(out), at).map_err(io),
            Dtype::BF16 => |bytes| half::bf16::from_le_bytes(bytes).to_f32(),
            Dtype::F16 => |bytes| half::f16::from_le_bytes(bytes).to_f32(),
            other => panic!("{} holds {other}, which should have been refused", self.path.display()),
        };
        let mut narrow = vec![0; CHUNK.min(out.len() * 2)];
        for (i, out) in out.chunks_mut(CHUNK / 2).enumerate() {
            let narrow = &mut narrow[..out.len() * 2];
            self.file.read_exact_at(narrow, at + (i * CHUNK) as u64).map_err(io)?;
            for (value, bytes) in out.iter_mut().zip(narrow.chunks_exact(2)) {
                *value = widen([bytes[0], bytes[1]]);
            }
        }
        Ok(())
    }

    /// Hashes the file's length, the beginning of its header, and the first and last bytes of its tensors.
    pub fn fingerprint(&self, hash: &mut blake3::Hasher) -> Result<()> {
        let io = |e| Error::io(&self.path, e);
        let len = self.file.metadata().map_err(io)?.len();
        hash.update(&len.to_le_bytes());
        let mut part = vec![0; SAMPLE.min(len) as usize];
        for at in [0, self.data.min(len - part.len() as u64), len - part.len() as u64] {
            self.file.read_exact_at(&mut part, at).map_err(io)?;
            hash.update(&part);
        }
        Ok(())
    }

    /// The checksum of a tensor's bytes; `look` gets the bytes just read.
    pub fn checksum(&self, info: &TensorInfo, look: &mut dyn FnMut(&[u8])) -> Result<String> {
        let (start, end) = info.data_offsets;
        let (mut hash, mut buffer) = (blake3::Hasher::new(), vec![0; CHUNK.min(end - start)]);
        let mut at = start;
        while at < end {
            let part = &mut buffer[..CHUNK.min(end - at)];
            self.file.read_exact_at(part, self.data + at as u64).map_err(|e| Error::io(&self.path, e))?;
            hash.update(part);
            at += part.len();
            look(part);
        }
        Ok(hash.finalize().to_hex().to_string())
    }
}

/// The number of rows of `common` that one read of the tensor `stored` covers, including the bytes between them.
/// Reading each row alone would take thousands of reads of a few kB for a tensor-parallel rank's columns of a wide
/// matrix.
fn rows_a_read(stored: &Rect, common: &Rect, size: usize) -> usize {
    let (row, wanted) = (stored.cols.len() * size, common.cols.len() * size);
    if row - wanted <= GAP { (BLOCK / row).max(1) } else { 1 }
}

/// Writes tensors one after another; the header goes into space reserved at the front.
pub(super) struct TensorWriter {
    path: PathBuf,
    file: File,
    room: usize,
    tensors: Vec<(String, TensorInfo)>,
    end: usize,
}

impl TensorWriter {
    /// `room`: bytes reserved for the header, which is padded with spaces.
    pub fn create(path: &Path, room: usize) -> Result<TensorWriter> {
        let io = |e| Error::io(path, e);
        let mut file = File::create_new(path).map_err(io)?;
        file.seek(SeekFrom::Start(8 + room as u64)).map_err(io)?;
        Ok(TensorWriter { path: path.into(), file, room, tensors: Vec::new(), end: 0 })
    }

    /// Declares the next tensor; the calls of [`Self::write`] that follow must write exactly its bytes.
    pub fn begin(&mut self, name: String, dtype: Dtype, shape: Vec<usize>) {
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        let start = self.tensors.last().map_or(0, |(_, info)| info.data_offsets.1);
        assert_eq!(self.end, start, "{} bytes written, {start} declared before {name}", self.end);
        self.tensors.push((name, TensorInfo { dtype, shape, data_offsets: (start, start + bytes) }));
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.end += bytes.len();
        self.file.write_all(bytes).map_err(|e| Error::io(&self.path, e))
    }

    /// Writes the header and flushes everything to the disk.
    pub fn finish(mut self, metadata: Option<HashMap<String, String>>) -> Result<()> {
        let mut header = header(self.tensors, metadata);
        assert!(header.len() <= self.room, "a header of {} bytes, room for {}", header.len(), self.room);
        header.resize(self.room, b' ');
        let io = |e| Error::io(&self.path, e);
        self.file.seek(SeekFrom::Start(0)).map_err(io)?;
        self.file.write_all(&(self.room as u64).to_le_bytes()).map_err(io)?;
        self.file.write_all(&header).map_err(io)?;
        self.file.sync_all().map_err(io)?;
        // Drops the page cache, so that reading back asks the disk. File systems without a page cache may refuse.
        let _ = posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        Ok(())
    }
}

/// The header's text as the safetensors library writes it, padded to a multiple of 8 bytes.
pub(super) fn header(tensors: Vec<(String, TensorInfo)>, metadata: Option<HashMap<String, String>>) -> Vec<u8> {
    let header = Metadata::new(metadata, tensors).expect("tensors were laid end to end");
    let mut text = serde_json::to_vec(&header).expect("names and numbers are JSON");
    text.resize(text.len().next_multiple_of(8), b' ');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;
    use proptest::prelude::*;

    #[test]
    fn columns_are_read_in_blocks() {
        let rows = |whole: [usize; 2], cols: std::ops::Range<usize>| {
            let stored = Rect::whole(whole);
            rows_a_read(&stored, &Rect { cols, ..stored.clone() }, 2)
        };
        // down_proj of a 70B model over 8 ranks, in bf16: 113 reads, not 8192.
        assert_eq!(rows([8192, 28672], 3584..7168), 73);
        assert_eq!(rows([8192, 28672], 0..1), 73);
        // Rows far from each other are read one by one.
        assert_eq!(rows([8192, 1 << 20], 0..1000), 1);
        assert_eq!(rows([8192, 1 << 20], 0..(1 << 20) - 1000), 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        /// Covers matrices that take several blocks, narrow matrices, and both element sizes.
        #[test]
        fn any_rectangle_of_a_matrix(
            rows in 1usize..700, cols in prop_oneof![1usize..20, 2000usize..9000, Just(80_000)],
            cuts in any::<[usize; 8]>(), wide in any::<bool>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("x.safetensors");
            let rows = rows.min(2_000_000 / cols + 1);
            let range = |len: usize, a: usize, b: usize| {
                let (a, b) = (a % (len + 1), b % (len + 1));
                a.min(b)..a.max(b)
            };
            // The file holds a part of the whole matrix, and another part is read.
            let value = |row: usize, col: usize| bf16::from_f32((row * 31 + col * 7) as f32);
            let stored = Rect { rows: 3..3 + rows, cols: 5..5 + cols };
            let wanted = Rect {
                rows: range(rows + 6, cuts[0], cuts[1]),
                cols: if cuts[4] % 3 == 0 { 5..5 + cols } else { range(cols + 9, cuts[2], cuts[3]) },
            };
            let all = stored.rows.clone().flat_map(|r| stored.cols.clone().map(move |c| value(r, c)));
            let (dtype, bytes): (_, Vec<u8>) = match wide {
                true => (Dtype::F32, all.flat_map(|x| x.to_f32().to_le_bytes()).collect()),
                false => (Dtype::BF16, all.flat_map(|x| x.to_le_bytes()).collect()),
            };
            let mut file = TensorWriter::create(&path, 1 << 10).unwrap();
            file.begin("x".into(), dtype, vec![rows, cols]);
            file.write(&bytes).unwrap();
            file.finish(None).unwrap();

            let file = TensorFile::open(&path).unwrap();
            let mut out = vec![-1.0; wanted.len()];
            file.copy(file.info("x").unwrap(), &stored, &wanted, &mut out).unwrap();
            let positions = wanted.rows.clone().flat_map(|r| wanted.cols.clone().map(move |c| (r, c)));
            for ((r, c), got) in positions.zip(out) {
                let there = stored.rows.contains(&r) && stored.cols.contains(&c);
                prop_assert_eq!(got, if there { value(r, c).to_f32() } else { -1.0 }, "row {}, column {}", r, c);
            }
        }
    }
}
