//! The rules of the house, read off the sources: imports point down the floors, files stay short, `unsafe` stays
//! where its invariants are stated, nothing reads the environment, nothing is left half done.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where `unsafe` may stand; a folder ends with a slash. `ARCHITECTURE.md` says why each does.
const UNSAFE: [&str; 18] = [
    "engine/src/backend/",
    "engine/src/stage/params.rs",
    "engine/src/cpu/mod.rs",
    "engine/src/cpu/tiles.rs",
    "engine/src/cpu/pool.rs",
    "engine/src/cpu/simd.rs",
    "engine/src/cpu/ops/small.rs",
    "engine/src/cpu/group.rs",
    "engine/src/dry/",
    "engine/src/mpi/",
    "engine/data/src/",
    "cuda/src/",
    "cuda/emulator/src/",
    "cuda/emulator/tests/",
    "cuda/fake_cuda/src/",
    "cuda/fake_cuda/tests/",
    "benches/kernels/",
    "tests/blas.rs",
];

/// A source file: its path from the root, and its text without comments.
struct Source {
    path: String,
    code: String,
    lines: usize,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["engine", "launcher", "cuda", "tests", "benches"] {
        walk(&root.join(folder), &mut files);
    }
    let source = |file: PathBuf| {
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.lines().map(|l| l.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n");
        Source { path: file.strip_prefix(root).unwrap().to_str().unwrap().into(), code, lines: text.lines().count() }
    };
    files.into_iter().map(source).collect()
}

fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
    for path in std::fs::read_dir(dir).into_iter().flatten().map(|e| e.unwrap().path()) {
        if path.is_dir() {
            walk(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// What `complaint` says of every source, which must be nothing.
#[track_caller]
fn none(complaint: impl Fn(&Source) -> Option<String>) {
    let sources = sources();
    assert!(sources.len() > 20, "found {} sources only", sources.len());
    let all = sources.iter().filter_map(|s| Some(format!("{}: {}", s.path, complaint(s)?))).collect::<Vec<_>>();
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn files_are_short() {
    none(|s| (s.lines > 400).then(|| format!("{} lines, more than 400", s.lines)));
}

#[test]
fn unsafe_stays_in_its_places() {
    let word = |s: &Source| s.code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "unsafe");
    let allowed = |path: &str| UNSAFE.iter().any(|u| if u.ends_with('/') { path.starts_with(u) } else { path == *u });
    let own = file!().replace('\\', "/");
    none(|s| (s.path != own && !allowed(&s.path) && word(s)).then(|| "unsafe code".into()));
    let all = sources();
    let idle = UNSAFE.iter().filter(|u| !all.iter().any(|s| s.path.starts_with(**u) && word(s))).collect::<Vec<_>>();
    assert!(idle.is_empty(), "no unsafe code in {idle:?} any more");
}

#[test]
fn the_engine_reads_no_environment() {
    let reads = |s: &Source| ["env::var", "env::args", "option_env!"].into_iter().find(|w| s.code.contains(w));
    none(|s| reads(s).filter(|_| s.path.starts_with("engine/src/")).map(String::from));
}

#[test]
fn nothing_is_left_half_done() {
    let words = ["todo!(", "unimplemented!(", "dbg!(", "#[ignore", "allow(dead_code)"];
    none(|s| words.into_iter().find(|w| s.path != file!() && s.code.contains(w)).map(String::from));
}

#[test]
fn imports_point_down_the_floors() {
    let lib = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("engine/src/lib.rs")).unwrap();
    let floors = floors(&lib);
    let all = sources();
    let engine = all.iter().filter_map(|s| Some((s.path.strip_prefix("engine/src/")?, s.code.as_str())));
    let wrong = upward(&floors, &imports(engine));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The checks above are worth something only if they see what is wrong.
#[test]
fn an_upward_import_and_a_circle_are_seen() {
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

/// module -> floor, from the comments of `lib.rs`.
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

/// (module, module that it imports), of code that is not a test.
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

/// The first words of `a::b` or of each part of `{a::b, c::{d, e}}`.
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

/// A module may import from lower floors, and from its own where the other does not import it back.
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
