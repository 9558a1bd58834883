//! `PREFIX.mask.bin`: one byte for each token of the `.bin`, 1 if the token counts as a target of the loss, else 0.
//! `PREFIX.meta.json` has `"mask": true` then.

use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;

use super::data_file::{DataFile, blocks};
use super::meta::Meta;
use super::partial::with_suffix;
use super::writer::MASK;
use engine::error::{Error, Result};

/// Bytes that one task scans.
const CHUNK: u64 = 4 << 20;
/// Bytes that are hashed at a time, by all threads.
const HASHED: u64 = 16 << 20;

/// The mask of a token file.
pub struct Mask {
    file: DataFile,
}

impl Mask {
    /// The mask of the token file `prefix` of `tokens` tokens, where its `.meta.json` (`meta`) says that it has one.
    /// An error where the mask is missing or of another length, or where there is a mask that `.meta.json` does not
    /// mention.
    pub fn open(prefix: &Path, meta: Option<&Meta>, tokens: u64) -> Result<Option<Self>> {
        let path = with_suffix(prefix, MASK);
        let wrong = |what: String| Err(Error::user(format!("{}: {what}", path.display())));
        let mention = with_suffix(prefix, "meta.json");
        let (is_mentioned, exists) = (meta.is_some_and(|meta| meta.mask), path.exists());
        if !is_mentioned && exists {
            return wrong(format!(
                "a loss mask that {} does not mention: its \"mask\" must be true; tokenize again, or remove the mask \
                 to train on every token",
                mention.display()
            ));
        }
        if is_mentioned && !exists {
            return wrong(format!(
                "no such file, but {} has \"mask\": true; copy the mask beside the .bin, or tokenize again",
                mention.display()
            ));
        }
        if !exists {
            return Ok(None);
        }
        let file = DataFile::open(&path)?;
        if file.bytes() != tokens {
            return wrong(format!(
                "{} bytes for the {tokens} tokens of the .bin; a mask has one byte a token: tokenize again",
                file.bytes()
            ));
        }
        Ok(Some(Self { file }))
    }

    pub fn file(&self) -> &DataFile {
        &self.file
    }

    /// The BLAKE3 hash of all bytes.
    pub fn hash(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        for block in blocks(0..self.file.bytes(), HASHED) {
            hasher.update_rayon(&self.file.range(block)?);
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Appends the weights of tokens `first .. first + count` of the file to `out`.
    pub fn read(&self, first: u64, count: usize, out: &mut Vec<f32>) -> Result<()> {
        for (token, byte) in (first..).zip(self.file.range(first..first + count as u64)?) {
            out.push(match byte {
                0 => 0.0,
                1 => 1.0,
                _ => return Err(self.invalid(token, byte)),
            });
        }
        Ok(())
    }

    /// Checks share `part` of `parts`: each byte is 0 or 1. Returns the tokens of the share that count.
    pub fn check(&self, part: usize, parts: usize) -> Result<u64> {
        let bound = |p: usize| (u128::from(self.file.bytes()) * p as u128 / parts as u128) as u64;
        let chunks: Vec<_> = blocks(bound(part)..bound(part + 1), CHUNK).collect();
        let counted = |chunk: &Range<u64>| {
            let bytes = self.file.range(chunk.clone())?;
            match bytes.iter().position(|&byte| byte > 1) {
                Some(at) => Err(self.invalid(chunk.start + at as u64, bytes[at])),
                None => Ok(bytes.into_iter().map(u64::from).sum::<u64>()),
            }
        };
        chunks.par_iter().map(counted).collect::<Vec<Result<u64>>>().into_iter().sum()
    }

    fn invalid(&self, token: u64, byte: u8) -> Error {
        let path = self.file.path().display();
        Error::user(format!("{path}: byte {token} is {byte}; a mask holds 0 and 1 only: tokenize again"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::error::Error;
    use std::path::PathBuf;

    /// A prefix with this mask, and a `.meta.json` with this text.
    fn prefix(dir: &Path, mask: Option<&[u8]>, meta: &str) -> PathBuf {
        let prefix = dir.join("tokens");
        std::fs::write(with_suffix(&prefix, "meta.json"), meta).unwrap();
        let path = with_suffix(&prefix, "mask.bin");
        match mask {
            Some(bytes) => std::fs::write(path, bytes).unwrap(),
            None => _ = std::fs::remove_file(path),
        }
        prefix
    }

    #[test]
    fn a_mask_is_read_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let open = |mask: Option<&[u8]>, meta: &str| {
            let prefix = prefix(dir.path(), mask, meta);
            Mask::open(&prefix, Meta::read(&prefix)?.as_ref(), 4)
        };
        let refused = |mask: Option<&[u8]>, meta: &str| match open(mask, meta) {
            Err(Error::User(what)) => what,
            _ => panic!("not refused: {mask:?}, {meta}"),
        };
        let (with, without) = (r#"{ "mask": true }"#, "{}");
        assert!(open(None, without).unwrap().is_none());
        assert!(refused(Some(&[1; 4]), without).contains("does not mention"));
        assert!(refused(None, with).contains("no such file"));
        assert!(refused(None, "{ \"mask\": tru").contains("tokens.meta.json: the file is damaged: "));
        assert!(refused(Some(&[1; 4]), "{ \"mask\": \"yes\" }").contains("expected a boolean"));
        assert!(refused(Some(&[1; 3]), with).contains("3 bytes for the 4 tokens"));
        let mask = open(Some(&[1, 0, 0, 1]), with).unwrap().unwrap();
        let mut weights = Vec::new();
        mask.read(0, 2, &mut weights).unwrap();
        mask.read(3, 1, &mut weights).unwrap();
        assert_eq!(weights, [1.0, 0.0, 1.0]);
        assert_eq!((0..3).map(|part| mask.check(part, 3).unwrap()).sum::<u64>(), 2);
        let hash = mask.hash().unwrap();
        let wrong = open(Some(&[1, 0, 7, 1]), with).unwrap().unwrap();
        assert!(wrong.check(0, 1).unwrap_err().to_string().contains("byte 2 is 7"));
        assert!(wrong.read(1, 3, &mut weights).unwrap_err().to_string().contains("byte 2 is 7"));
        assert_ne!(hash, wrong.hash().unwrap());
    }
}
