//! `tokenizer expand`: a vocabulary to which the pieces of another one are appended. Every old id stays, and a text to
//! which no new piece applies keeps its ids. SentencePiece models ([`pieces`], [`model`]) and byte-level BPE
//! ([`bytes`]); the expanded tokenizer is a new folder in which all files agree.

mod bytes;
mod files;
mod held_out;
mod json;
mod model;
mod normalizer;
mod pieces;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use engine::checkpoint::{new_directory, write_directory};
use engine::error::{Error, Result};
use serde_json::Value;

use super::super::partial::write_files;
use super::model::ModelProto;
use super::{Tokenizer, is_json, read};
pub use held_out::{HeldOut, count};
pub(super) use json::{is_byte_level, merges};
pub(super) use model::without_self_test;

/// The inputs and settings of an expansion.
pub struct Expand<'a> {
    /// A tokenizer's file or folder.
    pub base: &'a Path,
    /// The tokenizer whose pieces are appended.
    pub add: &'a Path,
    /// The folder to write, which must be new or empty.
    pub output: &'a Path,
    /// The size of the expanded vocabulary is a multiple of it.
    pub multiple_of: usize,
    /// Normalize texts by NFKC, whatever BASE does.
    pub nfkc: bool,
}

/// The result of an expansion, in numbers of pieces.
#[derive(Debug, Default, PartialEq)]
pub struct Expanded {
    pub base: usize,
    pub size: usize,
    /// Text pieces, or results of merges, of the other tokenizer that BASE has already.
    pub known: usize,
    /// Text pieces of the other tokenizer that are the same as another one, or nothing, without the stand-in for a
    /// space.
    pub repeated: usize,
    /// New pieces that were left out so that the size is a multiple.
    pub left_out: usize,
    /// Remarks for the user.
    pub notes: Vec<String>,
}

/// A file of the output: its name and its bytes.
type File = (String, Vec<u8>);

/// Expands and writes the folder, whole or not at all. `examine` gets the finished folder before it has its name; if it
/// fails, nothing is left. Errors name the file and the piece.
pub fn expand<T>(request: &Expand, examine: impl FnOnce(&Path) -> Result<T>) -> Result<(Expanded, T)> {
    let output = new_directory(request.output, "--output")?;
    let (base, new) = (Source::open(request.base)?, Source::open(request.add)?);
    let (mut files, mut expanded) = match (&base.kind, &new.kind) {
        (Kind::Model(model), Kind::Model(added)) => model::expand(request, (&base, model), (&new, added))?,
        (Kind::Json(json), Kind::Json(added)) => bytes::expand(request, (&base, json), (&new, added))?,
        _ => {
            let what = "BASE and --add must be of one kind, both SentencePiece models or both byte-level BPE; train \
                        one with: swallow-engine tokenizer train";
            return Err(Error::user(format!("{} and {}: {what}", base.named(), new.named())));
        }
    };
    expanded.notes.extend(files::complete(&base, &mut files)?);
    let mut examined = None;
    write_directory(&output, |folder| {
        write_files(folder, files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())))?;
        check(folder, &files, &base, expanded.size)?;
        examined = Some(examine(folder)?);
        Ok(())
    })?;
    Ok((expanded, examined.expect("the folder was written")))
}

/// Opens what was written: every tokenizer file must have the new size and the old ids. One that has not was made from
/// a tokenizer with settings that the other form of the file cannot express.
fn check(folder: &Path, files: &[File], base: &Source, size: usize) -> Result<()> {
    for name in super::NAMES.iter().filter(|name| files.iter().any(|(file, _)| file == *name)) {
        let written =
            Tokenizer::open(&folder.join(name)).map_err(|e| base.error(format!("its expanded {name}: {e}")))?;
        let old = &base.tokenizer;
        let moved = (0..old.vocab_size() as u32).find(|&id| written.piece(id) != old.piece(id));
        if let Some((id, piece)) = moved.and_then(|id| Some((id, old.piece(id)?))) {
            return Err(base.error(format!("its piece {piece:?} would lose the id {id} in {name}; train it without")));
        }
        if written.vocab_size() != size {
            let beyond = written.piece(size as u32).unwrap_or_default();
            return Err(base.error(format!("{beyond:?} would get an id beyond the {size} pieces in {name}; remove it")));
        }
    }
    Ok(())
}

/// A tokenizer that was given, with what its folder has beside it.
struct Source {
    tokenizer: Tokenizer,
    kind: Kind,
    bytes: Vec<u8>,
}

enum Kind {
    Model(Box<ModelProto>),
    Json(Value),
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let tokenizer = Tokenizer::open(path)?;
        let bytes = read(tokenizer.path())?;
        let refuse = |what: String| Error::user(format!("{}: {what}", tokenizer.path().display()));
        let kind = match is_json(&bytes) {
            true => Kind::Json(serde_json::from_slice(&bytes).map_err(|e| refuse(format!("not JSON: {e}")))?),
            false => Kind::Model(Box::new(ModelProto::parse(&bytes).map_err(refuse)?)),
        };
        Ok(Self { tokenizer, kind, bytes })
    }

    fn path(&self) -> &Path {
        self.tokenizer.path()
    }

    /// Path and kind, for messages.
    fn named(&self) -> String {
        let kind = match &self.kind {
            Kind::Model(_) => "a SentencePiece model",
            Kind::Json(json) if json::is_byte_level(json) => "byte-level BPE",
            Kind::Json(_) => "a tokenizer.json of another kind",
        };
        format!("{} ({kind})", self.path().display())
    }

    /// An error of this file.
    fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::user(format!("{}: {what}", self.path().display()))
    }

    /// A file of the tokenizer's folder. A tokenizer under a name that is not Hugging Face's has no folder of its own.
    fn beside(&self, name: &str) -> Option<PathBuf> {
        let named = self.path().file_name().is_some_and(|file| super::NAMES.iter().any(|known| file == *known));
        Some(self.path().with_file_name(name)).filter(|path| named && path.is_file())
    }
}

/// How many of `new` pieces are kept so that `base` and they are a multiple.
fn kept(base: &Source, new: usize, multiple_of: usize) -> Result<usize> {
    let size = base.tokenizer.vocab_size();
    let kept = new - new.min((size + new) % multiple_of);
    match kept {
        0 if new == 0 => Err(base.error("it has all pieces of --add already; there is nothing to add")),
        0 => Err(base.error(format!(
            "its {size} pieces and {new} new ones reach no multiple of --multiple-of {multiple_of}; give a smaller one"
        ))),
        kept => Ok(kept),
    }
}
