//! Parses the report of ptxas with `--ptxas-options=-v`.

use serde::{Deserialize, Serialize};

/// The resources that a kernel needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    pub kernel: String,
    /// Registers per thread.
    pub registers: u32,
    /// Bytes per thread that are spilled to local memory and loaded from it.
    pub spill_stores: u32,
    pub spill_loads: u32,
    /// Bytes of stack per thread.
    pub stack: u32,
    /// Bytes of static shared memory.
    pub shared: u32,
}

/// Each kernel's resources, by name, and the warnings in a compilation log.
pub fn read(log: &str) -> (Vec<Resources>, Vec<String>) {
    let (mut kernels, mut warnings) = (Vec::<Resources>::new(), Vec::new());
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let kernel = rest.split('\'').next().unwrap_or(rest).to_string();
            kernels.push(Resources { kernel, ..Resources::default() });
        } else if line.to_ascii_lowercase().contains("warning") || line.contains("Performance Loss") {
            // ptxas reports serialized wgmma as a "Performance Loss" without calling it a warning.
            warnings.push(line.trim().to_string());
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        if let Some(stack) = before(line, " bytes stack frame") {
            kernel.stack = stack;
            kernel.spill_stores = before(line, " bytes spill stores").unwrap_or(0);
            kernel.spill_loads = before(line, " bytes spill loads").unwrap_or(0);
        }
        if let Some(registers) = before(line, " registers") {
            kernel.registers = registers;
            kernel.shared = before(line, " bytes smem").unwrap_or(0);
        }
    }
    kernels.sort_by(|a, b| a.kernel.cmp(&b.kernel));
    (kernels, warnings)
}

/// The number right before these words.
fn before(line: &str, words: &str) -> Option<u32> {
    let text = &line[..line.find(words)?];
    text[text.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1)..].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
ptxas info    : 4 bytes gmem, 8 bytes cmem[4]
ptxas info    : Compiling entry function 'sum_rows' for 'sm_80'
ptxas info    : Function properties for sum_rows
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 392 bytes cmem[0]
ptxas info    : Compile time = 17.155 ms
ptxas warning : (C7508) Potential Performance Loss: 'setmaxnreg' ignored to maintain minimum register requirements.
ptxas info    : Compiling entry function 'attention' for 'sm_80'
ptxas info    : Function properties for attention
ptxas         .     40 bytes stack frame, 36 bytes spill stores, 72 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 40 bytes cumulative stack size, 1024 bytes smem, 456 bytes cmem[0]
";

    #[test]
    fn a_log_of_ptxas_is_parsed() {
        let (kernels, warnings) = read(LOG);
        let attention = Resources {
            kernel: "attention".into(),
            registers: 255,
            spill_stores: 36,
            spill_loads: 72,
            stack: 40,
            shared: 1024,
        };
        let sum_rows = Resources { kernel: "sum_rows".into(), registers: 32, ..Resources::default() };
        assert_eq!(kernels, [attention, sum_rows]);
        assert!(warnings.len() == 1 && warnings[0].contains("C7508"), "{warnings:?}");
    }

    #[test]
    fn an_empty_log_has_no_kernels() {
        assert_eq!(read("bytes stack frame registers\n"), (vec![], vec![]));
    }
}
