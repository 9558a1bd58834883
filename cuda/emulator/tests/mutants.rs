//! Bugs that are planted into the kernels, one at a time: each must make a test fail. `mutants.toml` lists them.
//!
//! A mutant is a kernel's file with one passage changed. It is compiled with the emulator to a library of its own, and
//! this program runs its tests again with the kernels of that library.

use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

const FOLDER: &str = env!("CARGO_MANIFEST_DIR");
/// A mutant that runs for so long never ends.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutant: Vec<Mutant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    /// What is wrong.
    bug: String,
    /// The file that is changed, and what is compiled with it where that is a header.
    file: String,
    kernels: Option<Vec<String>>,
    /// Stands once in the file.
    find: String,
    replace: String,
    /// The tests that must see it: the beginning of their names.
    tests: String,
    /// Why no test can see it.
    unseen: Option<String>,
}

#[test]
fn each_planted_bug_is_seen() {
    if std::env::var_os("EMULATED_KERNELS").is_some() {
        return;
    }
    let text = std::fs::read_to_string(Path::new(FOLDER).join("mutants.toml")).unwrap();
    let List { mutant: mutants } = toml::from_str(&text).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let workshop = Workshop::open(dir.path());
    workshop.try_without_a_bug();
    let next = Mutex::new(mutants.iter().enumerate());
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|s| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            s.spawn(|| {
                while let Some((n, mutant)) = { next.lock().unwrap().next() } {
                    let seen = workshop.try_out(n, mutant);
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
    enough(&mutants);
}

/// At least 40, in every file of kernels, and 95 of 100 seen.
fn enough(mutants: &[Mutant]) {
    let seen = mutants.iter().filter(|m| m.unseen.is_none()).count();
    assert!(mutants.len() >= 40 && seen * 100 >= mutants.len() * 95, "{seen} of {} are seen", mutants.len());
    let files = mutants.iter().map(|m| m.file.as_str()).collect::<BTreeSet<_>>();
    let missing = cuda::kernels::FILES.iter().filter(|f| !files.contains(f.name)).map(|f| f.name);
    assert_eq!(missing.collect::<Vec<_>>(), [""; 0], "no bug is planted there");
}

/// Where mutants are compiled: the emulator's objects are made once.
struct Workshop<'a> {
    dir: &'a Path,
    objects: Vec<PathBuf>,
}

impl<'a> Workshop<'a> {
    fn open(dir: &'a Path) -> Self {
        let sources = files(&Path::new(FOLDER).join("runtime"), "cpp");
        let object = |source: &PathBuf| dir.join(source.with_extension("o").file_name().unwrap());
        let objects: Vec<_> = sources.iter().map(object).collect();
        let mut running = Vec::new();
        for (source, object) in sources.iter().zip(&objects) {
            running.push(compiler(dir).arg("-O2").arg("-c").arg(source).arg("-o").arg(object).spawn().unwrap());
        }
        assert!(running.into_iter().all(|mut c| c.wait().unwrap().success()), "the emulator does not compile");
        Workshop { dir, objects }
    }

    /// Whether a test fails with the mutant.
    fn try_out(&self, n: usize, mutant: &Mutant) -> bool {
        let folder = self.copy_of_kernels(&n.to_string());
        let file = folder.join(&mutant.file);
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text.matches(&mutant.find).count(), 1, "{}: {:?}", mutant.file, mutant.find);
        std::fs::write(&file, text.replace(&mutant.find, &mutant.replace)).unwrap();
        let own = std::slice::from_ref(&mutant.file);
        let sources = mutant.kernels.as_deref().unwrap_or(own);
        fails(&self.library(&folder, sources.iter().map(|f| folder.join(f))), &mutant.tests)
    }

    /// What follows means something only if a library of unchanged kernels passes.
    fn try_without_a_bug(&self) {
        let folder = self.copy_of_kernels("sound");
        let library = self.library(&folder, ["rmsnorm.cu", "elementwise.cu"].map(|f| folder.join(f)).into_iter());
        assert!(!fails(&library, "norm::") && !fails(&library, "pointwise::"), "kernels without a bug fail");
    }

    /// Headers are looked for beside the file first, so all of them must be there.
    fn copy_of_kernels(&self, name: &str) -> PathBuf {
        let (from, to) = (Path::new(FOLDER).join("../kernels"), self.dir.join(name));
        std::fs::create_dir(&to).unwrap();
        for path in files(&from, "cuh").iter().chain(&files(&from, "cu")) {
            std::fs::copy(path, to.join(path.file_name().unwrap())).unwrap();
        }
        to
    }

    fn library(&self, folder: &Path, sources: impl Iterator<Item = PathBuf>) -> PathBuf {
        let library = folder.join("kernels.so");
        let mut build = compiler(folder);
        build.args(["-O1", "-shared", "-Wl,-Bsymbolic"]).args(sources);
        build.args(["-xnone"]).args(&self.objects).arg("-o").arg(&library);
        let built = build.output().unwrap();
        assert!(built.status.success(), "{}", text_of(&built));
        library
    }
}

/// The host's compiler as `build.rs` calls it, for a shared library.
fn compiler(folder: &Path) -> Command {
    let mut build = cc::Build::new();
    let host = concat!(env!("CARGO_MANIFEST_DIR"), "/runtime");
    build.cpp(true).std("c++20").opt_level(1).pic(true).cargo_metadata(false).define("EMULATOR", None);
    build.include(host).include(folder).flag("-ffp-contract=off").flag("-w");
    build.target(TARGET).host(TARGET).out_dir(folder);
    let mut command = build.get_compiler().to_command();
    command.arg("-xc++");
    command
}

/// What this program was compiled for, as `build.rs` was told.
const TARGET: &str = env!("EMULATOR_TARGET");

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path());
    all.filter(|f| f.extension().is_some_and(|e| e == extension)).collect()
}

/// Runs these tests with the library's kernels. A crash and a run without end are failures too.
fn fails(library: &Path, tests: &str) -> bool {
    let mut run = Command::new(std::env::current_exe().unwrap());
    run.arg(tests).arg("--test-threads=1").env("EMULATED_KERNELS", library).env("KERNELS_ON", "emulator");
    let mut child = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let end = Instant::now() + PATIENCE;
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

fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
