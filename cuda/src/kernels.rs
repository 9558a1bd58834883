//! The table of all kernel files and the headers that they include. Their texts are part of the program.

pub use crate::machine::{File, Kernel};

use crate::machine::Target;
use crate::ops::*;

/// All files, in the order of the layers.
pub const FILES: &[File] = &[
    RMSNORM_CU,
    LAYERNORM_CU,
    EMBEDDING_CU,
    BIAS_CU,
    ROPE_CU,
    QK_NORM_CU,
    ATTENTION_CU,
    ATTENTION_STATS_CU,
    ATTENTION_DKV_CU,
    ATTENTION_DQ_CU,
    ATTENTION_SM90_CU,
    ATTENTION_DKV_SM90_CU,
    ATTENTION_DQ_SM90_CU,
    SINKS_CU,
    SWIGLU_CU,
    GELU_CU,
    ROUTER_CU,
    DISPATCH_CU,
    GROUPED_CU,
    GROUPED_SM90_CU,
    GROUPED_ACC_SM90_CU,
    GROUPED_BIAS_CU,
    XENT_CU,
    ELEMENTWISE_CU,
    ADAMW_CU,
];

/// The files that are compiled for a target.
pub fn files_for(target: Target) -> impl Iterator<Item = &'static File> {
    FILES.iter().filter(move |file| file.is_for(target))
}

macro_rules! headers {
    ($($name:literal),*) => { &[$(($name, include_str!(concat!("../kernels/", $name)))),*] };
}

/// The headers by name.
pub const HEADERS: &[(&str, &str)] = headers![
    "prim.cuh",
    "prim_hopper.cuh",
    "common.cuh",
    "column_sums.cuh",
    "args.cuh",
    "args_attention.cuh",
    "args_experts.cuh",
    "sort.cuh",
    "grouped.cuh",
    "gated.cuh",
    "attention.cuh",
    "attention_bwd.cuh",
    "tile.cuh",
    "args_sm90.cuh",
    "attention_sm90.cuh",
    "ring_sm90.cuh",
    "tile_sm90.cuh"
];

#[cfg(test)]
mod tests {
    use super::*;

    /// A file or a kernel that is not in the table would never be compiled.
    #[test]
    fn the_table_lists_every_file_and_kernel() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");
        let mut names = std::fs::read_dir(folder)
            .unwrap()
            .map(|f| f.unwrap().file_name().into_string().unwrap())
            .collect::<Vec<_>>();
        names.sort();
        let mut known = FILES.iter().map(|f| f.name).chain(HEADERS.iter().map(|h| h.0)).collect::<Vec<_>>();
        known.sort();
        assert_eq!(known, names);
        for file in FILES {
            let declared = file.text.lines().filter_map(|l| l.strip_prefix("KERNEL(")?.split(',').next());
            assert_eq!(declared.collect::<Vec<_>>(), file.kernels, "{}", file.name);
        }
    }
}
