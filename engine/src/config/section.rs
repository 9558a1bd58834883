//! The tables of a configuration file. Each is declared once by [`section!`]: its keys with their types, their
//! defaults, the rules for their values, and which values a checkpoint fixes. Reading, writing, messages and the
//! identity of a checkpoint follow from the declaration.

use super::names::{Named, by_name};
use super::origins::{Origins, join, nearest, shorten};
use crate::error::{Error, Result};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use toml::{Table, Value};

/// A value that can be read from TOML.
pub trait Read: Sized {
    /// `key` is the dotted path of `value`, for messages.
    fn read(value: &Value, key: &str, at: &Origins) -> Result<Self>;
}

/// A value that can be written as TOML.
pub trait Write {
    /// Returns `None` if the key is left out.
    fn write(&self) -> Option<Value>;

    /// The value in the identity of a checkpoint. Checkpoints keep this text: it must not change.
    fn show(&self) -> String {
        match self.write() {
            None => "none".to_string(),
            Some(Value::String(text)) => text,
            Some(Value::Float(number)) => number.to_string(),
            Some(other) => other.to_string(),
        }
    }
}

/// How long a value is held fixed once weights exist; each level includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fixed {
    No,
    /// A run that resumes must have the value that it began with.
    InRun,
    /// Weights loaded from elsewhere must have been trained with the same value, except where `[model] hf` names the
    /// model and the value overrides it.
    InModel,
    /// Weights loaded from elsewhere must have the same value: their shapes depend on it.
    InWeights,
}

/// A field of a section, with its value.
pub struct Entry<'a> {
    pub key: &'static str,
    pub fixed: Fixed,
    pub value: &'a dyn Write,
}

/// The text of a table, with every default written out.
pub fn table_text(name: &str, entries: &[Entry<'_>]) -> String {
    let line = |entry: &Entry<'_>| Some(format!("{} = {}\n", entry.key, entry.value.write()?));
    format!("[{name}]\n{}", entries.iter().filter_map(line).collect::<String>())
}

/// A table's part of the identity of a checkpoint: the values that a run must keep when it resumes.
pub fn fixed_in_run(table: &str, entries: &[Entry<'_>]) -> Vec<(String, String)> {
    let fixed = entries.iter().filter(|entry| entry.fixed >= Fixed::InRun);
    fixed.map(|entry| (join(table, entry.key), entry.value.show())).collect()
}

/// The table with the default of every key; every key must have one.
pub fn all_defaults<T: Read>() -> T {
    T::read(&Table::new().into(), "", &Origins::nowhere()).expect("every key has a default")
}

/// Declares a table: a struct with, for each key, its documentation, its type, how long it is fixed (in brackets;
/// omitted if it is not fixed) and its [`Rule`]. A rule may use the fields above it, and the arguments after the
/// struct's name. Keys under `aliases` are other names of fields ([`Rule::alias`]).
macro_rules! section {
    ($(#[$doc:meta])* $vis:vis struct $name:ident { $($fields:tt)* } $($aliases:tt)*) => {
        $crate::config::section::section! { $(#[$doc])* $vis struct $name() { $($fields)* } $($aliases)* }

        impl $crate::config::section::Read for $name {
            fn read(
                value: &toml::Value, key: &str, at: &$crate::config::origins::Origins
            ) -> $crate::error::Result<Self> {
                let section = $crate::config::section::Section::named(value, key, Self::KEYS, Self::ALIASES, at)?;
                $name::from_section(&section)
            }
        }
    };
    ($(#[$doc:meta])* $vis:vis struct $name:ident($($arg:ident: $arg_type:ty),*) {
        $($(#[$field_doc:meta])* pub $field:ident: $type:ty $([$fixed:ident])? = $rule:expr),* $(,)?
    } $(aliases { $($alias:ident),* $(,)? })?) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        $vis struct $name { $($(#[$field_doc])* pub $field: $type),* }

        impl $name {
            /// The keys of the fields.
            pub(in $crate::config) const KEYS: &[&str] = &[$(stringify!($field)),*];

            /// Other names of some of them.
            pub(in $crate::config) const ALIASES: &[&str] = &[$($(stringify!($alias)),*)?];

            pub(in $crate::config) fn from_section(
                section: &$crate::config::section::Section<'_>, $($arg: $arg_type),*
            ) -> $crate::error::Result<Self> {
                use $crate::config::section::Rule;
                $(let rule: Rule<'_, $type> = $rule; let $field = rule.apply(&section.field(stringify!($field)))?;)*
                Ok(Self { $($field),* })
            }

            /// The fields in the order of their declaration.
            pub(in $crate::config) fn entries(&self) -> Vec<$crate::config::section::Entry<'_>> {
                use $crate::config::section::{Entry, Fixed};
                vec![$({
                    let fixed = [$(Fixed::$fixed,)? Fixed::No][0];
                    Entry { key: stringify!($field), fixed, value: &self.$field }
                }),*]
            }
        }

        impl $crate::config::section::Write for $name {
            fn write(&self) -> Option<toml::Value> {
                let entries = self.entries().into_iter();
                let pairs = entries.filter_map(|entry| Some((entry.key.to_string(), entry.value.write()?)));
                Some(toml::Table::from_iter(pairs).into())
            }
        }
    };
}

pub(in crate::config) use section;

/// A table of the file whose keys are all known.
pub struct Section<'a> {
    pub table: &'a Table,
    path: String,
    at: &'a Origins,
}

impl<'a> Section<'a> {
    /// Opens the table at `path`; keys other than `keys` are refused.
    pub fn open(value: &'a Value, path: &str, keys: &[&str], at: &'a Origins) -> Result<Self> {
        Section::named(value, path, keys, &[], at)
    }

    /// Like [`Section::open`]; other names of keys are known too, but no message offers them.
    pub fn named(value: &'a Value, path: &str, keys: &[&str], aliases: &[&str], at: &'a Origins) -> Result<Self> {
        let table = value.as_table().ok_or_else(|| wrong_type(value, path, "a table", at))?;
        let known = |key: &&String| keys.contains(&key.as_str()) || aliases.contains(&key.as_str());
        match table.keys().find(|key| !known(key)) {
            Some(key) => Err(unknown(path, key, keys, at)),
            None => Ok(Section { table, path: path.to_string(), at }),
        }
    }

    pub fn field<'s>(&'s self, key: &'s str) -> Field<'s> {
        Field { section: self, key }
    }
}

fn unknown(table: &str, key: &str, keys: &[&str], at: &Origins) -> Error {
    let label = at.label(&join(table, key));
    let holder = if table.is_empty() { "a configuration".to_string() } else { format!("[{table}]") };
    let hint = match nearest(key, keys) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("known keys are {}", keys.join(", ")),
    };
    Error::user(format!("{label}: {holder} has no key {:?}; {hint}", shorten(key)))
}

/// A key of a section, whether the file has it or not.
pub struct Field<'a> {
    section: &'a Section<'a>,
    key: &'a str,
}

impl<'a> Field<'a> {
    fn path(&self) -> String {
        join(&self.section.path, self.key)
    }

    /// The value, which is required, as a table; keys other than `keys` are refused. `example` says what to write.
    pub fn section(&self, example: &str, keys: &[&str]) -> Result<Section<'a>> {
        let value = self.value().ok_or_else(|| self.missing(example))?;
        Section::open(value, &self.path(), keys, self.section.at)
    }

    pub fn read<T: Read>(&self) -> Result<Option<T>> {
        self.value().map(|value| T::read(value, &self.path(), self.section.at)).transpose()
    }

    /// The error that refuses a value, shown as the user wrote it, or a default.
    pub fn bad(&self, value: &dyn Write, remedy: &str) -> Error {
        let shown = self.value().cloned().or_else(|| value.write()).map(|value| value.to_string());
        self.section.at.bad(&self.path(), shown.unwrap_or_default(), remedy)
    }

    fn missing(&self, example: &str) -> Error {
        self.section.at.missing(&self.path(), format!("write {example}"))
    }

    fn value(&self) -> Option<&'a Value> {
        self.section.table.get(self.key)
    }
}

/// A rule says where the value of a key comes from, and what must hold for it.
pub struct Rule<'r, T>(Box<Apply<'r, T>>);

type Apply<'r, T> = dyn FnOnce(&Field<'_>) -> Result<T> + 'r;

/// The key is required; `example` says what to write.
pub fn need<'r, T: Read>(example: &'r str) -> Rule<'r, T> {
    Rule(Box::new(move |field| field.read()?.ok_or_else(|| field.missing(example))))
}

/// The key is optional and has this default.
pub fn or<'r, T: Read + 'r>(default: T) -> Rule<'r, T> {
    Rule(Box::new(move |field| Ok(field.read()?.unwrap_or(default))))
}

/// The key is optional; its default is `None`.
pub fn optional<'r, T: Read + 'r>() -> Rule<'r, Option<T>> {
    or(None)
}

impl<'r, T: Write + 'r> Rule<'r, T> {
    pub fn apply(self, field: &Field<'_>) -> Result<T> {
        (self.0)(field)
    }

    /// Requires that `holds` is true of the value; `remedy` says what would be right.
    pub fn must(self, remedy: impl Into<String>, holds: impl Fn(&T) -> bool + 'r) -> Self {
        let remedy = remedy.into();
        Rule(Box::new(move |field| {
            let value = self.apply(field)?;
            if holds(&value) { Ok(value) } else { Err(field.bad(&value, &remedy)) }
        }))
    }

    /// Requires that a whole number, if there is one, lies in `range`.
    pub fn within(self, range: RangeInclusive<u64>) -> Self {
        let remedy = format!("must lie in {} ..= {}", range.start(), range.end());
        let whole = |value: &T| value.write().and_then(|value| value.as_integer());
        self.must(remedy, move |value| whole(value).is_none_or(|n| range.contains(&(n as u64))))
    }

    /// Requires that `holds` is true of a real number, if there is one.
    pub fn real(self, remedy: &str, holds: impl Fn(f64) -> bool + 'r) -> Self {
        let real = |value: &T| value.write().and_then(|value| value.as_float());
        self.must(remedy, move |value| real(value).is_none_or(&holds))
    }

    /// The key has another name too: a value under that name counts. Both may be given if they agree.
    pub fn alias(self, other: &'static str) -> Self
    where
        T: Read + PartialEq,
    {
        Rule(Box::new(move |field| {
            let other = field.section.field(other);
            match (field.read::<T>()?, other.read::<T>()?) {
                (None, Some(_)) => self.apply(&other),
                (Some(ours), Some(theirs)) if ours != theirs => {
                    Err(other.bad(&theirs, &format!("differs from {}, its other name; keep one of the two", field.key)))
                }
                _ => self.apply(field),
            }
        }))
    }

    pub fn positive(self) -> Self {
        self.real("must be positive", |x| x > 0.0)
    }

    pub fn not_negative(self) -> Self {
        self.real("must not be negative, and must fit 32 bits", |x| (0.0..=f32::MAX as f64).contains(&x))
    }

    /// Requires a soft-cap, if there is one.
    pub fn soft_cap(self) -> Self {
        self.real("must lie between 1e-3 and 1e6; leave it out for no cap", |x| (1e-3..=1e6).contains(&x))
    }

    /// Requires a factor by which a context was made longer.
    pub fn factor(self) -> Self {
        self.real("must lie between 1 and 1e9", |x| (1.0..=1e9).contains(&x))
    }

    /// Requires a number that does not vanish when it is added to a denominator in f32.
    pub fn epsilon(self) -> Self {
        self.real("must lie between 1e-37 and 1e38", |x| (x as f32).is_normal() && x > 0.0)
    }
}

fn wrong_type(value: &Value, key: &str, wanted: &str, at: &Origins) -> Error {
    at.bad(key, value, format!("must be {wanted}"))
}

/// The bound is that of TOML's integers.
const WHOLE: &str = "a whole number from 0 to 9223372036854775807";

/// Native values of TOML: their names in messages, and how they are read and written.
macro_rules! values {
    ($($type:ty, $wanted:expr, $read:expr, $write:expr;)*) => {$(
        impl Read for $type {
            fn read(value: &Value, key: &str, at: &Origins) -> Result<Self> {
                let read: fn(&Value) -> Option<$type> = $read;
                read(value).ok_or_else(|| wrong_type(value, key, $wanted, at))
            }
        }

        impl Write for $type {
            fn write(&self) -> Option<Value> {
                let write: fn($type) -> Value = $write;
                Some(write(*self))
            }
        }
    )*};
}

values! {
    bool, "true or false", |value| value.as_bool(), Value::Boolean;
    f64, "a finite number", |value| real(value).filter(|x| x.is_finite()), Value::Float;
    u64, WHOLE, |value| u64::try_from(value.as_integer()?).ok(), |n| integer(n);
    usize, WHOLE, |value| usize::try_from(value.as_integer()?).ok(), |n| integer(n as u64);
    u32, "a whole number from 0 to 4294967295", |value| u32::try_from(value.as_integer()?).ok(), |n| n.into();
}

fn real(value: &Value) -> Option<f64> {
    value.as_float().or(value.as_integer().map(|n| n as f64))
}

fn integer(n: u64) -> Value {
    Value::Integer(i64::try_from(n).expect("a number that was read from TOML fits it"))
}

/// A value that is a string in the file.
pub trait Text: Sized {
    /// Parses the value; an error says what would be right.
    fn parse(text: &str) -> std::result::Result<Self, String>;

    fn text(&self) -> String;
}

/// The text of a flag is a string even if TOML would parse it as a number, a date or a table.
impl<T: Text> Read for T {
    fn read(value: &Value, key: &str, at: &Origins) -> Result<Self> {
        let text = value.as_str().or_else(|| at.typed(key));
        let text = text.ok_or_else(|| wrong_type(value, key, "a text in quotes", at))?;
        T::parse(text).map_err(|remedy| at.bad(key, format!("{text:?}"), remedy))
    }
}

impl<T: Text> Write for T {
    fn write(&self) -> Option<Value> {
        Some(self.text().into())
    }
}

impl Text for String {
    fn parse(text: &str) -> std::result::Result<Self, String> {
        Ok(text.to_string())
    }

    fn text(&self) -> String {
        self.clone()
    }
}

impl Text for PathBuf {
    fn parse(text: &str) -> std::result::Result<Self, String> {
        if text.is_empty() { Err("must be a path".to_string()) } else { Ok(text.into()) }
    }

    fn text(&self) -> String {
        self.to_str().expect("a path that was read from TOML is UTF-8").to_string()
    }
}

impl<T: Named> Text for T {
    fn parse(text: &str) -> std::result::Result<Self, String> {
        by_name(T::NAMES, T::NOT_BUILT, text)
    }

    fn text(&self) -> String {
        self.name().to_string()
    }
}

impl<T: Read> Read for Option<T> {
    fn read(value: &Value, key: &str, at: &Origins) -> Result<Self> {
        T::read(value, key, at).map(Some)
    }
}

impl<T: Write> Write for Option<T> {
    fn write(&self) -> Option<Value> {
        self.as_ref().and_then(T::write)
    }
}

impl<T: Read> Read for Vec<T> {
    fn read(value: &Value, key: &str, at: &Origins) -> Result<Self> {
        let items = value.as_array().ok_or_else(|| wrong_type(value, key, "a list in brackets", at))?;
        items.iter().enumerate().map(|(i, item)| T::read(item, &format!("{key}[{i}]"), at)).collect()
    }
}

impl<T: Write> Write for Vec<T> {
    fn write(&self) -> Option<Value> {
        Some(Value::Array(self.iter().filter_map(T::write).collect()))
    }
}
