//! Without `train.backend`, a run trains on the devices that there are, else on the CPU.

use toml::Table;

use super::{Site, Vars, apart, small, with};
use crate::common::{finish, metrics};

/// A configuration that leaves backend and precision to the machine.
fn open(site: &Site) -> Table {
    let mut config = with(&small(site.tmp.path()), &[("train.steps", 1.into())]);
    let train = config["train"].as_table_mut().unwrap();
    train.retain(|key, _| !["backend", "precision"].contains(&key));
    config
}

/// The trace of the first step on rank 1.
fn traced(site: &Site, config: &Table, vars: impl Fn(usize) -> Vars) -> String {
    finish(&mut site.train("run", 2, config, vars, &["--trace", "1"])).succeeded();
    assert_eq!(metrics(&site.dir("run")).len(), 1);
    std::fs::read_to_string(site.dir("run/traces/step-00000001-rank-00001.json")).unwrap()
}

#[test]
fn cuda_is_the_default_on_a_machine_with_devices() {
    let site = Site::with_fake_cuda();
    let trace = traced(&site, &open(&site), apart);
    assert!(trace.contains("attention_dq_64") && trace.contains("an all-gather"), "{trace}");
}

#[test]
fn the_cpu_is_the_default_without_devices() {
    let site = Site::with_fake_cuda();
    // The CUDA kernels do not take this head size.
    let config = with(&open(&site), &[("model.head_dim", 32.into())]);
    let trace = traced(&site, &config, |_| vec![("CUDA_VISIBLE_DEVICES", String::new())]);
    assert!(!trace.contains("attention_dq"), "{trace}");
}
