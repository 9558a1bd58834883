//! The JSON lines that a command writes: plain, or compressed by the ending of the name.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use data::partial::{PartialFile, sync_folder_of};
use engine::error::{Error, Result};
use flate2::write::GzEncoder;

/// Bytes that are gathered before they are written.
const BUFFER: usize = 128 << 10;

/// JSON lines under a name that ends in .jsonl, .jsonl.gz or .jsonl.zst. Nothing stands under the name until
/// [`Output::finish`]; an output that is dropped before leaves nothing.
pub struct Output {
    path: PathBuf,
    sink: Sink,
}

type File = BufWriter<PartialFile>;

enum Sink {
    Plain(File),
    Gzip(GzEncoder<File>),
    Zstd(zstd::Encoder<'static, File>),
}

impl Output {
    /// Any other ending is refused, and so is a file that another process is writing.
    pub fn create(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let file = || Ok(BufWriter::with_capacity(BUFFER, PartialFile::create(path)?));
        let sink = if name.ends_with(".jsonl") {
            Sink::Plain(file()?)
        } else if name.ends_with(".jsonl.gz") {
            Sink::Gzip(GzEncoder::new(file()?, flate2::Compression::default()))
        } else if name.ends_with(".jsonl.zst") {
            let level = zstd::DEFAULT_COMPRESSION_LEVEL;
            Sink::Zstd(zstd::Encoder::new(file()?, level).map_err(|e| Error::io(path, e))?)
        } else {
            let what = "the output is JSON lines, so its name must end in .jsonl, .jsonl.gz or .jsonl.zst; rename it";
            return Err(Error::user(format!("{}: {what}", path.display())));
        };
        Ok(Self { path: path.to_path_buf(), sink })
    }

    /// Writes a line; `json` has no line's end.
    pub fn line(&mut self, json: &str) -> Result<()> {
        let sink: &mut dyn Write = match &mut self.sink {
            Sink::Plain(file) => file,
            Sink::Gzip(file) => file,
            Sink::Zstd(file) => file,
        };
        sink.write_all(json.as_bytes()).and_then(|()| sink.write_all(b"\n")).map_err(|e| Error::io(&self.path, e))
    }

    /// Gives the file its name when all of it is on the disk.
    pub fn finish(self) -> Result<()> {
        let file = self.sink.finish().map_err(|e| Error::io(&self.path, e))?;
        file.sync()?;
        file.rename()?;
        sync_folder_of(&self.path)
    }
}

impl Sink {
    fn finish(self) -> io::Result<PartialFile> {
        let file = match self {
            Sink::Plain(file) => file,
            Sink::Gzip(file) => file.finish()?,
            Sink::Zstd(file) => file.finish()?,
        };
        file.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::AtomicU64;

    use data::text::Inputs;

    use super::*;
    use crate::documents::batches;

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let lines: Vec<String> = (0..5000).map(|i| format!("{{\"text\": \"語 {i}\"}}")).collect();
        for name in ["new/a.jsonl", "a.jsonl.gz", "a.jsonl.zst"] {
            let path = folder.path().join(name);
            let mut output = Output::create(&path).unwrap();
            lines.iter().for_each(|line| output.line(line).unwrap());
            assert!(!path.exists(), "nothing stands under {name} before the end");
            output.finish().unwrap();
            let inputs = Inputs { paths: vec![path.clone()], format: None, key: "text".into() };
            let read = AtomicU64::new(0).into();
            let documents = batches(&inputs, read).flat_map(|batch| batch.unwrap().documents("text"));
            let records: Vec<String> = documents.map(|document| document.unwrap().record.unwrap()).collect();
            assert!(records == lines, "{name}");
            assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().filter(is_partial).count(), 0);
        }
        assert!(fs::metadata(folder.path().join("a.jsonl.zst")).unwrap().len() < 20_000);
    }

    fn is_partial(entry: &io::Result<fs::DirEntry>) -> bool {
        entry.as_ref().unwrap().path().extension().is_some_and(|e| e == "partial")
    }

    #[test]
    fn an_output_that_is_not_finished_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        fs::write(&path, "old").unwrap();
        let mut output = Output::create(&path).unwrap();
        output.line("{}").unwrap();
        drop(output);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn other_endings_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.txt", "a.json", "a.jsonl.xz", "jsonl", "a.gz"] {
            let error = Output::create(&folder.path().join(name)).err().unwrap();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains("must end in .jsonl, .jsonl.gz or .jsonl.zst"), "{error}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
