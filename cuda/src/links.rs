//! The links of this node: NVLink and PCIe of its GPUs from NVML, InfiniBand adapters from sysfs. Training does not
//! need them; they are only displayed.

use nvml_wrapper::Nvml;
use std::path::Path;

/// The folder in which sysfs lists InfiniBand and RoCE adapters.
pub const INFINIBAND: &str = "/sys/class/infiniband";
/// More NVLinks than any GPU has.
const MOST_NVLINKS: u32 = 18;

/// A GPU's links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// For example `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// NVLinks that are up.
    pub nvlinks: u32,
    /// The maximum generation and width of its PCIe link, if the driver knows them.
    pub pcie: Option<(u32, u32)>,
}

/// One port of an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Adapter and port, such as `mlx5_0:1`.
    pub name: String,
    /// The rate as sysfs writes it, such as `200 Gb/sec (4X HDR)`.
    pub rate: String,
    /// `InfiniBand` or `Ethernet` (RoCE).
    pub layer: String,
    pub active: bool,
}

/// The GPUs that NVML lists; none without NVML. A link whose state the driver does not return counts as absent.
pub fn gpus() -> Vec<Gpu> {
    let Ok(nvml) = Nvml::init() else {
        return Vec::new();
    };
    let gpu = |i| -> Option<Gpu> {
        let device = nvml.device_by_index(i).ok()?;
        let up = |&link: &u32| device.link_wrapper_for(link).is_active().unwrap_or(false);
        let pcie = device.max_pcie_link_gen().ok().zip(device.max_pcie_link_width().ok());
        Some(Gpu { name: device.name().ok()?, nvlinks: (0..MOST_NVLINKS).filter(up).count() as u32, pcie })
    };
    (0..nvml.device_count().unwrap_or(0)).filter_map(gpu).collect()
}

/// The ports of all adapters under `root` ([`INFINIBAND`]), by name; none if the folder does not exist.
pub fn ports(root: &Path) -> Vec<Port> {
    let mut out: Vec<Port> = names(root)
        .flat_map(|adapter| {
            let ports = root.join(&adapter).join("ports");
            let port = |number: String| port(format!("{adapter}:{number}"), &ports.join(number));
            names(&ports).filter_map(port).collect::<Vec<_>>()
        })
        .collect();
    out.sort_by(|a, b| a.name.cmp(&b.name));
    out
}

fn port(name: String, dir: &Path) -> Option<Port> {
    let text = |file: &str| Some(std::fs::read_to_string(dir.join(file)).ok()?.trim().to_string());
    // Written as `4: ACTIVE`.
    let active = text("state")?.split_once(':').is_some_and(|(_, word)| word.trim() == "ACTIVE");
    Some(Port { name, rate: text("rate")?, layer: text("link_layer").unwrap_or_default(), active })
}

fn names(dir: &Path) -> impl Iterator<Item = String> {
    std::fs::read_dir(dir).into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_from_sysfs() {
        let root = tempfile::tempdir().unwrap();
        for (at, rate, state, layer) in [
            ("mlx5_1/ports/1", "200 Gb/sec (4X HDR)\n", "4: ACTIVE\n", "InfiniBand\n"),
            ("mlx5_0/ports/1", "200 Gb/sec (4X HDR)\n", "1: DOWN\n", "InfiniBand\n"),
            ("mlx5_bond_0/ports/1", "25 Gb/sec (1X EDR)\n", "4: ACTIVE\n", "Ethernet\n"),
        ] {
            let dir = root.path().join(at);
            std::fs::create_dir_all(&dir).unwrap();
            for (file, text) in [("rate", rate), ("state", state), ("link_layer", layer)] {
                std::fs::write(dir.join(file), text).unwrap();
            }
        }
        // A port that the driver is removing.
        std::fs::create_dir_all(root.path().join("mlx5_9/ports/1")).unwrap();
        let port = |name: &str, rate: &str, layer: &str, active| Port {
            name: name.into(),
            rate: rate.into(),
            layer: layer.into(),
            active,
        };
        assert_eq!(
            ports(root.path()),
            [
                port("mlx5_0:1", "200 Gb/sec (4X HDR)", "InfiniBand", false),
                port("mlx5_1:1", "200 Gb/sec (4X HDR)", "InfiniBand", true),
                port("mlx5_bond_0:1", "25 Gb/sec (1X EDR)", "Ethernet", true),
            ]
        );
        assert_eq!(ports(&root.path().join("none")), []);
    }

    /// Passes with and without a GPU.
    #[test]
    fn gpus_are_those_of_the_driver() {
        let found = gpus();
        assert_eq!(found.is_empty(), !Path::new("/dev/nvidia0").exists(), "{found:?}");
        assert!(found.iter().all(|gpu| gpu.name.len() > 3 && gpu.nvlinks <= MOST_NVLINKS), "{found:?}");
    }
}
