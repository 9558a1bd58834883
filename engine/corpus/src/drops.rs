//! What a command dropped, by rule, with examples: as JSON for programs, and as a page for people who tune the rules.

mod page;

use std::path::Path;

use data::partial::write_whole;
use engine::error::{Error, Result};
use serde::Serialize;

use crate::documents::Document;

/// Examples that are kept for a rule.
pub const EXAMPLES: usize = 10;

/// Characters of an example's text.
const SHOWN: usize = 200;

/// What a command dropped. The same data makes the JSON file and the page.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Drops {
    /// The command that dropped it, as it is called.
    pub command: String,
    /// Documents that were read, bad records not among them.
    pub documents: u64,
    /// Characters (code points) of the documents that were read.
    pub characters: u64,
    /// Documents that were written.
    pub kept: u64,
    /// Characters of the documents that were written, as they were read.
    pub kept_characters: u64,
    /// Bad records that were left out.
    pub skipped: u64,
    /// In the order in which the rules were tried.
    pub rules: Vec<Rule>,
}

/// A rule, and the documents that it dropped. A document counts under the first rule that drops it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rule {
    pub name: String,
    /// Where a document is dropped, such as `below 400`; `None` where the rule has no number.
    pub threshold: Option<String>,
    pub documents: u64,
    pub characters: u64,
    /// The first ones of the input, at most [`EXAMPLES`].
    pub examples: Vec<Example>,
}

/// A document that was dropped.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Example {
    pub file: String,
    pub line: u64,
    /// The statistic that the rule is about, or what the document repeats.
    pub value: Option<String>,
    /// The first 200 characters.
    pub text: String,
}

impl Example {
    pub fn new(document: &Document, value: Option<String>) -> Self {
        let text = &document.text;
        let end = text.char_indices().nth(SHOWN).map_or(text.len(), |(end, _)| end);
        let file = document.file.display().to_string();
        Self { file, line: document.line, value, text: text[..end].to_string() }
    }
}

impl Rule {
    /// A rule that has dropped nothing so far.
    pub fn new(name: impl Into<String>, threshold: Option<String>) -> Self {
        Self { name: name.into(), threshold, documents: 0, characters: 0, examples: Vec::new() }
    }

    /// Counts a document of `characters` code points that the rule drops. Documents come in the order of the input.
    pub fn add(&mut self, characters: u64, example: impl FnOnce() -> Example) {
        self.documents += 1;
        self.characters += characters;
        if self.examples.len() < EXAMPLES {
            self.examples.push(example());
        }
    }
}

impl Drops {
    /// The drops of a command that has read nothing so far.
    pub fn new(command: impl Into<String>, rules: Vec<Rule>) -> Self {
        let (documents, characters, kept, kept_characters, skipped) = (0, 0, 0, 0, 0);
        Self { command: command.into(), documents, characters, kept, kept_characters, skipped, rules }
    }

    /// Counts a document that is written.
    pub fn keep(&mut self, characters: u64) {
        self.documents += 1;
        self.characters += characters;
        self.kept += 1;
        self.kept_characters += characters;
    }

    /// Counts a document that the rule with the index `rule` drops.
    pub fn drop(&mut self, rule: usize, characters: u64, example: impl FnOnce() -> Example) {
        self.documents += 1;
        self.characters += characters;
        self.rules[rule].add(characters, example);
    }

    /// Refuses a `path` that [`Drops::write`] would refuse, so that a command can say so before it works for hours.
    pub fn check(path: &Path) -> Result<()> {
        match path.extension().is_some_and(|e| e == "json") {
            true => Ok(()),
            false => Err(Error::user(format!(
                "{}: the report is JSON, so its name must end in .json; the page gets the same name with .html",
                path.display()
            ))),
        }
    }

    /// Writes the JSON file `path`, whose name must end in .json, and beside it the page, whose name ends in .html.
    pub fn write(&self, path: &Path) -> Result<()> {
        Self::check(path)?;
        let json = serde_json::to_string_pretty(self).expect("texts and numbers are JSON") + "\n";
        write_whole(path, &json)?;
        write_whole(&path.with_extension("html"), &page::render(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(line: u64, text: &str) -> Example {
        Example { file: "a.jsonl".into(), line, value: Some("0.5 > 0.3".into()), text: text.into() }
    }

    fn drops() -> Drops {
        let rules = vec![Rule::new("characters", Some("below 400".into())), Rule::new("hosts", None)];
        let mut drops = Drops::new("data filter", rules);
        drops.keep(5000);
        drops.drop(0, 300, || example(2, "<script>alert('x')</script> & \"quoted\"\n改行"));
        drops.skipped = 1;
        drops
    }

    #[test]
    fn the_json_file_and_the_page_have_the_same_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("drops.v1.json");
        drops().write(&path).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!((&json["documents"], &json["kept"], &json["skipped"]), (&2.into(), &1.into(), &1.into()));
        assert_eq!((&json["characters"], &json["kept_characters"]), (&5300.into(), &5000.into()));
        assert_eq!(json["rules"][0]["examples"][0]["text"], drops().rules[0].examples[0].text);
        assert_eq!(json["rules"][1]["threshold"], serde_json::Value::Null);
        let page = std::fs::read_to_string(folder.path().join("drops.v1.html")).unwrap();
        let shares = ["5,300 characters", "50.0 % of the", "94.3 % of the", "5.7 % of the"];
        for part in shares.into_iter().chain(["below 400", "1 bad record ", "a.jsonl: line 2", "hosts", "改行"]) {
            assert!(page.contains(part), "{part} in {page}");
        }
    }

    /// Documents come from the web: nothing in them may become a part of the page.
    #[test]
    fn text_is_escaped_in_the_page() {
        let page = page::render(&drops());
        assert!(
            page.contains("&lt;script&gt;alert(&#x27;x&#x27;)&lt;&#x2f;script&gt; &amp; &quot;quoted&quot;"),
            "{page}"
        );
        assert!(!page.contains("<script"), "{page}");
    }

    #[test]
    fn no_document_and_no_rule_make_a_page() {
        let page = page::render(&Drops::new("data filter", Vec::new()));
        assert!(page.contains("</html>") && !page.contains("NaN"), "{page}");
    }

    #[test]
    fn only_the_first_examples_are_kept() {
        let mut rule = Rule::new("hosts", None);
        (1..=25).for_each(|line| rule.add(7, || example(line, "x")));
        assert_eq!((rule.documents, rule.characters), (25, 175));
        let lines: Vec<u64> = rule.examples.iter().map(|example| example.line).collect();
        assert_eq!(lines, (1..=10).collect::<Vec<_>>());
    }

    #[test]
    fn an_example_is_cut_between_characters() {
        let document = |text: String| Document { text, record: None, file: Path::new("b.txt").into(), line: 1 };
        let cut = Example::new(&document("𠮟".repeat(300)), None);
        assert_eq!((cut.text.chars().count(), cut.file.as_str()), (200, "b.txt"));
        assert_eq!(Example::new(&document("短い".into()), None).text, "短い");
    }

    #[test]
    fn a_name_that_is_no_json_is_refused() {
        for name in ["drops", "drops.html", "drops.jsonl"] {
            let error = drops().write(Path::new(name)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name}: ")) && error.contains("must end in .json;"), "{error}");
        }
    }
}
