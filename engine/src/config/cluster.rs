//! A cluster file describes nodes well enough to place ranks on them and to predict the time of a step. `[cluster]` has
//! the numbers of data sheets, `[reached]` the rates that kernels and links achieve, `[software]` the behaviour of
//! other training software than this engine. Bandwidths are in GB/s (1e9 bytes) in **one direction**: halve data sheets
//! that add up both.

use super::achieved::{Achieved, RawReached, RawSoftware, Software, achieved, software, within};
use super::check::{need, number, size};
use super::document::Document;
use super::origins::Origins;
use super::raw::{Read, known, optional, table};
use crate::error::Result;
use std::path::Path;
use toml::Value;

/// Nodes of one type.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// Name in messages and tables.
    pub name: String,
    /// Number of nodes; `None`: no limit.
    pub nodes: Option<usize>,
    pub gpus_per_node: usize,
    /// The GPU's name, as its driver gives it.
    pub device: String,
    /// Memory of a GPU that a program can use.
    pub memory_gib: f64,
    /// Dense bf16 peak of a GPU.
    pub peak_tflops: f64,
    /// Bandwidth from a GPU to the others of its node; `None` without NVLink.
    pub nvlink_gb_s: Option<f64>,
    /// Bandwidth from a GPU to its host.
    pub pcie_gb_s: f64,
    /// Bandwidth of all adapters of a node together; `None` with one node.
    pub network_gb_s: Option<f64>,
    /// Achieved rates; `None`: step times are unavailable.
    pub achieved: Option<Achieved>,
    pub software: Software,
}

table!(RawFile { cluster: RawCluster, reached: RawReached, software: RawSoftware });

table!(RawCluster {
    name: String,
    nodes: u64,
    gpus_per_node: u64,
    device: String,
    memory_gib: f64,
    peak_tflops: f64,
    nvlink_gb_s: f64,
    pcie_gb_s: f64,
    network_gb_s: f64,
});

impl Cluster {
    /// Loads the file that `--cluster` names.
    pub fn load(path: &Path) -> Result<Cluster> {
        Cluster::load_as(path, "--cluster")
    }

    /// Loads the file that the user named by `flag`, or by a key and its equals sign.
    pub fn load_as(path: &Path, flag: &str) -> Result<Cluster> {
        settle(Document::open(path, flag)?)
    }

    /// The number of nodes for `ranks` ranks, one rank per GPU; `None` if the cluster has fewer.
    pub fn nodes_for(&self, ranks: usize) -> Option<usize> {
        let needed = ranks.div_ceil(self.gpus_per_node);
        (needed <= self.nodes.unwrap_or(usize::MAX)).then_some(needed)
    }
}

fn settle(document: Document) -> Result<Cluster> {
    let Document { table, origins: at } = document;
    let missing =
        || at.missing("cluster", "a cluster file has a table [cluster]; this may be the configuration of a run");
    // Checked first, because a file of another kind has other tables.
    table.get("cluster").ok_or_else(missing)?;
    let raw = RawFile::read(&table.into(), "", &at)?;
    validate(raw, &at)
}

/// (key, achieved rate, peak of the data sheet, key of the peak)
fn peaks(c: &Cluster, r: &Achieved) -> Vec<(&'static str, f64, f64, &'static str)> {
    let peak = |key, rate| (key, rate, c.peak_tflops, "cluster.peak_tflops");
    let mut all = vec![
        peak("reached.matmul_tflops", r.matmul_tflops),
        peak("reached.attention_tflops", r.attention_tflops),
        peak("reached.attention_backward_tflops", r.attention_backward_tflops),
    ];
    match c.nvlink_gb_s {
        Some(link) => all.push(("reached.ring_gb_s", r.ring_gb_s, link, "cluster.nvlink_gb_s")),
        None if c.gpus_per_node > 1 => all.push(("reached.ring_gb_s", r.ring_gb_s, c.pcie_gb_s, "cluster.pcie_gb_s")),
        None => {}
    }
    // Nothing crosses the network of a single node, and its rates may be left out.
    if let Some(network) = c.network_gb_s
        && c.nodes != Some(1)
    {
        all.push(("reached.network_gb_s", r.network_gb_s, network, "cluster.network_gb_s"));
        all.push(("reached.message_gb_s", r.message_gb_s, network, "cluster.network_gb_s"));
    }
    all
}

fn validate(file: RawFile, at: &Origins) -> Result<Cluster> {
    let raw = file.cluster.expect("its table was checked");
    let positive = |value, key: &str| number(value, |x| x > 0.0, "must be positive", key, at);
    let figure = |value, key: &str, what: &str| positive(need(value, key, what, at)?, key);
    let text = |value: Option<String>, key: &str, example: &str| match need(value, key, example, at)? {
        text if text.trim().is_empty() => Err(at.bad(key, format!("{text:?}"), format!("write {example}"))),
        text => Ok(text),
    };
    let gpus = need(raw.gpus_per_node, "cluster.gpus_per_node", "gpus_per_node = 8", at)?;
    let nodes = raw.nodes.map(|nodes| size(nodes, 1..=1 << 20, "cluster.nodes", at)).transpose()?;
    let network = raw.network_gb_s.map(|speed| positive(speed, "cluster.network_gb_s")).transpose()?;
    if network.is_none() && nodes != Some(1) {
        let remedy = "write the GB/s of a node's adapters together, one direction, or nodes = 1";
        return Err(at.missing("cluster.network_gb_s", remedy));
    }
    let cluster = Cluster {
        name: text(raw.name, "cluster.name", "name = \"ABCI\"")?,
        nodes,
        gpus_per_node: size(gpus, 1..=1 << 10, "cluster.gpus_per_node", at)?,
        device: text(raw.device, "cluster.device", "device = \"NVIDIA A100-SXM4-40GB\"")?,
        memory_gib: figure(raw.memory_gib, "cluster.memory_gib", "the memory of a GPU in GiB")?,
        peak_tflops: figure(raw.peak_tflops, "cluster.peak_tflops", "the dense bf16 peak of a GPU")?,
        nvlink_gb_s: raw.nvlink_gb_s.map(|speed| positive(speed, "cluster.nvlink_gb_s")).transpose()?,
        pcie_gb_s: figure(raw.pcie_gb_s, "cluster.pcie_gb_s", "the GB/s of a GPU to its host, one direction")?,
        network_gb_s: network,
        achieved: file.reached.map(|raw| achieved(raw, nodes == Some(1), at)).transpose()?,
        software: file.software.map_or(Ok(Software::default()), |raw| software(raw, at))?,
    };
    cluster.achieved.as_ref().map_or(Ok(()), |rates| within(&peaks(&cluster, rates), at))?;
    Ok(cluster)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[cluster]\nname = \"A\"\ngpus_per_node = 8\ndevice = \"NVIDIA A100-SXM4-40GB\"\n\
        memory_gib = 39.4\npeak_tflops = 312\nnvlink_gb_s = 300\npcie_gb_s = 31.5\nnetwork_gb_s = 100\n";

    fn read(text: &str) -> Result<Cluster> {
        settle(Document::parse("c.toml".into(), text)?)
    }

    #[test]
    fn ranks_fill_the_nodes_that_there_are() {
        let cluster = read(GOOD).unwrap();
        assert_eq!([1, 8, 9, 256].map(|ranks| cluster.nodes_for(ranks)), [Some(1), Some(1), Some(2), Some(32)]);
        let few = read(&format!("{GOOD}nodes = 2\n")).unwrap();
        assert_eq!([16, 17].map(|ranks| few.nodes_for(ranks)), [Some(2), None]);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let cases = [
            (
                GOOD.replace("device", "devise"),
                "c.toml line 4: cluster.devise: [cluster] has no key \"devise\"; did you mean \"device\"?",
            ),
            (GOOD.replace("= 8", "= 0"), "c.toml line 3: cluster.gpus_per_node = 0: must lie in 1 ..= 1024"),
            (GOOD.replace("= 312", "= -1"), "c.toml line 6: cluster.peak_tflops = -1: must be positive"),
            (GOOD.replace("\"A\"", "\" \""), "c.toml line 2: cluster.name = \" \": write name = \"ABCI\""),
            (GOOD.replace("network_gb_s = 100\n", ""), "c.toml: cluster.network_gb_s is missing: write the GB/s"),
            (GOOD.replace("pcie_gb_s = 31.5\n", ""), "c.toml: cluster.pcie_gb_s is missing: write the GB/s of a GPU"),
            ("[train]\nsteps = 1\n".into(), "c.toml: cluster is missing: a cluster file has a table"),
        ];
        for (text, complaint) in cases {
            let error = read(&text).unwrap_err().to_string();
            assert!(error.starts_with(complaint), "{error}");
        }
    }

    const REACHED: &str = "[reached]\nmatmul_tflops = 230\nattention_tflops = 190\nattention_backward_tflops = 165\n\
        memory_gb_s = 1300\nlaunch_us = 3\nring_gb_s = 215\nnetwork_gb_s = 80\nmessage_gb_s = 10\nlatency_us = 15\n\
        network_latency_us = 30\nslowdown = 0.05\n";

    #[test]
    fn achieved_rates_are_complete_or_absent() {
        let good = format!("{GOOD}{REACHED}");
        let cluster = read(&good).unwrap();
        assert_eq!(cluster.achieved.as_ref().map(|rates| rates.message_gb_s), Some(10.0));
        assert_eq!((cluster.software, read(GOOD).unwrap().achieved), (Software::default(), None));
        let slower = good.replace("launch_us", "adamw_gb_s = 1100\nlaunch_us");
        let rates = |text: &str| read(text).unwrap().achieved.map(|r| [r.adamw_gb_s, r.xent_stats_gb_s]).unwrap();
        assert_eq!((rates(&good), rates(&slower)), ([1300.0; 2], [1100.0, 1300.0]), "the rate of all, or its own");
        let software = "[software]\nname = \"M\"\noverlap = [\"data\"]\nelementwise = 5\n";
        let other = read(&format!("{good}{software}")).unwrap().software;
        assert_eq!((other.overlap.len(), other.elementwise, other.efficiency), (1, 5.0, 1.0));
        let cases = [
            (good.replace("ring_gb_s = 215\n", ""), "c.toml: reached.ring_gb_s is missing: write GB/s of a ring"),
            (slower.replace("= 1100", "= 0"), "c.toml line 15: reached.adamw_gb_s = 0: must be positive"),
            (good.replace("= 0.05", "= 1.5"), "c.toml line 21: reached.slowdown = 1.5: must lie in [0, 1)"),
            (
                good.replace("slowdown", "multiprocessors = 108\nslowdown"),
                "c.toml line 21: reached.multiprocessors = 108: reached.slowdown says the same",
            ),
            (good.replace("slowdown = 0.05", ""), "c.toml: reached.multiprocessors is missing: write the number"),
            (
                good.replace("ring_gb_s = 215", "ring_gb_s = -1"),
                "c.toml line 16: reached.ring_gb_s = -1: must be positive",
            ),
            (
                good.replace("= 215", "= 301"),
                "c.toml line 16: reached.ring_gb_s = 301: must be no more than cluster.nvlink_gb_s, which is 300",
            ),
            (good.replace("launch_us", "lunch_us"), "c.toml line 15: reached.lunch_us: [reached] has no key"),
            (
                format!("{good}{}", software.replace("data", "date")),
                "c.toml line 24: software.overlap = \"date\": must be one of tensor, pipeline, data; did you mean \
                 \"data\"?",
            ),
            (
                format!("{good}{}", software.replace("= 5", "= 0.5")),
                "c.toml line 25: software.elementwise = 0.5: must be at least 1",
            ),
        ];
        for (text, complaint) in cases {
            let error = read(&text).unwrap_err().to_string();
            assert!(error.starts_with(complaint), "{error}");
        }
    }

    #[test]
    fn one_node_needs_no_network() {
        let one = GOOD.replace("network_gb_s = 100\n", "nodes = 1\n");
        assert_eq!(read(&one).unwrap().network_gb_s, None);
        let rates = REACHED.replace("network_gb_s = 80\nmessage_gb_s = 10\n", "");
        let rates = rates.replace("network_latency_us = 30\n", "");
        for cluster in [one, format!("{GOOD}nodes = 1\n")] {
            assert!(read(&format!("{cluster}{rates}")).unwrap().achieved.is_some());
        }
    }
}
