//! Reads a run's checkpoint at any layout. The bytes of a piece are compared with its checksum once, before any of
//! them is used.

use super::finite::{NotFinite, Watch};
use super::manifest::{Manifest, PieceEntry, TensorEntry};
use super::tensors::TensorFile;
use super::{Header, StateKind, directory};
use crate::error::{Error, Result, counted};
use crate::model::rect::Rect;
use safetensors::tensor::{Dtype, TensorInfo};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The most missing files that a message names.
const MAX_NAMED: usize = 8;

/// A complete checkpoint of a run, opened.
pub struct Saved {
    dir: PathBuf,
    manifest: Manifest,
    index: HashMap<String, usize>,
    files: Mutex<HashMap<String, Arc<TensorFile>>>,
    /// (file, key) of the pieces whose checksum was verified.
    verified: Mutex<HashSet<(String, String)>>,
}

impl Saved {
    /// The checkpoint that the run's `latest` names; `None` if the run has no checkpoint.
    pub fn latest(run: &Path) -> Result<Option<Saved>> {
        loop {
            let Some(dir) = directory::latest(run)? else { return Ok(None) };
            match Saved::open(&dir) {
                // A live run has saved a newer one and removed this one.
                Err(_) if !dir.exists() && directory::latest(run)?.is_some_and(|newer| newer != dir) => {}
                opened => return opened.map(Some),
            }
        }
    }

    /// The run's checkpoint after `step` steps.
    pub fn at_step(run: &Path, step: u64) -> Result<Saved> {
        let dir = directory::checkpoints(run).join(directory::step_name(step));
        match dir.exists() {
            true => Saved::open(&dir),
            false => {
                let what = format!("{}: there is no such checkpoint", dir.display());
                Err(Error::user(what + &directory::hint(run, &directory::step_name(step))))
            }
        }
    }

    /// Opens a checkpoint's own directory, `.../step-N`.
    pub fn open(dir: &Path) -> Result<Saved> {
        Saved::open_unadvised(dir).map_err(|error| advise(dir, error))
    }

    /// [`Saved::open`] with errors that do not name the run's other checkpoints.
    pub(super) fn open_unadvised(dir: &Path) -> Result<Saved> {
        let manifest = Manifest::read(dir)?;
        if let Some(named) = directory::step_of(dir).filter(|&step| step != manifest.position.step) {
            let (dir, step) = (dir.display(), manifest.position.step);
            let what = format!("its manifest.json is of step {step}, not {named}; the folders were mixed up");
            return Err(Error::user(format!("{dir}: {what}")));
        }
        let index = manifest.tensors.iter().enumerate().map(|(i, tensor)| (tensor.name.clone(), i)).collect();
        Ok(Saved { dir: dir.into(), manifest, index, files: Mutex::default(), verified: Mutex::default() })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The run's directory: two above the checkpoint's.
    pub fn run(&self) -> Option<&Path> {
        self.dir.parent()?.parent()
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub fn header(&self) -> Header {
        let Manifest { position, config, identity, accepted, .. } = &self.manifest;
        let (config, identity, accepted) = (config.clone(), identity.clone(), accepted.clone());
        Header { position: *position, config, identity, accepted }
    }

    /// Fills `out` with a rectangle of a tensor, row-major, from the saved pieces that overlap it. Moments that were
    /// not saved are zero.
    pub fn read(&self, name: &str, kind: StateKind, rect: &Rect, out: &mut [f32]) -> Result<()> {
        assert_eq!(out.len(), rect.len(), "{} elements for a rectangle of {}", out.len(), rect.len());
        let tensor = self.index.get(name).map(|&i| &self.manifest.tensors[i]);
        let tensor = tensor
            .ok_or_else(|| Error::user(format!("{}: the checkpoint has no tensor {name}", self.dir.display())))?;
        let whole = Rect::whole(tensor.shape());
        if whole.intersect(rect) != *rect && !rect.is_empty() {
            let (dims, what) = (&tensor.dims, "the model that reads it is larger");
            return Err(Error::user(format!("{}: {name} has the shape {dims:?}; {what}", self.dir.display())));
        }
        if !self.manifest.kinds.contains(&kind) {
            out.fill(0.0);
            return Ok(());
        }
        // The manifest was checked: the pieces of a kind cover the tensor.
        let wanted = tensor.pieces.iter().filter(|p| p.kind == kind && !p.rect().intersect(rect).is_empty());
        let mut read = |piece| {
            let file = self.verify_piece(tensor, piece, &mut |_| ())?;
            file.copy(self.info(&file, tensor, piece)?, &piece.rect(), rect, out)
        };
        wanted.into_iter().try_for_each(&mut read).map_err(|error| advise(&self.dir, error))
    }

    /// Compares all pieces with their checksums, and returns the states whose values are not all finite; `progress`
    /// gets the number of bytes just read.
    pub fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<Vec<NotFinite>> {
        self.check(progress).map_err(|error| advise(&self.dir, error))
    }

    /// [`Saved::verify`] with errors that do not name the run's other checkpoints.
    pub(super) fn check(&self, progress: &mut dyn FnMut(u64)) -> Result<Vec<NotFinite>> {
        let mut all = Vec::new();
        for tensor in &self.manifest.tensors {
            let mut found: BTreeMap<StateKind, NotFinite> = BTreeMap::new();
            for piece in &tensor.pieces {
                let mut values = Watch::default();
                self.verify_piece(tensor, piece, &mut |bytes| {
                    values.look_at_bytes(bytes);
                    progress(bytes.len() as u64);
                })?;
                if let Some(new) = values.found(&tensor.name, &piece.rect()) {
                    let new = NotFinite { kind: piece.kind, ..new };
                    let both = found.remove(&piece.kind).map_or(new.clone(), |old| old.and(new));
                    found.insert(piece.kind, both);
                }
            }
            all.extend(found.into_values());
        }
        Ok(all)
    }

    /// The total bytes of all pieces.
    pub fn bytes(&self) -> u64 {
        self.manifest.bytes()
    }

    fn verify_piece(
        &self,
        tensor: &TensorEntry,
        piece: &PieceEntry,
        look: &mut dyn FnMut(&[u8]),
    ) -> Result<Arc<TensorFile>> {
        let file = self.file(piece)?;
        let id = (piece.file.clone(), piece.key(&tensor.name));
        if self.verified.lock().expect("no reader panicked").contains(&id) {
            return Ok(file);
        }
        if file.checksum(self.info(&file, tensor, piece)?, look)? != piece.blake3 {
            return Err(self.damaged(tensor, piece, "its bytes do not match the manifest's checksum"));
        }
        self.verified.lock().expect("no reader panicked").insert(id);
        Ok(file)
    }

    fn file(&self, piece: &PieceEntry) -> Result<Arc<TensorFile>> {
        let mut files = self.files.lock().expect("no reader panicked");
        if let Some(file) = files.get(&piece.file) {
            return Ok(file.clone());
        }
        let file = TensorFile::open(&self.dir.join(&piece.file)).map_err(|error| self.unreadable(piece, error))?;
        Ok(files.entry(piece.file.clone()).or_insert(Arc::new(file)).clone())
    }

    fn info<'a>(&self, file: &'a TensorFile, tensor: &TensorEntry, piece: &PieceEntry) -> Result<&'a TensorInfo> {
        let rect = piece.rect();
        let info = file.info(&piece.key(&tensor.name));
        let right = |info: &&TensorInfo| info.dtype == Dtype::F32 && info.shape == [rect.rows.len(), rect.cols.len()];
        info.filter(right).ok_or_else(|| self.damaged(tensor, piece, "the file's header has no such piece"))
    }

    /// The error for a file that cannot be opened; if files are missing, it names all of them.
    fn unreadable(&self, piece: &PieceEntry, error: Error) -> Error {
        let mut missing: Vec<&str> = self.manifest.files().into_iter().filter(|f| !self.dir.join(f).exists()).collect();
        if missing.is_empty() {
            return error.map(|what| what + &self.writer(&piece.file));
        }
        let n_more = missing.len().saturating_sub(MAX_NAMED);
        missing.truncate(MAX_NAMED);
        let line = |file: &str| format!("{}: the file is missing{}", self.dir.join(file).display(), self.writer(file));
        let mut lines: Vec<String> = missing.iter().map(|file| line(file)).collect();
        if n_more > 0 {
            lines.push(format!("and {} more", counted(n_more, "file")));
        }
        Error::User(lines.join("\n"))
    }

    /// The writer of a file, if the manifest records it.
    fn writer(&self, file: &str) -> String {
        self.manifest.writers.get(file).map_or(String::new(), |writer| format!("; written by {writer}"))
    }

    fn damaged(&self, tensor: &TensorEntry, piece: &PieceEntry, what: &str) -> Error {
        let (path, Rect { rows, cols }) = (self.dir.join(&piece.file), piece.rect());
        let place = format!("{} of {}, rows {rows:?}, columns {cols:?}", piece.kind.name(), tensor.name);
        Error::user(format!("{}: {place}: {what}; the file is damaged{}", path.display(), self.writer(&piece.file)))
    }
}

/// The error of a reader, with a list of the run's other checkpoints. Where a live run has removed the checkpoint in
/// the meantime, nothing is damaged.
fn advise(dir: &Path, error: Error) -> Error {
    let Some(run) = dir.parent().and_then(Path::parent) else { return error };
    if matches!(dir.try_exists(), Ok(false)) {
        let what =
            "the run removed this checkpoint while it was read, since it keeps only the newest (checkpoint.keep)";
        return Error::user(format!("{}: {what}; give the command again, for a newer one", dir.display()));
    }
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    error.map(|what| what + &directory::hint(run, &name))
}
