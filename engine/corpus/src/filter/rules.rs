//! The rules of a filter, as a TOML file has them.

use std::path::{Path, PathBuf};

use aho_corasick::AhoCorasick;
use engine::error::{Error, Result};
use toml::{Table, Value};

use super::lists::{self, Footers, Hosts};
use super::statistics::{EXPRESSIONS, STATISTICS, Statistic};

/// The rules of a file, with its lists read.
pub struct Rules {
    /// In the order in which they are tried.
    pub(super) bounds: Vec<Bound>,
    pub(super) expressions: Option<AhoCorasick>,
    pub(super) hosts: Option<ListedHosts>,
    pub(super) changes: Changes,
}

/// A statistic and where a document is dropped.
pub struct Bound {
    pub statistic: &'static Statistic,
    side: Side,
    threshold: f64,
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Below,
    Above,
}

/// Hosts, and the key of a record under which its URL is.
pub struct ListedHosts {
    pub hosts: Hosts,
    pub key: String,
}

/// What is changed in the documents that stay, in this order.
#[derive(Default)]
pub struct Changes {
    pub footers: Option<Footers>,
    pub punctuation: bool,
    pub nfkc: bool,
}

impl Bound {
    /// Whether the rule drops a document with this value of the statistic. A value at the threshold stays.
    pub fn drops(&self, value: f64) -> bool {
        match self.side {
            Side::Below => value < self.threshold,
            Side::Above => value > self.threshold,
        }
    }

    /// `below 400`.
    pub fn threshold(&self) -> String {
        format!("{} {}", self.side.table(), self.threshold)
    }
}

impl Side {
    fn table(self) -> &'static str {
        match self {
            Side::Below => "below",
            Side::Above => "above",
        }
    }
}

/// The tables of a file, and the keys of those that have fixed ones.
const TABLES: [&str; 4] = ["below", "above", "lists", "text"];
const LISTS: [&str; 4] = [EXPRESSIONS, "hosts", "url_key", "footers"];
const TEXT: [&str; 2] = ["punctuation", "nfkc"];

impl Rules {
    /// Reads the rules and the lists that they name.
    pub fn open(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let root = text.parse::<Table>().map_err(|e| {
            let line = text[..e.span().map_or(0, |span| span.start)].matches('\n').count() + 1;
            let what = e.message().replace('\n', ", ");
            Error::user(format!("{}: line {line}: {what}; correct the TOML", path.display()))
        })?;
        let file = File { path, root: &root, empty: Table::new() };
        file.check_keys("", &root, &TABLES)?;
        let mut bounds = file.bounds(Side::Below)?;
        bounds.extend(file.bounds(Side::Above)?);
        let place = |bound: &Bound| STATISTICS.iter().position(|statistic| statistic.name == bound.statistic.name);
        bounds.sort_by_key(place);
        file.check_pairs(&bounds)?;
        let (expressions, hosts, footers) = file.lists(&bounds)?;
        let table = file.table("text")?;
        file.check_keys("text", table, &TEXT)?;
        let changes =
            Changes { footers, punctuation: file.switch(table, "punctuation")?, nfkc: file.switch(table, "nfkc")? };
        let changes_text = changes.footers.is_some() || changes.punctuation || changes.nfkc;
        if bounds.is_empty() && hosts.is_none() && !changes_text {
            let what = "has no rule; write for example [below] and characters = 400";
            return Err(Error::user(format!("{}: {what}", path.display())));
        }
        Ok(Self { bounds, expressions, hosts, changes })
    }
}

/// A file of rules, read as TOML.
struct File<'a> {
    path: &'a Path,
    root: &'a Table,
    empty: Table,
}

type Lists = (Option<AhoCorasick>, Option<ListedHosts>, Option<Footers>);

impl File<'_> {
    fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::user(format!("{}: {what}", self.path.display()))
    }

    /// The table `name`, which is empty where the file has none.
    fn table(&self, name: &str) -> Result<&Table> {
        match self.root.get(name) {
            None => Ok(&self.empty),
            Some(Value::Table(table)) => Ok(table),
            Some(other) => Err(self.error(format!("{name} = {other}: must be a table; write [{name}]"))),
        }
    }

    /// Refuses keys of a table other than `known`.
    fn check_keys(&self, name: &str, table: &Table, known: &[&str]) -> Result<()> {
        let Some(key) = table.keys().find(|key| !known.contains(&key.as_str())) else { return Ok(()) };
        let (place, what) = match name {
            "" => (format!("[{key}]"), "table"),
            "lists" | "text" => (format!("{name}.{key}"), "key"),
            _ => (format!("{name}.{key}"), "statistic"),
        };
        let nearest = nearest(key, known).map(|near| format!("did you mean {near}? ")).unwrap_or_default();
        Err(self.error(format!("{place} is unknown; {nearest}The {what} is one of: {}", known.join(", "))))
    }

    fn bounds(&self, side: Side) -> Result<Vec<Bound>> {
        let name = side.table();
        let table = self.table(name)?;
        self.check_keys(name, table, &STATISTICS.each_ref().map(|statistic| statistic.name))?;
        let bound = |statistic: &'static Statistic| {
            let value = table.get(statistic.name)?;
            let number = value.as_float().or(value.as_integer().map(|n| n as f64));
            let threshold = number.filter(|n| n.is_finite() && *n >= 0.0);
            let what =
                || format!("{name}.{} = {value}: must be a number that is finite and not negative", statistic.name);
            Some(threshold.map(|threshold| Bound { statistic, side, threshold }).ok_or_else(|| self.error(what())))
        };
        STATISTICS.iter().filter_map(bound).collect()
    }

    /// Refuses bounds of one statistic between which nothing is left.
    fn check_pairs(&self, bounds: &[Bound]) -> Result<()> {
        let crossed =
            |pair: &&[Bound]| pair[0].statistic.name == pair[1].statistic.name && pair[0].threshold > pair[1].threshold;
        match bounds.windows(2).find(crossed) {
            None => Ok(()),
            Some([low, high]) => {
                let (name, low, high) = (low.statistic.name, low.threshold(), high.threshold());
                Err(self
                    .error(format!("{name}: what is {low} and what is {high} is everything; change one of the two")))
            }
            Some(_) => unreachable!("windows of two"),
        }
    }

    fn lists(&self, bounds: &[Bound]) -> Result<Lists> {
        let table = self.table("lists")?;
        self.check_keys("lists", table, &LISTS)?;
        let bounded = bounds.iter().any(|bound| bound.statistic.name == EXPRESSIONS);
        let expressions = match (self.paths(table, EXPRESSIONS)?, bounded) {
            (Some(paths), true) => Some(lists::expressions(&paths)?),
            (None, false) => None,
            (Some(_), false) => {
                return Err(self.error(
                    "lists.expressions has no use without a bound; write for example [above] and \
                     expressions = 0.005",
                ));
            }
            (None, true) => {
                return Err(self.error(
                    "expressions is bounded, but no list has any; write [lists] and expressions = \
                     [\"FILE\"]",
                ));
            }
        };
        let key = table.get("url_key").map(|key| {
            let named = key.as_str().filter(|key| !key.is_empty()).map(str::to_string);
            named.ok_or_else(|| self.error(format!("lists.url_key = {key}: must be the key of a record, in quotes")))
        });
        let hosts = match (self.paths(table, "hosts")?, key.transpose()?) {
            (Some(paths), Some(key)) => Some(ListedHosts { hosts: Hosts::open(&paths)?, key }),
            (Some(_), None) => {
                return Err(self.error("lists.hosts needs the key of a record's URL; write url_key = \"url\""));
            }
            (None, Some(_)) => return Err(self.error("lists.url_key has no use without lists.hosts; remove it")),
            (None, None) => None,
        };
        let footers = self.paths(table, "footers")?.map(|paths| Footers::open(&paths)).transpose()?;
        Ok((expressions, hosts, footers))
    }

    /// The files under a key, relative to the folder of the rules.
    fn paths(&self, table: &Table, key: &str) -> Result<Option<Vec<PathBuf>>> {
        let Some(value) = table.get(key) else { return Ok(None) };
        let folder = self.path.parent().unwrap_or(Path::new(""));
        let files = value.as_array().filter(|files| !files.is_empty());
        let paths = files.and_then(|files| files.iter().map(|file| Some(folder.join(file.as_str()?))).collect());
        let what = || self.error(format!("lists.{key} = {value}: must be an array of files, such as [\"list.txt\"]"));
        paths.map(Some).ok_or_else(what)
    }

    fn switch(&self, table: &Table, key: &str) -> Result<bool> {
        match table.get(key) {
            None => Ok(false),
            Some(Value::Boolean(on)) => Ok(*on),
            Some(other) => Err(self.error(format!("text.{key} = {other}: must be true or false"))),
        }
    }
}

/// The known word that `word` was probably meant to be.
fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let likeness = |k: &str| strsim::normalized_damerau_levenshtein(word, k);
    let best = known.iter().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) >= 0.5).then_some(best)
}

#[cfg(test)]
mod tests;
