//! `data filter`: drops documents by rules on their statistics and hosts, and mends those that stay.
//!
//! A document counts under the first rule that drops it: hosts first, then the statistics from cheap to dear, so that a
//! document that is dropped early is never counted in n-grams.

mod grams;
mod lists;
mod pieces;
mod rules;
mod statistics;

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use data::json::Field;
use data::text::Inputs;
use engine::error::Result;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfkc_quick};

use crate::documents::{Bad, Batch, Document, Skipped, batches};
use crate::drops::{Drops, Example, Rule};
use crate::ordered;
use crate::output::Output;
pub use rules::Rules;
use rules::{Changes, ListedHosts};
use statistics::Measured;

/// Bytes of memory for a byte of a batch: itself, the text and the record of its documents, and the lines made of them.
const MEMORY_PER_BYTE: usize = 4;

/// The inputs and settings of a filter.
pub struct Job<'a> {
    pub inputs: &'a Inputs,
    pub rules: &'a Rules,
    /// Its name ends in .jsonl, .jsonl.gz or .jsonl.zst.
    pub output: PathBuf,
    pub bad: Bad,
    /// Threads that apply the rules, at least one.
    pub workers: usize,
    /// Bytes of memory for documents between reading and writing. A document that is larger passes alone; the n-grams
    /// of the document that a worker looks at take up to 24 bytes a character beside it.
    pub memory: usize,
}

/// What a filter has done.
#[derive(Debug)]
pub struct Done {
    pub drops: Drops,
    pub skipped: Skipped,
    /// Documents that were written with another text.
    pub changed: u64,
}

/// What becomes of a record.
enum Verdict {
    Bad(String),
    Keep {
        characters: u64,
        json: String,
        changed: bool,
    },
    /// By the rule with this index.
    Drop {
        characters: u64,
        rule: usize,
        example: Example,
    },
}

/// Filters the inputs; calls `progress` with the bytes read so far after every batch. Nothing stands under the output's
/// name before the end, which comes also when no document is left.
pub fn filter(job: &Job, mut progress: impl FnMut(u64)) -> Result<Done> {
    job.inputs.check()?;
    let mut output = Output::create(&job.output)?;
    let mut done =
        Done { drops: Drops::new("data filter", job.rules.named()), skipped: Skipped::default(), changed: 0 };
    let read = Arc::new(AtomicU64::new(0));
    let judge = |batch: Batch| {
        let documents = batch.documents(&job.inputs.key);
        drop(batch);
        let verdict = |document| job.rules.judge(document, &job.inputs.key);
        Ok(documents.into_iter().map(verdict).collect::<Vec<_>>())
    };
    let all = batches(job.inputs, read.clone());
    ordered::map(all, job.workers, job.memory / MEMORY_PER_BYTE, judge, |verdicts| {
        for verdict in verdicts {
            done.take(verdict, job.bad, &mut output)?;
        }
        progress(read.load(Ordering::Relaxed));
        Ok(())
    })?;
    output.finish()?;
    done.drops.skipped = done.skipped.count;
    Ok(done)
}

impl Done {
    fn take(&mut self, verdict: Verdict, bad: Bad, output: &mut Output) -> Result<()> {
        match verdict {
            Verdict::Bad(message) => bad.record(message, &mut self.skipped)?,
            Verdict::Drop { characters, rule, example } => self.drops.drop(rule, characters, || example),
            Verdict::Keep { characters, json, changed } => {
                self.drops.keep(characters);
                self.changed += u64::from(changed);
                output.line(&json)?;
            }
        }
        Ok(())
    }
}

impl Rules {
    /// The rules in the order in which they are tried.
    fn named(&self) -> Vec<Rule> {
        let hosts = self.hosts.iter().map(|_| Rule::new("hosts", None));
        let bounds = self.bounds.iter().map(|bound| Rule::new(bound.statistic.name, Some(bound.threshold())));
        let footers = self.changes.footers.iter().map(|_| Rule::new("footers", Some("nothing else".into())));
        hosts.chain(bounds).chain(footers).collect()
    }

    fn judge(&self, document: std::result::Result<Document, String>, key: &str) -> Verdict {
        let document = match document {
            Ok(document) => document,
            Err(message) => return Verdict::Bad(message),
        };
        let measured = Measured::new(&document.text, self.expressions.as_ref());
        let characters = measured.characters;
        if let Some((rule, value)) = self.first_that_drops(&document, &measured) {
            return Verdict::Drop { characters, rule, example: Example::new(&document, Some(value)) };
        }
        let text = self.changes.apply(&document.text);
        if text.is_empty() && self.changes.footers.is_some() && !document.text.is_empty() {
            let rule = self.named().len() - 1;
            return Verdict::Drop { characters, rule, example: Example::new(&document, None) };
        }
        match document.as_json(key, &text) {
            Ok(json) => Verdict::Keep { characters, json, changed: *text != document.text },
            Err(message) => Verdict::Bad(message),
        }
    }

    /// The index of the rule, and the value of its statistic.
    fn first_that_drops(&self, document: &Document, measured: &Measured) -> Option<(usize, String)> {
        if let Some(host) = self.hosts.as_ref().and_then(|hosts| hosts.of(document)) {
            return Some((0, host));
        }
        let first = usize::from(self.hosts.is_some());
        let broken = |(rule, bound): (usize, &rules::Bound)| {
            let value = (bound.statistic.of)(measured);
            bound.drops(value).then(|| (rule, shown(value)))
        };
        (first..).zip(&self.bounds).find_map(broken)
    }
}

/// A count as it is, a share with four digits.
fn shown(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value}") } else { format!("{value:.4}") }
}

impl ListedHosts {
    /// The host of a document's URL if it is listed. A record without a URL has none.
    fn of(&self, document: &Document) -> Option<String> {
        let field = Field { key: &self.key, flag: "url_key", example: "\"...\"" };
        let url = field.value(document.record.as_ref()?).ok()?;
        self.hosts.find(url.as_str()?)
    }
}

impl Changes {
    fn apply<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut text = Cow::Borrowed(self.footers.as_ref().map_or(text, |footers| footers.cut(text)));
        if self.punctuation && text.contains(['．', '，']) {
            text = Cow::Owned(text.replace('．', "。").replace('，', "、"));
        }
        if self.nfkc && is_nfkc_quick(text.chars()) != IsNormalized::Yes {
            text = Cow::Owned(text.nfkc().collect());
        }
        text
    }
}

#[cfg(test)]
mod tests;
