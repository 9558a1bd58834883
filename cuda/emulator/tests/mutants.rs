//! Bugs that are planted into the kernels, one at a time: each must make a test fail. `mutants.toml` lists them.
//!
//! A mutant is a kernel's file with one passage changed. It is compiled with the emulator to a shared library, and this
//! program runs its tests again with the kernels of that library. Libraries are kept by the hash of everything that
//! they are compiled from, and results by the hash of the library and of this program, so that only what changed runs
//! again.

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

const FOLDER: &str = env!("CARGO_MANIFEST_DIR");
/// A mutant that runs for longer never ends.
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutant: Vec<Mutant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    /// A description of the bug.
    bug: String,
    /// The file that is changed.
    file: String,
    /// The files that are compiled where `file` is a header.
    kernels: Option<Vec<String>>,
    /// A passage that the file contains once.
    find: String,
    replace: String,
    /// The tests that must see it: the beginning of their names.
    tests: String,
    /// Why no test can see it.
    unseen: Option<String>,
}

impl Mutant {
    /// The files that are compiled.
    fn sources(&self) -> &[String] {
        self.kernels.as_deref().unwrap_or(std::slice::from_ref(&self.file))
    }
}

fn mutants() -> Vec<Mutant> {
    let text = std::fs::read_to_string(Path::new(FOLDER).join("mutants.toml")).unwrap();
    let List { mutant } = toml::from_str(&text).unwrap();
    mutant
}

/// There are at least 40, some in every file of kernels, and 95 of 100 are seen; each can be planted.
#[test]
fn the_list_covers_every_file_of_kernels() {
    let (mutants, kernels) = (mutants(), Kernels::read());
    let seen = mutants.iter().filter(|m| m.unseen.is_none()).count();
    assert!(mutants.len() >= 40 && seen * 100 >= mutants.len() * 95, "{seen} of {} are seen", mutants.len());
    let files = mutants.iter().map(|m| m.file.as_str()).collect::<BTreeSet<_>>();
    let missing = cuda::kernels::FILES.iter().filter(|f| !files.contains(f.name)).map(|f| f.name);
    assert_eq!(missing.collect::<Vec<_>>(), [""; 0], "no bug is planted there");
    mutants.iter().for_each(|mutant| _ = kernels.with(mutant));
    // No test would run for a bug whose test was renamed.
    let list = Command::new(std::env::current_exe().unwrap()).arg("--list").output().unwrap();
    let names = String::from_utf8(list.stdout).unwrap();
    let gone =
        mutants.iter().map(|mutant| &mutant.tests).filter(|tests| !names.lines().any(|name| name.contains(*tests)));
    assert_eq!(gone.collect::<Vec<_>>(), [""; 0], "there are no such tests");
}

mod campaign {
    use super::*;

    #[test]
    fn each_planted_bug_is_seen() {
        if is_inside() {
            return;
        }
        let (mutants, kernels, workshop) = (mutants(), Kernels::read(), Workshop::open());
        workshop.objects();
        workshop.standard_headers();
        // The results mean something only if a library of unchanged kernels passes.
        let library = workshop.library(&kernels, &["rmsnorm.cu", "elementwise.cu"].map(String::from));
        assert!(!fails(&library, "norm::") && !fails(&library, "pointwise::"), "kernels without a bug fail");
        let next = Mutex::new(mutants.iter());
        let wrong = Mutex::new(Vec::new());
        std::thread::scope(|s| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                s.spawn(|| {
                    while let Some(mutant) = { next.lock().unwrap().next() } {
                        let seen = workshop.is_seen(&kernels, mutant);
                        println!("{} {}: {}", if seen { "seen  " } else { "UNSEEN" }, mutant.file, mutant.bug);
                        if seen == mutant.unseen.is_some() {
                            wrong.lock().unwrap().push(format!("{}: {} (seen: {seen})", mutant.file, mutant.bug));
                        }
                    }
                });
            }
        });
        let wrong = wrong.into_inner().unwrap();
        assert!(wrong.is_empty(), "mutants.toml says otherwise of\n{}", wrong.join("\n"));
        workshop.forget_the_unused();
    }
}

/// Whether this process runs the tests with the kernels of a mutant.
fn is_inside() -> bool {
    std::env::var_os("EMULATED_KERNELS").is_some()
}

/// The texts of all kernels and headers, by the names of their files.
#[derive(Clone, Hash)]
struct Kernels(BTreeMap<String, String>);

impl Kernels {
    fn read() -> Self {
        let folder = Path::new(FOLDER).join("../kernels");
        let files = [files(&folder, "cuh"), files(&folder, "cu")].concat();
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_string();
        Kernels(files.iter().map(|path| (name(path), std::fs::read_to_string(path).unwrap())).collect())
    }

    /// The texts with the bug of a mutant.
    fn with(&self, mutant: &Mutant) -> Self {
        let mut changed = self.clone();
        let text = changed.0.get_mut(&mutant.file).unwrap_or_else(|| panic!("there is no {}", mutant.file));
        assert_eq!(text.matches(&mutant.find).count(), 1, "{}: {:?}", mutant.file, mutant.find);
        *text = text.replace(&mutant.find, &mutant.replace);
        changed
    }

    /// The headers, and these files.
    fn only(&self, sources: &[String]) -> Self {
        let wanted = |name: &String| name.ends_with(".cuh") || sources.contains(name);
        Kernels(self.0.iter().filter(|(name, _)| wanted(name)).map(|(n, text)| (n.clone(), text.clone())).collect())
    }
}

/// The folder in which libraries are compiled, and kept with their results.
struct Workshop {
    dir: PathBuf,
    /// The hash of everything that all libraries have in common: the compiler, its flags, and the emulator.
    common: u64,
    /// The hash of this program.
    tests: u64,
    /// The files that this run used.
    used: Mutex<BTreeSet<PathBuf>>,
}

impl Workshop {
    fn open() -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutants");
        std::fs::create_dir_all(&dir).unwrap();
        let runtime = Path::new(FOLDER).join("runtime");
        let texts = [files(&runtime, "h"), files(&runtime, "cpp")].concat();
        let texts: Vec<String> = texts.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
        let version = compiler(&[]).arg("--version").output().unwrap().stdout;
        Workshop {
            dir,
            common: hash(&(env!("EMULATOR_COMPILER"), version, texts)),
            tests: hash(&std::fs::read(std::env::current_exe().unwrap()).unwrap()),
            used: Mutex::default(),
        }
    }

    /// Whether a test fails with the mutant.
    fn is_seen(&self, kernels: &Kernels, mutant: &Mutant) -> bool {
        let library = self.library(&kernels.with(mutant), mutant.sources());
        let key = hash(&(&library, &mutant.tests, self.tests));
        let result = self.kept(&format!("{key:016x}"), |to| {
            std::fs::write(to, if fails(&library, &mutant.tests) { "seen" } else { "unseen" }).unwrap();
        });
        std::fs::read_to_string(result).unwrap() == "seen"
    }

    /// A shared library of the emulator and of these kernels.
    fn library(&self, kernels: &Kernels, sources: &[String]) -> PathBuf {
        let kernels = kernels.only(sources);
        let key = hash(&(self.common, &kernels, sources));
        self.kept(&format!("{key:016x}.so"), |to| {
            let folder = tempfile::tempdir().unwrap();
            kernels.0.iter().for_each(|(name, text)| std::fs::write(folder.path().join(name), text).unwrap());
            let mut build = compiler(&[folder.path()]);
            build.args(["-shared", "-Wl,-Bsymbolic", "-o"]).arg(to).arg("-include").arg(self.standard_headers());
            build.args(sources.iter().map(|name| folder.path().join(name)));
            compiled(build.arg("-xnone").args(self.objects()));
        })
    }

    /// A header of the standard headers that the emulator includes, beside which it lies precompiled.
    fn standard_headers(&self) -> PathBuf {
        let name = format!("std-{:016x}.h", self.common);
        let header = self.kept(&name, |to| {
            let texts = files(&Path::new(FOLDER).join("runtime"), "h").into_iter().map(std::fs::read_to_string);
            let texts: Vec<String> = texts.map(|text| text.unwrap()).collect();
            let lines: BTreeSet<&str> = texts.iter().flat_map(|text| text.lines()).collect();
            let includes: Vec<&str> = lines.into_iter().filter(|line| line.starts_with("#include <")).collect();
            std::fs::write(to, includes.join("\n") + "\n").unwrap();
        });
        self.kept(&format!("{name}.gch"), |to| {
            compiled(compiler(&[]).args(["-x", "c++-header", "-c"]).arg(&header).arg("-o").arg(to));
        });
        header
    }

    /// The emulator, compiled once.
    fn objects(&self) -> Vec<PathBuf> {
        let object = |source: &PathBuf| {
            let name = source.file_stem().unwrap().to_str().unwrap();
            self.kept(&format!("{name}-{:016x}.o", self.common), |to| {
                compiled(compiler(&[]).args(["-O2", "-c"]).arg(source).arg("-o").arg(to));
            })
        };
        files(&Path::new(FOLDER).join("runtime"), "cpp").iter().map(object).collect()
    }

    /// The file of this name, which `make` makes if it is not there. Other threads and processes see it complete.
    fn kept(&self, name: &str, make: impl FnOnce(&Path)) -> PathBuf {
        let path = self.dir.join(name);
        self.used.lock().unwrap().insert(path.clone());
        if !path.exists() {
            let folder = tempfile::tempdir_in(&self.dir).unwrap();
            let new = folder.path().join(name);
            make(&new);
            std::fs::rename(new, &path).unwrap();
        }
        path
    }

    /// Deletes the files of earlier runs that this one did not use.
    fn forget_the_unused(&self) {
        let used = self.used.lock().unwrap();
        let all = std::fs::read_dir(&self.dir).unwrap().map(|f| f.unwrap().path()).filter(|path| path.is_file());
        // Another run may have deleted the same file.
        all.filter(|path| !used.contains(path)).for_each(|path| _ = std::fs::remove_file(path));
    }
}

fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// The host's compiler as `build.rs` calls it for shared libraries, with folders of headers before the emulator's.
fn compiler(folders: &[&Path]) -> Command {
    let mut words = env!("EMULATOR_COMPILER").split('\t');
    let mut command = Command::new(words.next().unwrap());
    command.args(words).arg("-w");
    folders.iter().for_each(|folder| _ = command.arg("-I").arg(folder));
    command.arg("-I").arg(Path::new(FOLDER).join("runtime")).arg("-I").arg(Path::new(FOLDER).join("../kernels"));
    command
}

fn compiled(command: &mut Command) {
    let Output { status, stderr, .. } = command.output().unwrap();
    assert!(status.success(), "{command:?}\n{}", String::from_utf8_lossy(&stderr));
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path());
    let mut files: Vec<PathBuf> = all.filter(|f| f.extension().is_some_and(|e| e == extension)).collect();
    files.sort();
    files
}

/// Runs these tests with the library's kernels. A crash counts as a failure, and so does a run without end.
fn fails(library: &Path, tests: &str) -> bool {
    let mut run = Command::new(std::env::current_exe().unwrap());
    run.arg(tests).arg("--test-threads=1").env("EMULATED_KERNELS", library).env("KERNELS_ON", "emulator");
    let mut child = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        match child.try_wait().unwrap() {
            Some(status) => return !status.success(),
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    true
}
