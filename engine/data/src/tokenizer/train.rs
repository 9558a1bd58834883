//! `tokenizer train`: a byte-level BPE vocabulary (GPT-2's way: any text can be spelled, none is unknown) from
//! text files of any size. Memory grows with the number of different words, not with the text.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl,
};

use super::super::idx::with_suffix;
use super::super::text::{Chunks, total_bytes};
use super::hf::word_cut;
use engine::error::{Error, Result};

/// Ids 0, 1 and 2.
const SPECIALS: [&str; 3] = ["<unk>", "<s>", "</s>"];
/// The trainer allocates for the size asked for at once.
const MOST: usize = 1 << 24;

type Untrained = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// Trains on `inputs` (`.txt`, `.jsonl` with the text under `key`, also compressed) and writes a
/// `tokenizer.json`, with the `tokenizer_config.json` that `transformers` wants beside it where there is none.
/// Returns the vocabulary's true size, which is smaller than asked for where the text is too poor.
pub fn train(inputs: &[PathBuf], key: &str, vocab_size: usize, output: &Path) -> Result<usize> {
    let least = 256 + SPECIALS.len();
    if !(least..=MOST).contains(&vocab_size) {
        return Err(Error::user(format!(
            "--vocab-size {vocab_size}: at least {least}, the 256 bytes and {SPECIALS:?}, and at most {MOST}"
        )));
    }
    total_bytes(inputs)?;
    let mut tokenizer = Untrained::new(BPE::default());
    let bytes = ByteLevel::new(false, false, true);
    tokenizer.with_pre_tokenizer(Some(bytes)).with_decoder(Some(ByteLevel::default()));
    let specials = SPECIALS.map(|name| AddedToken::from(name, true)).to_vec();
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .special_tokens(specials)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    // The trainer takes texts only; the first error ends them and is looked at afterwards.
    let failed = Mutex::new(None);
    let any = AtomicBool::new(false);
    let texts = Chunks::new(inputs, &word_cut, Arc::new(AtomicU64::new(0))).map(|chunk| {
        let chunk = chunk?;
        Ok(chunk.parts(key)?.into_iter().map(|part| part.text.into_owned()).collect::<Vec<_>>())
    });
    let texts = texts.map_while(|texts: Result<_>| texts.map_err(|e| *failed.lock().expect("no panic") = Some(e)).ok());
    let texts = texts.flatten().inspect(|text| {
        any.fetch_or(!text.is_empty(), Ordering::Relaxed);
    });
    let trained = tokenizer.train(&mut trainer, texts).map(|_| ());
    if let Some(e) = failed.into_inner().expect("no panic") {
        return Err(e);
    }
    if !any.into_inner() {
        return Err(Error::user(format!("--input {}: there is no text to train on", inputs[0].display())));
    }
    trained.map_err(|e| Error::run(format!("training the tokenizer: {e}")))?;
    save(&tokenizer, output)?;
    Ok(tokenizer.get_vocab_size(true))
}

fn save(tokenizer: &Untrained, output: &Path) -> Result<()> {
    let text = tokenizer.to_string(true).map_err(|e| Error::run(format!("{}: {e}", output.display())))?;
    if let Some(folder) = output.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    }
    write(output, &text)?;
    let config = output.with_file_name("tokenizer_config.json");
    if config.exists() {
        return Ok(());
    }
    let [unk, bos, eos] = SPECIALS;
    let text = serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": unk, "bos_token": bos, "eos_token": eos,
    });
    write(&config, &format!("{text:#}\n"))
}

/// The file appears whole or stays as it was.
fn write(path: &Path, text: &str) -> Result<()> {
    let partial = with_suffix(path, "partial");
    std::fs::write(&partial, text).map_err(|e| Error::io(&partial, e))?;
    std::fs::rename(&partial, path).map_err(|e| Error::io(path, e))
}
