//! `tokenizer train`: learns a vocabulary from text.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use data::tokenizer::train::{self, ModelType, Normalization, Plan, Segmenter, Taken};
use engine::error::{Error, Result};

use super::texts::TextFlags;
use crate::output::{or_broken_pipe, say};

pub const EXAMPLES: &str = "The ids 0, 1, 2 are <unk>, <s>, </s>. With --model-type bpe the next 256 are the bytes, \
the rest are pieces with falling scores and then single characters, as in Llama 2's tokenizer.model; --output is a \
folder for tokenizer.model, tokenizer.json, tokenizer_config.json and special_tokens_map.json, which sentencepiece, \
transformers and this program read alike. Pieces have up to 16 characters; spaces, scripts and digits bound them, or \
the words of MeCab. With byte-bpe --output is one tokenizer.json, with a tokenizer_config.json beside it where there \
is none, or a folder.

Texts are read once, and a sample of them is trained on: lines with bpe, parts of up to 256 KiB with byte-bpe, drawn \
with equal chances from all of the text, the same ones each time. The training takes up to 50 bytes of memory for each \
byte of the sample where words do not repeat (Japanese without --segment mecab), and a few bytes where they do: 6 GB \
for the default at the most.

Examples:
  swallow-engine tokenizer train --input ja.txt en.jsonl --vocab-size 8000 --output tokenizer.json
  swallow-engine tokenizer train --input ja.jsonl --model-type bpe --segment mecab --nfkc \\
      --vocab-size 16000 --output ja-16k
  zstdcat corpus/*.zst | swallow-engine tokenizer train --input - --model-type bpe \\
      --sample-bytes 1G --vocab-size 32000 --output vocabulary";

#[derive(Args, Debug)]
pub struct Train {
    /// Text files (.txt, .jsonl; also .gz, .zst), or - for standard input
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    input: Vec<PathBuf>,
    /// Pieces of the vocabulary, the 256 bytes and 3 special tokens among them
    #[arg(long, value_name = "N")]
    vocab_size: usize,
    /// The tokenizer.json to write, or a folder for all files, which must not exist or be empty
    #[arg(long, value_name = "FILE.json|DIR")]
    output: PathBuf,
    /// Byte-level like GPT-2's, or SentencePiece's with byte fallback
    #[arg(long, value_name = "TYPE", default_value = "byte-bpe")]
    model_type: Type,
    /// Let no piece cross a word of MeCab, whose program and dictionary (Debian's mecab, mecab-ipadic-utf8) must be
    /// installed; symbols at both ends of a word are apart from it
    #[arg(long, value_name = "BY", default_value = "none")]
    segment: Segment,
    /// Normalize texts to NFKC, now and wherever the tokenizer is used
    #[arg(long)]
    nfkc: bool,
    /// The most bytes of text to train on, such as 500M or 2000000000 [suffixes: K, M, G]
    #[arg(long, value_name = "SIZE", default_value = "128M", value_parser = parse_size)]
    sample_bytes: u64,
    /// With bpe: the share of the text's characters that become pieces; the rest are spelled in bytes [default: 0.9995]
    #[arg(long, value_name = "SHARE")]
    character_coverage: Option<f64>,
    #[command(flatten)]
    texts: TextFlags,
}

#[derive(ValueEnum, Debug, Clone, Copy)]
enum Type {
    ByteBpe,
    Bpe,
}

#[derive(ValueEnum, Debug, Clone, Copy)]
enum Segment {
    None,
    Mecab,
}

pub fn run(args: Train) -> Result<()> {
    if args.character_coverage.is_some() && matches!(args.model_type, Type::ByteBpe) {
        let what = "the pieces of byte-bpe are bytes, which cover every character; leave it out, or give";
        return Err(Error::user(format!("--character-coverage: {what} --model-type bpe")));
    }
    let asked = args.vocab_size;
    let plan = Plan {
        inputs: &args.texts.inputs(args.input),
        model_type: match args.model_type {
            Type::ByteBpe => ModelType::ByteBpe,
            Type::Bpe => ModelType::Bpe,
        },
        segmenter: match args.segment {
            Segment::None => Segmenter::None,
            Segment::Mecab => Segmenter::Mecab,
        },
        normalization: if args.nfkc { Normalization::Nfkc } else { Normalization::None },
        vocab_size: asked,
        sample_bytes: args.sample_bytes,
        character_coverage: args.character_coverage.unwrap_or(0.9995),
        output: &args.output,
    };
    let trained = train::train(&plan)?;
    say!("note: {}", sample(trained.taken));
    if let Some(dictionary) = &trained.dictionary {
        say!("note: words by MeCab's dictionary {dictionary}");
    }
    let size = trained.size;
    if size < asked {
        say!(
            "note: --vocab-size {asked}: the text yields only {size} pieces; set model.vocab_size to that, or add text"
        );
    }
    or_broken_pipe(writeln!(std::io::stdout(), "{}: a vocabulary of {size} pieces", args.output.display()))
}

fn sample(Taken { bytes, of }: Taken) -> String {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    match bytes == of {
        true => format!("trained on all {:.1} MB of the text", mb(of)),
        false => format!(
            "trained on a sample of {:.1} MB, {:.2} % of the {:.1} MB of text; --sample-bytes takes more",
            mb(bytes),
            100.0 * bytes as f64 / of as f64,
            mb(of)
        ),
    }
}

/// A number of bytes, perhaps with a suffix: K, M, G are powers of 1024.
fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let number = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
    number.ok_or_else(|| "write a whole number of bytes, such as 500M (suffixes: K, M, G)".to_string())
}
