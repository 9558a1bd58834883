//! The CUDA kernels through NVIDIA's compiler, which needs no device: all compile, none spills, none needs more
//! resources than the table in `cuda/README.md` says; packs of kernels and their cache.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use cuda::arch::Arch;
use cuda::compile::{self, Manifest, Nvrtc};
use cuda::kernels::{FILES, File, files_for};
use cuda::machine::Target;
use cuda::search::Search;

use crate::common::{engine, finish};

/// A pack of all kernels, built once, and the output of the build; `None`, with a message, where there is no compiler.
fn pack() -> Option<&'static (PathBuf, String)> {
    static PACK: OnceLock<Option<(PathBuf, String)>> = OnceLock::new();
    let pack = PACK.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
        let outcome = finish(engine().args(["kernels", "build", "--arch", "sm_80,sm_90a", "--out"]).arg(&dir));
        let none = outcome.status.code() == Some(2) && outcome.stderr.contains("there is no NVRTC");
        if none { None } else { Some((dir, outcome.succeeded().stdout)) }
    });
    if pack.is_none() {
        note("the CUDA kernels are NOT CHECKED: `pip install nvidia-cuda-nvrtc==13.0.88`, or see scripts/nvrtc.sh");
    }
    pack.as_ref()
}

/// Prints although the test passes, which hides the output of `eprintln!`.
pub fn note(what: &str) {
    let line = format!("\n{}: {what}\n", std::thread::current().name().unwrap_or("kernels"));
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

fn copied(pack: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(pack).unwrap().map(|file| file.unwrap()) {
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

fn manifest(pack: &Path) -> Manifest {
    serde_json::from_slice(&std::fs::read(pack.join("manifest.json")).unwrap()).unwrap()
}

/// The rows of a text's table of kernels, by kernel; the header is one of them.
fn lines(text: &str) -> BTreeMap<String, Vec<String>> {
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_string()).collect::<Vec<_>>();
    let table = text.lines().skip_while(|line| !line.starts_with("| kernel")).take_while(|line| line.starts_with('|'));
    table.map(|line| (cells(line)[0].clone(), cells(line))).filter(|(name, _)| !name.starts_with("---")).collect()
}

/// The changes that the `stated` rows need to agree with the `built` ones.
fn complaints(built: &BTreeMap<String, Vec<String>>, stated: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    // Columns: name, threads and shared memory of a block; then, for each architecture, registers and resident threads.
    let worse = |column: usize, built: &str, stated: &str| match (built.parse::<u32>(), stated.parse::<u32>()) {
        (Ok(built), Ok(stated)) if column > 2 && column % 2 == 1 => built > stated,
        (Ok(built), Ok(stated)) if column > 2 => built < stated,
        _ => built != stated,
    };
    let mut out = Vec::new();
    for (name, line) in built {
        let should = format!("| {} |", line.join(" | "));
        match stated.get(name) {
            None => out.push(format!("there is no line for {name}; add\n{should}")),
            Some(said) if said.len() != line.len() || (0..line.len()).any(|i| worse(i, &line[i], &said[i])) => {
                out.push(format!("{name} is worse than stated; if that is meant, write\n{should}"));
            }
            Some(_) => {}
        }
    }
    let gone = stated.keys().filter(|name| !built.contains_key(*name));
    out.extend(gone.map(|name| format!("there is no kernel {name} any more; take its line away")));
    out
}

/// The comparison itself needs no compiler.
#[test]
fn a_regression_is_named_with_the_row_to_write() {
    let table = |rows: &[&str]| {
        let head = "| kernel | block | shared, bytes | sm_80 | threads on sm_80 |\n|---|---|---|---|---|";
        lines(&format!("Registers\n\n{head}\n{}\n\n| kernel | of another table |", rows.join("\n")))
    };
    let stated = table(&["| a | 256 | 0 | 32 | 2048 |", "| b | 32 | 16 | 21 | 1024 |"]);
    assert_eq!(stated.len(), 3);
    let said = |rows: &[&str]| complaints(&table(rows), &stated);
    let b = "| b | 32 | 16 | 21 | 1024 |";
    for better in ["| a | 256 | 0 | 32 | 2048 |", "| a   |  256 | 0 | 30 | 2048 |", "| a | 256 | 0 | 31 | 2304 |"] {
        assert!(said(&[better, b]).is_empty(), "{better}");
    }
    for worse in [
        "| a | 256 | 0 | 33 | 2048 |",
        "| a | 256 | 0 | 32 | 1536 |",
        "| a | 128 | 0 | 32 | 2048 |",
        "| a | 256 | 64 | 32 | 2048 |",
        "| a | 256 | 0 | 32 + 8 bytes spilled | 2048 |",
    ] {
        let said = said(&[worse, b]);
        assert!(said.len() == 1 && said[0].contains(worse), "{said:?}");
    }
    assert!(said(&[b])[0].contains("no kernel a any more"));
    assert!(said(&["| a | 256 | 0 | 32 | 2048 |", b, "| c | 1 | 2 | 3 | 4 |"])[0].contains("| c | 1 | 2 | 3 | 4 |"));
}

/// A kernel that does not compile is reported with its file and line, without a crash.
#[test]
fn an_error_names_file_and_line_and_an_architecture_may_be_too_new() {
    let Ok(nvrtc) = Nvrtc::find(&Search::of(|name| std::env::var_os(name)), None) else { return };
    let text = "#include \"prim.cuh\"\nstruct A { u32 n; };\nKERNEL(wrong, A, 32) { nothing(a.n); }\n";
    let file = File { name: "wrong.cu", text, kernels: &["wrong"], only: None };
    let (known, future) = (Arch::named("sm_80").unwrap(), Arch::of((99, 0)).unwrap());
    let said = |arch| nvrtc.compile(&file, arch).err().unwrap().to_string();
    for needle in ["wrong.cu(3): error", "sm_80", "bug of this program"] {
        assert!(said(known).contains(needle), "{}", said(known));
    }
    assert!(said(future).starts_with("sm_990: NVRTC ") && said(future).contains("install a newer"), "{}", said(future));
}

/// `kernels check` for an architecture, on a machine where only `vars` are set.
fn check(arch: &str, vars: &[(&str, &Path)]) -> Command {
    let mut command = engine();
    command.args(["kernels", "check", "--arch", arch]).env_clear().envs(vars.iter().copied());
    command
}

mod exhaustive {
    use super::*;

    #[test]
    fn no_kernel_needs_more_than_the_table_says() {
        let Some((pack, printed)) = pack() else { return };
        let built = manifest(pack);
        let needs = || built.cubins.iter().flat_map(|cubin| cubin.kernels.iter().map(|kernel| (&cubin.arch, kernel)));
        for file in FILES {
            for name in file.kernels {
                assert!(needs().any(|(_, kernel)| kernel.kernel == *name), "{name} was not compiled");
            }
        }
        let local = needs().filter(|(_, needs)| needs.spill_stores + needs.spill_loads + needs.stack > 0);
        let local = local.map(|(arch, needs)| format!("{arch}: {needs:?}")).collect::<Vec<_>>();
        assert!(local.is_empty(), "registers spilled, or arrays in local memory:\n{}", local.join("\n"));
        // setmaxnreg redistributes the registers of the launch: with fewer, warpgroups would wait for each other for
        // ever.
        for (_, kernel) in needs().filter(|(_, kernel)| kernel.kernel.contains("_sm90_")) {
            let threads = cuda::ops::largest(&kernel.kernel).unwrap().block;
            assert!(threads != 384 || threads * kernel.registers >= 128 * 24 + 256 * 240, "{kernel:?}");
        }
        for cubin in &built.cubins {
            assert!(cubin.warnings.is_empty(), "{} for {}: {:?}", cubin.file, cubin.arch, cubin.warnings);
        }

        let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/README.md")).unwrap();
        if !readme.contains(&format!("NVRTC {}.", built.compiler)) {
            return note(&format!("cuda/README.md's table is not of NVRTC {} and was NOT CHECKED", built.compiler));
        }
        let wrong = complaints(&lines(printed), &lines(&readme));
        assert!(wrong.is_empty(), "cuda/README.md:\n{}", wrong.join("\n"));
    }

    #[test]
    fn a_pack_replaces_the_compiler() {
        let Some((built, _)) = pack() else { return };
        let tmp = tempfile::tempdir().unwrap();
        let (pack, path) = (tmp.path(), tmp.path().to_str().unwrap());
        copied(built, pack);
        let named = [("SWALLOW_KERNELS", pack)];
        // A device of compute capability 8.7 runs kernels for 8.0.
        for (arch, served) in [("sm_80", "sm_80"), ("sm_87", "sm_80"), ("sm_90a", "sm_90a")] {
            let outcome = finish(&mut check(arch, &named)).succeeded();
            assert!(outcome.stdout.starts_with(&format!("{served}: the pack {path}")), "{}", outcome.stdout);
        }
        finish(&mut check("sm_100", &named)).refused(2, &[path, "sm_80, sm_90a", "sm_100", "kernels build"]);

        let empty = tempfile::tempdir().unwrap();
        finish(&mut check("sm_80", &[("SWALLOW_KERNELS", empty.path())])).refused(2, &["SWALLOW_KERNELS", "no pack"]);

        let cubin = pack.join("adamw-sm_80.cubin");
        let bytes = std::fs::read(&cubin).unwrap();
        std::fs::write(&cubin, &bytes[..bytes.len() - 1]).unwrap();
        finish(&mut check("sm_80", &named)).refused(2, &["adamw-sm_80.cubin", "build it anew"]);
        std::fs::write(&cubin, &bytes).unwrap();

        let mut other = manifest(pack);
        other.sources = "0123456789abcdef".repeat(4);
        std::fs::write(pack.join("manifest.json"), serde_json::to_vec(&other).unwrap()).unwrap();
        finish(&mut check("sm_80", &named)).refused(2, &[path, "0123456789abcdef", &compile::sources()[..16]]);
        std::fs::write(pack.join("manifest.json"), "{").unwrap();
        finish(&mut check("sm_80", &named)).refused(2, &["manifest.json", "build it anew"]);
    }

    /// A pack beside the program needs no `SWALLOW_KERNELS`.
    #[test]
    fn a_pack_is_found_beside_the_program() {
        let Some((pack, _)) = pack() else { return };
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir(tmp.path().join("bin")).unwrap();
        let program = tmp.path().join("bin/swallow-engine");
        std::fs::hard_link(env!("CARGO_BIN_EXE_swallow-engine"), &program)
            .or_else(|_| std::fs::copy(env!("CARGO_BIN_EXE_swallow-engine"), &program).map(|_| ()))
            .unwrap();
        for place in ["share/swallow-engine/kernels", "bin/kernels"] {
            let place = tmp.path().join(place);
            copied(pack, &place);
            let mut check = Command::new(&program);
            let outcome = finish(check.args(["kernels", "check", "--arch", "sm_80"]).env_clear()).succeeded();
            assert!(outcome.stdout.contains("the pack"), "{}", outcome.stdout);
            std::fs::remove_dir_all(place).unwrap();
        }
    }

    #[test]
    fn processes_that_start_together_fill_one_cache() {
        if pack().is_none() {
            return;
        }
        let home = tempfile::tempdir().unwrap();
        let start = || {
            let mut command = engine();
            command.args(["kernels", "check", "--arch", "sm_80"]).env("XDG_CACHE_HOME", home.path());
            command
        };
        let together = std::thread::scope(|scope| {
            let one = || finish(&mut start()).succeeded().stdout;
            let running = [scope.spawn(one), scope.spawn(one), scope.spawn(one)];
            running.map(|one| one.join().unwrap())
        });
        let kept = home.path().join("swallow-engine/kernels");
        for said in &together {
            assert!(said.starts_with("sm_80: NVRTC") && said.contains(kept.to_str().unwrap()), "{said}");
        }
        let cubins = || {
            let files = std::fs::read_dir(&kept).unwrap().map(|file| file.unwrap().path());
            let bytes = |path: PathBuf| (path.clone(), std::fs::read(path).unwrap());
            files.filter(|file| file.extension().is_some_and(|e| e == "cubin")).map(bytes).collect::<BTreeMap<_, _>>()
        };
        let whole = cubins();
        assert_eq!(whole.len(), files_for(Target::Sm80).count());

        // One file is cut short and one deleted: both come back as they were.
        let mut files = whole.keys();
        let (cut, gone) = (files.next().unwrap(), files.next().unwrap());
        std::fs::write(cut, &whole[cut][..100]).unwrap();
        std::fs::remove_file(gone).unwrap();
        finish(&mut start()).succeeded();
        assert_eq!(cubins(), whole);
    }
}
