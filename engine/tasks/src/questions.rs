//! Questions: records and shots, rendered by a task's templates.

use std::path::Path;

use engine::error::{Error, Result, counted};
use serde_json::Value as Json;

use crate::metrics::number::last_number;
use crate::names::shorten;
use crate::records::{self, Record};
use crate::task::{Choices, Kind, Metric, Shots, Task};
use crate::template::Fields;

/// How records of which no question can be made are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bad {
    /// It is an error.
    Refuse,
    /// It is counted and named, and the others are asked.
    Skip,
}

/// The questions of a task.
#[derive(Debug)]
pub struct Questions {
    pub all: Vec<Question>,
    /// The error of each record that was left out, with its file and line.
    pub skipped: Vec<String>,
}

/// One question.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The place of its record in the data, from 0.
    pub index: usize,
    /// Instruction, shots and prompt, as they were rendered: a space at the end stays.
    pub context: String,
    pub form: Form,
}

impl Question {
    /// The number of its choices; 0 for one that is answered freely.
    pub fn choices(&self) -> usize {
        match &self.form {
            Form::Choices { continuations, .. } => continuations.len(),
            Form::Free { .. } => 0,
        }
    }
}

/// What the context goes on with.
#[derive(Debug, Clone, PartialEq)]
pub enum Form {
    /// One of some texts; `answer` is the place of the right one.
    Choices { continuations: Vec<String>, answer: usize },
    /// A text, which may be any of some.
    Free { answers: Vec<String> },
}

/// The fault of a record, with a remedy.
type Rendered<T> = std::result::Result<T, String>;

/// The examples of a task.
struct Examples {
    /// What each asks.
    prompts: Vec<String>,
    /// What stands in front of a question's own prompt.
    text: String,
    /// How many records of the data they are.
    records: usize,
}

impl Task {
    /// The first `limit` questions that the data gives, or all.
    pub fn questions(&self, limit: Option<usize>, bad: Bad) -> Result<Questions> {
        if limit == Some(0) {
            let file = self.file.display();
            return Err(Error::user(format!("{file}: --limit = 0: leaves no question; ask at least one")));
        }
        let records = records::read(&self.data, self.columns.as_deref())?;
        let examples = self.examples(&records)?;
        let mut questions = Questions { all: Vec::new(), skipped: Vec::new() };
        for record in records.iter().skip(examples.records) {
            if limit.is_some_and(|limit| questions.all.len() == limit) {
                break;
            }
            match (self.question(record, &examples), bad) {
                (Ok(question), _) => questions.all.push(question),
                (Err(fault), Bad::Refuse) => return Err(Error::user(fault + ", or leave it out with --skip-bad")),
                (Err(fault), Bad::Skip) => questions.skipped.push(fault),
            }
        }
        match questions.all.is_empty() {
            true => Err(self.no_question(&questions.skipped, &examples)),
            false => Ok(questions),
        }
    }

    fn no_question(&self, skipped: &[String], examples: &Examples) -> Error {
        let data = self.data.display();
        Error::user(match skipped.first() {
            Some(first) => format!("{data}: no record gives a question; the first: {first}"),
            None => {
                let shots = counted(examples.records, "shot");
                format!("{data}: no question is left beside {shots}; take fewer shots, or other data")
            }
        })
    }

    /// The shots, which must all be good. `records` are the data's.
    fn examples(&self, records: &[Record]) -> Result<Examples> {
        let mut examples = Examples { prompts: Vec::new(), text: self.instruction.clone(), records: 0 };
        match &self.shots {
            Shots::Fixed(all) => {
                for (at, fields) in all.iter().enumerate() {
                    let place = format!("{}: shots[{at}]", self.file.display());
                    self.add_shot(&mut examples, &place, fields)?;
                }
            }
            Shots::First { file, count } => {
                let same = is_same(file, &self.data);
                let other = if same { Vec::new() } else { records::read(file, self.columns_of(file)?)? };
                let from = if same { records } else { &other };
                examples.records = if same { *count } else { 0 };
                for record in self.first(from, file, *count)? {
                    let fields = record.fields.as_ref();
                    let fields = fields.map_err(|fault| Error::user(format!("{}: {fault}", record.at)))?;
                    self.add_shot(&mut examples, &record.at, fields)?;
                }
            }
        }
        Ok(examples)
    }

    /// The names of the columns of a file of shots.
    fn columns_of(&self, file: &Path) -> Result<Option<&[String]>> {
        let tsv = file.extension().is_some_and(|e| e.eq_ignore_ascii_case("tsv"));
        match (&self.columns, tsv) {
            (None, true) => {
                let (task, file) = (self.file.display(), file.display());
                Err(Error::user(format!(
                    "{task}: shots = {file}: shots in a .tsv file need data in one, and `columns`"
                )))
            }
            (columns, _) => Ok(columns.as_deref()),
        }
    }

    fn first<'a>(&self, records: &'a [Record], file: &Path, count: usize) -> Result<&'a [Record]> {
        records.get(..count).ok_or_else(|| {
            let (task, found, file) = (self.file.display(), counted(records.len(), "record"), file.display());
            Error::user(format!("{task}: shots.first = {count}: {file} has {found}; write at most that"))
        })
    }

    fn add_shot(&self, examples: &mut Examples, place: &str, fields: &Fields) -> Result<()> {
        let named = |fault: String| Error::user(format!("{place}: {fault}"));
        let prompt = self.prompt.render(fields).map_err(named)?;
        let answer = match self.form(fields).map_err(named)? {
            Form::Choices { mut continuations, answer } => continuations.swap_remove(answer),
            Form::Free { mut answers } => answers.swap_remove(0),
        };
        for part in [&prompt, &answer, &self.separator] {
            examples.text.push_str(part);
        }
        examples.prompts.push(prompt);
        Ok(())
    }

    /// The question of a record, or the record's fault with its place.
    fn question(&self, record: &Record, examples: &Examples) -> Rendered<Question> {
        let named = |fault: &str| format!("{}: {fault}", record.at);
        let fields = record.fields.as_ref().map_err(|fault| named(fault))?;
        let prompt = self.prompt.render(fields).map_err(|fault| named(&fault))?;
        if let Some(at) = examples.prompts.iter().position(|shot| *shot == prompt) {
            let file = self.file.display();
            return Err(named(&format!("shots[{at}] of {file} is this question itself; take another shot")));
        }
        let form = self.form(fields).map_err(|fault| named(&fault))?;
        Ok(Question { index: record.index, context: format!("{}{prompt}", examples.text), form })
    }

    fn form(&self, fields: &Fields) -> Rendered<Form> {
        let answer = self.answer.evaluate(fields)?;
        match &self.choices {
            None => self.answers(answer).map(|answers| Form::Free { answers }),
            Some(choices) => {
                let continuations = choices.render(fields)?;
                let answer = index(&answer, continuations.len())?;
                Ok(Form::Choices { continuations, answer })
            }
        }
    }

    /// The accepted texts that the answer's value names.
    fn answers(&self, value: Json) -> Rendered<Vec<String>> {
        let shown = shorten(&value.to_string());
        let values = if let Json::Array(values) = value { values } else { vec![value] };
        let texts: Option<Vec<String>> = values.into_iter().map(text).collect();
        let texts = texts.ok_or_else(|| format!("answer = {shown}: must be a text, a number or a list of them"))?;
        if texts.is_empty() || texts.iter().any(|text| text.trim().is_empty()) {
            return Err(format!("answer = {shown}: a right answer is empty; give one"));
        }
        if self.metric == Metric::LastNumber && texts.iter().any(|text| last_number(text).is_none()) {
            return Err(format!("answer = {shown}: last_number finds no number in it; give one"));
        }
        Ok(texts)
    }
}

impl Choices {
    fn render(&self, fields: &Fields) -> Rendered<Vec<String>> {
        let texts = match self {
            Choices::Each(all) => all.iter().map(|template| template.render(fields)).collect::<Rendered<Vec<_>>>()?,
            Choices::List(expression) => listed(expression.evaluate(fields)?)?,
        };
        if texts.len() < 2 {
            return Err(format!("choices has {}; a question needs two or more", texts.len()));
        }
        match texts.iter().position(|text| text.trim().is_empty()) {
            Some(at) => Err(format!("choices[{at}] is empty; give every choice a text")),
            None => Ok(texts),
        }
    }
}

fn listed(value: Json) -> Rendered<Vec<String>> {
    let shown = shorten(&value.to_string());
    let Json::Array(values) = value else {
        return Err(format!("choices = {shown}: must give a list of texts"));
    };
    let texts: Option<Vec<String>> = values.into_iter().map(text).collect();
    texts.ok_or_else(|| format!("choices = {shown}: must give a list of texts"))
}

fn text(value: Json) -> Option<String> {
    match value {
        Json::String(text) => Some(text),
        Json::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// The place of the right choice among `choices`.
fn index(value: &Json, choices: usize) -> Rendered<usize> {
    let index = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n < choices);
    let last = choices - 1;
    index.ok_or_else(|| {
        format!("answer = {}: must be the place of the right choice, from 0 to {last}", shorten(&value.to_string()))
    })
}

/// Whether two paths name the same file. One that does not exist is none.
fn is_same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

impl Question {
    /// Whether `kind` asks it by log-likelihoods.
    pub(crate) fn fits(&self, kind: Kind) -> bool {
        matches!(self.form, Form::Choices { .. }) == (kind != Kind::Generate)
    }
}
