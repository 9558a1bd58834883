//! Machines whose driver or device is unusable, by a fake driver (`driver.c`), which also checks that everything that
//! was created is destroyed, in order.

use std::path::Path;
use std::process::Command;

use cuda::compile::sources;
use cuda::kernels::{FILES, File};
use serde_json::json;

use crate::common::{Outcome, engine, finish};

/// The bytes of a cubin that the fake driver reads.
const CUBIN: &[u8] = b"\x7fELF";

/// A machine whose driver is `driver.c`, and a pack whose cubins are only their first bytes.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new(compiler: &str) -> Machine {
        let machine = Machine(tempfile::tempdir().unwrap());
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/invalid_input/driver.c");
        let library = machine.0.path().join("libcuda.so");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"]).arg(library).arg(source);
        assert!(cc.status().unwrap().success());
        machine.pack(compiler);
        machine
    }

    fn pack(&self, compiler: &str) {
        let cubin = |file: &File| {
            let hash = blake3::hash(CUBIN).to_hex().to_string();
            json!({
                "file": file.name, "arch": "sm_80", "cubin": "cubin", "blake3": hash, "kernels": [], "warnings": [],
            })
        };
        let cubins = FILES.iter().map(cubin).collect::<Vec<_>>();
        let manifest = json!({ "sources": sources(), "options": [], "compiler": compiler, "cubins": cubins });
        std::fs::write(self.0.path().join("manifest.json"), manifest.to_string()).unwrap();
        std::fs::write(self.0.path().join("cubin"), CUBIN).unwrap();
    }

    /// `kernels check` with a driver for CUDA `version` and a device of `capability`.
    fn check(&self, version: &str, capability: &str, more: &[(&str, &str)]) -> Outcome {
        let dir = self.0.path();
        let mut command = engine();
        command.args(["kernels", "check"]).env("LD_LIBRARY_PATH", dir).env("SWALLOW_KERNELS", dir);
        command.env("FAKE_CUDA", version).env("FAKE_CAPABILITY", capability).envs(more.iter().copied());
        finish(&mut command)
    }
}

#[test]
fn a_usable_device_is_opened_and_closed() {
    let machine = Machine::new("12.4");
    let outcome = machine.check("12040", "87", &[]).succeeded();
    assert!(outcome.stdout.starts_with("device 0, Fake 0: sm_80, the pack "), "{}", outcome.stdout);
    assert_eq!(outcome.stderr, "");
}

#[test]
fn each_fault_is_one_sentence_with_a_remedy() {
    let machine = Machine::new("12.4");
    let (new, none) = (Machine::new("13.0"), &[][..]);
    for (machine, version, capability, more, code, needles) in [
        (&machine, "11040", "80", none, 2, &["Fake 0", "CUDA 11.4", "CUDA 12 (R525)", "update"][..]),
        (&machine, "12040", "75", none, 2, &["Fake 0", "7.5", "8.0", "train.backend = \"cpu\""]),
        (&new, "12040", "80", none, 2, &["NVRTC 13.0", "CUDA 12", "newer driver", "--nvrtc"]),
        (&machine, "12040", "90", none, 2, &["sm_80", "sm_90a", "kernels build"]),
        (&machine, "12040", "80", &[("FAKE_LOAD", "209")], 2, &["CUDA 12.4", "sm_80", "no kernel image", "NO_BINARY"]),
        (
            &machine,
            "12040",
            "80",
            &[("FAKE_INIT", "999")],
            1,
            &["the CUDA driver does not start", "no luck", "UNKNOWN"],
        ),
        (&machine, "12040", "80", &[("FAKE_INIT", "100")], 2, &["no NVIDIA driver with a device"]),
    ] {
        println!("CUDA {version}, {capability}, {more:?}");
        let outcome = machine.check(version, capability, more).refused(code, needles);
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    }
}

/// NVRTC 13 with a driver for CUDA 12 is skipped, and the message says that it was found.
#[test]
fn a_compiler_that_is_too_new_for_the_driver_is_named() {
    let Some(libs) = std::env::var_os("SWALLOW_CUDA_LIBS") else { return };
    let machine = Machine::new("12.4");
    let dir = machine.0.path();
    std::fs::remove_file(dir.join("manifest.json")).unwrap();
    let mut command = engine();
    command.args(["kernels", "check"]).env_clear().env("LD_LIBRARY_PATH", dir).env("XDG_CACHE_HOME", dir);
    command.env("FAKE_CUDA", "12040").env("FAKE_CAPABILITY", "80").env("SWALLOW_CUDA_LIBS", libs);
    let outcome = finish(&mut command);
    // A machine may have an NVRTC of CUDA 12 too, which works.
    if !outcome.status.success() {
        outcome.refused(2, &["is NVRTC 13", "what is made for CUDA 12", "pip install nvidia-cuda-nvrtc-cu12"]);
    }
}
