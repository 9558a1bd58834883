//! The targets: every parser of outside bytes belongs to one, and docs/testing.md says to which.

mod corpus;
mod planted;
mod runs;
mod settings;
mod tasks;
mod texts;
mod tokens;

use crate::case::Case;
use engine::error::Result;
use std::io::Error;

/// A parser, or several that read the same files.
pub struct Target {
    /// Its seeds are the folders in `seeds/NAME`.
    pub name: &'static str,
    pub parser: Parser,
    /// Files that are never damaged: those of another target that this one needs whole.
    pub fixed: &'static [&'static str],
    /// Computes the checksums of a damaged case anew, so that what they protect is reached.
    pub mend: Option<fn(&mut Case)>,
}

/// How the files of a case, which are in the current directory, are read.
pub enum Parser {
    /// By a function.
    Library(fn() -> Result<()>),
    /// By commands of the program, all of them; it alone reads some files.
    Program(&'static [&'static str]),
}

use Parser::{Library, Program};

impl Target {
    pub fn starts_program(&self) -> bool {
        matches!(self.parser, Program(_))
    }
}

const fn library(name: &'static str, parse: fn() -> Result<()>) -> Target {
    Target { name, parser: Library(parse), fixed: &[], mend: None }
}

const fn program(name: &'static str, commands: &'static [&'static str]) -> Target {
    Target { name, parser: Program(commands), fixed: &[], mend: None }
}

/// All targets but the last are what a campaign runs.
static TARGETS: [Target; 18] = [
    library("config", settings::config),
    library("hf_config", settings::hf_config),
    library("cluster", settings::cluster),
    library("rates", settings::rates),
    library("token_files", tokens::token_files),
    Target { fixed: &["config.toml"], ..library("feed", tokens::feed) },
    library("texts", texts::texts),
    library("pairs", texts::pairs),
    Target { fixed: &["tokenizer.json"], ..library("chats", texts::chats) },
    library("tokenizer", texts::tokenizer),
    library("expand", texts::expand),
    library("huggingface", runs::huggingface),
    Target { mend: Some(runs::sign_manifests), ..library("checkpoint", runs::checkpoint) },
    library("report", runs::report),
    library("tasks", tasks::tasks),
    library("corpus", corpus::corpus),
    program(
        "run",
        &[
            "status run",
            "report run",
            "checkpoint inspect run",
            "checkpoint verify run",
            "data inspect run/data/text",
            "data check run/data/text",
            "train --config train.toml --fall-back",
        ],
    ),
    library("planted", planted::parse),
];

/// The targets of these names, or all of a campaign.
pub fn named(names: &[String]) -> std::io::Result<Vec<&'static Target>> {
    let (_planted, all) = TARGETS.split_last().expect("there are targets");
    if names.is_empty() {
        return Ok(all.iter().collect());
    }
    let find = |name: &String| {
        let list = || TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ");
        TARGETS.iter().find(|t| t.name == name).ok_or_else(|| Error::other(format!("{name} is none of {}", list())))
    };
    names.iter().map(find).collect()
}
