//! The tables of a cluster file as they are written: every key is optional, types are checked, and unknown keys are
//! refused.

use super::origins::{Origins, join};
use super::section::Section;
use crate::error::Result;
use toml::{Table, Value};

pub(super) use super::section::Read;

/// A struct of optional values, read from a TOML table of these keys.
macro_rules! table {
    ($name:ident { $($key:ident: $type:ty),* $(,)? }) => {
        #[derive(Debug, Clone, Default)]
        pub struct $name { $(pub $key: Option<$type>),* }

        impl $name {
            pub const KEYS: &[&str] = &[$(stringify!($key)),*];
        }

        impl Read for $name {
            fn read(value: &Value, key: &str, at: &Origins) -> Result<Self> {
                let table = known(value, key, Self::KEYS, at)?;
                Ok(Self { $($key: optional(table, key, stringify!($key), at)?),* })
            }
        }
    };
}

pub(super) use table;

/// The table at `path`; keys other than these are refused.
pub(super) fn known<'a>(value: &'a Value, path: &str, keys: &[&str], at: &'a Origins) -> Result<&'a Table> {
    Section::open(value, path, keys, at).map(|section| section.table)
}

pub(super) fn optional<T: Read>(table: &Table, path: &str, key: &str, at: &Origins) -> Result<Option<T>> {
    table.get(key).map(|value| T::read(value, &join(path, key), at)).transpose()
}
