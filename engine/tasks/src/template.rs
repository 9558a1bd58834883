//! Templates and expressions of a task file, rendered with the keys of a record. A key that the record lacks is an
//! error that names it, never an empty text.

use std::collections::BTreeSet;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, Error, ErrorKind, Expression, UndefinedBehavior};
use serde_json::{Map, Value as Json};

use crate::names::shorten;

/// The keys of a record and their values.
pub type Fields = Map<String, Json>;

/// The most instructions that one rendering may take, so that a template with a loop of loops ends.
const FUEL: u64 = 1_000_000;

/// A template, which gives a text, or an expression, which gives a value.
pub struct Template {
    /// The key of the task file that has it.
    pub key: String,
    source: String,
}

/// Where undefined names are errors, and white space stays as it is written.
fn environment<'a>() -> Environment<'a> {
    let mut syntax = SyntaxConfig::builder();
    syntax.keep_trailing_newline(true);
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_syntax(syntax.build().expect("the usual delimiters"));
    environment.set_fuel(Some(FUEL));
    environment
}

impl Template {
    /// A template; an error says what is wrong with its syntax.
    pub fn text(key: impl Into<String>, source: &str) -> Result<Self, String> {
        environment().template_from_str(source).map_err(|e| explain(&e))?;
        Ok(Template { key: key.into(), source: source.to_string() })
    }

    /// An expression; an error says what is wrong with its syntax.
    pub fn expression(key: impl Into<String>, source: &str) -> Result<Self, String> {
        environment().compile_expression(source).map_err(|e| explain(&e))?;
        Ok(Template { key: key.into(), source: source.to_string() })
    }

    /// The text that the template gives for a record.
    pub fn render(&self, fields: &Fields) -> Result<String, String> {
        let environment = environment();
        let template = environment.template_from_str(&self.source).map_err(|e| self.fault(&e))?;
        let names = || template.undeclared_variables(false).into_iter().collect();
        template.render(Value::from(Serde(fields))).map_err(|e| self.fault_or_missing(&e, names(), fields))
    }

    /// The value that the expression gives for a record.
    pub fn evaluate(&self, fields: &Fields) -> Result<Json, String> {
        let environment = environment();
        let expression: Expression = environment.compile_expression(&self.source).map_err(|e| self.fault(&e))?;
        let names = || expression.undeclared_variables(false).into_iter().collect();
        let missing = |e: &Error| self.fault_or_missing(e, names(), fields);
        let value = expression.eval(Value::from(Serde(fields))).map_err(|e| missing(&e))?;
        if value.is_undefined() {
            return Err(missing(&ErrorKind::UndefinedError.into()));
        }
        serde_json::to_value(&value).map_err(|e| format!("{} gives no value: {e}; correct the expression", self.key))
    }

    /// The fault of a rendering: the key that the record lacks, or what minijinja says.
    fn fault_or_missing(&self, error: &Error, names: BTreeSet<String>, fields: &Fields) -> String {
        let environment = environment();
        let globals: BTreeSet<&str> = environment.globals().map(|(name, _)| name).collect();
        let missing = names.iter().find(|name| !fields.contains_key(*name) && !globals.contains(name.as_str()));
        match missing {
            Some(name) if error.kind() == ErrorKind::UndefinedError => {
                let known: Vec<&str> = fields.keys().map(String::as_str).collect();
                format!("no key {name:?}, which {} reads; the keys are {}", self.key, shorten(&known.join(", ")))
            }
            _ => self.fault(error),
        }
    }

    fn fault(&self, error: &Error) -> String {
        format!("{} = {:?} fails: {}; correct it or the data", self.key, shorten(&self.source), explain(error))
    }
}

/// What minijinja says of an error.
fn explain(error: &Error) -> String {
    let kind = error.kind().to_string();
    error.detail().map_or(kind.clone(), |detail| format!("{kind}: {detail}"))
}
