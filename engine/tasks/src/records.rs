//! The records of a data file: JSON lines, a JSON array, SQuAD's nested form, NIILC's XML, or columns between tabs.
//!
//! The name of the file decides for `.xml` and `.tsv`, the contents for all others. Each record knows where it is.

mod json;
mod tsv;
mod xml;

use std::path::Path;

use engine::error::{Error, Result};

use crate::template::Fields;
use crate::utf8;

/// A record of a data file.
pub struct Record {
    /// Its place among the records of the file, from 0.
    pub index: usize,
    /// The file and the line of it, or the question's id.
    pub at: String,
    /// Its keys, or why it cannot be read, with a remedy.
    pub fields: std::result::Result<Fields, String>,
}

/// All records of `file`; `columns` names those of a `.tsv` file.
pub fn read(file: &Path, columns: Option<&[String]>) -> Result<Vec<Record>> {
    let bytes = std::fs::read(file).map_err(|e| Error::io(file, e))?;
    let text = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    let name = file.display().to_string();
    let extension = file.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    let records = match extension.as_str() {
        "tsv" => tsv::read(&name, text, columns.expect("a .tsv file has names for its columns")),
        "xml" => xml::read(&name, utf8::text(&name, text)?)?,
        _ => json::read(&name, text)?,
    };
    match records.is_empty() {
        true => Err(Error::user(format!("{name}: it has no records; check the file"))),
        false => Ok(records),
    }
}

/// The lines of a file that are not blank, each with its number and its text, or that it is no text.
fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, std::result::Result<&str, String>)> {
    let text = |line| std::str::from_utf8(line).map_err(|_| "not UTF-8; convert the file to UTF-8".to_string());
    let strip = |line| <[u8]>::strip_suffix(line, b"\r").unwrap_or(line);
    let numbered = (1..).zip(bytes.split(|&b| b == b'\n'));
    numbered.filter(|(_, line)| !line.trim_ascii().is_empty()).map(move |(n, line)| (n, text(strip(line))))
}
