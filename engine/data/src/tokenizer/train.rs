//! `tokenizer train`: a byte-level BPE vocabulary like GPT-2's, in which every text can be spelled, from text files of
//! any size. Memory grows with the number of different words, not with the text.

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl,
};

use super::super::partial::write_whole;
use super::super::text::{Chunk, Chunks, Inputs};
use super::cuts::Cuts;
use engine::error::{Error, Result};

/// Ids 0, 1 and 2.
const SPECIALS: [&str; 3] = ["<unk>", "<s>", "</s>"];
/// The trainer allocates the whole size at once.
const MOST: usize = 1 << 24;

type Untrained = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// Trains on `inputs` and writes a `tokenizer.json`, and a `tokenizer_config.json` for `transformers` beside it where
/// there is none. Returns the vocabulary's true size, which is smaller than asked for where there is too little text.
pub fn train(inputs: &Inputs, vocab_size: usize, output: &Path) -> Result<usize> {
    let least = 256 + SPECIALS.len();
    if !(least..=MOST).contains(&vocab_size) {
        return Err(Error::user(format!(
            "--vocab-size {vocab_size}: must be at least {least} (256 bytes and {SPECIALS:?}) and at most {MOST}"
        )));
    }
    inputs.check()?;
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
    // The trainer accepts only texts, so the first error ends the iteration and is returned afterwards.
    let failed = Mutex::new(None);
    let any = AtomicBool::new(false);
    // GPT-2's splitter ends a word at these places.
    let cut = |text: &[u8]| Cuts { after_newline: false, ..Cuts::ALL }.last(text);
    let texts = Chunks::new(inputs, &cut, Arc::default()).map(|chunk| texts(&chunk?, &inputs.key));
    let texts = texts.map_while(|texts: Result<_>| texts.map_err(|e| *failed.lock().expect("no panic") = Some(e)).ok());
    let texts = texts.flatten().inspect(|text| {
        any.fetch_or(!text.is_empty(), Ordering::Relaxed);
    });
    let trained = tokenizer.train(&mut trainer, texts).map(|_| ());
    if let Some(e) = failed.into_inner().expect("no panic") {
        return Err(e);
    }
    if !any.into_inner() {
        return Err(Error::user(format!("--input {}: there is no text to train on", inputs.paths[0].display())));
    }
    trained.map_err(|e| Error::run(format!("training the tokenizer: {e}")))?;
    save(&tokenizer, output)?;
    Ok(tokenizer.get_vocab_size(true))
}

fn texts(chunk: &Chunk, key: &str) -> Result<Vec<String>> {
    let texts = chunk.parts(key).into_iter().map(|part| part.text.map(|text| text.into_owned()));
    texts.collect::<std::result::Result<_, String>>().map_err(Error::user)
}

fn save(tokenizer: &Untrained, output: &Path) -> Result<()> {
    let text = tokenizer.to_string(true).map_err(|e| Error::run(format!("{}: {e}", output.display())))?;
    write_whole(output, &text)?;
    let config = output.with_file_name("tokenizer_config.json");
    if config.exists() {
        return Ok(());
    }
    let [unk, bos, eos] = SPECIALS;
    let text = serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": unk, "bos_token": bos, "eos_token": eos,
    });
    write_whole(&config, &format!("{text:#}\n"))
}
