//! A machine with a fake CUDA device: the program finds `cuda/fake_cuda` where it looks for NVIDIA's libraries.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::process::{finish, is_inside, this_test};

/// The names by which the libraries are opened.
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

/// A folder with the fake libraries, and with the program's caches.
pub struct FakeCuda(TempDir);

/// Fake libraries with empty caches.
pub fn fake_cuda() -> FakeCuda {
    let folder = tempfile::tempdir().unwrap();
    for name in NAMES {
        symlink(library(), folder.path().join(name)).unwrap();
    }
    FakeCuda(folder)
}

impl FakeCuda {
    /// Removes a library: `nccl`, `cublasLt`, `nvrtc`.
    pub fn without(&self, library: &str) {
        let gone = NAMES.iter().filter(|name| name.starts_with(&format!("lib{library}.")));
        gone.for_each(|name| std::fs::remove_file(self.0.path().join(name)).unwrap());
    }

    /// Has `command` and its children use the fake libraries. `cuda/fake_cuda/src/settings.rs` lists their settings.
    pub fn on<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        for name in ["LD_LIBRARY_PATH", "SWALLOW_CUDA_LIBS", "XDG_CACHE_HOME"] {
            command.env(name, self.0.path());
        }
        command.env_remove("SWALLOW_KERNELS")
    }
}

/// Runs the body of a test on the fake device, in a process of its own, since a process loads its libraries once.
/// `test` is the test's whole name, `blas::products`; `vars` are additional variables of the process.
#[track_caller]
pub fn on_fake_cuda(test: &str, vars: &[(&str, &str)], body: impl FnOnce()) {
    if is_inside() {
        return body();
    }
    let fake_cuda = fake_cuda();
    let mut command = this_test(test);
    let outcome = finish(fake_cuda.on(&mut command).envs(vars.iter().copied())).succeeded();
    assert!(outcome.stdout.contains("1 passed"), "no test goes by the name {test}: {}", outcome.stdout);
}

/// The shared library that cargo built beside this test.
fn library() -> PathBuf {
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_path_buf();
    let library = deps.join("libfake_cuda.so");
    assert!(library.exists(), "cargo builds {} with the tests", library.display());
    library
}
