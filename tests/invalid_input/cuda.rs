//! Models that the CUDA backend does not take, and machines without what it needs.

use toml::Table;

use super::{is_refused, train};
use crate::common::{engine, finish, set};

/// Sets these heads, on CUDA. The data need not fit the model, since this is checked first.
fn heads(c: &mut Table, hidden: i64, heads: i64, dim: i64) {
    set(c, "train.backend", "cuda");
    set(c, "train.precision", "bf16");
    set(c, "train.load", "random");
    set(c, "model.hidden_size", hidden);
    set(c, "model.num_attention_heads", heads);
    set(c, "model.num_key_value_heads", heads);
    set(c, "model.head_dim", dim);
}

#[test]
fn shapes_that_kernels_do_not_take() {
    for (hidden, n, dim, needles) in [
        (192, 2, 96, &["model.head_dim = 96", "64, 128 and 256", "train.backend = \"cpu\""][..]),
        (64, 8, 8, &["model.head_dim = 8", "64, 128 and 256"]),
        (32768, 256, 128, &["model.hidden_size = 32768", "16384"]),
    ] {
        for args in [&[][..], &["--dry-run"]] {
            let tmp = tempfile::tempdir().unwrap();
            println!("{hidden} {n} {dim} {args:?}");
            is_refused(train(&tmp, |c| heads(c, hidden, n, dim), args), &tmp, needles);
        }
    }
    // A model that fits needs a device, which this machine may have.
    if cuda::devices().is_ok_and(|devices| devices.is_empty()) {
        let tmp = tempfile::tempdir().unwrap();
        let needles = ["train.backend = \"cuda\": there is no NVIDIA driver", "train.backend = \"cpu\""];
        is_refused(train(&tmp, |c| heads(c, 128, 2, 64), &[]), &tmp, &needles);
    }
}

#[test]
fn precision_f32_is_for_the_cpu() {
    let tmp = tempfile::tempdir().unwrap();
    let change = |c: &mut Table| {
        set(c, "train.backend", "cuda");
        set(c, "train.precision", "f32");
    };
    is_refused(train(&tmp, change, &[]), &tmp, &["train.precision = \"f32\"", "CPU", "bf16"]);
}

#[test]
fn architectures_and_compilers_that_are_not_there() {
    let tmp = tempfile::tempdir().unwrap();
    let build = |args: &[&str]| finish(engine().args(["kernels", "build", "--out"]).arg(tmp.path()).args(args));
    build(&[]).refused(2, &["--arch"]);
    build(&["--arch", "sm_80,sm_75"]).refused(2, &["--arch \"sm_75\"", "sm_80, sm_87", "sm_90a"]);
    build(&["--arch", "sm_80", "--nvrtc", "/nowhere"]).refused(2, &["--nvrtc /nowhere", "/nowhere"]);
    let empty = tmp.path().to_str().unwrap();
    build(&["--arch", "sm_80", "--nvrtc", empty]).refused(2, &["--nvrtc", "contains no libnvrtc.so"]);
    assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
}

/// The messages of a machine without NVIDIA's libraries. A machine with some has nothing to check.
#[test]
fn missing_libraries_are_reported_once() {
    let bare = |args: &[&str]| finish(engine().env_clear().args(["kernels", "check"]).args(args));
    let compiler = bare(&["--arch", "sm_80"]);
    if !compiler.status.success() {
        let outcome = compiler.refused(2, &["there is no NVRTC", "pip install nvidia-cuda-nvrtc", "SWALLOW_CUDA_LIBS"]);
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    }
    if cuda::devices().is_ok_and(|devices| devices.is_empty()) {
        let outcome = bare(&[]).refused(2, &["no NVIDIA driver", "train.backend = \"cpu\""]);
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    }
}
