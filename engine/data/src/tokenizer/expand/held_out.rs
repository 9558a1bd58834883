//! The gain of an expansion: characters a token of held-out text, before and after.

use std::path::{Path, PathBuf};

use engine::error::Result;

use super::super::super::text::Inputs;
use super::super::Tokenizer;

/// The numbers of one file.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldOut {
    pub file: PathBuf,
    pub characters: usize,
    /// Tokens by the old tokenizer and by the expanded one, without BOS and EOS.
    pub tokens: [usize; 2],
}

impl HeldOut {
    /// Characters a token, before and after.
    pub fn characters_a_token(&self) -> [f64; 2] {
        self.tokens.map(|tokens| self.characters as f64 / tokens.max(1) as f64)
    }
}

/// Encodes every document of every file by both tokenizers. `progress` gets the bytes of text done so far.
pub fn count(base: &Path, expanded: &Path, inputs: &Inputs, progress: &dyn Fn(u64)) -> Result<Vec<HeldOut>> {
    let (old, new) = (Tokenizer::open(base)?, Tokenizer::open(expanded)?);
    let mut done = 0;
    let of_file = |path: &PathBuf| {
        let mut counted = HeldOut { file: path.clone(), characters: 0, tokens: [0; 2] };
        Inputs { paths: vec![path.clone()], ..inputs.clone() }.for_each_document(|text| {
            let ids = rayon::join(|| old.encode_long(text), || new.encode_long(text));
            counted.characters += text.chars().count();
            counted.tokens[0] += ids.0?.len();
            counted.tokens[1] += ids.1?.len();
            done += text.len() as u64;
            progress(done);
            Ok(())
        })?;
        Ok(counted)
    };
    inputs.paths.iter().map(of_file).collect()
}
