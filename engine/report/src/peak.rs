//! Peak TFLOPS of devices, the denominator of MFU: dense bf16 by NVIDIA's data sheets, where numbers "with sparsity"
//! are halved.

/// Words that the name of the device must all contain, and its peak. The first row that matches counts.
const PEAKS: &[(&[&str], f64)] = &[
    (&["GB200"], 2500.0),
    (&["B200"], 2250.0),
    (&["GH200"], 989.0),
    (&["H200", "NVL"], 835.0),
    (&["H200"], 989.0),
    (&["H100", "NVL"], 835.0),
    (&["H100", "PCIe"], 756.0),
    (&["H100"], 989.0),
    (&["H800", "PCIe"], 756.0),
    (&["H800"], 989.0),
    (&["H20"], 148.0),
    (&["A100"], 312.0),
    (&["A800"], 312.0),
    (&["A40"], 149.7),
    (&["A30"], 165.0),
    (&["A10"], 125.0),
    (&["L40S"], 362.0),
    (&["L40"], 181.0),
    (&["L4"], 121.0),
];

/// The peak of a device by the name that the driver gives; `None` for an unknown device and for a MIG slice.
pub fn bf16_tflops(name: &str) -> Option<f64> {
    let words: Vec<&str> = name.split([' ', '-']).collect();
    let has = |word: &&str| words.iter().any(|w| w.eq_ignore_ascii_case(word));
    if has(&"MIG") {
        return None;
    }
    PEAKS.iter().find(|(needed, _)| needed.iter().all(has)).map(|&(_, peak)| peak)
}

#[cfg(test)]
mod tests {
    use super::bf16_tflops;

    #[test]
    fn names_as_the_driver_gives_them() {
        for (name, peak) in [
            ("NVIDIA A100-SXM4-40GB", Some(312.0)),
            ("NVIDIA A100 80GB PCIe", Some(312.0)),
            ("A100-PCIE-40GB", Some(312.0)),
            ("NVIDIA H100 80GB HBM3", Some(989.0)),
            ("NVIDIA H100 PCIe", Some(756.0)),
            ("NVIDIA H100 NVL", Some(835.0)),
            ("NVIDIA H200", Some(989.0)),
            ("NVIDIA GH200 480GB", Some(989.0)),
            ("NVIDIA A10", Some(125.0)),
            ("NVIDIA A10G", None),
            ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
            ("AMD EPYC 9654 96-Core Processor", None),
        ] {
            assert_eq!(bf16_tflops(name), peak, "{name}");
        }
    }
}
