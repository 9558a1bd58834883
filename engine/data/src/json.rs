//! One value out of a JSON object, without building the rest of it.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

/// The value that a command reads from each line, for its messages.
#[derive(Debug, Clone, Copy)]
pub struct Field<'k> {
    pub key: &'k str,
    /// The flag that names the key.
    pub flag: &'static str,
    /// The value under the key, as JSON.
    pub example: &'static str,
}

/// The string under `key` of the object in `line`, for commands with the flag `--key`.
pub fn string_under<'a>(key: &str, line: &'a str) -> Result<Cow<'a, str>, String> {
    Field { key, flag: "--key", example: "\"...\"" }.string(line)
}

impl Field<'_> {
    /// The string under the key of the object in `line`. The error does not name the file. Like Python's `json`, this
    /// accepts NaN and infinities as numbers, and takes the last value of a repeated key.
    pub fn string<'a>(&self, line: &'a str) -> Result<Cow<'a, str>, String> {
        let line = without_mark(line);
        let found = match pick::<Text>(self.key, line) {
            Err(e) => match without_nan(line) {
                Some(line) => pick::<Text>(self.key, &line).map(|found| found.map(|text| text.0.into_owned().into())),
                None => Err(e),
            },
            found => found.map(|found| found.map(|text| text.0)),
        };
        self.explained(found, line)
    }

    /// The value under the key, of any kind; else like [`Self::string`].
    pub fn value(&self, line: &str) -> Result<serde_json::Value, String> {
        let line = without_mark(line);
        let found = match pick(self.key, line) {
            Err(e) => without_nan(line).map_or(Err(e), |line| pick(self.key, &line)),
            found => found,
        };
        self.explained(found, line)
    }

    fn explained<T>(&self, found: serde_json::Result<Found<T>>, line: &str) -> Result<T, String> {
        match found {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(others)) => {
                let (key, flag) = (self.key, self.flag);
                Err(format!("no key \"{key}\" (it has {others}); {flag} names the one to read"))
            }
            Err(e) => Err(self.explain(&e, line)),
        }
    }

    /// The message for a line that is not JSON, with an example of a right one.
    fn explain(&self, e: &serde_json::Error, line: &str) -> String {
        let what = e.to_string().replace(" at line 1 column ", " at column ");
        if what.contains("surrogate") || what.contains("unexpected end of hex escape") {
            return format!(
                "a lone surrogate, which is half of a character and no text (an escape such as \\ud83d without the \
                 \\ude00 that belongs to it): {what}; write the line again, or leave such records out with --skip-bad"
            );
        }
        if line.trim_start().starts_with('[') {
            return format!("{what}; one object a line is expected, as `jq -c '.[]'` makes of a JSON array");
        }
        let remedy = format!("each line must be like {{\"{}\": {}}}", self.key, self.example);
        match e.is_data() {
            true => format!("{what}; {remedy}"),
            false => format!("is not a JSON object ({what}); {remedy}"),
        }
    }
}

/// The value, or the keys that are there instead.
type Found<T> = Result<T, String>;

fn pick<'a, T: Deserialize<'a>>(key: &str, line: &'a str) -> serde_json::Result<Found<T>> {
    let mut json = serde_json::Deserializer::from_str(line);
    let found = json.deserialize_map(Pick { key, value: PhantomData })?;
    json.end().map(|()| found)
}

/// A concatenation of files has the byte-order mark of the second one inside.
fn without_mark(line: &str) -> &str {
    line.strip_prefix('\u{feff}').unwrap_or(line)
}

/// The line with 0 in place of `NaN`, `Infinity` and `-Infinity`, which Python writes although JSON has no such
/// numbers; `None` where the line has none of them. Every other byte keeps its position.
fn without_nan(line: &str) -> Option<String> {
    const WORDS: [&str; 3] = ["NaN", "Infinity", "-Infinity"];
    let mut out = line.as_bytes().to_vec();
    let (mut at, mut in_string, mut found) = (0, false, false);
    while at < out.len() {
        let word = WORDS.into_iter().find(|word| !in_string && line.as_bytes()[at..].starts_with(word.as_bytes()));
        match (out[at], word) {
            (_, Some(word)) => {
                out[at..at + word.len()].fill(b' ');
                out[at] = b'0';
                found = true;
                at += word.len() - 1;
            }
            (b'\\', _) if in_string => at += 1,
            (b'"', _) => in_string = !in_string,
            _ => {}
        }
        at += 1;
    }
    found.then(|| String::from_utf8(out).expect("only ASCII was replaced"))
}

struct Pick<'k, T> {
    key: &'k str,
    value: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Pick<'_, T> {
    type Value = Found<T>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "an object with the text under \"{}\"", self.key)
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut found = None;
        let mut others = Vec::new();
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if key == self.key {
                let value = map.next_value::<T>();
                found = Some(value.map_err(|e| M::Error::custom(format!("the value of \"{key}\": {e}")))?);
            } else {
                map.next_value::<IgnoredAny>()?;
                if others.len() < 8 {
                    others.push(format!("\"{key}\""));
                }
            }
        }
        Ok(found.ok_or_else(|| if others.is_empty() { "none".into() } else { others.join(", ") }))
    }
}

/// A string, borrowed where it has no escapes.
struct Text<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrow;
        impl<'de> Visitor<'de> for Borrow {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_string())))
            }
        }
        deserializer.deserialize_str(Borrow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_string_is_found() {
        let line = r#"{"id": 3, "meta": {"text": "no"}, "text": "a\u3042\n", "tags": ["x"]}"#;
        assert_eq!(string_under("text", line).unwrap(), "aあ\n");
        assert!(matches!(string_under("text", r#"{"text":"plain"}"#), Ok(Cow::Borrowed("plain"))));
    }

    /// Everything that Python's `json.loads` accepts is read.
    #[test]
    fn lines_of_other_writers_are_read() {
        for (line, text) in [
            (r#"{"perplexity": NaN, "text": "a NaN \" NaN"}"#, "a NaN \" NaN"),
            (r#"{"scores": [Infinity, -Infinity, {"x": NaN}], "text": "b"}"#, "b"),
            ("\u{feff}{\"text\": \"c\"}", "c"),
            (r#"{"text": "one", "text": "two"}"#, "two"),
            (r#"{"other": "cut \ud83d", "text": "\ud83d\ude00 \u3042"}"#, "😀 あ"),
            (r#"{"n": 123456789012345678901234567890e400, "text": "d"}"#, "d"),
        ] {
            assert_eq!(string_under("text", line).unwrap(), text, "{line}");
        }
        let deep = format!("{{\"a\": {}{}, \"text\": \"deep\"}}", "[".repeat(300), "]".repeat(300));
        assert_eq!(string_under("text", &deep).unwrap(), "deep");
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let error = |line: &str| string_under("text", line).unwrap_err();
        assert_eq!(
            error(r#"{"id": 1, "body": "x"}"#),
            r#"no key "text" (it has "id", "body"); --key names the one to read"#
        );
        assert!(error(r#"{"text": 5}"#).contains("expected a string"), "{}", error(r#"{"text": 5}"#));
        assert!(error(r#"{"text": null}"#).contains("expected a string"));
        assert!(error(r#"{"text": NaN}"#).contains("expected a string"));
        assert!(error(r#"{"text": "x""#).contains("EOF"));
        assert_eq!(
            error("not JSON"),
            r#"is not a JSON object (expected ident at column 2); each line must be like {"text": "..."}"#
        );
        assert!(error(r#"{"text": 5}"#).ends_with(r#"; each line must be like {"text": "..."}"#));
        assert!(error(r#"{"text": "x"} 7"#).contains("trailing"));
        assert!(error(r#"{"a": NaN5, "text": "x"}"#).contains("at column 10"));
        assert!(error("{\"text\": \"a\tb\"}").contains("control character"));
        assert!(error(r#"["text"]"#).contains("one object a line"));
        for lone in [r#"{"text": "cut \ud83d"}"#, r#"{"text": "\ude00 half"}"#, r#"{"text": "\ud83d\ud83d"}"#] {
            assert!(error(lone).contains("lone surrogate"), "{}", error(lone));
        }
        assert!(error(&format!("{{\"a\": {}", "[".repeat(100_000))).contains("EOF"), "depth costs no stack");
    }
}
