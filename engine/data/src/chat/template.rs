//! The chat template of a tokenizer, in Jinja, rendered as `transformers` does: its settings, filters and functions.
//!
//! `{% generation %}` blocks, which only `transformers` knows, become call blocks of a function that puts a mark on
//! each side of what they render. The marks are noncharacters, which are in no text.

use std::ops::Range;
use std::path::{Path, PathBuf};

use minijinja::machinery::{Span, Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error as Jinja, ErrorKind, State, UndefinedBehavior};
use serde_json::Value as Json;

use super::super::meta;
use super::super::tokenizer::Tokenizer;
use super::super::tokenizer::config::{TokenizerConfig, spelling};
use super::python;
use engine::error::{Error, Result};

/// A text, and the bytes of it that `{% generation %}` blocks rendered, where the template has such blocks.
type Marked = (String, Option<Vec<Range<usize>>>);

/// Stands before and after what a `{% generation %}` block rendered.
const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];

/// Marks the end of a message's content.
pub const END: char = '\u{fdd2}';

const NAME: &str = "chat";
const GENERATION: &str = "__generation";

/// The steps that every conversation may take, and those for each of its bytes. Published templates take up to 4 steps
/// a byte and 150 a message; a loop over all messages for each message takes 8 for each pair, 628 a byte where 2,000
/// messages have 25 bytes each. At 40 to 90 ns a step, a template that does not end is refused within a second.
const LEAST_STEPS: u64 = 10_000_000;
const STEPS_PER_BYTE: u64 = 1_000;

/// The special tokens that a template sees, as `transformers` names them.
const TOKENS: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A compiled template.
pub struct Template {
    environment: Environment<'static>,
    source: String,
    file: PathBuf,
    has_generation: bool,
    /// The special tokens, by name.
    tokens: Vec<(&'static str, String)>,
}

/// Whether the rendering ends with what comes before an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prompt {
    Without,
    WithGenerationPrompt,
}

impl Template {
    /// The template beside a tokenizer: `chat_template.jinja`, else `chat_template` in `tokenizer_config.json`.
    pub fn beside(tokenizer: &Tokenizer) -> Result<Self> {
        let user = |e: String| Error::user(format!("{}: {e}", tokenizer.path().display()));
        let config = TokenizerConfig::beside(tokenizer.path()).map_err(user)?;
        let (file, source) = find(tokenizer.path(), &config)?;
        let token = |name: &'static str| (name, token(name, &config, tokenizer));
        Self::compile(source, file, TOKENS.map(token).to_vec())
    }

    /// `file` is for messages.
    pub fn compile(source: String, file: PathBuf, tokens: Vec<(&'static str, String)>) -> Result<Self> {
        let (translated, has_generation) = translate(&source);
        let mut environment = environment();
        environment.add_template_owned(NAME, translated).map_err(|e| {
            let what = e.detail().map_or_else(|| e.kind().to_string(), str::to_string);
            let line = e.line().map_or(String::new(), |line| format!("line {line} of "));
            Error::user(format!("{}: {line}the chat template cannot be read: {what}", file.display()))
        })?;
        Ok(Self { environment, source, file, has_generation, tokens })
    }

    /// The BLAKE3 hash of the template.
    pub fn hash(&self) -> String {
        meta::hash(self.source.as_bytes())
    }

    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Whether what it renders depends on the day.
    pub fn asks_for_the_date(&self) -> bool {
        self.source.contains("strftime_now")
    }

    /// Whether the template has this role as a string.
    pub fn mentions(&self, role: &str) -> bool {
        ['\'', '"'].iter().any(|quote| self.source.contains(&format!("{quote}{role}{quote}")))
    }

    /// The text of a conversation.
    pub fn render(&self, messages: &[Json], prompt: Prompt) -> std::result::Result<String, String> {
        let mut text = self.render_with_marks(messages, prompt)?;
        if self.has_generation {
            text.retain(|c| !MARKS.contains(&c));
        }
        Ok(text)
    }

    /// The text of a conversation, and the bytes that `{% generation %}` blocks rendered, where the template has such
    /// blocks.
    pub fn render_marked(&self, messages: &[Json]) -> std::result::Result<Marked, String> {
        if let Some(mark) = messages.iter().find_map(noncharacter) {
            let code = u32::from(mark);
            return Err(format!("holds U+{code:X}, which is no character; remove it"));
        }
        let marked = self.render_with_marks(messages, Prompt::Without)?;
        if !self.has_generation {
            return Ok((marked, None));
        }
        let (mut text, mut stretches, mut start) = (String::with_capacity(marked.len()), Vec::new(), None);
        for c in marked.chars() {
            match MARKS.iter().position(|&mark| mark == c) {
                Some(0) => start = Some(text.len()),
                Some(_) => stretches.extend(start.take().map(|start| start..text.len())),
                None => text.push(c),
            }
        }
        Ok((text, Some(stretches)))
    }

    fn render_with_marks(&self, messages: &[Json], prompt: Prompt) -> std::result::Result<String, String> {
        let (mut environment, steps) = (self.environment.clone(), most_steps(messages));
        environment.set_fuel(Some(steps));
        let template = environment.get_template(NAME).expect("was added");
        let mut names: Vec<(&str, Value)> =
            self.tokens.iter().map(|(name, token)| (*name, Value::from(token.as_str()))).collect();
        names.push(("messages", Value::from(Serde(messages))));
        names.push(("add_generation_prompt", Value::from(prompt == Prompt::WithGenerationPrompt)));
        names.push(("tools", Value::from(())));
        names.push(("documents", Value::from(())));
        template.render(Value::from_pairs(names)).map_err(|e| self.explain(&e, steps))
    }

    /// The reason why the template does not render a conversation, with the line where it stops. `steps` is the most
    /// that it may take.
    fn explain(&self, e: &Jinja, steps: u64) -> String {
        let e = std::iter::successors(Some(e), |e| std::error::Error::source(*e)?.downcast_ref()).last().unwrap_or(e);
        let detail = e.detail().map(str::to_string);
        let at = e.line().map_or(String::new(), |number| {
            let line = self.source.lines().nth(number - 1).unwrap_or_default().trim();
            let shown: String = line.chars().take(100).collect();
            let more = if shown.len() < line.len() { "..." } else { "" };
            format!(" (line {number} of the template: {shown}{more})")
        });
        match e.kind() {
            ErrorKind::UndefinedError => format!(
                "the chat template uses a value that this conversation does not have{}{at}; add it to the messages",
                detail.map_or(String::new(), |what| format!(": {what}"))
            ),
            ErrorKind::InvalidOperation if detail.as_deref().is_some_and(|d| d.starts_with(python::RAISED)) => {
                let said = detail.unwrap_or_default().split_off(python::RAISED.len());
                format!("the chat template refuses the conversation: {said}")
            }
            ErrorKind::OutOfFuel => format!(
                "the chat template does not come to an end: it was stopped after {steps} steps, far more than a \
                 conversation of this size needs{at}; look for a loop in the template that repeats too often"
            ),
            kind => format!("the chat template fails: {}{at}", detail.unwrap_or_else(|| kind.to_string())),
        }
    }
}

/// The template's file and text.
fn find(tokenizer: &Path, config: &TokenizerConfig) -> Result<(PathBuf, String)> {
    let file = tokenizer.with_file_name("chat_template.jinja");
    if file.is_file() {
        let text = std::fs::read_to_string(&file).map_err(|e| Error::io(&file, e))?;
        return Ok((file, text));
    }
    let file = tokenizer.with_file_name("tokenizer_config.json");
    let (text, names) = match config.get("chat_template").map(|(_, value)| value) {
        Some(Json::String(text)) => (Some(text.clone()), Vec::new()),
        Some(Json::Array(all)) => {
            let is_default = |entry: &&Json| entry["name"] == "default";
            let text = all.iter().find(is_default).and_then(|entry| entry["template"].as_str());
            (text.map(str::to_string), all.iter().filter_map(|entry| entry["name"].as_str()).collect())
        }
        _ => (None, Vec::new()),
    };
    let has = match names[..] {
        [] => "has no chat template: there is neither a chat_template.jinja nor \"chat_template\" in a \
               tokenizer_config.json beside it; copy the model's there"
            .to_string(),
        _ => format!(
            "has the chat templates {} but none named \"default\"; write the one to use into chat_template.jinja \
             beside it",
            names.join(", ")
        ),
    };
    let text = text.ok_or_else(|| Error::user(format!("{}: {has}", tokenizer.display())))?;
    Ok((file, text))
}

/// A special token; empty where the tokenizer has none.
fn token(name: &str, config: &TokenizerConfig, tokenizer: &Tokenizer) -> String {
    if let Some((_, token)) = config.get(name) {
        return spelling(token).unwrap_or_default().to_string();
    }
    let id = match name {
        "bos_token" => tokenizer.bos(),
        "eos_token" => tokenizer.eos(),
        _ => Err(String::new()),
    };
    id.ok().and_then(|id| tokenizer.piece(id)).unwrap_or_default()
}

/// The template with call blocks in place of `{% generation %}` blocks, and whether there were any. The tags are found
/// by minijinja's own lexer, so that those in comments, strings and `{% raw %}` blocks stay as they are. What cannot
/// be read stays too: compiling the template names it.
fn translate(source: &str) -> (String, bool) {
    let read: Vec<(Token, Span)> = tokenize(source, false, syntax()).map_while(std::result::Result::ok).collect();
    let (mut out, mut at, mut found_any) = (String::new(), 0, false);
    for tokens in read.windows(3) {
        let [(Token::BlockStart, _), (Token::Ident(word), span), (Token::BlockEnd, _)] = tokens else { continue };
        let (is_start, call) = match *word {
            "generation" => (true, format!("call {GENERATION}()")),
            "endgeneration" => (false, "endcall".to_string()),
            _ => continue,
        };
        out += &source[at..span.start_offset as usize];
        out += &call;
        at = span.end_offset as usize;
        found_any |= is_start;
    }
    (out + &source[at..], found_any)
}

/// Jinja's delimiters, with the white space around blocks as `transformers` sets it.
fn syntax() -> SyntaxConfig {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().expect("the usual delimiters")
}

/// How many steps of minijinja a conversation may take: a step is an instruction, or 64 bytes of text made.
fn most_steps(messages: &[Json]) -> u64 {
    LEAST_STEPS + STEPS_PER_BYTE * messages.iter().map(size).sum::<u64>()
}

/// The size of a value in bytes, one for each that is no text.
fn size(value: &Json) -> u64 {
    match value {
        Json::String(text) => text.len() as u64 + 1,
        Json::Array(all) => 1 + all.iter().map(size).sum::<u64>(),
        Json::Object(all) => 1 + all.iter().map(|(key, value)| key.len() as u64 + size(value)).sum::<u64>(),
        _ => 1,
    }
}

/// A character in one of the message's strings that this module uses as a mark.
fn noncharacter(message: &Json) -> Option<char> {
    match message {
        Json::String(text) => text.chars().find(|c| (MARKS[0]..=END).contains(c)),
        Json::Array(all) => all.iter().find_map(noncharacter),
        Json::Object(all) => all.values().find_map(noncharacter),
        _ => None,
    }
}

/// The environment of a template: the filters, tests and globals that `transformers` defines. Printing an undefined
/// value is an error, where Jinja prints nothing.
fn environment() -> Environment<'static> {
    let mut strict = Environment::empty();
    strict.set_undefined_behavior(UndefinedBehavior::SemiStrict);
    let mut environment = Environment::new();
    environment.set_syntax(syntax());
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_formatter(move |out, state, value| {
        if value.is_undefined() {
            // This accepts an `if` expression without `else`, which is undefined too but meant.
            strict.empty_state().format(value.clone())?;
        }
        minijinja::escape_formatter(out, state, value)
    });
    environment.set_unknown_method_callback(python::methods);
    environment.add_filter("tojson", python::tojson);
    environment.add_function("raise_exception", python::raise_exception);
    let now = jiff::ZonedDateTime::now();
    environment.add_function("strftime_now", move |format: &str| python::strftime(format, &now));
    environment.add_function(GENERATION, generation);
    environment
}

/// Renders the body of a `{% generation %}` block between marks.
fn generation(state: &mut State, kwargs: Kwargs) -> std::result::Result<Value, Jinja> {
    let caller: Value = kwargs.get("caller")?;
    let text = caller.call(state, &[])?;
    let [start, end] = MARKS;
    Ok(Value::from(format!("{start}{text}{end}")))
}
