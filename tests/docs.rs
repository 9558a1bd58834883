//! The documents, compared with the program: every key of a configuration with its default, every command line, every
//! link, every environment variable and every dependency.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use engine::config::{Cluster, Config};
use toml::{Table, Value};

use crate::common::{engine, finish};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The files below `dir` with this extension.
fn walk(dir: &Path, extension: &str, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().map(|e| e.unwrap()) {
        let (path, name) = (entry.path(), entry.file_name());
        let hidden = name.to_string_lossy().starts_with('.');
        let foreign =
            ["target", "runs", "shared", "vendor", "venv", "seeds", "found"].iter().any(|skipped| name == *skipped);
        if path.is_dir() && !hidden && !foreign {
            walk(&path, extension, out);
        } else if path.extension().is_some_and(|e| e == extension) {
            out.push(path);
        }
    }
}

/// The files of the checkout with this extension, each with its text.
fn files(extension: &str) -> Vec<(PathBuf, String)> {
    let mut paths = Vec::new();
    walk(root(), extension, &mut paths);
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), text(path))).collect()
}

/// Fails with all complaints at once.
#[track_caller]
fn none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

// -- keys and their defaults --

/// A key that no table has.
const NO_KEY: &str = "zzzzzzzz";

/// Everything that a configuration needs, and nothing else.
const MINIMAL: &str = r#"
    [model]
    architecture = "llama"
    hidden_size = 128
    intermediate_size = 256
    num_hidden_layers = 4
    num_attention_heads = 8
    vocab_size = 320
    max_position_embeddings = 64
    rope_theta = 10000.0
    rms_norm_eps = 1e-5
    [train]
    seq_length = 32
    global_batch_size = 8
    steps = 50
    [optimizer]
    lr = 1e-3
    [data]
    train = [ { prefix = "data/text" } ]
    [checkpoint]
    dir = "runs/docs"
"#;

/// Tables that need not be there, but have required keys where they are.
const NESTED: [(&str, &str); 2] = [
    (
        "model.rope_scaling",
        "{ rope_type = \"llama3\", factor = 8.0, low_freq_factor = 1.0, high_freq_factor = 4.0, \
         original_max_position_embeddings = 32 }",
    ),
    ("data.valid", "[ { prefix = \"data/valid\" } ]"),
];

/// Keys that stand instead of others: the key, the key that it replaces, and its value.
const INSTEAD: [(&str, &str, &str); 1] =
    [("data.stage", "data.train", "[ { train = [ { prefix = \"data/text\" } ] } ]")];

/// Defaults that depend on other keys: the key, the other key and its value, and the default that results.
const COMPUTED: [(&str, &str, &str, &str); 7] = [
    ("model.num_key_value_heads", "model.num_attention_heads", "8", "8"),
    ("model.head_dim", "model.num_attention_heads", "8", "16"),
    ("parallel.sequence_parallel", "parallel.tensor", "2", "true"),
    ("optimizer.decay_steps", "optimizer.schedule", "\"wsd\"", "5"),
    ("reached.adamw_gb_s", "reached.memory_gb_s", "1250.0", "1250.0"),
    ("reached.rmsnorm_backward_gb_s", "reached.memory_gb_s", "1250.0", "1250.0"),
    ("reached.xent_stats_gb_s", "reached.memory_gb_s", "1250.0", "1250.0"),
];

/// Keys that belong to a value of another key.
const ONLY_WITH: [(&str, &str, &str); 4] = [
    ("optimizer.decay_shape", "optimizer.schedule", "\"wsd\""),
    ("model.rope_scaling.beta_fast", "model.rope_scaling", YARN),
    ("model.rope_scaling.beta_slow", "model.rope_scaling", YARN),
    ("model.rope_scaling.truncate", "model.rope_scaling", YARN),
];

const YARN: &str = "{ rope_type = \"yarn\", factor = 8.0, original_max_position_embeddings = 32 }";

/// One node, which needs no network.
const CLUSTER: &str = r#"
    [cluster]
    name = "a cluster"
    gpus_per_node = 8
    device = "NVIDIA A100-SXM4-40GB"
    memory_gib = 39.5
    peak_tflops = 312.0
    pcie_gb_s = 31.5
    nodes = 1
    [reached]
    matmul_tflops = 230.0
    attention_tflops = 190.0
    attention_backward_tflops = 165.0
    memory_gb_s = 1300.0
    launch_us = 3.0
    ring_gb_s = 20.0
    latency_us = 15.0
    multiprocessors = 108
    [software]
    name = "a program"
"#;

/// The network, with which the number of nodes may be left out.
const NETWORK: [(&str, &str); 4] = [
    ("cluster.network_gb_s", "100.0"),
    ("reached.network_gb_s", "80.0"),
    ("reached.message_gb_s", "10.0"),
    ("reached.network_latency_us", "30.0"),
];

/// Reads a file with this text: returns its value as text, or the error.
type Read = dyn Fn(&str) -> Result<String, String>;

fn on_disk<T: std::fmt::Debug>(text: &str, load: impl Fn(&Path) -> engine::error::Result<T>) -> Result<String, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    load(file.path()).map(|value| format!("{value:?}")).map_err(|error| error.to_string())
}

fn read_config(text: &str) -> Result<String, String> {
    on_disk(text, |path| Config::read(path, &[]))
}

fn read_cluster(text: &str) -> Result<String, String> {
    let file = if text.contains("[cluster]") { text.to_string() } else { format!("{text}\n[cluster]\n") };
    on_disk(&file, Cluster::load)
}

/// A row of a table of keys.
#[derive(Debug)]
struct Row {
    /// Dotted; an element of a list is `[]`.
    key: String,
    kind: String,
    default: String,
}

/// The rows under headings that name a table, such as "## `[model]`".
fn rows(page: &str) -> Vec<Row> {
    let (mut table, mut rows) = (None, Vec::new());
    for line in page.lines() {
        if line.starts_with('#') {
            table = line.split_once("`[").and_then(|(_, rest)| rest.split_once("]`")).map(|(name, _)| name);
        }
        let (Some(table), Some(row)) = (table, line.strip_prefix("| `")) else { continue };
        let cells: Vec<&str> = row.split(" | ").collect();
        assert_eq!(cells.len(), 4, "{line}");
        let key = format!("{table}.{}", cells[0].trim_end_matches('`'));
        rows.push(Row { key, kind: cells[1].into(), default: cells[2].into() });
    }
    rows
}

/// The keys that the program lists in its error about the unknown `label`; `None` if it takes no such table there.
fn listed(read: &Read, text: &str, label: &str) -> Option<Vec<String>> {
    let error = read(text).unwrap_err();
    let list = error.split_once(&format!("{label}:"))?.1;
    let word = |piece: &str| piece.split_whitespace().last().unwrap_or_default().trim_end_matches('.').to_string();
    let keys: Vec<String> = list.replace(" and ", ", ").split(", ").map(word).collect();
    assert!(keys.len() > 1 || error.contains("known keys are "), "no list of keys in: {error}");
    Some(keys)
}

/// Every key that the program knows, dotted; `base` is a file with all that is required.
fn known(read: &Read, base: &Table) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    for table in listed(read, &format!("{NO_KEY} = 1"), NO_KEY).expect("a file has tables") {
        let set = |key: &str, to: &str| with(base, &format!("{table}.{key}"), value(to)).to_string();
        for key in listed(read, &set(NO_KEY, "1"), &format!("{table}.{NO_KEY}")).expect("a table has keys") {
            for (to, at, shown) in [("{ KEY = 1 }", "", ""), ("[ { KEY = 1 } ]", "[0]", "[]")] {
                let inner = set(&key, &to.replace("KEY", NO_KEY));
                let inner = listed(read, &inner, &format!("{table}.{key}{at}.{NO_KEY}"));
                known.extend(inner.into_iter().flatten().map(|inner| format!("{table}.{key}{shown}.{inner}")));
            }
            known.insert(format!("{table}.{key}"));
        }
    }
    known
}

fn value(text: &str) -> Value {
    let table: Table = format!("value = {text}").parse().unwrap_or_else(|e| panic!("{text}: {e}"));
    table["value"].clone()
}

/// The table that holds a dotted key, created if it is missing, and the key's last part.
fn holder<'a, 'k>(root: &'a mut Table, key: &'k str) -> (&'a mut Table, &'k str) {
    let (path, last) = key.rsplit_once('.').expect("a key stands in a table");
    let table = path.split('.').fold(root, |table, part| match part.strip_suffix("[]") {
        None => table.entry(part).or_insert_with(|| Table::new().into()).as_table_mut().unwrap(),
        Some(list) => table[list].as_array_mut().unwrap()[0].as_table_mut().unwrap(),
    });
    (table, last)
}

fn with(base: &Table, key: &str, value: Value) -> Table {
    let mut table = base.clone();
    let (inside, last) = holder(&mut table, key);
    inside.insert(last.into(), value);
    table
}

fn without(base: &Table, key: &str) -> Table {
    let mut table = base.clone();
    let (inside, last) = holder(&mut table, key);
    inside.remove(last);
    table
}

/// The word of the documents for a value's type.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "string",
        Value::Integer(_) => "integer",
        Value::Float(_) => "float",
        Value::Boolean(_) => "boolean",
        Value::Array(items) if items.iter().any(Value::is_table) => "array of tables",
        Value::Array(_) => "array",
        Value::Table(_) => "table",
        Value::Datetime(_) => "date",
    }
}

/// The complaint about a row's type or default, if it is wrong. `complete`: a file with every required key.
fn complaint(row: &Row, read: &Read, base: &Table, complete: &Table) -> Option<String> {
    let Row { key, kind: stated, default } = row;
    let load = |table: &Table| read(&table.to_string());
    let last = key.rsplit('.').next().unwrap();
    let same = |base: &Table, value: Value| {
        (load(&with(base, key, value)) != load(base)).then(|| "the default is another".into())
    };
    let literal = default.strip_prefix('`').and_then(|rest| rest.strip_suffix('`')).filter(|text| !text.contains('`'));
    let wrong: Option<String> = match (default.as_str(), literal) {
        ("required", _) => {
            let is = kind(&holder(&mut complete.clone(), key).0[last]);
            let error = load(&without(complete, key)).err().unwrap_or_else(|| "it may be left out".into());
            let is_missed = error.contains(last);
            (is != stated).then(|| format!("its type is {is}")).or_else(|| (!is_missed).then_some(error))
        }
        ("none", _) => load(&without(complete, key)).or_else(|_| load(&without(base, key))).err(),
        (_, Some(text)) => {
            let condition = ONLY_WITH.iter().find(|(of, ..)| of == key);
            let base = condition.map_or(base.clone(), |(_, other, with_it)| with(base, other, value(with_it)));
            let is = kind(&value(text));
            let empty = value(text).as_array().is_some_and(Vec::is_empty);
            same(&base, value(text)).or_else(|| (is != stated && !empty).then(|| format!("its type is {is}")))
        }
        _ => match COMPUTED.iter().find(|(of, ..)| of == key) {
            Some((_, other, set, is)) => same(&with(base, other, value(set)), value(is)),
            None => Some("this default is not in COMPUTED of the test".into()),
        },
    };
    wrong.map(|wrong| format!("{key}: {stated}, {default}: {wrong}"))
}

/// Compares a page with the keys that `read` knows.
#[track_caller]
fn hold(page: &str, read: &Read, base: &str, nested: &[(&str, &str)]) {
    let rows = rows(&text(page));
    let documented: BTreeSet<String> = rows.iter().map(|row| row.key.clone()).collect();
    assert_eq!(documented.len(), rows.len(), "{page} has a key twice");
    let base: Table = base.parse().unwrap();
    let known = known(read, &base);
    let lacks = known.difference(&documented).map(|key| format!("{page} lacks {key}"));
    none(
        lacks
            .chain(documented.difference(&known).map(|key| format!("{page} has {key}, the program has not")))
            .collect(),
    );
    assert_eq!(read(&base.to_string()).err(), None);
    let complete = nested.iter().fold(base.clone(), |table, (key, text)| with(&table, key, value(text)));
    // A key inside a list needs the list.
    let of = |row: &Row, base: &Table| {
        let inside = |list: &str| row.key.starts_with(&format!("{list}["));
        let lists = nested.iter().filter(|(list, _)| inside(list));
        let base = lists.fold(base.clone(), |table, (list, text)| with(&table, list, value(text)));
        let instead = INSTEAD.iter().filter(|(list, ..)| inside(list));
        instead.fold(base, |table, (list, other, text)| with(&without(&table, other), list, value(text)))
    };
    none(rows.iter().filter_map(|row| complaint(row, read, &of(row, &base), &of(row, &complete))).collect());
}

#[test]
fn every_key_of_a_configuration_is_documented_with_its_default() {
    hold("docs/configuration.md", &read_config, MINIMAL, &NESTED);
    // Where a page says `none`, the resolved file has no such key.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), MINIMAL).unwrap();
    let resolved: Table = Config::read(file.path(), &[]).unwrap().to_toml().parse().unwrap();
    let set = |row: &&Row| {
        row.default == "none" && !row.key.contains("[]") && {
            let (first, rest) = row.key.split_once('.').unwrap();
            let found = rest.split('.').try_fold(&resolved[first], |table, key| table.get(key));
            found.is_some()
        }
    };
    let rows = rows(&text("docs/configuration.md"));
    none(rows.iter().filter(set).map(|row| format!("{}: there is a default", row.key)).collect());
}

#[test]
fn every_key_of_a_cluster_file_is_documented_with_its_default() {
    hold("docs/planning.md", &read_cluster, CLUSTER, &NETWORK);
}

/// The comparison above is worth something only if it sees errors.
#[test]
fn a_wrong_default_and_a_wrong_type_are_seen() {
    let base: Table = MINIMAL.parse().unwrap();
    let wrong = |key: &str, kind: &str, default: &str| {
        let row = Row { key: key.into(), kind: kind.into(), default: default.into() };
        complaint(&row, &read_config, &base, &base)
    };
    assert_eq!(wrong("train.seed", "integer", "`1234`"), None);
    assert_eq!(
        wrong("train.seed", "integer", "`1235`").unwrap(),
        "train.seed: integer, `1235`: the default is another"
    );
    assert!(wrong("train.seed", "float", "`1234`").unwrap().ends_with("its type is integer"));
    assert!(wrong("train.steps", "float", "required").unwrap().ends_with("its type is integer"));
    assert_eq!(wrong("model.head_dim", "integer", "half of it"), None, "the test computes it, whatever the words");
    assert!(wrong("train.seed", "integer", "some").is_some());
}

// -- command lines --

/// The help texts of commands, by their words.
#[derive(Default)]
struct Helps(RefCell<BTreeMap<Vec<String>, Option<String>>>);

impl Helps {
    /// `None`: there is no such command.
    fn of(&self, words: &[&str]) -> Option<String> {
        let key = words.iter().map(|word| word.to_string()).collect();
        let ask = || {
            let outcome = finish(engine().args(words).arg("--help"));
            outcome.status.success().then_some(outcome.stdout)
        };
        self.0.borrow_mut().entry(key).or_insert_with(ask).clone()
    }

    /// The complaint about the words after the program's name, if they are wrong. An example must be `whole`; a mention
    /// in a sentence may leave out required flags.
    fn complaint(&self, words: &[&str], whole: bool) -> Option<String> {
        let asks = words.contains(&"--help") || words.contains(&"--version");
        // `swallow-engine COMMAND --help` is about all of them.
        let command = words.first().filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase()))?;
        let mut path = vec![*command];
        let nothing = |path: &[&str]| Some(format!("there is no `{}`", path.join(" ")));
        let Some(mut help) = self.of(&path) else { return nothing(&path) };
        while help.contains("\nCommands:\n") {
            let Some(word) = words.get(path.len()).filter(|word| !word.starts_with('-')) else { break };
            path.push(word);
            let Some(inner) = self.of(&path) else { return nothing(&path) };
            help = inner;
        }
        let flags: Vec<&str> = words.iter().filter(|word| word.starts_with('-') && word.len() > 1).copied().collect();
        let names = |text: &str| -> BTreeSet<String> {
            let parts = text.split(|c: char| c.is_whitespace() || "[],=<>.".contains(c));
            parts.filter(|part| part.starts_with('-')).map(str::to_string).collect()
        };
        let known = names(&help);
        let flag = |flag: &&str| flag.split('=').next().unwrap().to_string();
        if let Some(unknown) = flags.iter().find(|word| !known.contains(&flag(word))) {
            return Some(format!("`{}` has no {unknown}", path.join(" ")));
        }
        let usage = help.lines().find(|line| line.starts_with("Usage:")).unwrap_or_default();
        // Arguments in brackets may be left out.
        let needed = usage.split(['[', ']']).step_by(2).flat_map(names).find(|name| !flags.contains(&name.as_str()));
        needed.filter(|_| whole && !asks).map(|name| format!("`{}` wants {name}", path.join(" ")))
    }
}

/// The command lines of a Markdown text after the program's name, and whether each is a line of an example.
fn command_lines(text: &str) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for line in text.replace("\\\n", " ").lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            found.extend(after_program(line).map(|words| (words, true)));
        } else {
            let spans = line.split('`').skip(1).step_by(2);
            found.extend(
                spans.filter(|span| span.starts_with("swallow-engine ")).filter_map(after_program).map(|w| (w, false)),
            );
        }
    }
    found
}

/// The words after the last mention of the program, without a comment.
fn after_program(line: &str) -> Option<String> {
    let line = line.split(" #").next().unwrap_or_default();
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().rposition(|word| *word == "swallow-engine" || word.ends_with("/swallow-engine"))?;
    let quiet = words[at + 1..].iter().take_while(|word| !["|", ">", "<", "&&", "2>"].contains(word));
    let words: Vec<&str> = quiet.copied().collect();
    (!words.is_empty()).then(|| words.join(" "))
}

#[test]
fn every_command_line_of_the_documents_is_one() {
    let helps = Helps::default();
    let (mut complaints, mut seen) = (Vec::new(), 0);
    let mut hold = |path: &Path, line: &str, whole: bool| {
        seen += 1;
        let wrong = helps.complaint(&line.split_whitespace().collect::<Vec<_>>(), whole);
        complaints.extend(wrong.map(|wrong| format!("{}: swallow-engine {line}: {wrong}", path.display())));
    };
    for (path, text) in files("md") {
        command_lines(&text).iter().for_each(|(line, whole)| hold(&path, line, *whole));
    }
    for (path, text) in files("toml") {
        let comments = text.lines().filter_map(|line| line.trim_start().strip_prefix('#'));
        comments.filter_map(after_program).for_each(|line| hold(&path, &line, false));
    }
    none(complaints);
    assert!(seen > 60, "{seen} command lines only");
}

#[test]
fn a_wrong_command_line_is_seen() {
    let helps = Helps::default();
    let wrong = |line: &str| helps.complaint(&line.split(' ').collect::<Vec<_>>(), true);
    assert_eq!(wrong("train --config a.toml --set x=1"), None);
    assert_eq!(wrong("plan --help"), None);
    assert_eq!(wrong("data tokenise --input a").unwrap(), "there is no `data tokenise`");
    assert_eq!(wrong("train --config a.toml --sett x=1").unwrap(), "`train` has no --sett");
    assert_eq!(wrong("train --dry-run").unwrap(), "`train` wants --config");
    let text =
        "```\nmpirun -n 2 swallow-engine train \\\n  --config a  # swallow-engine\n```\nSee `swallow-engine plan --x`.";
    assert_eq!(command_lines(text), [("train --config a".into(), true), ("plan --x".into(), false)]);
}

// -- links --

/// The lines of a Markdown text outside its blocks of code.
fn unfenced(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fence && !fenced
    })
}

/// A Markdown text without its code.
fn prose(text: &str) -> String {
    let lines = unfenced(text).map(|line| line.split('`').step_by(2).collect::<Vec<_>>().join("`"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The anchors that GitHub gives the headings of a Markdown text.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let headings = text.lines().filter(|line| {
        fenced ^= line.starts_with("```");
        !fenced && line.starts_with('#')
    });
    let slug = |line: &str| -> String {
        let title = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        title.chars().filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_').collect()
    };
    headings.map(slug).collect()
}

/// Whether a link of the file at `path` leads to something that does not exist.
fn broken(path: &Path, link: &str) -> bool {
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = if file.is_empty() { path.to_path_buf() } else { path.parent().unwrap().join(file) };
    let is_page = target.extension().is_some_and(|e| e == "md");
    !target.exists() || (!anchor.is_empty() && is_page && !anchors(&text(target)).contains(anchor))
}

#[test]
fn every_link_leads_somewhere() {
    let (mut complaints, mut seen) = (Vec::new(), 0);
    for (path, text) in files("md") {
        let prose = prose(&text);
        let links = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link);
        for link in links.filter(|link| !link.contains("://")) {
            seen += 1;
            complaints.extend(broken(&path, link).then(|| format!("{}: {link}", path.display())));
        }
    }
    none(complaints);
    assert!(seen > 60, "{seen} links only");
    let here = root().join("README.md");
    assert!(broken(&here, "docs/none.md") && broken(&here, "docs/data.md#none") && !broken(&here, "docs/data.md#data"));
}

/// The source files and folders that a text names in backquotes.
fn sources(text: &str) -> impl Iterator<Item = &str> {
    let named = text.split('`').skip(1).step_by(2).flat_map(str::split_whitespace);
    let folders = ["engine/", "cuda/", "launcher/", "configs/", "benches/", "tests/", "scripts/"];
    named.filter(move |name| {
        let file = [".rs", ".cu", ".cuh", ".sh", ".py"].iter().any(|extension| name.ends_with(extension));
        (file || folders.iter().any(|folder| name.starts_with(folder))) && !name.contains(['*', '{', '<', '$', '='])
    })
}

#[test]
fn every_source_file_that_documents_name_exists() {
    let mut paths = Vec::new();
    ["rs", "cu", "cuh", "sh", "py"].iter().for_each(|extension| walk(root(), extension, &mut paths));
    let exists = |name: &str| root().join(name).exists() || paths.iter().any(|path| path.ends_with(name));
    let (mut complaints, mut seen) = (Vec::new(), 0);
    for (path, text) in files("md") {
        let text = unfenced(&text).collect::<Vec<_>>().join("\n");
        // The results of `tests/gpu.sh` and an example of a path are not in every checkout.
        for name in sources(&text).filter(|name| !["benches/results/", "foo/tests.rs"].contains(name)) {
            seen += 1;
            complaints.extend((!exists(name)).then(|| format!("{}: there is no {name}", path.display())));
        }
    }
    none(complaints);
    assert!(seen > 80, "{seen} names only");
    assert!(!exists("none.rs") && !exists("engine/src/none"));
}

// -- lists --

#[test]
fn the_readme_is_short() {
    let lines = text("README.md").lines().count();
    assert!(lines < 150, "README.md has {lines} lines; the rest belongs into docs/");
}

/// The names, and patterns of names, of environment variables in the string literals of the product's sources.
#[test]
fn every_environment_variable_is_documented() {
    let page = text("docs/environment.md");
    let mut sources = Vec::new();
    ["launcher/src", "cuda/src"].iter().for_each(|folder| walk(&root().join(folder), "rs", &mut sources));
    let prefixes = "SWALLOW_ NCCL_ OMPI_ PMI UCC_ MPIR_ XDG_ NVIDIA_ \
                    CUBLAS_ GLIBC_ CUDA_HOME CUDA_PATH CUDA_VISIBLE CUDA_FORCE CUDA_DISABLE";
    let is_name = |text: &&str| {
        let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '*');
        plain && prefixes.split(' ').any(|prefix| text.starts_with(prefix))
    };
    let mut names = BTreeSet::new();
    for source in sources {
        let code = text(source);
        let code = code.split("#[cfg(test)]").next().unwrap_or_default();
        names.extend(code.split('"').filter(is_name).map(str::to_string));
    }
    assert!(names.len() > 6, "{names:?}");
    let missing = names.iter().filter(|name| !page.contains(&format!("`{name}`")));
    none(missing.map(|name| format!("docs/environment.md lacks {name}")).collect());
}

#[test]
fn every_dependency_says_what_it_is_for() {
    let page = text("docs/dependencies.md");
    let manifest: Table = text("Cargo.toml").parse().unwrap();
    let all = manifest["workspace"]["dependencies"].as_table().unwrap();
    let foreign = all.iter().filter(|(_, value)| value.get("path").is_none()).map(|(name, _)| name);
    let missing = foreign.filter(|name| !page.contains(&format!("`{name}`")));
    none(missing.map(|name| format!("docs/dependencies.md lacks {name}")).collect());
}
