//! The program on a machine with a CUDA device, which is the stand-in.

use crate::common::{Outcome, engine, finish, standin};

fn check(more: &[(&str, &str)]) -> Outcome {
    let standin = standin();
    let mut command = engine();
    command.args(["kernels", "check"]).envs(more.iter().copied());
    finish(standin.on(&mut command))
}

#[test]
fn kernels_are_compiled_and_loaded() {
    for (capability, arch) in [("80", "sm_80"), ("90", "sm_90a")] {
        let outcome = check(&[("STANDIN_CAPABILITY", capability), ("STANDIN_NAME", "A stand-in")]).succeeded();
        assert!(outcome.stdout.starts_with(&format!("device 0, A stand-in: {arch}, ")), "{}", outcome.stdout);
    }
}

#[test]
fn each_process_sees_the_devices_that_it_may() {
    let two = check(&[("STANDIN_DEVICES", "3"), ("CUDA_VISIBLE_DEVICES", "2,0")]).succeeded();
    assert!(two.stdout.contains("device 1, ") && !two.stdout.contains("device 2, "), "{}", two.stdout);
    check(&[("CUDA_VISIBLE_DEVICES", "1")]).refused(2, &["no NVIDIA driver with a device"]);
}
