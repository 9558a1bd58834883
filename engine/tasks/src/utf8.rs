//! Text from bytes, and the lines that messages name.

use engine::error::{Error, Result};

/// The text of the file `name`; an error names the line that is not UTF-8.
pub fn text<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|e| {
        let line = line_at(bytes, e.valid_up_to());
        Error::user(format!("{name}: line {line} is not UTF-8; convert the file to UTF-8"))
    })
}

/// The number of the line, from 1, that the byte at `offset` is in.
pub fn line_at(bytes: &[u8], offset: usize) -> usize {
    1 + newlines(&bytes[..offset.min(bytes.len())])
}

/// How many lines end in `bytes`.
pub fn newlines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&b| b == b'\n').count()
}
