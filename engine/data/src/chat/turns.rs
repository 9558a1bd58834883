//! Which bytes of a conversation's text the assistant's turns added, for templates without `{% generation %}` blocks.
//!
//! A turn begins where the rendering of the messages before it ends, with the generation prompt: the model is given
//! that much. It ends with its end-of-turn token. To find that token, the conversation is rendered with a mark at the
//! end of the message. What the template puts behind the mark where the conversation ends with this message is the
//! turn's own, and the last control token in it is the token that ends the turn: nothing of the message is behind the
//! mark, so that the template wrote this token, not the message.

use std::ops::Range;

use serde_json::{Value, json};

use super::super::tokenizer::Spans;
use super::marks;
use super::template::{Prompt, Template};

const UNKNOWN_START: &str = "where this turn begins is not known, because the chat template renders the messages \
                             before it in another way when they stand alone; put {% generation %} blocks into the \
                             template";

const UNKNOWN_END: &str = "where this turn ends is not known, because the chat template prints nothing of the message \
                           as it is; put {% generation %} blocks into the template";

/// The roles that may follow an assistant's turn.
const FOLLOWING: [&str; 2] = ["user", "tool"];

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

/// A place in the text that is known by a mark.
struct Mark {
    /// The messages with the mark in one of them.
    messages: Vec<Value>,
    /// Where the mark is in the text.
    at: usize,
    /// The text from the mark to the end.
    rest: String,
}

impl Conversation<'_> {
    /// The bytes that message `i` adds to the text.
    fn stretch(&self, i: usize) -> Result<Range<usize>, String> {
        let start = self.start(i)?;
        let mut is_before = false;
        for mark in self.marks(i) {
            if mark.at >= start {
                return Ok(start..self.end(i, &mark));
            }
            is_before = true;
        }
        match is_before {
            true => Err(UNKNOWN_START.into()),
            false => Ok(start..self.end_in_whole_turn(i, start)?),
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
        let after_message = |mark: Mark| {
            let own = self.after_mark(&mark.messages[..i], Prompt::WithGenerationPrompt)?;
            mark.rest.starts_with(&own).then_some(mark.at + own.len())
        };
        i.checked_sub(1).and_then(|i| self.marks(i).find_map(after_message)).ok_or_else(|| UNKNOWN_START.into())
    }

    /// The places in message `i` that a mark finds, the one nearest to the end of the turn first.
    fn marks(&self, i: usize) -> impl Iterator<Item = Mark> {
        marks::marked(&self.messages[i]).into_iter().filter_map(move |message| {
            let mut messages = self.messages.to_vec();
            messages[i] = message;
            let rest = self.after_mark(&messages, Prompt::Without)?;
            // Else the template prints other things around the mark than it does in the text.
            let at = self.text.strip_suffix(&rest)?.len();
            Some(Mark { messages, at, rest })
        })
    }

    /// Renders `messages` and returns the text after the mark; `None` if the template refuses them, or prints the mark
    /// not exactly once.
    fn after_mark(&self, messages: &[Value], prompt: Prompt) -> Option<String> {
        marks::after(&self.template.render(messages, prompt).ok()?)
    }

    /// The end of the turn of message `i`, in which `mark` is.
    fn end(&self, i: usize, mark: &Mark) -> usize {
        let Some(alone) = self.after_mark(&mark.messages[..=i], Prompt::Without) else {
            // The template refuses a conversation that ends here.
            return self.controls(mark.at..self.text.len()).next().unwrap_or(mark.at);
        };
        let own = mark.at + common_prefix(&alone, &mark.rest);
        let ends: Vec<usize> = self.controls(mark.at..own).collect();
        match ends[..] {
            // Where the turn is the last one, another token may end it.
            [] if own < mark.at + alone.len() => self.control_at(own).unwrap_or(own),
            [] => own,
            [.., last] if ends.len() == 1 || i + 1 < self.messages.len() => last,
            [.., last] => self.end_if_followed(mark).unwrap_or(last),
        }
    }

    /// The end of the last turn, in which `mark` is, without what a template puts behind a conversation: the turn's own
    /// control tokens are there too when a message follows.
    fn end_if_followed(&self, mark: &Mark) -> Option<usize> {
        FOLLOWING.iter().find_map(|role| {
            let next = json!({"role": role, "content": "..."});
            let followed = self.after_mark(&[&mark.messages[..], &[next]].concat(), Prompt::Without)?;
            self.controls(mark.at..mark.at + common_prefix(&followed, &mark.rest)).last()
        })
    }

    /// The end of the turn of message `i`, which begins at `start`, by all that the message adds.
    fn end_in_whole_turn(&self, i: usize, start: usize) -> Result<usize, String> {
        let through = self.template.render(&self.messages[..=i], Prompt::Without)?;
        match self.text.starts_with(&through) && through.len() >= start {
            true => Ok(self.controls(start..through.len()).last().unwrap_or(through.len())),
            false => Err(UNKNOWN_END.into()),
        }
    }

    /// The ends of the control tokens that lie in `bytes`.
    fn controls(&self, bytes: Range<usize>) -> impl Iterator<Item = usize> {
        let tokens = self.spans.ids.iter().zip(&self.spans.bytes);
        let inside = move |token: &Range<usize>| token.start >= bytes.start && token.end <= bytes.end;
        tokens.filter(move |(id, token)| (self.is_control)(**id) && inside(token)).map(|(_, token)| token.end)
    }

    /// The end of the control token that holds the byte `at`.
    fn control_at(&self, at: usize) -> Option<usize> {
        let mut tokens = self.spans.ids.iter().zip(&self.spans.bytes);
        tokens.find(|(id, token)| (self.is_control)(**id) && token.contains(&at)).map(|(_, token)| token.end)
    }
}

/// The number of bytes that both texts begin with.
fn common_prefix(a: &str, b: &str) -> usize {
    a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count()
}
