//! Configurations, cluster files and measured rates.

use engine::config::{Cluster, Config, Precision, hf};
use engine::error::Result;
use engine::model::flops::parameters;
use engine::train::lr::learning_rate;
use plan::{DeviceRates, Profile};
use std::path::Path;

/// `config.toml`, which may name `model/config.json`, and the overrides of `set.txt`, one a line.
pub fn config() -> Result<()> {
    let sets = std::fs::read("set.txt").unwrap_or_default();
    let sets: Vec<String> = String::from_utf8_lossy(&sets).lines().map(String::from).collect();
    let config = Config::read(Path::new("config.toml"), &sets)?;
    assert_eq!(Config::from_resolved(&config.to_toml()).expect("it was written by to_toml"), config);
    for ranks in [0, 1, 2, 3, 16, 1 << 20] {
        let _ = config.mesh(ranks);
    }
    for step in [1, config.train.steps] {
        let rate = learning_rate(&config.optimizer, config.train.steps, step);
        assert!(rate >= 0.0 && rate <= config.optimizer.lr * (1.0 + 1e-12), "rate {rate} at step {step}");
    }
    let _ = (parameters(&config.model), config.notes(), config.identity(), config.with_layers_by_cost());
    // The seeds name data that is not there.
    let _ = config.check_files();
    Ok(())
}

/// `config.json`.
pub fn hf_config() -> Result<()> {
    let here = Path::new(".");
    let model = hf::read_model(here)?;
    let written = hf::config_json(&model, Some(hf::read_source(here)?), Precision::Bf16);
    std::fs::write("config.json", written.to_string()).expect("the folder can be written to");
    let model = engine::config::Model { hf: None, ..model };
    let again = engine::config::Model { hf: None, ..hf::read_model(here).expect("the engine wrote it") };
    assert_eq!(again, model, "written and read again");
    Ok(())
}

/// `cluster.toml`.
pub fn cluster() -> Result<()> {
    let cluster = Cluster::load(Path::new("cluster.toml"))?;
    let _ = [0, 1, 7, 16, usize::MAX].map(|ranks| cluster.nodes_for(ranks));
    Ok(())
}

/// `rates.json`, a device's rates or a CPU's profile, alone and with `cluster.toml`.
pub fn rates() -> Result<()> {
    let path = Path::new("rates.json");
    match DeviceRates::read(path)? {
        None => Profile::read(path).map(|_| ()),
        Some(rates) => {
            let _ = Cluster::load(Path::new("cluster.toml")).and_then(|cluster| rates.on(cluster, path));
            rates.alone(989.0, path).map(|_| ())
        }
    }
}
