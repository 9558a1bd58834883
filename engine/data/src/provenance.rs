//! The tokenizer that made each source, and the model's: ids of another tokenizer stand for other text.

use std::path::{Path, PathBuf};

use super::feed::Feed;
use super::idx::IndexedFile;
use super::meta::{self, Meta};
use super::tokenizer::{Identity, PieceBytes};
use engine::config::Load;
use engine::error::{Error, Result};

/// The tokenizer of a source or of a model.
struct Origin {
    /// The source or the model, for messages.
    owner: String,
    /// The tokenizer's file, for messages.
    file: String,
    /// The hashes of its file and, for a model, of all tokenizer files in the folder.
    hashes: Vec<String>,
    identities: Vec<Identity>,
}

impl Feed {
    /// The tokenizer that made the training data, if all sources name the same one and its file is unchanged.
    pub fn tokenizer(&self) -> Option<PathBuf> {
        let files = &self.files[..self.sources.len()];
        let metas = files.iter().map(IndexedFile::meta).collect::<Option<Vec<_>>>()?;
        let first = metas.first()?;
        let same = metas.iter().all(|meta| meta.blake3 == first.blake3);
        first.unchanged_tokenizer().filter(|_| same).map(PathBuf::from)
    }

    /// Refuses sources made by different tokenizers, or by another than the model's, where both are known and
    /// `data.allow_mixed_tokenizers` does not allow it. The model's tokenizer is in the folder that `load` names.
    pub fn check_tokenizers(&self, load: &Load) -> Result<()> {
        if self.data.allow_mixed_tokenizers {
            return Ok(());
        }
        let (train, valid) = self.files.split_at(self.sources.len());
        let keys = self.sources.iter().map(|source| source.key.clone());
        let keys = keys.chain((0..valid.len()).map(|i| format!("data.valid[{i}]")));
        let files = keys.zip(train.iter().chain(valid));
        let sources: Vec<Origin> = files.filter_map(|(key, file)| Origin::of_source(&key, file)).collect();
        let model = match load {
            Load::HuggingFace(folder) => Origin::of_model(folder),
            Load::Random => None,
        };
        let Some(reference) = model.as_ref().or(sources.first()) else { return Ok(()) };
        match sources.iter().find(|source| !source.agrees(reference)) {
            Some(other) => Err(Error::user(format!(
                "{} was made with the tokenizer {}, but {} has {}: the same ids stand for different text; tokenize \
                 with one tokenizer, or set data.allow_mixed_tokenizers = true",
                other.owner, other.file, reference.owner, reference.file
            ))),
            None => Ok(()),
        }
    }
}

impl Feed {
    /// For each validation set, the bytes that each id stands for, by the tokenizer that made it: the file that it
    /// names, or the same tokenizer in one of `folders`. `None` where it is not known.
    pub fn read_piece_bytes(&self, folders: &[PathBuf]) -> Vec<Option<PieceBytes>> {
        let of_set = |prefix: &Path| {
            let file = self.files.iter().find(|file| file.prefix() == prefix).expect("a file of the feed");
            let meta = file.meta()?;
            let named = meta.unchanged_tokenizer().map(PathBuf::from);
            let path = named.or_else(|| folders.iter().find_map(|folder| same_tokenizer(meta, folder)))?;
            PieceBytes::of(&std::fs::read(path).ok()?).ok()
        };
        self.valid.iter().map(|valid| of_set(&valid.set.prefix)).collect()
    }

    /// Sets what [`Feed::read_piece_bytes`] returned, on this rank or on another.
    pub fn set_piece_bytes(&mut self, tables: Vec<Option<PieceBytes>>) {
        assert_eq!(tables.len(), self.valid.len(), "a table for each validation set");
        self.valid.iter_mut().zip(tables).for_each(|(valid, table)| valid.bytes = table);
    }
}

/// A file in `folder` with the tokenizer that `meta` identifies.
fn same_tokenizer(meta: &Meta, folder: &Path) -> Option<PathBuf> {
    let is_same = |path: &PathBuf| {
        let Ok(bytes) = std::fs::read(path) else { return false };
        let same = |identity: &Identity| Identity::of(&bytes).is_ok_and(|theirs| theirs.agrees(identity));
        meta.blake3.as_ref() == Some(&meta::hash(&bytes)) || meta.identity.as_ref().is_some_and(same)
    };
    tokenizers(folder)?.into_iter().find(is_same)
}

impl Origin {
    /// `None` if the source does not identify its tokenizer.
    fn of_source(key: &str, file: &IndexedFile) -> Option<Self> {
        let meta = file.meta()?;
        let identity = meta.identity();
        (meta.blake3.is_some() || identity.is_some()).then(|| Self {
            owner: format!("{key} ({})", file.prefix().display()),
            file: meta.tokenizer.clone().unwrap_or_else(|| "whose path its .meta.json lacks".into()),
            hashes: meta.blake3.iter().cloned().collect(),
            identities: identity.into_iter().collect(),
        })
    }

    /// `None` where the folder has no tokenizer.
    fn of_model(folder: &Path) -> Option<Self> {
        let paths = tokenizers(folder)?;
        let contents: Vec<Vec<u8>> = paths.iter().filter_map(|path| std::fs::read(path).ok()).collect();
        Some(Self {
            owner: format!("the model of train.load = \"hf:{}\"", folder.display()),
            file: paths.first()?.display().to_string(),
            hashes: contents.iter().map(|bytes| meta::hash(bytes)).collect(),
            identities: contents.iter().filter_map(|bytes| Identity::of(bytes).ok()).collect(),
        })
    }

    fn agrees(&self, other: &Origin) -> bool {
        self.hashes.iter().any(|hash| other.hashes.contains(hash))
            || self.identities.iter().any(|a| other.identities.iter().any(|b| a.agrees(b)))
    }
}

/// The files of tokenizers in a folder, in the order of their names.
fn tokenizers(folder: &Path) -> Option<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut paths: Vec<PathBuf> = entries.filter(|path| is_tokenizer(path)).collect();
    paths.sort();
    Some(paths)
}

fn is_tokenizer(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let json = name.starts_with("tokenizer") && name.ends_with(".json") && name != "tokenizer_config.json";
    path.is_file() && (json || name.contains(".model"))
}
