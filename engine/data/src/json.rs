//! One string out of a JSON object, without building the rest of it.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

/// The string under `key` of the object in `line`. The error says what is wrong, without the file's name.
pub fn string_under<'a>(key: &str, line: &'a str) -> Result<Cow<'a, str>, String> {
    let mut json = serde_json::Deserializer::from_str(line);
    let found = json.deserialize_map(Pick { key }).and_then(|found| json.end().map(|()| found));
    match found {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(others)) => Err(format!("no key \"{key}\" (it has {others}); --key names the one to read")),
        Err(e) => Err(e.to_string().replace(" at line 1 column ", " at column ")),
    }
}

struct Pick<'k> {
    key: &'k str,
}

impl<'de> Visitor<'de> for Pick<'_> {
    /// The text, or the keys that are there instead.
    type Value = Result<Cow<'de, str>, String>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "an object with the text under \"{}\"", self.key)
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut text = None;
        let mut others = Vec::new();
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if key == self.key {
                let value = map.next_value::<Text<'de>>();
                text = Some(value.map_err(|e| M::Error::custom(format!("the value of \"{key}\": {e}")))?.0);
            } else {
                map.next_value::<IgnoredAny>()?;
                if others.len() < 8 {
                    others.push(format!("\"{key}\""));
                }
            }
        }
        Ok(text.ok_or_else(|| if others.is_empty() { "none".into() } else { others.join(", ") }))
    }
}

/// A string, borrowed where it has no escapes.
struct Text<'de>(Cow<'de, str>);

impl<'de> serde::Deserialize<'de> for Text<'de> {
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

    #[test]
    fn what_is_wrong_is_said() {
        let error = |line| string_under("text", line).unwrap_err();
        assert_eq!(
            error(r#"{"id": 1, "body": "x"}"#),
            r#"no key "text" (it has "id", "body"); --key names the one to read"#
        );
        assert!(error(r#"{"text": 5}"#).contains("expected a string"), "{}", error(r#"{"text": 5}"#));
        assert!(error(r#"{"text": "x""#).contains("EOF"));
        assert!(error(r#"{"text": "x"} 7"#).contains("trailing"));
        assert!(error(r#"["text"]"#).contains("an object with the text"));
        assert!(error(&format!("{{\"a\": {}", "[".repeat(100_000))).contains("EOF"), "depth costs no stack");
    }
}
