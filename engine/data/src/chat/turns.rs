//! Which bytes of a conversation's text the assistant's turns added, for templates without `{% generation %}` blocks.
//!
//! A turn begins where the rendering of the messages before it ends, with the generation prompt: the model is given
//! that much. It ends with its end-of-turn token. To find that token, the content of the message is rendered with a
//! mark at its end. What the template puts behind the mark where the conversation ends with this message is the turn's
//! own, and the first control token in it is the token that ends the turn.

use std::ops::Range;

use serde_json::Value;

use super::super::tokenizer::Spans;
use super::template::{END, Prompt, Template};

const UNKNOWN_START: &str = "where this turn begins is not known, because the chat template renders the messages \
                             before it in another way when they stand alone; put {% generation %} blocks into the \
                             template";

/// The stretches of `text` that the turns of the role `assistant` added. `spans` are the tokens of `text`.
pub fn stretches(
    template: &Template,
    messages: &[Value],
    text: &str,
    spans: &Spans,
    is_control: &dyn Fn(u32) -> bool,
) -> Result<Vec<Range<usize>>, String> {
    let conversation = Conversation { template, messages, text, spans, is_control };
    let turns = (0..messages.len()).filter(|&i| messages[i]["role"] == "assistant");
    turns.map(|i| conversation.stretch(i).map_err(|e| format!("message {}: {e}", i + 1))).collect()
}

struct Conversation<'a> {
    template: &'a Template,
    messages: &'a [Value],
    text: &'a str,
    spans: &'a Spans,
    is_control: &'a dyn Fn(u32) -> bool,
}

impl Conversation<'_> {
    /// The bytes that message `i` adds to the text.
    fn stretch(&self, i: usize) -> Result<Range<usize>, String> {
        let start = self.start(i)?;
        match self.after_content(i) {
            Some(after) if after.start < start => Err(UNKNOWN_START.into()),
            Some(after) => Ok(start..self.end_in(&after, |tokens| tokens.next())),
            None => Ok(start..self.end_in_whole_turn(i, start)?),
        }
    }

    /// Where the turn of message `i` begins: after the messages before it and the generation prompt.
    fn start(&self, i: usize) -> Result<usize, String> {
        let before = self.template.render(&self.messages[..i], Prompt::WithGenerationPrompt);
        let before = before.map_err(|e| format!("the messages before this turn cannot be rendered alone: {e}"))?;
        if self.text.starts_with(&before) {
            return Ok(before.len());
        }
        // Mistral's templates move the system prompt to the last turn. The end of the message before is the same.
        let after_message = || {
            let (messages, at, rest) = self.mark(i.checked_sub(1)?)?;
            let alone = self.template.render(&messages[..i], Prompt::WithGenerationPrompt).ok()?;
            let (_, own) = split_at_mark(&alone)?;
            rest.starts_with(&own).then_some(at + own.len())
        };
        after_message().ok_or_else(|| UNKNOWN_START.into())
    }

    /// The bytes of the turn after the content of message `i`; `None` where the template does not print the content
    /// unchanged.
    fn after_content(&self, i: usize) -> Option<Range<usize>> {
        let (messages, at, rest) = self.mark(i)?;
        // The template may refuse a conversation that ends here.
        let alone = self.template.render(&messages[..=i], Prompt::Without).ok();
        let own = alone.and_then(|alone| Some(common_prefix(&split_at_mark(&alone)?.1, &rest)));
        Some(at..at + own.unwrap_or(0))
    }

    /// The messages with a mark at the end of the content of message `i`, where the mark is in the whole text, and what
    /// follows it. `None` where the mark changes what is rendered.
    fn mark(&self, i: usize) -> Option<(Vec<Value>, usize, String)> {
        let mut messages = self.messages.to_vec();
        messages[i] = marked(&messages[i])?;
        let (before, rest) = split_at_mark(&self.template.render(&messages, Prompt::Without).ok()?)?;
        (self.text.strip_prefix(&before) == Some(&rest)).then_some((messages, before.len(), rest))
    }

    /// The end of the turn of message `i`, which begins at `start`, by all that the message adds.
    fn end_in_whole_turn(&self, i: usize, start: usize) -> Result<usize, String> {
        let through = self.template.render(&self.messages[..=i], Prompt::Without)?;
        match self.text.starts_with(&through) && through.len() >= start {
            true => Ok(self.end_in(&(start..through.len()), |tokens| tokens.last())),
            false => Err("where this turn ends is not known, because the chat template does not print its content as \
                          it is; put {% generation %} blocks into the template"
                .into()),
        }
    }

    /// The end of the control token in `bytes` that `choose` takes; that of `bytes` where there is none.
    fn end_in(&self, bytes: &Range<usize>, choose: impl Fn(&mut dyn Iterator<Item = usize>) -> Option<usize>) -> usize {
        let tokens = self.spans.ids.iter().zip(&self.spans.bytes);
        let inside = |token: &Range<usize>| token.end > bytes.start && token.end <= bytes.end;
        let mut ends =
            tokens.filter(|(id, token)| (self.is_control)(**id) && inside(token)).map(|(_, token)| token.end);
        choose(&mut ends).unwrap_or(bytes.end)
    }
}

/// The message with the mark at the end of its content, before white space that a template may strip. `None` where the
/// content is no text.
fn marked(message: &Value) -> Option<Value> {
    let mut message = message.clone();
    let content = message.get_mut("content")?;
    let text = match content {
        Value::Array(parts) => parts.iter_mut().rev().find_map(|part| part.get_mut("text"))?,
        content => content,
    };
    let old = text.as_str()?;
    let end = old.trim_end().len();
    *text = format!("{}{END}{}", &old[..end], &old[end..]).into();
    Some(message)
}

/// The text on both sides of the one mark in it.
fn split_at_mark(text: &str) -> Option<(String, String)> {
    let (before, after) = text.split_once(END)?;
    (!after.contains(END)).then(|| (before.to_string(), after.to_string()))
}

/// The number of bytes that both texts begin with.
fn common_prefix(a: &str, b: &str) -> usize {
    a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count()
}
