//! `PREFIX.mask.bin`: one byte for each token of the `.bin`, 1 if the token counts as a target of the loss, else 0.
//! `PREFIX.meta.json` has `"mask": true` then.

use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rayon::prelude::*;

use super::idx::map;
use super::meta::Meta;
use super::partial::with_suffix;
use super::writer::MASK;
use engine::error::{Error, Result};

/// Bytes that one task scans.
const CHUNK: usize = 4 << 20;

/// The mask of a token file, mapped.
pub struct Mask {
    path: PathBuf,
    bytes: Mmap,
}

impl Mask {
    /// The mask of the token file `prefix` of `tokens` tokens, where its `.meta.json` (`meta`) says that it has one.
    /// An error where the mask is missing or of another length, or where there is a mask that `.meta.json` does not
    /// mention.
    pub fn open(prefix: &Path, meta: Option<&Meta>, tokens: usize) -> Result<Option<Self>> {
        let path = with_suffix(prefix, MASK);
        let wrong = |what: String| Err(Error::user(format!("{}: {what}", path.display())));
        let file = with_suffix(prefix, "meta.json");
        let (is_mentioned, exists) = (meta.is_some_and(|meta| meta.mask), path.exists());
        if !is_mentioned && exists {
            return wrong(format!(
                "a loss mask that {} does not mention: its \"mask\" must be true; tokenize again, or remove the mask \
                 to train on every token",
                file.display()
            ));
        }
        if is_mentioned && !exists {
            return wrong(format!(
                "no such file, but {} has \"mask\": true; copy the mask beside the .bin, or tokenize again",
                file.display()
            ));
        }
        if !exists {
            return Ok(None);
        }
        let bytes = map(&path)?;
        if bytes.len() != tokens {
            return wrong(format!(
                "{} bytes for the {tokens} tokens of the .bin; a mask has one byte a token: tokenize again",
                bytes.len()
            ));
        }
        Ok(Some(Self { path, bytes }))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The BLAKE3 hash of all bytes.
    pub fn hash(&self) -> String {
        blake3::Hasher::new().update_rayon(&self.bytes).finalize().to_hex().to_string()
    }

    /// Appends the weights of tokens `first .. first + count` of the file to `out`.
    pub fn read(&self, first: usize, count: usize, out: &mut Vec<f32>) -> Result<()> {
        for (i, &byte) in self.bytes[first..first + count].iter().enumerate() {
            out.push(match byte {
                0 => 0.0,
                1 => 1.0,
                _ => return Err(self.invalid(first + i)),
            });
        }
        Ok(())
    }

    /// Checks share `part` of `parts`: each byte is 0 or 1. Returns the tokens of the share that count.
    pub fn check(&self, part: usize, parts: usize) -> Result<u64> {
        let bound = |p: usize| (self.bytes.len() as u128 * p as u128 / parts as u128) as usize;
        let (first, end) = (bound(part), bound(part + 1));
        let counted = |(chunk, bytes): (usize, &[u8])| match bytes.iter().position(|&byte| byte > 1) {
            Some(at) => Err(self.invalid(first + chunk * CHUNK + at)),
            None => Ok(bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>()),
        };
        let chunks = self.bytes[first..end].par_chunks(CHUNK).enumerate().map(counted);
        chunks.collect::<Vec<Result<u64>>>().into_iter().sum()
    }

    fn invalid(&self, token: usize) -> Error {
        let (path, byte) = (self.path.display(), self.bytes[token]);
        Error::user(format!("{path}: byte {token} is {byte}; a mask holds 0 and 1 only: tokenize again"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::error::Error;

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
        let hash = mask.hash();
        let wrong = open(Some(&[1, 0, 7, 1]), with).unwrap().unwrap();
        assert!(wrong.check(0, 1).unwrap_err().to_string().contains("byte 2 is 7"));
        assert!(wrong.read(1, 3, &mut weights).unwrap_err().to_string().contains("byte 2 is 7"));
        assert_ne!(hash, wrong.hash());
    }
}
