//! NIILC's XML: `<questions>` of `<question id>` with a `<text>` and `<answers>` of `<answer>`. Its notes on each
//! question are not read. A question whose only answer is "-" or blank has none known to its authors and is left out.

use engine::error::{Error, Result};
use roxmltree::{Document, Node};
use serde_json::Value as Json;

use super::{Fields, Record};
use crate::utf8::newlines;

/// A record a question: `id`, `question`, `answers`.
pub fn read(name: &str, text: &str) -> Result<Vec<Record>> {
    let document = Document::parse(text)
        .map_err(|e| Error::user(format!("{name}: line {}: {e}; correct the XML", e.pos().row)))?;
    let root = document.root_element();
    if root.tag_name().name() != "questions" {
        let tag = root.tag_name().name();
        return Err(Error::user(format!("{name}: <{tag}> at the top: must be <questions>, as NIILC's files have it")));
    }
    let (mut line, mut seen, mut records) = (1, 0, Vec::new());
    let questions = root.children().filter(|node| node.has_tag_name("question"));
    for (index, node) in questions.enumerate() {
        let start = node.range().start;
        line += newlines(&text.as_bytes()[seen..start]);
        seen = start;
        let fields = fields(node);
        if !matches!(&fields, Ok(fields) if fields["answers"].as_array().is_some_and(Vec::is_empty)) {
            records.push(Record { index, at: format!("{name}: line {line}"), fields });
        }
    }
    Ok(records)
}

fn fields(question: Node) -> std::result::Result<Fields, String> {
    let tags = |parent: Node, tag| -> Vec<String> {
        let nodes = parent.children().filter(|node| node.has_tag_name(tag));
        nodes.map(|node| node.text().unwrap_or("").trim().to_string()).collect()
    };
    let text = tags(question, "text").into_iter().next().ok_or("no <text> in this <question>; add it")?;
    let answers = question.children().find(|node| node.has_tag_name("answers"));
    let mut answers = tags(answers.ok_or("no <answers> in this <question>; add them")?, "answer");
    answers.retain(|answer| !answer.is_empty() && answer != "-");
    let id = question.attribute("id").unwrap_or("");
    let pairs = [("id", Json::from(id)), ("question", Json::from(text)), ("answers", Json::from(answers))];
    Ok(pairs.into_iter().map(|(key, value)| (key.to_string(), value)).collect())
}
