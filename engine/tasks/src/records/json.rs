//! JSON lines, a JSON array of objects, or SQuAD's nested form, which is flattened to a record a question.

use engine::error::{Error, Result};
use serde_json::{Deserializer, Map, Value as Json};

use super::{Fields, Record, lines};
use crate::utf8::{self, newlines};

/// The records of a file of one of the three forms, which its first value tells.
pub fn read(name: &str, bytes: &[u8]) -> Result<Vec<Record>> {
    match bytes.trim_ascii_start().first() {
        Some(b'[') => array(name, utf8::text(name, bytes)?),
        _ => match squad_articles(bytes) {
            Some(articles) => squad(name, &articles),
            None => Ok(json_lines(name, bytes)),
        },
    }
}

fn json_lines(name: &str, bytes: &[u8]) -> Vec<Record> {
    let parse = |line: &str| match serde_json::from_str(line) {
        Ok(Json::Object(fields)) => Ok(fields),
        Ok(_) => Err(NO_OBJECT.to_string()),
        Err(e) => Err(format!("{e}; correct the JSON")),
    };
    let record = |(index, (number, line)): (usize, (usize, std::result::Result<&str, String>))| Record {
        index,
        at: format!("{name}: line {number}"),
        fields: line.and_then(parse),
    };
    lines(bytes).enumerate().map(record).collect()
}

const NO_OBJECT: &str = "not a JSON object; a record is an object with keys";

/// Splits an array by hand, so that each record knows its line.
fn array(name: &str, text: &str) -> Result<Vec<Record>> {
    let mut cursor = Cursor { name, text, at: 0, line: 1 };
    cursor.next();
    cursor.advance(1);
    let mut records = Vec::new();
    loop {
        match cursor.next() {
            Some(b']') => break,
            Some(b',') if !records.is_empty() => cursor.advance(1),
            Some(_) if !records.is_empty() => return Err(cursor.fault("no comma between two records")),
            Some(_) => {}
            None => return Err(cursor.fault("the array does not end")),
        }
        cursor.next();
        records.push(cursor.record(records.len())?);
    }
    cursor.advance(1);
    match cursor.next() {
        Some(_) => Err(cursor.fault("text after the end of the array")),
        None => Ok(records),
    }
}

/// A place in a text, and the line that it is in.
struct Cursor<'a> {
    name: &'a str,
    text: &'a str,
    at: usize,
    line: usize,
}

impl Cursor<'_> {
    /// The byte after white space, at which the cursor is then.
    fn next(&mut self) -> Option<u8> {
        let rest = self.text[self.at..].trim_ascii_start();
        self.advance(self.text.len() - self.at - rest.len());
        rest.bytes().next()
    }

    fn advance(&mut self, bytes: usize) {
        self.line += newlines(&self.text.as_bytes()[self.at..self.at + bytes]);
        self.at += bytes;
    }

    fn fault(&self, what: &str) -> Error {
        Error::user(format!("{}: line {}: {what}; correct the JSON", self.name, self.line))
    }

    /// The value at the cursor, which is then behind it. What is no JSON ends the reading: nobody knows where the next
    /// record is.
    fn record(&mut self, index: usize) -> Result<Record> {
        let at = format!("{}: line {}, record {index}", self.name, self.line);
        let mut values = Deserializer::from_str(&self.text[self.at..]).into_iter::<Json>();
        let fields = match values.next() {
            Some(Ok(Json::Object(fields))) => Ok(fields),
            Some(Ok(_)) => Err(NO_OBJECT.to_string()),
            Some(Err(e)) => return Err(Error::user(format!("{at}: {e} of the record; correct the JSON"))),
            None => return Err(self.fault("the array does not end")),
        };
        self.advance(values.byte_offset());
        Ok(Record { index, at, fields })
    }
}

/// The articles of a file in SQuAD's form: an object with `data`, an array of objects with `paragraphs`.
fn squad_articles(bytes: &[u8]) -> Option<Vec<Json>> {
    let first = Deserializer::from_slice(bytes).into_iter::<Json>().next()?.ok()?;
    let Json::Object(mut top) = first else { return None };
    let Json::Array(articles) = top.remove("data")? else { return None };
    articles.first()?.get("paragraphs")?;
    Some(articles)
}

/// A record a question: `title`, `context`, `id`, `question`, `answers` without duplicates.
fn squad(name: &str, articles: &[Json]) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for (a, article) in articles.iter().enumerate() {
        let place = format!("data[{a}]");
        for (p, paragraph) in list(name, article, "paragraphs", &place)?.iter().enumerate() {
            let place = format!("{place}.paragraphs[{p}]");
            for (q, question) in list(name, paragraph, "qas", &place)?.iter().enumerate() {
                let id = question.get("id").and_then(Json::as_str).map(|id| format!("question {id}"));
                let at = format!("{name}: {}", id.unwrap_or_else(|| format!("{place}.qas[{q}]")));
                records.push(Record { index: records.len(), at, fields: squad_fields(article, paragraph, question) });
            }
        }
    }
    Ok(records)
}

fn list<'a>(name: &str, holder: &'a Json, key: &str, place: &str) -> Result<&'a Vec<Json>> {
    let list = holder.get(key).and_then(Json::as_array);
    list.ok_or_else(|| Error::user(format!("{name}: {place} has no array `{key}`; SQuAD's form has one there")))
}

fn squad_fields(article: &Json, paragraph: &Json, question: &Json) -> std::result::Result<Fields, String> {
    let mut fields = Map::new();
    for (holder, key) in [(article, "title"), (paragraph, "context"), (question, "id"), (question, "question")] {
        if let Some(value) = holder.get(key) {
            fields.insert(key.to_string(), value.clone());
        }
    }
    let answers = question.get("answers").and_then(Json::as_array).ok_or("no array `answers`; add it")?;
    let mut texts: Vec<Json> = Vec::new();
    for answer in answers {
        let text = answer.get("text").ok_or("an answer without `text`; add it")?;
        if !texts.contains(text) {
            texts.push(text.clone());
        }
    }
    fields.insert("answers".to_string(), texts.into());
    Ok(fields)
}
