//! Values from a fixed list, each with its name in the file.

use super::origins::{Origins, nearest};
use crate::error::Result;

/// A type whose values have names in the file.
pub trait Named: Copy + PartialEq + 'static {
    const NAMES: &'static [(&'static str, Self)];
    /// Names that the file format has and the engine does not have yet.
    const NOT_BUILT: &'static [&'static str] = &[];

    fn name(self) -> &'static str {
        let named = Self::NAMES.iter().find(|(_, value)| *value == self);
        named.expect("every value has a name").0
    }
}

/// Declares an `enum` with the name of each value, and the names that are not built yet.
macro_rules! named {
    ($(#[$doc:meta])* $vis:vis enum $type:ident {
        $($(#[$value_doc:meta])* $value:ident = $name:literal),* $(,)?
    } $(not_built $missing:expr)?) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        $vis enum $type { $($(#[$value_doc])* $value),* }

        impl $crate::config::names::Named for $type {
            const NAMES: &'static [(&'static str, Self)] = &[$(($name, $type::$value)),*];
            $(const NOT_BUILT: &'static [&'static str] = &$missing;)?
        }
    };
}

pub(super) use named;

/// The value that `word` names; an error says which names are valid.
pub fn by_name<T: Copy>(names: &[(&'static str, T)], not_built: &[&str], word: &str) -> std::result::Result<T, String> {
    if let Some((_, value)) = names.iter().find(|(name, _)| *name == word) {
        return Ok(*value);
    }
    let words: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
    let known = format!("must be one of {}", words.join(", "));
    Err(match nearest(word, &words) {
        _ if not_built.contains(&word) => format!("is not built yet; {known}"),
        Some(near) => format!("{known}; did you mean {near:?}?"),
        None => known,
    })
}

/// [`by_name`] for the value at `key`.
pub fn choose<T: Copy>(names: &[(&'static str, T)], word: &str, key: &str, at: &Origins) -> Result<T> {
    by_name(names, &[], word).map_err(|remedy| at.bad(key, format!("{word:?}"), remedy))
}
