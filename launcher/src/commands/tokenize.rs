//! `swallow-engine data tokenize`: token files out of texts, pairs and chats.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use data::chat::Chats;
use data::pairs::{Direction, Loss, PairSource, Pairs};
use data::text::{Format, Inputs};
use data::tokenize::{Job, Progress, Records, tokenize};
use data::tokenizer::{ControlTokens, Tokenizer};
use engine::error::{Error, Result, counted};

use super::texts::{SpecialTokens, TextFlags};
use crate::output::{or_broken_pipe, say};
use crate::progress;

pub const HELP: &str = "\
A .txt file is one document, a .jsonl file has one a line; both may be compressed (.gz, .zst). Documents without text \
are left out. Tokens are u16 below a vocabulary of 65500, else i32. PREFIX.meta.json notes the tokenizer.

--pairs makes documents of parallel texts: `A B` (--pair-format ntp, all tokens count in the loss), or an instruction, \
A and B (--pair-format translation, the loss is on B and the token that ends the document). --chat makes documents of \
conversations by the tokenizer's chat template, with the ids of transformers' apply_chat_template; the loss is on what \
the assistant says, to the end of its turn. What counts is in PREFIX.mask.bin, one byte a token.

Memory beside the tokenizer: less than 1 GiB, plus 8 MiB a worker and 4 bytes a document, whatever the input. \
A document is encoded in parts where the ids do not depend on it (SentencePiece BPE with byte fallback: after a \
newline; byte-level BPE: beside white space). With other tokenizers, and where a mask is written, a document is \
encoded as a whole: it may have 16 MiB, and memory reaches 3 GiB. A JSON line may have 64 MiB.

Examples:
  swallow-engine data tokenize --input ja.jsonl.gz --tokenizer tokenizer.model --output data/ja --bos --eos
  swallow-engine data tokenize --input a.txt b.txt --tokenizer qwen3/tokenizer.json --output data/allocator \
--eos-token '<|endoftext|>'
  xz -dc en.jsonl.xz | swallow-engine data tokenize --input - --tokenizer tokenizer.json --output data/en --eos
  swallow-engine data tokenize --pairs train.ja train.en --tokenizer tokenizer.model --output data/pairs --bos --eos
  swallow-engine data tokenize --pairs pairs.jsonl --pair-keys ja,en --pair-format translation --direction en-ja \
--tokenizer tokenizer.model --output data/en_ja --eos
  swallow-engine data tokenize --chat --input chats.jsonl --tokenizer llama-3.1/tokenizer.json --output data/chats";

#[derive(Args, Debug)]
pub struct Tokenize {
    /// Text files (.txt, .jsonl; also .gz, .zst), read in this order, or - for standard input
    #[arg(long, required_unless_present = "pairs", num_args = 1.., value_name = "FILE")]
    input: Vec<PathBuf>,
    /// A SentencePiece .model or a Hugging Face tokenizer.json
    #[arg(long, value_name = "FILE")]
    tokenizer: PathBuf,
    /// The token file to write: PREFIX.bin and PREFIX.idx
    #[arg(long, value_name = "PREFIX")]
    output: PathBuf,
    #[command(flatten)]
    texts: TextFlags,
    /// Put the tokenizer's BOS before every document
    #[arg(long)]
    bos: bool,
    /// Put the tokenizer's EOS after every document
    #[arg(long)]
    eos: bool,
    /// Put this token before every document instead of the tokenizer's own BOS
    #[arg(long, value_name = "TOKEN")]
    bos_token: Option<String>,
    /// Put this token after every document instead of the tokenizer's own EOS, such as '<|endoftext|>' for Qwen, whose
    /// EOS <|im_end|> ends a turn of a chat
    #[arg(long, value_name = "TOKEN")]
    eos_token: Option<String>,
    /// How to encode a special (control) token that a text spells out [default: text; with --chat always parse]
    #[arg(long, value_enum, value_name = "HOW")]
    special_tokens: Option<SpecialTokens>,
    #[command(flatten)]
    pairs: PairFlags,
    /// Make documents of conversations by the tokenizer's chat template (chat_template.jinja, or chat_template in
    /// tokenizer_config.json)
    #[arg(long, conflicts_with_all = ["pairs", "bos", "eos", "bos_token", "eos_token", "key"])]
    chat: bool,
    /// The key of the messages in JSON lines
    #[arg(long, value_name = "KEY", default_value = "messages", requires = "chat", conflicts_with = "pairs")]
    messages_key: String,
    /// Leave out records that cannot be used instead of stopping at the first: count them and name the first ten
    #[arg(long)]
    skip_bad: bool,
    /// Threads that encode; the output does not depend on it [default: the cores of this process]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,
}

/// clap drops a `requires` whose argument conflicts with one that is given, so the flags name the conflict too.
#[derive(Args, Debug)]
struct PairFlags {
    /// Make documents of pairs: two files whose lines belong together, Japanese first, or one file of JSON lines
    #[arg(long, num_args = 1..=2, value_names = ["JA", "EN"], conflicts_with_all = ["input", "key"])]
    pairs: Vec<PathBuf>,
    /// The keys of the two sides in JSON lines, Japanese first [default: ja,en]
    #[arg(long, value_name = "JA,EN", requires = "pairs", conflicts_with_all = ["input", "chat"])]
    pair_keys: Option<String>,
    /// The form of a document: `A B`, all of which counts in the loss, or an instruction, A and B, of which B counts
    /// [default: ntp; with --template translation]
    #[arg(long, value_enum, value_name = "FORMAT", requires = "pairs", conflicts_with_all = ["input", "chat"])]
    pair_format: Option<PairFormat>,
    /// Which side comes first; both makes two documents of each pair, Japanese first
    #[arg(long, value_enum, default_value_t = Order::Both, requires = "pairs", conflicts_with_all = ["input", "chat"])]
    direction: Order,
    /// A file with the text of a document, with {A} for the side that comes first and {B} for the other
    #[arg(long, value_name = "FILE", requires = "pairs", conflicts_with_all = ["input", "chat"])]
    template: Option<PathBuf>,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum PairFormat {
    Ntp,
    Translation,
}

#[derive(ValueEnum, Debug, Clone, Copy)]
enum Order {
    Both,
    JaEn,
    EnJa,
}

impl PairFlags {
    fn pairs(self, format: Option<Format>) -> Result<Pairs> {
        let direction = match self.direction {
            Order::Both => Direction::Both,
            Order::JaEn => Direction::JaEn,
            Order::EnJa => Direction::EnJa,
        };
        let source = source(self.pairs, self.pair_keys.as_deref(), format)?;
        let Some(template) = self.template else {
            return Ok(match self.pair_format {
                None | Some(PairFormat::Ntp) => Pairs::plain(source, direction),
                Some(PairFormat::Translation) => Pairs::translation(source, direction),
            });
        };
        let loss = match self.pair_format {
            Some(PairFormat::Ntp) => Loss::Everything,
            None | Some(PairFormat::Translation) => Loss::SecondSide,
        };
        let named = |e: String| Error::user(format!("--template {}: {e}", template.display()));
        let text = read_template(&template)?;
        Pairs::templated(source, direction, loss, &text).map_err(named)
    }
}

/// A template is short; a longer file is something else.
fn read_template(path: &Path) -> Result<String> {
    const LONGEST: u64 = 1 << 20;
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_string(&mut text));
    match read.map_err(|e| Error::io(path, e))? as u64 {
        ..=LONGEST => Ok(text),
        _ => Err(Error::user(format!("--template {}: more than 1 MiB is no template", path.display()))),
    }
}

/// Two files of lines, or one of JSON lines.
fn source(mut files: Vec<PathBuf>, keys: Option<&str>, format: Option<Format>) -> Result<PairSource> {
    let is_json = |path: &Path| path.to_string_lossy().to_ascii_lowercase().contains(".jsonl");
    if let [ja, en] = &files[..] {
        if keys.is_some() || (is_json(ja) && is_json(en)) {
            let what = "JSON lines have both sides in one file: give that file alone, with --pair-keys JA,EN";
            return Err(Error::user(format!("--pairs {} {}: {what}", ja.display(), en.display())));
        }
        return Ok(PairSource::Lines([ja.clone(), en.clone()]));
    }
    let path = files.remove(0);
    if format == Some(Format::Text) || path.extension().is_some_and(|e| e.eq_ignore_ascii_case("txt")) {
        let what = "one file alone must be JSON lines; give the Japanese file and the English file";
        return Err(Error::user(format!("--pairs {}: {what}", path.display())));
    }
    let keys = keys.unwrap_or("ja,en");
    let sides = keys.split_once(',').map(|(ja, en)| [ja.trim().to_string(), en.trim().to_string()]);
    let sides = sides.filter(|[ja, en]| !ja.is_empty() && !en.is_empty() && ja != en && !en.contains(','));
    let sides =
        sides.ok_or_else(|| Error::user(format!("--pair-keys {keys}: two keys are expected, such as ja,en")))?;
    let inputs = Inputs { paths: vec![path], format: Some(Format::JsonLines), key: String::new() };
    Ok(PairSource::Json(inputs, sides))
}

/// The inputs of the command; [`Records`] borrow them.
enum Source {
    Texts(Inputs),
    Pairs(Pairs),
    Chats(Box<Chats>),
}

impl Source {
    fn records(&self) -> Records<'_> {
        match self {
            Source::Texts(inputs) => Records::Texts(inputs),
            Source::Pairs(pairs) => Records::Pairs(pairs),
            Source::Chats(chats) => Records::Chats(chats),
        }
    }
}

pub fn run(args: Tokenize) -> Result<()> {
    let controls = match (args.chat, args.special_tokens) {
        (true, Some(SpecialTokens::Text)) => {
            let what = "a chat template writes control tokens as text, which --chat always parses";
            return Err(Error::user(format!("--special-tokens text: {what}; leave the flag out")));
        }
        (true, _) => ControlTokens::Chat,
        (false, how) => how.unwrap_or(SpecialTokens::Text).control_tokens(),
    };
    let mut inputs = args.texts.inputs(args.input);
    if args.chat {
        inputs.key = args.messages_key;
        inputs.format = inputs.format.or(Some(Format::JsonLines));
    }
    if args.pairs.pairs.is_empty() {
        inputs.check()?;
    }
    let tokenizer = Tokenizer::open_with(&args.tokenizer, controls)?;
    let source = match (args.pairs.pairs.is_empty(), args.chat) {
        (false, _) => Source::Pairs(args.pairs.pairs(inputs.format)?),
        (true, true) => Source::Chats(Box::new(chats(inputs, &tokenizer)?)),
        (true, false) => Source::Texts(inputs),
    };
    let total = source.records().check()?;
    let progress = progress::Bytes::new("tokenize", total);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let job = Job {
        records: source.records(),
        output: args.output,
        tokenizer: &tokenizer,
        bos: Edge::Bos.id(&tokenizer, args.bos, args.bos_token.as_deref())?,
        eos: Edge::Eos.id(&tokenizer, args.eos, args.eos_token.as_deref())?,
        skip_bad: args.skip_bad,
        workers: args.workers.map_or(cores, usize::from),
    };
    let done = tokenize(&job, |done| progress.at(done.read))?;
    // The length of a pipe is unknown.
    if total > 0 {
        progress.finish();
    }
    warn_of_bad(&done);
    print(&job, &done)
}

fn chats(inputs: Inputs, tokenizer: &Tokenizer) -> Result<Chats> {
    if inputs.format == Some(Format::Text) {
        return Err(Error::user("--input-format txt: --chat reads JSON lines; use --input-format jsonl"));
    }
    let chats = Chats::open(inputs, tokenizer)?;
    if chats.template.asks_for_the_date() {
        let file = chats.template.file().display();
        say!("note: {file}: the chat template may print today's date, so that the ids depend on the day");
    }
    Ok(chats)
}

/// The ends of a document.
#[derive(Clone, Copy)]
enum Edge {
    Bos,
    Eos,
}

impl Edge {
    /// The token to put there: the named one, or the tokenizer's own where its flag is given.
    fn id(self, tokenizer: &Tokenizer, asked: bool, named: Option<&str>) -> Result<Option<u32>> {
        let (flag, own) = match self {
            Edge::Bos => ("--bos", tokenizer.bos()),
            Edge::Eos => ("--eos", tokenizer.eos()),
        };
        match (named, asked) {
            (Some(token), _) => {
                tokenizer.id(token).map(Some).map_err(|why| Error::user(format!("{flag}-token {token:?}: {why}")))
            }
            (None, true) => own.map(Some).map_err(|why| {
                let name = tokenizer.path().display();
                Error::user(format!(
                    "{flag}: {name} has no such token: {why}; leave {flag} out, or name a token by {flag}-token"
                ))
            }),
            (None, false) => Ok(None),
        }
    }
}

fn warn_of_bad(done: &Progress) {
    if done.bad == 0 {
        return;
    }
    say!("warning: {} left out:", counted(done.bad as usize, "record"));
    done.first_bad.iter().for_each(|what| say!("  {what}"));
    let more = done.bad - done.first_bad.len() as u64;
    if more > 0 {
        say!("  and {more} more");
    }
}

fn print(job: &Job, done: &Progress) -> Result<()> {
    let empty = if done.empty > 0 { format!(" ({} without text left out)", done.empty) } else { String::new() };
    let loss = match job.records.have_masks() {
        true => format!(", {:.1} % of which count in the loss", 100.0 * done.counted as f64 / done.tokens as f64),
        false => String::new(),
    };
    or_broken_pipe(writeln!(
        std::io::stdout(),
        "{}: {}{empty}, {} tokens{loss}, {:.2} bytes of text a token",
        job.output.display(),
        counted(done.documents as usize, "document"),
        done.tokens,
        done.text as f64 / done.tokens as f64
    ))
}
