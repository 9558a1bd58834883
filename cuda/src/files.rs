//! Files that are complete or absent.

use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Writes a file whole or not at all: under a name of this process first.
pub(crate) fn write(path: &Path, parts: &[&[u8]]) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let unfinished = path.with_file_name(name);
    let written = || {
        let mut file = File::create(&unfinished)?;
        parts.iter().try_for_each(|part| file.write_all(part))?;
        file.sync_all()?;
        std::fs::rename(&unfinished, path)
    };
    written().inspect_err(|_| _ = std::fs::remove_file(&unfinished))
}
