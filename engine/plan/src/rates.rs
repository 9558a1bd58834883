//! The rates that a device measured of its kernels, in a file that `benches/rates.py` makes of the results of
//! `tests/gpu.sh`. They replace those of a cluster file; without one, they describe a device that is alone.

use engine::config::{Achieved, Cluster, Slowdown, Software};
use engine::error::{Error, Result};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Time between two kernels of a stream, which the benchmarks do not measure: that of the cluster files.
const LAUNCH_US: f64 = 3.0;
/// No device reaches this, in TFLOPS or GB/s.
const MOST: f64 = 1e6;

/// Where a rate of `[reached]` stands in [`Achieved`].
type Place = fn(&mut Achieved) -> &mut f64;

/// The rates of `[reached]` that a device can measure alone, by their keys.
const RATES: [(&str, Place); 7] = [
    ("matmul_tflops", |r| &mut r.matmul_tflops),
    ("attention_tflops", |r| &mut r.attention_tflops),
    ("attention_backward_tflops", |r| &mut r.attention_backward_tflops),
    ("memory_gb_s", |r| &mut r.memory_gb_s),
    ("adamw_gb_s", |r| &mut r.adamw_gb_s),
    ("rmsnorm_backward_gb_s", |r| &mut r.rmsnorm_backward_gb_s),
    ("xent_stats_gb_s", |r| &mut r.xent_stats_gb_s),
];
/// How many of them, the first ones, a device that is alone needs; the others are memory-bound.
const NEEDED: usize = 4;

/// The file that `plan --calibrate` reads for a device.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct DeviceRates {
    /// The device as its driver names it.
    pub device: String,
    pub memory_gib: f64,
    /// By the keys of `[reached]`; what was not measured is missing.
    pub rates: BTreeMap<String, f64>,
}

impl DeviceRates {
    /// The rates in the file at `path`; `None` if it is a profile of a CPU.
    pub fn read(path: &Path) -> Result<Option<DeviceRates>> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let bad = |what: String| {
            Error::user(format!("--calibrate {}: {what}; benches/rates.py writes such a file", path.display()))
        };
        let value: Value = serde_json::from_str(&text).map_err(|e| {
            let who = "benches/rates.py writes such a file for a GPU, benches/figures.sh for a CPU";
            Error::user(format!("--calibrate {}: not JSON: {e}; {who}", path.display()))
        })?;
        let Some(rates) = value.get("rates") else { return Ok(None) };
        let pairs = rates.as_object().into_iter().flatten();
        if let Some((key, value)) = pairs.into_iter().find(|(_, value)| !value.is_number()) {
            return Err(bad(format!("rates.{key} = {value}: must be a number")));
        }
        let rates: DeviceRates = serde_json::from_value(value).map_err(|e| bad(e.to_string()))?;
        rates.fault().map_or(Ok(Some(rates)), |what| Err(bad(what)))
    }

    /// The first value that no device can have.
    fn fault(&self) -> Option<String> {
        let can_be = |x: f64| x > 0.0 && x < MOST;
        let known = |key: &str| RATES.iter().any(|(name, _)| *name == key);
        let unknown = self.rates.keys().find(|key| !known(key)).map(|key| {
            let names = RATES.map(|(name, _)| name).join(", ");
            format!("rates.{key} is none of {names}")
        });
        let rate = self.rates.iter().find(|(_, x)| !can_be(**x)).map(|(key, x)| format!("rates.{key} = {x}"));
        let memory = (!can_be(self.memory_gib)).then(|| format!("memory_gib = {}", self.memory_gib));
        unknown.or(rate).or(memory)
    }

    /// The cluster with what was measured in place of its rates. `path`: this file's.
    pub fn on(&self, cluster: Cluster, path: &Path) -> Result<Cluster> {
        let file = path.display();
        let bad = |what: String| Err(Error::user(format!("--calibrate {file}: {what}")));
        if cluster.device != self.device {
            let (measured, other) = (&self.device, &cluster.device);
            return bad(format!("it was measured on \"{measured}\", and the cluster has \"{other}\""));
        }
        let Some(mut achieved) = cluster.achieved.clone() else {
            return bad("the cluster file has no [reached] table, whose links and latencies are needed too".into());
        };
        self.replace(&mut achieved);
        match over_peak(&achieved, cluster.peak_tflops) {
            Some(what) => bad(what),
            None => Ok(Cluster { achieved: Some(achieved), ..cluster }),
        }
    }

    /// The device alone, without links to others. `peak`: its dense bf16 TFLOPS.
    pub fn alone(&self, peak: f64, path: &Path) -> Result<Cluster> {
        let rate = |key: &str| self.rates.get(key).copied();
        let missing = RATES[..NEEDED].iter().find(|(key, _)| rate(key).is_none());
        if let Some((key, _)) = missing {
            let file = path.display();
            return Err(Error::user(format!(
                "--calibrate {file}: {key} was not measured; measure it, or give --cluster FILE, whose rate then holds"
            )));
        }
        let memory_gb_s = rate("memory_gb_s").expect("it was checked");
        let mut achieved = Achieved {
            matmul_tflops: 0.0,
            attention_tflops: 0.0,
            attention_backward_tflops: 0.0,
            memory_gb_s,
            adamw_gb_s: memory_gb_s,
            rmsnorm_backward_gb_s: memory_gb_s,
            xent_stats_gb_s: memory_gb_s,
            launch_us: LAUNCH_US,
            ring_gb_s: f64::INFINITY,
            network_gb_s: f64::INFINITY,
            message_gb_s: f64::INFINITY,
            cta_gb_s: f64::INFINITY,
            latency_us: 0.0,
            network_latency_us: 0.0,
            slowdown: Slowdown::Share(0.0),
        };
        self.replace(&mut achieved);
        let cluster = Cluster {
            name: format!("one {}", self.device),
            nodes: Some(1),
            gpus_per_node: 1,
            device: self.device.clone(),
            memory_gib: self.memory_gib,
            peak_tflops: peak,
            nvlink_gb_s: None,
            pcie_gb_s: f64::INFINITY,
            network_gb_s: None,
            achieved: Some(achieved),
            software: Software::default(),
        };
        self.on(cluster, path)
    }

    fn replace(&self, achieved: &mut Achieved) {
        for (key, place) in RATES {
            if let Some(&rate) = self.rates.get(key) {
                *place(achieved) = rate;
            }
        }
    }
}

/// The rate that exceeds the peak, in words.
fn over_peak(r: &Achieved, peak: f64) -> Option<String> {
    let rates = [r.matmul_tflops, r.attention_tflops, r.attention_backward_tflops];
    let (rate, (key, _)) = rates.into_iter().zip(RATES).find(|(rate, _)| *rate > peak)?;
    Some(format!("rates.{key} = {rate} is more than the device's peak of {peak} TFLOPS"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(pairs: &[(&str, f64)]) -> DeviceRates {
        let rates = pairs.iter().map(|(key, rate)| (key.to_string(), *rate)).collect();
        DeviceRates { device: "NVIDIA H200".into(), memory_gib: 139.7, rates }
    }

    const ALL: [(&str, f64); 7] = [
        ("matmul_tflops", 1.0),
        ("attention_tflops", 2.0),
        ("attention_backward_tflops", 3.0),
        ("memory_gb_s", 4.0),
        ("adamw_gb_s", 5.0),
        ("rmsnorm_backward_gb_s", 6.0),
        ("xent_stats_gb_s", 7.0),
    ];

    fn measured(cluster: &Cluster) -> [f64; 7] {
        let mut achieved = cluster.achieved.clone().unwrap();
        RATES.map(|(_, place)| *place(&mut achieved))
    }

    #[test]
    fn what_was_measured_replaces_the_rates_of_the_cluster_file() {
        let clusters = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/clusters");
        let cluster = || Cluster::load(&clusters.join("h200.toml")).unwrap();
        let path = Path::new("rates.json");
        let all = rates(&ALL).on(cluster(), path).unwrap();
        assert_eq!(measured(&all), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        let before = measured(&cluster());
        let few = rates(&[("adamw_gb_s", 5.0)]).on(cluster(), path).unwrap();
        assert_eq!(measured(&few), [before[0], before[1], before[2], before[3], 5.0, before[5], before[6]]);
        assert_eq!(few.achieved.as_ref().unwrap().ring_gb_s, cluster().achieved.unwrap().ring_gb_s);
        let refused = |rates: DeviceRates, cluster| rates.on(cluster, path).unwrap_err().to_string();
        let other = Cluster::load(&clusters.join("dgx-h100.toml")).unwrap();
        assert_eq!(
            refused(rates(&[]), other),
            "--calibrate rates.json: it was measured on \"NVIDIA H200\", and the cluster has \"NVIDIA H100 80GB HBM3\""
        );
        let fast = refused(rates(&[("attention_tflops", 990.0)]), cluster());
        assert!(fast.ends_with("rates.attention_tflops = 990 is more than the device's peak of 989 TFLOPS"), "{fast}");
        let bare = refused(rates(&[]), Cluster { achieved: None, ..cluster() });
        assert!(bare.contains("has no [reached] table"), "{bare}");
    }

    #[test]
    fn a_device_that_is_alone_needs_the_main_rates() {
        let path = Path::new("rates.json");
        let alone = rates(&ALL[..NEEDED]).alone(989.0, path).unwrap();
        assert_eq!(measured(&alone), [1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0], "memory-bound kernels have one rate");
        assert_eq!((alone.nodes_for(1), alone.nodes_for(2)), (Some(1), None));
        let less = rates(&ALL[1..]).alone(989.0, path).unwrap_err().to_string();
        assert!(less.starts_with("--calibrate rates.json: matmul_tflops was not measured; measure it, or"), "{less}");
    }

    #[test]
    fn a_file_is_a_devices_if_it_has_rates() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            DeviceRates::read(file.path()).map_err(|error| error.to_string())
        };
        let good = r#"{"device": "NVIDIA H200", "memory_gib": 139.7, "rates": {"adamw_gb_s": 5.0}, "commit": "abc"}"#;
        assert_eq!(read(good), Ok(Some(rates(&[("adamw_gb_s", 5.0)]))));
        assert_eq!(read(r#"{"ops": []}"#), Ok(None));
        let cut = read("{").unwrap_err();
        assert!(cut.contains("not JSON: EOF") && cut.contains("rates.py") && cut.contains("figures.sh"), "{cut}");
        for (from, to, complaint) in [
            ("5.0", "-5.0", "rates.adamw_gb_s = -5; benches/rates.py writes such a file"),
            ("5.0", "1e9", "rates.adamw_gb_s = 1000000000; "),
            ("5.0", "\"5\"", "rates.adamw_gb_s = \"5\": must be a number; "),
            ("adamw_gb_s", "adam_gb_s", "rates.adam_gb_s is none of matmul_tflops, attention_tflops, "),
            ("139.7", "0", "memory_gib = 0; "),
            ("\"device\"", "\"devise\"", "missing field `device`; "),
        ] {
            let error = read(&good.replace(from, to)).unwrap_err();
            assert!(error.starts_with("--calibrate ") && error.contains(complaint), "{error}");
        }
    }
}
