//! A machine with a device that is none: the program finds `cuda/fake_cuda` where it looks for NVIDIA's libraries.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::finish;

/// The names by which the libraries are asked for.
const NAMES: [&str; 8] = [
    "libcuda.so",
    "libcuda.so.1",
    "libcublasLt.so",
    "libcublasLt.so.12",
    "libnccl.so",
    "libnccl.so.2",
    "libnvrtc.so",
    "libnvrtc.so.12",
];

/// A folder of libraries that are all the stand-in, and of what the program caches.
pub struct FakeCuda(TempDir);

/// A stand-in of its own, with nothing cached.
pub fn fake_cuda() -> FakeCuda {
    let folder = tempfile::tempdir().unwrap();
    for name in NAMES {
        symlink(library(), folder.path().join(name)).unwrap();
    }
    FakeCuda(folder)
}

impl FakeCuda {
    /// Takes a library away, `nccl` or the like.
    pub fn without(&self, library: &str) {
        let gone = NAMES.iter().filter(|name| name.starts_with(&format!("lib{library}.")));
        gone.for_each(|name| std::fs::remove_file(self.0.path().join(name)).unwrap());
    }

    /// Has `command` and what it starts use the stand-in. `cuda/fake_cuda/src/settings.rs` has what may be set besides.
    pub fn on<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        for name in ["LD_LIBRARY_PATH", "SWALLOW_CUDA_LIBS", "XDG_CACHE_HOME"] {
            command.env(name, self.0.path());
        }
        command.env_remove("SWALLOW_KERNELS")
    }
}

/// Runs the body of a test on the stand-in: in a process of its own, since a process loads its libraries once. `test` is
/// the test's whole name, `blas::products`; `vars` are set for it besides.
#[track_caller]
pub fn on_fake_cuda(test: &str, vars: &[(&str, &str)], body: impl FnOnce()) {
    const INSIDE: &str = "FAKE_CUDA_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let fake_cuda = fake_cuda();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(INSIDE, test).envs(vars.iter().copied());
    let outcome = finish(fake_cuda.on(&mut command)).succeeded();
    assert!(outcome.stdout.contains("1 passed"), "no test goes by the name {test}: {}", outcome.stdout);
}

/// What cargo built of it beside this test.
fn library() -> PathBuf {
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_path_buf();
    let library = deps.join("libfake_cuda.so");
    assert!(library.exists(), "cargo builds {} with the tests", library.display());
    library
}
