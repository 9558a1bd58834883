//! Stages, sources in several stages, and names.

use super::*;
use crate::config::Config;

const REST: &str = "[model]\narchitecture = \"llama\"\nhidden_size = 64\nintermediate_size = 172\n\
    num_hidden_layers = 5\nnum_attention_heads = 8\nvocab_size = 512\nmax_position_embeddings = 512\n\
    rope_theta = 10000.0\nrms_norm_eps = 1e-5\n[optimizer]\nlr = 1e-3\n[checkpoint]\ndir = \"run\"\n\
    [train]\nseq_length = 128\nglobal_batch_size = 12\nsteps = 100\n";

/// The configuration with this text in `[data]`.
fn read(data: &str) -> Result<Config> {
    Config::from_resolved(&format!("{REST}\n[data]\n{data}"))
}

fn data(text: &str) -> Data {
    read(text).unwrap().data
}

#[track_caller]
fn refused(text: &str, needles: &[&str]) {
    let error = read(text).expect_err("refused");
    assert_eq!(error.exit_code(), 2);
    let error = error.to_string();
    assert!(needles.iter().all(|needle| error.contains(needle)), "{error}\nlacks one of {needles:?}");
}

const TWO: &str = "[[data.stage]]\nuntil_step = 5\n\
    train = [ { prefix = \"a\", weight = 1 }, { prefix = \"b/x\", weight = 2 } ]\n\
    [[data.stage]]\ntrain = [ { prefix = \"c/x\", weight = 3, name = \"c\" }, \
    { prefix = \"./a\", weight = 1, max_epochs = 2 } ]\n";

#[test]
fn a_prefix_in_several_stages_is_one_source() {
    let data = data(TWO);
    let (sources, stages) = data.train_sources();
    assert_eq!(stages, [[0, 1], [2, 0]]);
    let shown: Vec<_> = sources.iter().map(|s| (s.key.as_str(), s.name.as_str(), s.max_epochs)).collect();
    assert_eq!(
        shown,
        [
            ("data.stage[0].train[0]", "a", Some(2.0)),
            ("data.stage[0].train[1]", "x", None),
            ("data.stage[1].train[0]", "c", None)
        ]
    );
    assert_eq!(data.stages()[0].until_step, Some(5));
    assert_eq!(data.valid_sets().iter().map(|set| set.name.as_str()).collect::<Vec<_>>(), ["a", "x", "c"]);
}

/// The same file twice in one list is two sources, as it always was.
#[test]
fn a_prefix_twice_in_a_list_is_two_sources() {
    let (sources, stages) = data("train = [ { prefix = \"a\" }, { prefix = \"a\" } ]").train_sources();
    assert_eq!((sources.len(), stages), (2, vec![vec![0, 1]]));
}

#[test]
fn names_are_those_of_files_with_the_folders_that_tell_them_apart() {
    let names = |valid: &str| {
        let data = data(&format!("train = [ {{ prefix = \"t\" }} ]\nvalid = [ {valid} ]"));
        data.valid_sets().into_iter().map(|set| set.name).collect::<Vec<_>>()
    };
    assert_eq!(names("{ prefix = \"data/ja\" }, { prefix = \"data/en\" }"), ["ja", "en"]);
    assert_eq!(
        names("{ prefix = \"ja/valid\" }, { prefix = \"en/valid\" }, { prefix = \"c\" }"),
        ["ja/valid", "en/valid", "c"]
    );
    assert_eq!(names("{ prefix = \"ja/valid\", name = \"ja\" }, { prefix = \"en/valid\" }"), ["ja", "valid"]);
    assert_eq!(names("{ prefix = \"a/b\" }, { prefix = \"b\" }"), ["a/b", "b"]);
    assert_eq!(names("{ prefix = \"b\" }, { prefix = \"./b\" }"), ["b", "b"]);
}

#[test]
fn the_resolved_text_reads_back() {
    for text in [TWO, "train = [ { prefix = \"a\" } ]\nvalid = [ { prefix = \"b\", name = \"v\" } ]"] {
        let config = read(text).unwrap();
        assert_eq!(Config::from_resolved(&config.to_toml()).unwrap(), config);
    }
}

#[test]
fn wrong_stages_are_refused() {
    let stage = |until: &str| format!("[[data.stage]]\n{until}\ntrain = [ {{ prefix = \"a\" }} ]\n");
    let stages = |untils: &[&str]| untils.iter().map(|until| stage(until)).collect::<String>();
    let (five, none) = ("until_step = 5", "");
    refused(&stages(&[five, five, none]), &["data.stage[1].until_step = 5", "above 5", "data.stage[0]"]);
    refused(&stages(&[none, none]), &["data.stage[0].until_step is missing", "data.stage[1] follows"]);
    refused(&stages(&[five]), &["data.stage[0].until_step = 5", "leave it out"]);
    refused(&stages(&["until_step = 0", none]), &["data.stage[0].until_step = 0", "1 ..= "]);
    refused("[[data.stage]]\ntrain = []", &["data.stage[0].train = []", "must name a source"]);
    refused("[[data.stage]]\n", &["data.stage[0].train is missing"]);
    let both = format!("train = [ {{ prefix = \"a\" }} ]\n{}", stage(none));
    refused(&both, &["data.train = ", "leave data.train out"]);
    assert!(read(&format!("train = []\n{}", stage(none))).is_ok());
    let mixed = "[[data.stage]]\ntrain = [ { prefix = \"a\", weight = 1 }, { prefix = \"b\" } ]";
    refused(mixed, &["data.stage[0].train[1].weight is missing"]);
}

#[test]
fn entries_that_contradict_each_other_are_refused() {
    let stages = |first: &str, second: &str| {
        format!(
            "[[data.stage]]\nuntil_step = 5\ntrain = [ {{ prefix = \"a\", {first} }} ]\n\
             [[data.stage]]\ntrain = [ {{ prefix = \"a\", {second} }} ]"
        )
    };
    refused(
        &stages("name = \"x\"", "name = \"y\""),
        &["data.stage[1].train[0].name = \"y\"", "\"x\"", "data.stage[0]"],
    );
    refused(&stages("max_epochs = 1", "max_epochs = 2"), &["data.stage[1].train[0].max_epochs = 2", "has 1"]);
    assert!(read(&stages("name = \"x\"", "max_epochs = 2")).is_ok());
    refused(&stages("pack = true", "pack = false"), &["data.stage[1].train[0].pack = false", "has true"]);
    for name in ["", " ", "a\\u001b[31m"] {
        let source = format!("train = [ {{ prefix = \"a\", name = \"{name}\" }} ]");
        refused(&source, &["data.train[0].name", "must have visible characters only"]);
    }
    let valid = "train = [ { prefix = \"a\" } ]\nvalid = [ { prefix = \"b\", max_epochs = 1 } ]";
    refused(valid, &["data.valid[0].max_epochs = 1", "leave it out"]);
}

#[test]
fn validation_sets_of_one_name_are_refused_where_they_are_used() {
    let two = "train = [ { prefix = \"t\" } ]\nvalid = [ { prefix = \"a\", name = \"v\" }, { prefix = \"v\" } ]\n";
    assert!(read(two).is_ok(), "the run never validates");
    let validates = format!("{REST}eval_interval = 5\n[data]\n{two}");
    let error = Config::from_resolved(&validates).unwrap_err().to_string();
    assert!(error.contains("data.valid[1].name = \"v\": data.valid[0] has this name too"), "{error}");
}

#[test]
fn what_has_no_effect_is_noted() {
    assert_eq!(data(TWO).notes(6), Vec::<String>::new());
    let late = data(TWO).notes(5);
    assert_eq!(late, ["data.stage[1] begins after step 5, and train.steps = 5: this run does not reach it"]);
    let weighted = data("train = [ { prefix = \"a\" } ]\nvalid = [ { prefix = \"b\", weight = 1 } ]").notes(5);
    assert!(weighted[0].starts_with("data.valid: the weights have no effect"), "{weighted:?}");
}
