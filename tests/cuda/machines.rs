//! Machines that a job cannot run on: one message before the first step, with a remedy.

use super::{Site, Vars, apart, small, with};
use crate::common::{Outcome, finish};

/// Trains two steps with the variables `vars` of each rank, and expects a refusal.
#[track_caller]
fn refused(site: &Site, ranks: usize, more: &[(&str, toml::Value)], vars: impl Fn(usize) -> Vars, needles: &[&str]) {
    let config = with(&small(site.tmp.path()), &[("train.steps", 2.into())]);
    is_refused(finish(&mut site.train("run", ranks, &with(&config, more), vars, &[])), needles);
    assert!(!site.dir("run/metrics.jsonl").exists(), "said after the first step");
}

#[track_caller]
fn is_refused(outcome: Outcome, needles: &[&str]) {
    let outcome = outcome.refused(2, needles);
    assert_eq!(outcome.stderr.matches("error: ").count(), 1, "{}", outcome.stderr);
}

/// Sets a variable of the last of two ranks, beside those that let both share a device.
fn second(name: &'static str, value: &'static str) -> impl Fn(usize) -> Vars {
    move |rank| apart(rank).into_iter().chain((rank == 1).then(|| (name, value.to_string()))).collect()
}

#[test]
fn devices_that_are_missing_or_shared() {
    let site = Site::with_fake_cuda();
    let none = |_| vec![("CUDA_VISIBLE_DEVICES", String::new())];
    refused(&site, 1, &[], none, &["train.backend = \"cuda\"", "no NVIDIA driver with a device", "\"cpu\""]);
    let blind = second("CUDA_VISIBLE_DEVICES", "");
    refused(&site, 2, &[], blind, &["rank 1 on ", "no CUDA device", "rank 0 on ", "\"cpu\""]);
    refused(&site, 2, &[], |_| Vars::new(), &["ranks 0 and 1 on ", "the same GPU (Stand-in)", "NCCL_HOSTID"]);
    let two = |_| vec![("FAKE_CUDA_DEVICES", "2".to_string())];
    let batch = ("train.global_batch_size", 6.into());
    refused(&site, 3, &[batch], two, &["2 GPUs for 3 ranks", "mpirun --map-by ppr:2:node"]);
}

#[test]
fn devices_and_libraries_that_differ() {
    let site = Site::with_fake_cuda();
    let other = second("FAKE_CUDA_NAME", "Another");
    refused(&site, 2, &[], other, &["rank 0 on ", "Stand-in (8.0 GiB)", "rank 1 on ", "Another (8.0 GiB)", "one kind"]);
    refused(&site, 2, &[], second("FAKE_CUDA_MEMORY", "4294967296"), &["Stand-in (8.0 GiB)", "Stand-in (4.0 GiB)"]);
    refused(&site, 2, &[], second("FAKE_CUDA_NCCL", "22105"), &["NCCL 2.27.3", "NCCL 2.21.5"]);
    let old = |rank| apart(rank).into_iter().chain([("FAKE_CUDA_NCCL", "21700".to_string())]).collect();
    refused(&site, 2, &[], old, &["NCCL 2.18.0 or newer", "is 2.17.0, too old", "pip install nvidia-nccl-cu12"]);
}

/// A wait on one stream would hold up the work of another.
#[test]
fn streams_that_share_a_hardware_queue() {
    let site = Site::with_fake_cuda();
    let few = |rank| apart(rank).into_iter().chain([("CUDA_DEVICE_MAX_CONNECTIONS", "2".to_string())]).collect();
    refused(&site, 2, &[], few, &["streams of this rank share hardware queues", "CUDA_DEVICE_MAX_CONNECTIONS", "32"]);
}

/// The thread blocks of `[nccl]` reach NCCL.
#[test]
fn more_thread_blocks_than_nccl_has() {
    let site = Site::with_fake_cuda();
    let few = |rank| apart(rank).into_iter().chain([("FAKE_CUDA_NCCL_CTAS", "7".to_string())]).collect::<Vars>();
    let config =
        |ctas: i64| with(&small(site.tmp.path()), &[("train.steps", 1.into()), ("nccl.data_ctas", ctas.into())]);
    let outcome = finish(&mut site.train("run", 2, &config(8), few, &[]));
    outcome.refused(1, &["was not connected by NCCL", "8 thread blocks, not 1 to 7"]);
    finish(&mut site.train("run", 2, &config(7), few, &[])).succeeded();
}

/// Calls of NCCL that wait for a peer must leave a processor to the work that the peer waits for.
#[test]
fn calls_that_would_take_all_processors() {
    let site = Site::with_fake_cuda();
    let small = |rank| apart(rank).into_iter().chain([("FAKE_CUDA_PROCESSORS", "52".to_string())]).collect();
    let needles = ["may take 28 of the GPU's 52 multiprocessors at once", "data 12, world 4, optimizer 12", "[nccl]"];
    refused(&site, 2, &[("nccl.data_ctas", 12.into())], small, &needles);
    let order = |rank| {
        let more = [("NCCL_LAUNCH_ORDER_IMPLICIT", "1"), ("FAKE_CUDA_CUDA", "12020")];
        apart(rank).into_iter().chain(more.map(|(name, value)| (name, value.to_string()))).collect()
    };
    refused(&site, 2, &[], order, &["NCCL_LAUNCH_ORDER_IMPLICIT", "CUDA 12.2", "CUDA 12.3 or newer"]);
    let channels = |rank| apart(rank).into_iter().chain([("NCCL_MAX_CTAS", "64".to_string())]).collect();
    refused(&site, 2, &[], channels, &["NCCL_MAX_CTAS = \"64\"", "unset it", "[nccl]"]);
}

/// NCCL takes its memory before the run plans what is left, not at its first large call.
#[test]
fn memory_that_nccl_takes_is_known_at_the_start() {
    let site = Site::with_fake_cuda();
    let memory = [("FAKE_CUDA_MEMORY", 2usize << 30), ("FAKE_CUDA_NCCL_MEMORY", (2 << 30) - (16 << 20))];
    let vars = |rank| apart(rank).into_iter().chain(memory.map(|(name, bytes)| (name, bytes.to_string()))).collect();
    let wide = [("model.vocab_size", 8192.into())];
    refused(&site, 2, &wide, vars, &["GiB of device memory a rank, and 0.00 GiB are available"]);
}

#[test]
fn libraries_that_are_not_there() {
    for (name, ranks, needles) in [
        ("nccl", 2, ["NCCL 2.18.0 or newer, and there is none", "pip install nvidia-nccl", "SWALLOW_CUDA_LIBS"]),
        ("cublasLt", 1, ["there is no cuBLASLt", "pip install nvidia-cublas", "SWALLOW_CUDA_LIBS"]),
        ("nvrtc", 1, ["there is no NVRTC", "pip install nvidia-cuda-nvrtc", "SWALLOW_CUDA_LIBS"]),
    ] {
        let site = Site::with_fake_cuda();
        site.fake_cuda.as_ref().unwrap().without(name);
        // Elsewhere on the machine the program would find a real library.
        let hidden = |rank| -> Vars {
            let nowhere = ["VIRTUAL_ENV", "CUDA_HOME", "CUDA_PATH", "HOME"].map(|name| (name, "/nowhere".to_string()));
            apart(rank).into_iter().chain(nowhere).chain([("PATH", "/nowhere".to_string())]).collect()
        };
        if std::path::Path::new("/usr/local/cuda").exists() {
            eprintln!("{name} that is not there is NOT CHECKED: this machine has a CUDA toolkit");
            continue;
        }
        refused(&site, ranks, &[], hidden, &needles);
    }
}

#[test]
fn a_device_that_is_too_small() {
    let site = Site::with_fake_cuda();
    // 40 MiB beside the memory that is reserved for libraries.
    let small = |_| vec![("FAKE_CUDA_MEMORY", (296 << 20).to_string())];
    let large = [("model.hidden_size", 512.into()), ("model.intermediate_size", 4096.into())];
    refused(&site, 1, &large, small, &["GiB of device memory a rank, and 0.04 GiB are available", "use more ranks"]);
}

#[test]
fn what_kernels_do_not_take() {
    let site = Site::with_fake_cuda();
    let alone = |_| Vars::new();
    refused(&site, 1, &[("model.head_dim", 96.into())], alone, &["model.head_dim = 96", "64, 128 and 256", "\"cpu\""]);
    let f32 = [("train.precision", "f32".into())];
    refused(&site, 1, &f32, alone, &["train.precision = \"f32\"", "CPU", "bf16"]);
}
