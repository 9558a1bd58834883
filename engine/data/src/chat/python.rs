//! The parts of Python that chat templates use: `json.dumps`, `strftime`, methods of strings and dictionaries.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// The beginning of the detail of an error that a template raised itself.
pub const RAISED: &str = "raised: ";

pub fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

/// `datetime.now().strftime(format)`; the time is that of the program's start.
pub fn strftime(format: &str, now: &jiff::ZonedDateTime) -> Result<String, Error> {
    let wrong = |e: jiff::Error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}"));
    jiff::fmt::strtime::format(format, now).map_err(wrong)
}

/// Methods that templates call on values of Python.
pub fn methods(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let affix = |strip: for<'s> fn(&'s str, &str) -> Option<&'s str>| {
        let text = value.as_str().unwrap_or_default();
        let affix = args.first().and_then(Value::as_str).unwrap_or_default();
        Ok(Value::from(strip(text, affix).unwrap_or(text)))
    };
    match (value.kind(), method) {
        (ValueKind::String, "removeprefix") => affix(|text, affix| text.strip_prefix(affix)),
        (ValueKind::String, "removesuffix") => affix(|text, affix| text.strip_suffix(affix)),
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// How `json.dumps` writes.
struct Style {
    ensure_ascii: bool,
    sort_keys: bool,
    /// Spaces a level, on lines of their own.
    indent: Option<usize>,
    /// Between two items, and between a key and its value.
    separators: (String, String),
}

/// The filter `tojson` of `transformers`: `json.dumps(value, ensure_ascii=False)`, with its other options.
pub fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let separators = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators are two strings")),
        None => (if indent.is_some() { "," } else { ", " }.into(), ": ".into()),
    };
    let ensure_ascii = kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    let mut out = String::new();
    Style { ensure_ascii, sort_keys, indent, separators }.write(value, 0, &mut out)?;
    Ok(Value::from(out))
}

impl Style {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => *out += "null",
            ValueKind::Bool => *out += if value.is_true() { "true" } else { "false" },
            ValueKind::Number if value.is_integer() => *out += &value.to_string(),
            ValueKind::Number => *out += &float(f64::try_from(value.clone())?),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list('[', ']', depth, items, out, |style, item, out| style.write(&item, depth + 1, out))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.list('{', '}', depth, keys, out, |style, key, out| {
                    match key.as_str() {
                        Some(text) => style.string(text, out),
                        None => {
                            let mut text = String::new();
                            style.write(&key, 0, &mut text)?;
                            style.string(&text, out);
                        }
                    }
                    *out += &style.separators.1;
                    style.write(&value.get_item(&key)?, depth + 1, out)
                })?;
            }
            kind => return Err(Error::new(ErrorKind::BadSerialization, format!("tojson: {kind} is no JSON"))),
        }
        Ok(())
    }

    fn list(
        &self,
        open: char,
        close: char,
        depth: usize,
        items: Vec<Value>,
        out: &mut String,
        write: impl Fn(&Self, Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        let line = |depth: usize, out: &mut String| {
            if let Some(indent) = self.indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent * depth));
            }
        };
        let is_empty = items.is_empty();
        for (i, item) in items.into_iter().enumerate() {
            if i > 0 {
                *out += &self.separators.0;
            }
            line(depth + 1, out);
            write(self, item, out)?;
        }
        if !is_empty {
            line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn string(&self, text: &str, out: &mut String) {
        let quoted = serde_json::to_string(text).expect("a string is JSON");
        if !self.ensure_ascii {
            *out += &quoted;
            return;
        }
        for c in quoted.chars() {
            match c.is_ascii() {
                true => out.push(c),
                false => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| *out += &format!("\\u{unit:04x}")),
            }
        }
    }
}

/// A number as Python writes it: the shortest digits that read back as the same number.
fn float(number: f64) -> String {
    if number.is_nan() {
        return "NaN".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let text = format!("{number:?}");
    match text.split_once('e') {
        None => text,
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
            format!("{digits}e{sign}{exponent:0>2}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_in_python() {
        for (number, text) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (-2.5e-7, "-2.5e-07"),
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.2345678901234568e17, "1.2345678901234568e+17"),
            (1e300, "1e+300"),
        ] {
            assert_eq!(float(number), text);
        }
    }
}
