//! A JSON object as it is written: a value of it, and another value in its place while every other byte stays.

use std::borrow::Cow;
use std::ops::Range;

/// The object in `record` with `value`, which is JSON, under `key`. Where the key is repeated, each of its values is
/// replaced; where it is missing, it comes last. The record must be an object as `data::json` accepts it: NaN and
/// infinities may stand for numbers.
pub fn with_value(record: &str, key: &str, value: &str) -> Result<String, String> {
    let object = Scanner { bytes: record.as_bytes(), at: 0 }.object(record, key).ok_or("is not a JSON object")?;
    let mut out = String::with_capacity(record.len() + value.len() + key.len());
    let mut from = 0;
    for range in &object.values {
        out += &record[from..range.start];
        out += value;
        from = range.end;
    }
    out += &record[from..object.end];
    if object.values.is_empty() {
        let comma = if object.is_empty { "" } else { ", " };
        out += &format!("{comma}{}: {value}", crate::documents::quoted(key));
    }
    out += &record[object.end..];
    Ok(out)
}

/// The value under `key` of the object in `record` as it is written, of a repeated key the last one.
pub fn value<'r>(record: &'r str, key: &str) -> Option<&'r str> {
    let object = Scanner { bytes: record.as_bytes(), at: 0 }.object(record, key)?;
    object.values.last().map(|range| &record[range.clone()])
}

/// What is known of an object.
struct Object {
    /// The values under the key.
    values: Vec<Range<usize>>,
    is_empty: bool,
    /// After its last value.
    end: usize,
}

/// Walks over JSON that is known to be right, of which it needs only the strings and the nesting.
struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn object(mut self, record: &str, key: &str) -> Option<Object> {
        self.skip_space();
        self.expect(b'{')?;
        let (mut values, mut is_empty) = (Vec::new(), true);
        let mut end = self.at;
        loop {
            self.skip_space();
            if self.peek()? == b'}' {
                return Some(Object { values, is_empty, end });
            }
            if !is_empty {
                self.expect(b',')?;
                self.skip_space();
            }
            is_empty = false;
            let name = self.at;
            self.skip_string()?;
            let is_key = unquoted(&record[name..self.at])? == key;
            self.skip_space();
            self.expect(b':')?;
            self.skip_space();
            let start = self.at;
            self.skip_value()?;
            end = self.at;
            values.extend(Some(start..end).filter(|_| is_key));
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn skip_space(&mut self) {
        while self.peek().is_some_and(|b| b.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    fn skip_string(&mut self) -> Option<()> {
        self.expect(b'"')?;
        loop {
            match self.peek()? {
                b'"' => break self.at += 1,
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
        Some(())
    }

    /// Stops before the comma or the bracket that ends the value, and before the space in front of it.
    fn skip_value(&mut self) -> Option<()> {
        let (start, mut depth) = (self.at, 0);
        loop {
            match self.peek()? {
                b'"' => self.skip_string()?,
                b'{' | b'[' => (depth, self.at) = (depth + 1, self.at + 1),
                b'}' | b']' | b',' if depth == 0 => break,
                b'}' | b']' => (depth, self.at) = (depth - 1, self.at + 1),
                _ => self.at += 1,
            }
        }
        while self.bytes[start..self.at].last().is_some_and(u8::is_ascii_whitespace) {
            self.at -= 1;
        }
        (self.at > start).then_some(())
    }
}

/// The string that is written as `quoted`; `None` if it is not JSON.
fn unquoted(quoted: &str) -> Option<Cow<'_, str>> {
    match quoted.contains('\\') {
        true => serde_json::from_str(quoted).ok().map(Cow::Owned),
        false => Some(Cow::Borrowed(&quoted[1..quoted.len() - 1])),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_value_is_replaced_and_every_other_byte_stays() {
        for (record, expected) in [
            (r#"{"text": "a", "n": 1.50}"#, r#"{"text": 7, "n": 1.50}"#),
            (
                r#" { "x":[1,{"text":"in"}] ,"text":"a\"}" , "y":NaN } "#,
                r#" { "x":[1,{"text":"in"}] ,"text":7 , "y":NaN } "#,
            ),
            (r#"{"te\u0078t":{"a":["]"]}}"#, r#"{"te\u0078t":7}"#),
            (r#"{"text":"one","n":-Infinity,"text":"two"}"#, r#"{"text":7,"n":-Infinity,"text":7}"#),
            (r#"{"é\"":"}", "text" : true}"#, r#"{"é\"":"}", "text" : 7}"#),
            (r#"{"a": "\\"}"#, r#"{"a": "\\", "text": 7}"#),
            ("{}", r#"{"text": 7}"#),
            ("{ }", r#"{"text": 7 }"#),
        ] {
            assert_eq!(with_value(record, "text", "7").unwrap(), expected, "{record}");
        }
    }

    #[test]
    fn a_value_is_found_as_it_is_written() {
        let record = r#"{"a": {"b": 1}, "b": 1.50 , "c": NaN, "d": "\"}", "b": -2e-7}"#;
        let found = ["a", "b", "c", "d", "e"].map(|key| value(record, key));
        assert_eq!(found, [Some(r#"{"b": 1}"#), Some("-2e-7"), Some("NaN"), Some(r#""\"}""#), None]);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for record in ["", "[]", "7", "{", r#"{"a""#, r#"{"a": }"#, r#"{"a": "\"#, r#"{"a": 1"#] {
            assert!(with_value(record, "text", "7").is_err(), "{record}");
        }
    }

    proptest! {
        /// Against a JSON library, on objects with every kind of value and odd keys.
        #[test]
        fn the_result_is_that_of_a_json_library(
            entries in prop::collection::vec(("[a-c\\\\\"あ]{0,2}", 0..6, "\\PC{0,6}"), 0..6),
            key in "[a-c\\\\\"あ]{0,2}",
            pretty: bool,
        ) {
            let mut object = serde_json::Map::new();
            for (name, kind, text) in entries {
                let value = match kind {
                    0 => json!(text),
                    1 => json!(null),
                    2 => json!([text, {"a": [text], "b": "]}"}]),
                    3 => json!({ "a": text, "c": {} }),
                    4 => json!(-1.5e-7),
                    _ => json!([]),
                };
                object.insert(name, value);
            }
            let record = match pretty {
                true => serde_json::to_string_pretty(&object).unwrap(),
                false => serde_json::to_string(&object).unwrap(),
            };
            let replaced = with_value(&record, &key, "[\"new\"]").unwrap();
            object.insert(key, json!(["new"]));
            prop_assert_eq!(serde_json::from_str::<Value>(&replaced).unwrap(), Value::Object(object));
        }
    }
}
