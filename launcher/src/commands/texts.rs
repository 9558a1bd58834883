//! The flags by which commands read texts, the same for all of them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use data::text::{Format, Inputs};
use data::tokenizer::ControlTokens;

#[derive(Args, Debug, Clone)]
pub struct TextFlags {
    /// The key of the text in JSON lines [default: text]
    #[arg(long)]
    key: Option<String>,
    /// Read text, one document a file, or JSON lines [default: by the ending of each name: .txt, .jsonl, .ndjson,
    /// .json, also with .gz or .zst; a pipe whose first byte that is not blank is { has JSON lines, another has text]
    #[arg(long, value_name = "FORMAT")]
    input_format: Option<InputFormat>,
}

#[derive(ValueEnum, Debug, Clone, Copy)]
enum InputFormat {
    Txt,
    Jsonl,
}

impl TextFlags {
    pub fn inputs(self, paths: Vec<PathBuf>) -> Inputs {
        let format = self.input_format.map(|format| match format {
            InputFormat::Txt => Format::Text,
            InputFormat::Jsonl => Format::JsonLines,
        });
        Inputs { paths, format, key: self.key.unwrap_or_else(|| "text".into()) }
    }

    /// The first of these flags that is given.
    pub fn given(&self) -> Option<&'static str> {
        self.key.as_ref().map(|_| "--key").or(self.input_format.map(|_| "--input-format"))
    }
}

/// How to encode a control token that a text spells out, such as <|endoftext|>.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// Tokens of its letters
    Text,
    /// The control token itself
    Parse,
}

impl SpecialTokens {
    pub fn control_tokens(self) -> ControlTokens {
        match self {
            SpecialTokens::Text => ControlTokens::Text,
            SpecialTokens::Parse => ControlTokens::Parsed,
        }
    }
}
