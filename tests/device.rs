//! The program on a machine with a CUDA device, which is the fake one.

use crate::common::{Case, Outcome, engine, fake_cuda, finish, set, write_config};

fn check(more: &[(&str, &str)]) -> Outcome {
    let fake_cuda = fake_cuda();
    let mut command = engine();
    command.args(["kernels", "check"]).envs(more.iter().copied());
    finish(fake_cuda.on(&mut command))
}

#[test]
fn kernels_are_compiled_and_loaded() {
    for (capability, arch) in [("80", "sm_80"), ("90", "sm_90a")] {
        let outcome = check(&[("FAKE_CUDA_CAPABILITY", capability), ("FAKE_CUDA_NAME", "A stand-in")]).succeeded();
        assert!(outcome.stdout.starts_with(&format!("device 0, A stand-in: {arch}, ")), "{}", outcome.stdout);
    }
}

/// An H100 runs a pack of sm_90 kernels that has none for sm_90a, and must not ask for those.
#[test]
fn a_named_pack_of_sm_90_kernels_runs_on_sm_90a() {
    let (fake_cuda, tmp) = (fake_cuda(), tempfile::tempdir().unwrap());
    let (pack, run) = (tmp.path().join("pack"), tmp.path().join("run"));
    finish(fake_cuda.on(engine().args(["kernels", "build", "--arch", "sm_90", "--out"]).arg(&pack))).succeeded();
    let by_pack = |args: &[&str]| {
        let mut command = engine();
        fake_cuda.on(command.args(args)).env("FAKE_CUDA_CAPABILITY", "90").env("SWALLOW_KERNELS", &pack);
        finish(&mut command).succeeded().stdout
    };
    let said = by_pack(&["kernels", "check"]);
    assert!(said.contains(": sm_90, the pack "), "{said}");

    let mut config = Case::open("head_dim_64").config(&run);
    for (key, value) in [("train.backend", "cuda"), ("train.precision", "bf16")] {
        set(&mut config, key, value);
    }
    set(&mut config, "train.steps", 1);
    let config = write_config(tmp.path(), "config.toml", &config);
    by_pack(&["train", "--config", config.to_str().unwrap()]);
}

#[test]
fn cuda_visible_devices_is_respected() {
    let two = check(&[("FAKE_CUDA_DEVICES", "3"), ("CUDA_VISIBLE_DEVICES", "2,0")]).succeeded();
    assert!(two.stdout.contains("device 1, ") && !two.stdout.contains("device 2, "), "{}", two.stdout);
    check(&[("CUDA_VISIBLE_DEVICES", "1")]).refused(2, &["no NVIDIA driver with a device"]);
}
