//! The rules of the source tree, checked by reading it: imports and dependencies point down, files stay short and
//! narrow, `unsafe` stays where its invariants are stated, the engine reads no environment, nothing is left half done.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use toml::Table;

/// Every crate of the workspace by its folder, with the crates of the workspace that its `[dependencies]` name. The
/// product never depends on what only tests use.
const CRATES: [(&str, &[&str]); 13] = [
    (".", &["corpus", "cuda", "data", "engine", "plan", "report", "tasks"]),
    ("engine", &[]),
    ("engine/corpus", &["data", "engine"]),
    ("engine/data", &["engine"]),
    ("engine/plan", &["engine"]),
    ("engine/report", &["engine"]),
    ("engine/tasks", &["engine"]),
    ("cuda", &["engine"]),
    ("cuda/emulator", &["cuda"]),
    ("cuda/fake_cuda", &["cuda", "emulator"]),
    ("tests/fuzz", &["corpus", "data", "engine", "plan", "report", "tasks"]),
    ("tests/campaign", &[]),
    ("tests/campaign/shim", &[]),
];

/// Crates whose `lib.rs` sorts its modules onto floors by comments `// Floor N: ...`.
const WITH_FLOORS: [&str; 1] = ["engine"];

/// Crates that read no environment variables: `launcher` does, and passes on what it read.
const WITHOUT_ENVIRONMENT: [&str; 6] =
    ["engine", "engine/corpus", "engine/data", "engine/plan", "engine/report", "engine/tasks"];

/// The files and folders in which `unsafe` is allowed; a folder ends with a slash. `ARCHITECTURE.md` gives the reasons.
const UNSAFE: [&str; 20] = [
    "engine/src/backend/",
    "engine/src/stage/params.rs",
    "engine/src/cpu/mod.rs",
    "engine/src/cpu/tiles.rs",
    "engine/src/cpu/pool.rs",
    "engine/src/cpu/simd.rs",
    "engine/src/cpu/ops/small.rs",
    "engine/src/cpu/group.rs",
    "engine/src/dry/",
    "engine/src/flight/shared.rs",
    "engine/src/mpi/",
    "cuda/src/",
    "cuda/emulator/src/",
    "cuda/emulator/tests/",
    "cuda/fake_cuda/src/",
    "cuda/fake_cuda/tests/",
    "launcher/src/library_settings.rs",
    "benches/kernels/",
    "tests/blas.rs",
    "tests/campaign/shim/src/lib.rs",
];

/// The most lines of a source file.
const LINES: usize = 600;
/// The most characters of a line.
const COLUMNS: usize = 120;

/// Extensions of source code, and of the other text whose width is checked.
const CODE: [&str; 5] = ["rs", "cu", "cuh", "h", "cpp"];
const TEXT: [&str; 4] = ["py", "sh", "toml", "md"];

/// A file of the tree: its path from the root, and its text with and without comments.
struct Source {
    path: String,
    text: String,
    code: String,
}

impl Source {
    fn has_extension(&self, extensions: &[&str]) -> bool {
        extensions.iter().any(|e| self.path.ends_with(&format!(".{e}")))
    }

    fn is_in(&self, folder: &str) -> bool {
        self.path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All source code and text, without golden data, the inputs of fuzzing, and files that are built or downloaded.
fn sources() -> Vec<Source> {
    let mut paths = Vec::new();
    walk(root(), &mut paths);
    let source = |path: String| {
        let text = std::fs::read_to_string(root().join(&path)).unwrap();
        let code = text.lines().map(|l| l.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n");
        Source { path, text, code }
    };
    let all: Vec<Source> = paths.into_iter().map(source).collect();
    assert!(all.len() > 20, "found {} sources only", all.len());
    all
}

fn walk(dir: &Path, out: &mut Vec<String>) {
    for path in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && !path.is_symlink() {
            if !name.starts_with('.') && !["target", "runs", "golden", "venv", "seeds", "found"].contains(&name) {
                walk(&path, out);
            }
        } else if path.extension().and_then(|e| e.to_str()).is_some_and(|e| CODE.contains(&e) || TEXT.contains(&e)) {
            out.push(path.strip_prefix(root()).unwrap().to_str().unwrap().into());
        }
    }
}

/// Fails with every `complaint` about a file of the tree.
#[track_caller]
fn none(complaint: impl Fn(&Source) -> Option<String>) {
    let all = sources();
    let all = all.iter().filter_map(|s| Some(format!("{}: {}", s.path, complaint(s)?))).collect::<Vec<_>>();
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn files_are_short() {
    let lines = |s: &Source| s.text.lines().count();
    none(|s| (s.has_extension(&CODE) && lines(s) > LINES).then(|| format!("{} lines, more than {LINES}", lines(s))));
}

#[test]
fn lines_are_narrow() {
    none(|s| {
        let wide: Vec<usize> = too_wide(&s.text, s.has_extension(&["md"]));
        (!wide.is_empty()).then(|| format!("wider than {COLUMNS} columns: lines {wide:?}"))
    });
}

/// The numbers of the lines that are too wide. A URL cannot be broken, nor can a row of a Markdown table.
fn too_wide(text: &str, markdown: bool) -> Vec<usize> {
    let may_be_wide = |line: &str| line.contains("://") || markdown && line.starts_with('|');
    let wide = |line: &str| line.chars().count() > COLUMNS && !may_be_wide(line);
    (1..).zip(text.lines()).filter(|(_, line)| wide(line)).map(|(number, _)| number).collect()
}

#[test]
fn unsafe_is_only_where_it_may_be() {
    let word = |s: &Source| s.code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "unsafe");
    let allowed = |path: &str| UNSAFE.iter().any(|u| if u.ends_with('/') { path.starts_with(u) } else { path == *u });
    let own = file!().replace('\\', "/");
    let all = sources();
    let all: Vec<&Source> = all.iter().filter(|s| s.has_extension(&["rs"]) && s.path != own && word(s)).collect();
    let elsewhere: Vec<&str> = all.iter().map(|s| s.path.as_str()).filter(|path| !allowed(path)).collect();
    assert!(elsewhere.is_empty(), "unsafe code in {elsewhere:?}");
    let unused: Vec<&&str> = UNSAFE.iter().filter(|u| !all.iter().any(|s| s.path.starts_with(**u))).collect();
    assert!(unused.is_empty(), "no unsafe code in {unused:?} any more");
}

#[test]
fn the_engine_reads_no_environment() {
    let reads = |s: &Source| ["env::var", "env::args", "option_env!"].into_iter().find(|w| s.code.contains(w));
    let bound = |s: &Source| WITHOUT_ENVIRONMENT.iter().any(|folder| s.is_in(&format!("{folder}/src")));
    none(|s| reads(s).filter(|_| bound(s)).map(String::from));
}

#[test]
fn nothing_is_left_half_done() {
    let words = ["todo!(", "unimplemented!(", "dbg!(", "#[ignore", "allow(dead_code)"];
    none(|s| {
        words
            .into_iter()
            .find(|w| s.has_extension(&["rs"]) && s.path != file!() && s.code.contains(w))
            .map(String::from)
    });
}

#[test]
fn crates_depend_on_those_that_they_may() {
    let manifest = |folder: &str| -> Table {
        let path = root().join(folder).join("Cargo.toml");
        std::fs::read_to_string(&path).unwrap().parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let workspace = &manifest(".")["workspace"];
    let local: BTreeSet<&String> = workspace["dependencies"]
        .as_table()
        .unwrap()
        .iter()
        .filter(|(_, value)| value.get("path").is_some())
        .map(|(name, _)| name)
        .collect();
    let members = workspace["members"].as_array().unwrap().iter().map(|member| member.as_str().unwrap());
    let members: BTreeSet<&str> = members.chain(["."]).collect();
    assert_eq!(BTreeSet::from(CRATES.map(|(folder, _)| folder)), members, "CRATES has the members of the workspace");
    for (folder, may_use) in CRATES {
        let manifest = manifest(folder);
        let uses = manifest["dependencies"].as_table().unwrap().keys().filter(|name| local.contains(name));
        let uses: BTreeSet<&str> = uses.map(String::as_str).collect();
        assert_eq!(uses, may_use.iter().copied().collect(), "what {folder}/Cargo.toml uses, and what CRATES allows");
    }
}

#[test]
fn imports_point_down_the_floors() {
    let all = sources();
    for folder in WITH_FLOORS {
        let src = format!("{folder}/src/");
        let files = || all.iter().filter_map(|s| Some((s.path.strip_prefix(&src)?, s.code.as_str())));
        let lib = std::fs::read_to_string(root().join(&src).join("lib.rs")).unwrap();
        let floors = floors(&lib);
        let wrong = upward(&floors, &imports(files()));
        assert!(wrong.is_empty(), "{folder}:\n{}", wrong.join("\n"));
    }
}

/// The checks are worth something only if they see violations.
#[test]
fn an_upward_import_and_a_cycle_are_found() {
    let floors = floors("// Floor 0: numbers\npub mod a;\npub mod b;\n// Floor 1: more\npub mod c;\n");
    let wrong = |files: &[(&str, &str)]| upward(&floors, &imports(files.iter().copied()));
    assert!(wrong(&[("a.rs", "use crate::b::X;"), ("c/d.rs", "use crate::{a::{Y, b}, b};")]).is_empty());
    assert_eq!(wrong(&[("a/x.rs", "let x = crate::c::f();")]), ["a (floor 0) must not import c (floor 1)"]);
    assert_eq!(wrong(&[("a.rs", "use crate::{\n    b::X,\n    c,\n};")]), ["a (floor 0) must not import c (floor 1)"]);
    assert_eq!(wrong(&[("a.rs", "use crate::b;"), ("b.rs", "use crate::a;")]), ["a and b import each other"]);
    assert_eq!(wrong(&[("a.rs", "use crate::z;")]), ["a or z, which it imports, is on no floor of lib.rs"]);
    assert!(
        wrong(&[("a.rs", "#[cfg(test)]\nmod tests { use crate::c; }"), ("a/tests.rs", "use crate::c;")]).is_empty()
    );
}

#[test]
fn a_wide_line_is_found() {
    let wide = "x".repeat(COLUMNS + 1);
    let text = format!("{}\n{wide}\n| {wide} |\nhttps://{wide}\n{}\n", &wide[1..], "語".repeat(COLUMNS));
    assert_eq!(too_wide(&text, false), [2, 3]);
    assert_eq!(too_wide(&text, true), [2]);
}

/// The floor of each module, from the comments of `lib.rs`.
fn floors(lib: &str) -> BTreeMap<&str, usize> {
    let (mut floor, mut out) = (None, BTreeMap::new());
    for line in lib.lines() {
        if let Some(rest) = line.strip_prefix("// Floor ") {
            floor = Some(rest[..1].parse().unwrap());
        } else if let Some(name) = line.strip_prefix("pub mod ").and_then(|l| l.strip_suffix(';')) {
            out.insert(name, floor.unwrap_or_else(|| panic!("{name} stands on no floor")));
        }
    }
    out
}

/// Pairs of a module and one that it imports, tests left out.
fn imports<'a>(files: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for (path, code) in files {
        let module = path.split(['/', '.']).next().unwrap();
        if module == "lib" || path.ends_with("tests.rs") || path.contains("/tests/") {
            continue;
        }
        let code = code.split("#[cfg(test)]\nmod tests").next().unwrap();
        for (at, _) in code.match_indices("crate::") {
            out.extend(heads(&code[at + "crate::".len()..]).into_iter().map(|head| (module.to_string(), head)));
        }
    }
    out.retain(|(from, to)| from != to);
    out.sort();
    out.dedup();
    out
}

/// The first word of `a::b`, or of each part of `{a::b, c::{d, e}}`.
fn heads(path: &str) -> Vec<String> {
    let word = |s: &str| s.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(list) = path.strip_prefix('{') else { return vec![word(path)] };
    let (mut depth, mut out) = (0, vec![word(list)]);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => out.push(word(&list[at + 1..])),
            _ => {}
        }
    }
    out.retain(|w| !w.is_empty());
    out
}

/// The violations of this rule: a module may import from lower floors, and from its own floor if it is not imported
/// back.
fn upward(floors: &BTreeMap<&str, usize>, imports: &[(String, String)]) -> Vec<String> {
    let mut out = Vec::new();
    for (from, to) in imports {
        let (Some(low), Some(high)) = (floors.get(from.as_str()), floors.get(to.as_str())) else {
            out.push(format!("{from} or {to}, which it imports, is on no floor of lib.rs"));
            continue;
        };
        if high > low {
            out.push(format!("{from} (floor {low}) must not import {to} (floor {high})"));
        } else if from < to && imports.contains(&(to.clone(), from.clone())) {
            out.push(format!("{from} and {to} import each other"));
        }
    }
    out
}
