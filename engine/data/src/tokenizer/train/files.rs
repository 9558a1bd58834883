//! The files of a trained vocabulary: one `tokenizer.json`, or a folder that `sentencepiece`, `transformers` and this
//! program open.

use std::path::Path;

use prost::Message;
use serde_json::{Value, json};

use super::super::super::partial::{write_files, write_whole};
use super::super::model::ModelProto;
use engine::checkpoint::{new_directory, write_directory};
use engine::error::{Error, Result};

/// The flag that names the output.
const FLAG: &str = "--output";
const MODEL: &str = "tokenizer.model";
const JSON: &str = "tokenizer.json";

/// Whether the output is to be one file.
pub fn is_json(output: &Path) -> bool {
    output.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json")) && !output.is_dir()
}

/// Refuses a folder that has files in it, and a file where a folder is to be.
pub fn must_be_free(output: &Path) -> Result<()> {
    match output {
        output if output.ends_with(JSON) && output.with_file_name(MODEL).exists() => Err(Error::user(format!(
            "--output {}: a {MODEL} is beside it, which would belong to another vocabulary; name another folder",
            output.display()
        ))),
        output if is_json(output) => Ok(()),
        output if output.is_file() => Err(Error::user(format!(
            "--output {}: is a file that does not end in .json; name such a file, or a folder",
            output.display()
        ))),
        output => new_directory(output, FLAG).map(drop),
    }
}

/// The contents of all files.
pub struct Files {
    json: String,
    config: String,
    specials: String,
    model: Option<Vec<u8>>,
}

impl Files {
    /// `specials` are the unknown, the first and the last token of a text.
    pub fn new(json: &Value, [unk, bos, eos]: [&str; 3]) -> Self {
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": unk, "bos_token": bos, "eos_token": eos,
            "clean_up_tokenization_spaces": false,
        });
        let specials = json!({ "unk_token": unk, "bos_token": bos, "eos_token": eos });
        Files { json: text(json), config: text(&config), specials: text(&specials), model: None }
    }

    pub fn with_model(self, model: &ModelProto) -> Self {
        Files { model: Some(model.encode_to_vec()), ..self }
    }

    /// Writes the folder whole; a single `tokenizer.json` with a `tokenizer_config.json` beside it where there is none.
    pub fn write(&self, output: &Path) -> Result<()> {
        if is_json(output) {
            write_whole(output, &self.json)?;
            let config = output.with_file_name("tokenizer_config.json");
            return if config.exists() { Ok(()) } else { write_whole(&config, &self.config) };
        }
        let mut files = vec![
            (JSON, self.json.as_bytes()),
            ("tokenizer_config.json", self.config.as_bytes()),
            ("special_tokens_map.json", self.specials.as_bytes()),
        ];
        files.extend(self.model.as_deref().map(|model| (MODEL, model)));
        write_directory(&new_directory(output, FLAG)?, |folder| write_files(folder, files))
    }
}

fn text(value: &Value) -> String {
    format!("{value:#}\n")
}
