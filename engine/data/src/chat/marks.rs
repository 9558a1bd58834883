//! Marks that show where a message ends in the text that a template renders.

use serde_json::{Map, Value};

use super::template::END;

/// The message with the mark at its end, in each of the ways that a template may print unchanged, the one nearest to
/// the end of the turn first: templates print calls of tools after the content. The last way has the mark in place of
/// the content, for templates that print none of the content, such as thoughts in an earlier turn.
pub fn marked(message: &Value) -> Vec<Value> {
    let ways = [in_last_call, after_content, in_place_of_content];
    let marked = |way: fn(&mut Value) -> Option<()>| {
        let mut message = message.clone();
        way(&mut message).map(|()| message)
    };
    ways.into_iter().filter_map(marked).collect()
}

/// The text after the mark; `None` unless the text holds exactly one mark.
pub fn after(text: &str) -> Option<String> {
    let (_, after) = text.split_once(END)?;
    (!after.contains(END)).then(|| after.to_string())
}

/// Marks the last argument of the last call of a tool, or its name where there are no arguments.
fn in_last_call(message: &mut Value) -> Option<()> {
    let call = match message.get_mut("tool_calls") {
        Some(Value::Array(calls)) if !calls.is_empty() => calls.last_mut()?,
        _ => message.get_mut("function_call")?,
    };
    let call = match call.get("function") {
        Some(Value::Object(_)) => call.get_mut("function")?,
        _ => call,
    };
    if call.get_mut("arguments").and_then(in_last_text).is_some() {
        return Some(());
    }
    match call.get_mut("name")? {
        Value::String(name) => mark(name),
        _ => None,
    }
}

/// Marks the last string in a value, which may be a key.
fn in_last_text(value: &mut Value) -> Option<()> {
    match value {
        Value::String(text) => mark(text),
        Value::Array(all) => all.iter_mut().rev().find_map(in_last_text),
        Value::Object(all) => {
            let mut entries: Vec<(String, Value)> = std::mem::take(all).into_iter().collect();
            let found = entries.iter_mut().rev().find_map(|(key, value)| in_last_text(value).or_else(|| mark(key)));
            *all = Map::from_iter(entries);
            found
        }
        _ => None,
    }
}

fn after_content(message: &mut Value) -> Option<()> {
    match content(message)? {
        Value::String(text) => mark(text),
        _ => None,
    }
}

fn in_place_of_content(message: &mut Value) -> Option<()> {
    *content(message)? = END.to_string().into();
    Some(())
}

/// The content of a message, or its last part that is text.
fn content(message: &mut Value) -> Option<&mut Value> {
    match message.get_mut("content")? {
        Value::Array(parts) => parts.iter_mut().rev().find_map(|part| part.get_mut("text")),
        content => Some(content),
    }
}

/// Puts the mark at the end of a text, before white space that a template may strip.
fn mark(text: &mut String) -> Option<()> {
    text.insert(text.trim_end().len(), END);
    Some(())
}
