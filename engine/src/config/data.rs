//! The `[data]` table: sources, stages of training, validation sets, and the names by which they are reported.

use super::names::named;
use super::origins::Origins;
use super::section::{Text, need, optional, or, section};
use super::tables::MOST_STEPS;
use crate::error::Result;
use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

/// Megatron-LM's blend stores the index of a source in 16 bits.
const MOST_SOURCES: usize = 32_766;

section! {
    pub struct Data {
        /// Stages of training, each with a mixture of its own; empty where `train` is the only mixture.
        pub stage: Vec<DataStage> = or(vec![]),
        /// The mixture of the whole training; empty where there are stages.
        pub train: Vec<Source> = match stage.is_empty() {
            true => need("train = [ { prefix = \"data/text\" } ]")
                .must(NO_SOURCE, |train: &Vec<Source>| !train.is_empty()),
            false => or(vec![]).must(STAGES_INSTEAD, |train: &Vec<Source>| train.is_empty()),
        },
        pub valid: Vec<Source> = or(vec![]),
        /// Shares of train, validation and test, as given.
        pub split: [f64; 3] = or([1.0, 0.0, 0.0]),
        pub order: Order = or(Order::Megatron),
        pub mask_document_boundaries: bool = or(false),
        /// Whether sources may be made by different tokenizers, or by another one than the model's.
        pub allow_mixed_tokenizers: bool = or(false),
    }
}

const NO_SOURCE: &str = "must name a source, as [ { prefix = \"data/text\" } ]";
const STAGES_INSTEAD: &str = "data.stage names the sources of each stage; leave data.train out (or [])";

section! {
    /// A stage of training as the file has it.
    pub struct DataStage {
        /// Its last step; `None` for the last stage.
        pub until_step: Option<u64> = optional().within(1..=MOST_STEPS),
        pub train: Vec<Source> = need("train = [ { prefix = \"data/text\" } ]")
            .must(NO_SOURCE, |train: &Vec<Source>| !train.is_empty()),
    }
}

section! {
    /// One pair of `.bin` / `.idx` files and its place in the mixture.
    pub struct Source {
        pub prefix: PathBuf = need("prefix = \"data/text\""),
        /// Its share in the mixture, in any unit; `None` if the user gave none.
        pub weight: Option<f64> = optional().real("must be positive; leave out a source without weight", |x| x > 0.0),
        /// `None`: the name of its file.
        pub name: Option<String> = optional()
            .must("must have visible characters only", |name| name.as_deref().is_none_or(is_printable)),
        /// The most times that the run may read its tokens, over all stages.
        pub max_epochs: Option<f64> = optional().positive(),
        /// Whether its sequences are packed into rows.
        pub pack: bool = or(false),
    }
}

/// Names are printed in tables, progress lines and charts.
fn is_printable(name: &str) -> bool {
    !name.trim().is_empty() && !name.contains(char::is_control)
}

named! {
    pub enum Order {
        Megatron = "megatron",
        Sequential = "sequential",
    }
}

/// Shares of train, validation and test in Megatron's spelling: "949,50,1".
impl Text for [f64; 3] {
    fn parse(text: &str) -> std::result::Result<Self, String> {
        let parts: Option<Vec<f64>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
        let parts = parts.filter(|parts| parts.iter().all(|share| share.is_finite() && *share >= 0.0));
        match parts.as_deref() {
            Some(&[train, valid, test]) if train > 0.0 && (train + valid + test).is_finite() => {
                Ok([train, valid, test])
            }
            _ => Err("must be three shares, none negative, the first positive, as \"949,50,1\"".to_string()),
        }
    }

    fn text(&self) -> String {
        self.map(|share| share.to_string()).join(",")
    }
}

/// A stage of training. `data.train` alone is one.
#[derive(Debug, Clone, Copy)]
pub struct TrainStage<'a> {
    /// Its index among the stages; `None` where `data.train` is the only one.
    pub number: Option<usize>,
    /// Its last step; `None`: it lasts to the end.
    pub until_step: Option<u64>,
    pub sources: &'a [Source],
}

/// A source of training: all entries of one prefix, over all stages.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainSource {
    /// The key of its first entry, for messages.
    pub key: String,
    pub prefix: PathBuf,
    pub name: String,
    pub max_epochs: Option<f64>,
    pub pack: bool,
}

/// A set of validation samples with a loss of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidSet {
    /// The key of its entry, which is one of `data.valid`, or of training where `data.split` is used.
    pub key: String,
    pub prefix: PathBuf,
    pub name: String,
    pub pack: bool,
}

impl TrainStage<'_> {
    /// The key of its list of sources.
    pub fn key(&self) -> String {
        self.number.map_or("data.train".to_string(), |number| format!("data.stage[{number}].train"))
    }
}

impl Data {
    /// The stages of training in their order, at least one.
    pub fn stages(&self) -> Vec<TrainStage<'_>> {
        if self.stage.is_empty() {
            return vec![TrainStage { number: None, until_step: None, sources: &self.train }];
        }
        let all = self.stage.iter().enumerate();
        all.map(|(i, stage)| TrainStage { number: Some(i), until_step: stage.until_step, sources: &stage.train })
            .collect()
    }

    /// Every list of sources, with its key.
    pub fn lists(&self) -> Vec<(String, &[Source])> {
        let train = self.stages().into_iter().map(|stage| (stage.key(), stage.sources));
        train.chain([("data.valid".to_string(), &self.valid[..])]).collect()
    }

    /// The sources of training in the order in which they first appear, and for each stage the index of the source of
    /// each entry. The n-th entry of a prefix in a stage is the same source as its n-th entry in any other stage.
    pub fn train_sources(&self) -> (Vec<TrainSource>, Vec<Vec<usize>>) {
        let (mut known, mut first, mut stages) = (HashMap::new(), Vec::new(), Vec::new());
        for stage in self.stages() {
            let mut seen: HashMap<PathBuf, usize> = HashMap::new();
            let mut of_stage = Vec::new();
            for (i, source) in stage.sources.iter().enumerate() {
                let prefix = plain(&source.prefix);
                let nth = seen.entry(prefix.clone()).or_default();
                let index = *known.entry((prefix, *nth)).or_insert(first.len());
                *nth += 1;
                if index == first.len() {
                    first.push((format!("{}[{i}]", stage.key()), source, source.name.as_deref(), source.max_epochs));
                }
                let (_, _, name, max_epochs) = &mut first[index];
                *name = name.or(source.name.as_deref());
                *max_epochs = max_epochs.or(source.max_epochs);
                of_stage.push(index);
            }
            stages.push(of_stage);
        }
        let names = names(first.iter().map(|(_, source, name, _)| (*name, &source.prefix)));
        let source = |((key, source, _, max_epochs), name): ((String, &Source, _, _), _)| TrainSource {
            key,
            prefix: source.prefix.clone(),
            name,
            max_epochs,
            pack: source.pack,
        };
        (first.into_iter().zip(names).map(source).collect(), stages)
    }

    /// The sets that a validation takes one after the other: the sources of `data.valid`, or, where there are none, the
    /// part of each training source that `data.split` holds out.
    pub fn valid_sets(&self) -> Vec<ValidSet> {
        if self.valid.is_empty() {
            let (mut sources, _) = self.train_sources();
            // Held-out documents are the same for every entry of a file.
            let mut seen = HashSet::new();
            sources.retain(|source| seen.insert(plain(&source.prefix)));
            let set = |TrainSource { key, prefix, name, pack, .. }| ValidSet { key, prefix, name, pack };
            return sources.into_iter().map(set).collect();
        }
        let names = names(self.valid.iter().map(|source| (source.name.as_deref(), &source.prefix)));
        let set = |(i, (source, name)): (usize, (&Source, String))| ValidSet {
            key: format!("data.valid[{i}]"),
            prefix: source.prefix.clone(),
            name,
            pack: source.pack,
        };
        self.valid.iter().zip(names).enumerate().map(set).collect()
    }

    pub(super) fn check(&self, at: &Origins) -> Result<()> {
        for (key, sources) in self.lists() {
            if sources.len() > MOST_SOURCES {
                let remedy = format!("must be at most {MOST_SOURCES}");
                return Err(at.bad(&key, format!("{} sources", sources.len()), remedy));
            }
        }
        for stage in self.stages() {
            let weighted = stage.sources.iter().any(|source| source.weight.is_some());
            if let Some(first) = stage.sources.iter().position(|source| weighted && source.weight.is_none()) {
                let key = format!("{}[{first}].weight", stage.key());
                return Err(at.missing(&key, "give every source a weight, or none"));
            }
        }
        if let Some((i, epochs)) = self.valid.iter().enumerate().find_map(|(i, s)| Some((i, s.max_epochs?))) {
            let remedy = "limits training; a validation set takes the next samples each time; leave it out";
            return Err(at.bad(&format!("data.valid[{i}].max_epochs"), epochs, remedy));
        }
        self.check_stages(at)?;
        self.check_entries_agree(at)
    }

    /// Every stage but the last ends, each after the one before it.
    fn check_stages(&self, at: &Origins) -> Result<()> {
        let mut before = 0;
        for (i, stage) in self.stage.iter().enumerate() {
            let (key, is_last) = (format!("data.stage[{i}].until_step"), i + 1 == self.stage.len());
            match stage.until_step {
                Some(step) if is_last => {
                    return Err(at.bad(&key, step, "the last stage lasts to the end of training; leave it out"));
                }
                None if !is_last => {
                    let remedy = format!("write the last step of this stage; data.stage[{}] follows it", i + 1);
                    return Err(at.missing(&key, remedy));
                }
                Some(step) if step <= before => {
                    let remedy = format!("must be above {before}, the last step of data.stage[{}]", i - 1);
                    return Err(at.bad(&key, step, remedy));
                }
                step => before = step.unwrap_or(before),
            }
        }
        Ok(())
    }

    /// Entries of one source in several stages must not contradict each other.
    fn check_entries_agree(&self, at: &Origins) -> Result<()> {
        let (sources, stages) = self.train_sources();
        let differ = |key: &str, value: String, source: &TrainSource, theirs: String| {
            let what = format!("{} is the same source and has {theirs}; give both the same, or only one", source.key);
            Err(at.bad(key, value, what))
        };
        for (stage, of_stage) in self.stages().into_iter().zip(stages) {
            for (i, (entry, &index)) in stage.sources.iter().zip(&of_stage).enumerate() {
                let (source, key) = (&sources[index], |name| format!("{}[{i}].{name}", stage.key()));
                if let Some(name) = entry.name.as_ref().filter(|name| **name != source.name) {
                    return differ(&key("name"), format!("{name:?}"), source, format!("{:?}", source.name));
                }
                if entry.pack != source.pack {
                    return differ(&key("pack"), entry.pack.to_string(), source, source.pack.to_string());
                }
                let other = source.max_epochs.filter(|epochs| entry.max_epochs.is_some_and(|own| own != *epochs));
                if let (Some(own), Some(epochs)) = (entry.max_epochs, other) {
                    return differ(&key("max_epochs"), own.to_string(), source, epochs.to_string());
                }
            }
        }
        Ok(())
    }

    /// Each validation set has a name of its own. Only a run that validates needs them.
    pub(super) fn check_valid_names(&self, at: &Origins) -> Result<()> {
        let sets = self.valid_sets();
        for (i, set) in sets.iter().enumerate() {
            if let Some(other) = sets[..i].iter().find(|other| other.name == set.name) {
                let remedy = format!(
                    "{} has this name too, and a validation reports each set by its name; give each its own",
                    other.key
                );
                return Err(at.bad(&format!("{}.name", set.key), format!("{:?}", set.name), remedy));
            }
        }
        Ok(())
    }

    /// Remarks on settings of this table that have no effect, without a final dot; `steps`: those of the run.
    pub fn notes(&self, steps: u64) -> Vec<String> {
        let weights = self.valid.iter().any(|source| source.weight.is_some());
        let weights = weights.then(|| {
            "data.valid: the weights have no effect; each validation set is evaluated on batches of its own".to_string()
        });
        let mut start = 0;
        let mut late = Vec::new();
        for stage in self.stages() {
            if start >= steps && start > 0 {
                late.push(format!(
                    "{} begins after step {start}, and train.steps = {steps}: this run does not reach it",
                    stage.key().trim_end_matches(".train")
                ));
            }
            start = stage.until_step.unwrap_or(start);
        }
        weights.into_iter().chain(late).collect()
    }
}

/// A prefix without the `.` in which its path may begin.
fn plain(prefix: &Path) -> PathBuf {
    prefix.components().filter(|part| *part != Component::CurDir).collect()
}

/// The name of each source: the one given, or else that of its file, after as many of its folders as tell it apart from
/// the files of other sources without a name.
fn names<'a>(sources: impl Iterator<Item = (Option<&'a str>, &'a PathBuf)>) -> Vec<String> {
    let sources: Vec<(Option<&str>, PathBuf)> = sources.map(|(name, prefix)| (name, plain(prefix))).collect();
    let mut names: Vec<Option<String>> = sources.iter().map(|(name, _)| name.map(str::to_string)).collect();
    for parts in 1.. {
        let mut holders: HashMap<PathBuf, HashSet<&PathBuf>> = HashMap::new();
        for (_, prefix) in sources.iter().filter(|(name, _)| name.is_none()) {
            holders.entry(tail(prefix, parts)).or_default().insert(prefix);
        }
        for (name, (_, prefix)) in names.iter_mut().zip(&sources).filter(|(name, _)| name.is_none()) {
            let tail = tail(prefix, parts);
            if holders[&tail].len() == 1 {
                *name = Some(tail.display().to_string());
            }
        }
        if names.iter().all(Option::is_some) {
            break;
        }
    }
    names.into_iter().flatten().collect()
}

/// The last `parts` components of a path.
fn tail(prefix: &Path, parts: usize) -> PathBuf {
    let all: Vec<Component> = prefix.components().collect();
    all[all.len().saturating_sub(parts)..].iter().collect()
}

#[cfg(test)]
mod tests;
