//! Conversations: a JSON line with messages becomes a document by the tokenizer's own chat template, with the ids that
//! `transformers.apply_chat_template(messages, tokenize=True)` gives, and a mask of what the assistant's turns added.

mod marks;
mod python;
pub mod template;
mod turns;

use serde_json::Value;

use super::json::Field;
use super::text::Inputs;
use super::tokenize::Document;
use super::tokenizer::{LONGEST_UNCUT, Tokenizer};
use engine::error::Result;
use template::Template;

/// Roles that templates know under a name of their own, or pass on.
const ROLES: [&str; 9] =
    ["system", "developer", "user", "assistant", "tool", "function", "ipython", "observation", "documents"];

/// The keys of which a message has at least one.
const CONTENTS: [&str; 3] = ["content", "tool_calls", "function_call"];

/// JSON lines with conversations, and the template that makes texts of them.
pub struct Chats {
    pub inputs: Inputs,
    pub template: Template,
}

impl Chats {
    /// `inputs.key` is that of the messages; `tokenizer` was opened for chats.
    pub fn open(inputs: Inputs, tokenizer: &Tokenizer) -> Result<Self> {
        Ok(Self { inputs, template: Template::beside(tokenizer)? })
    }

    /// The document of a JSON line, and the bytes of its text. The error does not name the file.
    pub(super) fn encode(&self, tokenizer: &Tokenizer, line: &str) -> std::result::Result<(Document, u64), String> {
        let example = "[{\"role\": \"user\", \"content\": \"...\"}, {\"role\": \"assistant\", \"content\": \"...\"}]";
        let messages = Field { key: &self.inputs.key, flag: "--messages-key", example }.value(line)?;
        let messages = checked(&messages, &self.template).map_err(|e| format!("\"{}\": {e}", self.inputs.key))?;
        let (text, marked) = self.template.render_marked(messages)?;
        if text.len() > LONGEST_UNCUT {
            let most = LONGEST_UNCUT >> 20;
            return Err(format!("a conversation of more than {most} MiB of text; split it"));
        }
        let spans = tokenizer.encode_spans(&text).map_err(|e| e.to_string())?;
        let stretches = match marked {
            Some(marked) => marked,
            None => turns::stretches(&self.template, messages, &text, &spans, &|id| tokenizer.is_control(id))?,
        };
        let document = Document::masked(spans, &stretches);
        if !document.mask.contains(&1) {
            return Err("the chat template renders nothing of the assistant's turns, so that no token counts".into());
        }
        Ok((document, text.len() as u64))
    }
}

/// The messages, if they are a conversation that a template can be given.
fn checked<'a>(messages: &'a Value, template: &Template) -> std::result::Result<&'a [Value], String> {
    let Some(list) = messages.as_array() else {
        return Err("is not a list of messages, such as [{\"role\": \"user\", \"content\": \"...\"}, ...]".into());
    };
    for (number, message) in (1..).zip(list) {
        check_message(message, template).map_err(|e| format!("message {number} {e}"))?;
    }
    match list.iter().any(|message| message["role"] == "assistant") {
        true => Ok(list),
        false if list.is_empty() => Err("has no messages; remove the record, or leave it out by --skip-bad".into()),
        false => Err("has no turn of the role \"assistant\", and so nothing to learn; remove the conversation, or \
                      leave it out by --skip-bad"
            .into()),
    }
}

fn check_message(message: &Value, template: &Template) -> std::result::Result<(), String> {
    let Some(object) = message.as_object() else { return Err("is not an object with \"role\" and \"content\"".into()) };
    let Some(role) = object.get("role") else {
        let shape = match object.contains_key("from") {
            true => {
                "; it has \"from\", as ShareGPT's files do: rename \"from\" to \"role\" and \"value\" to \
                     \"content\", and the roles \"human\" to \"user\" and \"gpt\" to \"assistant\""
            }
            false => "; each message needs one, such as \"user\" or \"assistant\"",
        };
        return Err(format!("has no \"role\"{shape}"));
    };
    let Some(name) = role.as_str() else { return Err(format!("has the role {role}, which is not a string")) };
    if !ROLES.contains(&name) && !template.mentions(name) {
        return Err(format!(
            "has the role {role}, which the chat template does not know; use \"system\", \"user\", \"assistant\" or \
             \"tool\""
        ));
    }
    if !CONTENTS.iter().any(|key| object.contains_key(*key)) {
        return Err(format!("(of the role {role}) has no \"content\""));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
