//! MeCab's words, through its program. Only lengths are read from it, so that no character of the text can be taken for
//! a separator.

use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::learn::Counts;
use super::lines;
use engine::error::{Error, Result};

/// The program, found on `PATH`.
const PROGRAM: &str = "mecab";
/// Where Debian's `mecab-ipadic-utf8` puts its dictionary. Elsewhere the one of `mecabrc` is used.
const IPADIC: &str = "/var/lib/mecab/dic/ipadic-utf8";
const REMEDY: &str = "install it, on Debian or Ubuntu by `scripts/setup.sh mecab` \
                      (apt-get install mecab mecab-ipadic-utf8), or leave --segment out";
/// Room for a line and its end; NFKC may make a line several times as long.
const BUFFER: usize = 32 * lines::LONGEST;

/// The installed program and its dictionary.
pub struct Mecab {
    /// The dictionary and its number of words, for the user.
    pub dictionary: String,
}

impl Mecab {
    /// Finds the program. Its dictionary must be in UTF-8.
    pub fn find() -> Result<Self> {
        // It prints its dictionaries and exits with 1.
        let output = command().arg("-D").output().map_err(start_error)?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let field = |key: &str| out.lines().find_map(|line| Some(line.strip_prefix(key)?.trim().to_string()));
        let Some(charset) = field("charset:") else {
            let why = if err.trim().is_empty() { output.status.to_string() } else { err.trim().to_string() };
            return Err(Error::user(format!("--segment mecab: {PROGRAM} names no dictionary ({why}); {REMEDY}")));
        };
        if !["UTF-8", "UTF8"].iter().any(|utf8| charset.eq_ignore_ascii_case(utf8)) {
            return Err(Error::user(format!(
                "--segment mecab: the dictionary of {PROGRAM} is in {charset:?}, not in UTF-8; {REMEDY}"
            )));
        }
        let (file, size) = (field("filename:").unwrap_or_default(), field("size:").unwrap_or_default());
        Ok(Mecab { dictionary: format!("{file}, {size} words") })
    }

    /// How often each word occurs in the lines. `words` gets a line and the lengths of its words in bytes, each with
    /// the white space before it (what follows the last word is not in them), and gives words to its last argument.
    pub fn count(
        &self,
        lines: &[String],
        words: impl Fn(&str, &[usize], &mut dyn FnMut(&str)) + Sync,
    ) -> Result<Counts> {
        lines::count(lines, |lines, add| segment(lines, &mut |line, lengths| words(line, lengths, add)))
    }
}

/// Calls `each` with every line and the lengths of its words. No line holds a newline.
fn segment(lines: &[String], each: &mut dyn FnMut(&str, &[usize])) -> Result<()> {
    // %pL: bytes of the word and of the white space before it.
    let mut command = command();
    command.args(["-F", "%pL ", "-U", "%pL ", "-E", "\\n", "-b", &BUFFER.to_string()]);
    let (stdin, stdout) = (Stdio::piped(), Stdio::piped());
    let mut child = command.stdin(stdin).stdout(stdout).stderr(Stdio::piped()).spawn().map_err(start_error)?;
    let mut stderr = child.stderr.take().expect("it is piped");
    let input = BufWriter::new(child.stdin.take().expect("it is piped"));
    let output = BufReader::new(child.stdout.take().expect("it is piped"));
    std::thread::scope(|scope| {
        // The program answers while it reads, and complains on the side.
        let writer = scope.spawn(|| write(lines, input));
        let complaints = scope.spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).map(|_| text).unwrap_or_default()
        });
        let read = read(lines, output, each);
        let written = writer.join().expect("no panic");
        let complaints = complaints.join().expect("no panic");
        let ended = end(&mut child);
        read.and(written)
            .and(ended)
            .map_err(|what| Error::run(format!("--segment mecab: {PROGRAM}: {what}; {}", complaints.trim())))
    })
}

fn command() -> Command {
    let mut command = Command::new(PROGRAM);
    if Path::new(IPADIC).join("sys.dic").exists() {
        command.args(["-d", IPADIC]);
    }
    command
}

fn start_error(e: std::io::Error) -> Error {
    match e.kind() {
        ErrorKind::NotFound => Error::user(format!("--segment mecab: there is no program {PROGRAM} on PATH; {REMEDY}")),
        _ => Error::run(format!("--segment mecab: {PROGRAM}: {e}")),
    }
}

fn write(lines: &[String], mut input: impl Write) -> std::result::Result<(), String> {
    for line in lines {
        assert!(line.len() + 1 < BUFFER && !line.contains('\n'), "a line of {} bytes", line.len());
        input.write_all(line.as_bytes()).and_then(|()| input.write_all(b"\n")).map_err(|e| e.to_string())?;
    }
    input.flush().map_err(|e| e.to_string())
}

fn read(
    lines: &[String],
    mut output: impl BufRead,
    each: &mut dyn FnMut(&str, &[usize]),
) -> std::result::Result<(), String> {
    let (mut answer, mut lengths) = (String::new(), Vec::new());
    for line in lines {
        answer.clear();
        lengths.clear();
        if output.read_line(&mut answer).map_err(|e| e.to_string())? == 0 {
            return Err("it ended before its input did".into());
        }
        let numbers = answer.split_ascii_whitespace().map(str::parse::<usize>);
        for number in numbers {
            lengths.push(number.map_err(|e| format!("its answer {:.80?}: {e}", answer.trim_end()))?);
        }
        each(line, &lengths);
    }
    Ok(())
}

fn end(child: &mut Child) -> std::result::Result<(), String> {
    let status = child.wait().map_err(|e| e.to_string())?;
    if status.success() { Ok(()) } else { Err(status.to_string()) }
}
