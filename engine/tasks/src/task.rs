//! Task files: their keys, and which go together.

use std::path::{Path, PathBuf};

use engine::error::Result;
use toml::{Table, Value};

use crate::keys::{Keys, parse};
use crate::names::Named;
use crate::template::{Fields, Template};

/// How a question is put to a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The choice with the highest log-likelihood.
    Choice,
    /// The choice with the highest log-likelihood a character: `acc_norm` of `lm-evaluation-harness`.
    ChoiceNorm,
    /// Greedy text up to a stop.
    Generate,
}

impl Named for Kind {
    const NAMES: &'static [(&'static str, Kind)] =
        &[("choice", Kind::Choice), ("choice_norm", Kind::ChoiceNorm), ("generate", Kind::Generate)];
}

impl Kind {
    /// The name in a task file.
    pub fn name(self) -> &'static str {
        Named::name(self)
    }
}

/// What n-grams are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tokens {
    /// Characters that are not white space.
    Char,
    /// Words of a-z and 0-9 in lower case, as Python's `rouge_score` has them.
    Word,
    /// The tokenization of WMT's `mteval-v13a`.
    V13a,
}

impl Named for Tokens {
    const NAMES: &'static [(&'static str, Tokens)] =
        &[("char", Tokens::Char), ("word", Tokens::Word), ("13a", Tokens::V13a)];
}

/// How an answer is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Equal but for white space around it.
    ExactMatch,
    /// F1 of the multisets of characters.
    CharF1,
    /// F1 of bigrams.
    Rouge2(Tokens),
    /// Corpus BLEU; of one question, sentence BLEU with `effective_order`.
    Bleu(Tokens),
    /// The same value of the last number.
    LastNumber,
}

/// The metrics without their tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
enum MetricName {
    ExactMatch,
    CharF1,
    Rouge2,
    Bleu,
    LastNumber,
}

impl Named for MetricName {
    const NAMES: &'static [(&'static str, MetricName)] = &[
        ("exact_match", MetricName::ExactMatch),
        ("char_f1", MetricName::CharF1),
        ("rouge2", MetricName::Rouge2),
        ("bleu", MetricName::Bleu),
        ("last_number", MetricName::LastNumber),
    ];
}

impl Metric {
    /// The name, with the tokens where it has some: `exact_match`, `rouge2_char`, `bleu_13a`.
    pub fn name(self) -> String {
        match self {
            Metric::ExactMatch => "exact_match".into(),
            Metric::CharF1 => "char_f1".into(),
            Metric::Rouge2(tokens) => format!("rouge2_{}", tokens.name()),
            Metric::Bleu(tokens) => format!("bleu_{}", tokens.name()),
            Metric::LastNumber => "last_number".into(),
        }
    }
}

/// The examples in front of a question.
pub(crate) enum Shots {
    Fixed(Vec<Fields>),
    /// The first records of a file.
    First {
        file: PathBuf,
        count: usize,
    },
}

/// The choices of a question: a template each, or an expression that gives a list of texts.
pub(crate) enum Choices {
    Each(Vec<Template>),
    List(Template),
}

/// A task, as its file describes it.
pub struct Task {
    /// The stem of the files of its results.
    pub name: String,
    pub kind: Kind,
    pub metric: Metric,
    /// What ends a generated text, besides the end of the document.
    pub stop: Vec<String>,
    /// The most tokens of a generated text; 0 for choices.
    pub max_tokens: usize,
    pub(crate) file: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) columns: Option<Vec<String>>,
    pub(crate) shots: Shots,
    pub(crate) instruction: String,
    pub(crate) separator: String,
    pub(crate) prompt: Template,
    pub(crate) choices: Option<Choices>,
    pub(crate) answer: Template,
}

const KEYS: [&str; 14] = [
    "name",
    "data",
    "columns",
    "shots",
    "kind",
    "instruction",
    "prompt",
    "choices",
    "answer",
    "separator",
    "metric",
    "tokens",
    "stop",
    "max_tokens",
];

impl Task {
    /// Reads and checks a task file, but none of its data.
    pub fn open(path: &Path) -> Result<Task> {
        let table = parse(path)?;
        let keys = Keys::open(path, &table, &KEYS)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let name = name(&keys)?;
        let data = folder.join(keys.required_text("data", "the path of its data, from this file's folder")?);
        let kind = keys.named::<Kind>("kind")?;
        let kind = kind.ok_or_else(|| keys.missing("kind", "\"choice\", \"choice_norm\" or \"generate\""))?;
        Ok(Task {
            name,
            kind,
            metric: metric(&keys, kind)?,
            stop: stop(&keys, kind)?,
            max_tokens: max_tokens(&keys, kind)?,
            file: path.to_path_buf(),
            columns: columns(&keys, &data)?,
            shots: shots(&keys, folder)?,
            data,
            instruction: keys.text("instruction")?.unwrap_or("").to_string(),
            separator: keys.text("separator")?.unwrap_or("\n\n").to_string(),
            prompt: prompt(&keys)?,
            choices: choices(&keys, kind)?,
            answer: answer(&keys)?,
        })
    }
}

/// The name is a part of the names of files.
fn name(keys: &Keys) -> Result<String> {
    let name = keys.required_text("name", "a name for the task")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    match !name.is_empty() && !name.starts_with('.') && name.chars().all(plain) {
        true => Ok(name.to_string()),
        false => Err(keys.bad("name", "must be of letters, digits, _, - and ., since files are named after it")),
    }
}

fn metric(keys: &Keys, kind: Kind) -> Result<Metric> {
    let names = MetricName::NAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let name = keys.named::<MetricName>("metric")?.ok_or_else(|| keys.missing("metric", format!("one of {names}")))?;
    if kind != Kind::Generate && name != MetricName::ExactMatch {
        let kind = kind.name();
        return Err(keys.bad("metric", format!("kind = \"{kind}\" has no text to score; write \"exact_match\"")));
    }
    let unused = "only rouge2 and bleu count tokens; remove it";
    Ok(match name {
        MetricName::Rouge2 => Metric::Rouge2(tokens(keys, [Tokens::Word, Tokens::Char])?),
        MetricName::Bleu => Metric::Bleu(tokens(keys, [Tokens::V13a, Tokens::Char])?),
        MetricName::ExactMatch => keys.refuse("tokens", unused).map(|()| Metric::ExactMatch)?,
        MetricName::CharF1 => keys.refuse("tokens", unused).map(|()| Metric::CharF1)?,
        MetricName::LastNumber => keys.refuse("tokens", unused).map(|()| Metric::LastNumber)?,
    })
}

/// The tokens of a metric that counts those of `allowed`.
fn tokens(keys: &Keys, allowed: [Tokens; 2]) -> Result<Tokens> {
    let metric = keys.text("metric")?.unwrap_or_default();
    let [a, b] = allowed.map(|tokens| format!("\"{}\"", tokens.name()));
    let tokens = keys.named::<Tokens>("tokens")?.ok_or_else(|| keys.missing("tokens", format!("{a} or {b}")))?;
    match allowed.contains(&tokens) {
        true => Ok(tokens),
        false => Err(keys.bad("tokens", format!("{metric} has no such tokens; write {a} or {b}"))),
    }
}

/// Why a choice has no stop and no number of tokens.
const NOT_GENERATED: &str = "only kind = \"generate\" makes text; remove it";

fn stop(keys: &Keys, kind: Kind) -> Result<Vec<String>> {
    match kind {
        Kind::Generate => Ok(keys.texts("stop")?.unwrap_or_default()),
        Kind::Choice | Kind::ChoiceNorm => keys.refuse("stop", NOT_GENERATED).map(|()| Vec::new()),
    }
}

fn max_tokens(keys: &Keys, kind: Kind) -> Result<usize> {
    match kind {
        Kind::Generate => {
            keys.count("max_tokens")?.ok_or_else(|| keys.missing("max_tokens", "the most tokens of an answer"))
        }
        Kind::Choice | Kind::ChoiceNorm => keys.refuse("max_tokens", NOT_GENERATED).map(|()| 0),
    }
}

/// Columns are named for a file that has some, and only for one.
fn columns(keys: &Keys, data: &Path) -> Result<Option<Vec<String>>> {
    let tsv = data.extension().is_some_and(|e| e.eq_ignore_ascii_case("tsv"));
    let columns = keys.texts("columns")?;
    match (&columns, tsv) {
        (None, true) => Err(keys.missing("columns", "the names of the columns of the .tsv file")),
        (Some(_), false) => Err(keys.bad("columns", "only data in a .tsv file has columns; remove it")),
        (Some(names), true) if names.is_empty() => Err(keys.bad("columns", "name every column of the .tsv file")),
        _ => Ok(columns),
    }
}

fn shots(keys: &Keys, folder: &Path) -> Result<Shots> {
    match keys.value("shots") {
        None => Ok(Shots::Fixed(Vec::new())),
        Some(Value::Array(all)) => {
            let fields = all.iter().enumerate().map(|(at, shot)| fixed_shot(keys, at, shot));
            Ok(Shots::Fixed(fields.collect::<Result<_>>()?))
        }
        Some(Value::Table(first)) => first_of(keys, folder, first),
        Some(_) => Err(keys.bad("shots", SHOTS)),
    }
}

const SHOTS: &str = "must be an array of records, or { data = \"PATH\", first = N }";

fn fixed_shot(keys: &Keys, at: usize, shot: &Value) -> Result<Fields> {
    let fields = shot.as_table().and_then(|table| serde_json::to_value(table).ok());
    match fields {
        Some(serde_json::Value::Object(fields)) => Ok(fields),
        _ => Err(keys.bad_at(&format!("shots[{at}]"), shot, "must be a table with the keys of a record")),
    }
}

fn first_of(keys: &Keys, folder: &Path, table: &Table) -> Result<Shots> {
    if let Some(key) = table.keys().find(|key| !["data", "first"].contains(&key.as_str())) {
        return Err(keys.bad("shots", format!("it has no key {key:?}; it {SHOTS}")));
    }
    let file = table.get("data").and_then(Value::as_str);
    let count = table.get("first").and_then(Value::as_integer).and_then(|n| usize::try_from(n).ok());
    match (file, count) {
        (Some(file), Some(count)) if count > 0 => Ok(Shots::First { file: folder.join(file), count }),
        _ => Err(keys.bad("shots", SHOTS)),
    }
}

fn prompt(keys: &Keys) -> Result<Template> {
    let source = keys.required_text("prompt", "a template over the keys of a record")?;
    Template::text("prompt", source).map_err(|fault| keys.bad("prompt", format!("{fault}; correct the template")))
}

fn answer(keys: &Keys) -> Result<Template> {
    let source = keys.required_text("answer", "an expression over the keys of a record")?;
    let correct = |fault| keys.bad("answer", format!("{fault}; correct the expression"));
    Template::expression("answer", source).map_err(correct)
}

fn choices(keys: &Keys, kind: Kind) -> Result<Option<Choices>> {
    if kind == Kind::Generate {
        return keys.refuse("choices", "kind = \"generate\" has none; remove it").map(|()| None);
    }
    let correct = |fault| keys.bad("choices", format!("{fault}; correct it"));
    match keys.value("choices") {
        None => Err(keys.missing("choices", "an array of templates, or an expression that gives a list")),
        Some(Value::String(source)) => {
            Ok(Some(Choices::List(Template::expression("choices", source).map_err(correct)?)))
        }
        Some(_) => {
            let sources = keys.texts("choices")?.unwrap_or_default();
            if sources.len() < 2 {
                return Err(keys.bad("choices", "a question needs two or more; add templates"));
            }
            let template = |(at, source): (usize, &String)| Template::text(format!("choices[{at}]"), source);
            let each: std::result::Result<_, _> = sources.iter().enumerate().map(template).collect();
            Ok(Some(Choices::Each(each.map_err(correct)?)))
        }
    }
}
