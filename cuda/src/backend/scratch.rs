//! Scratch sizes, by the functions that the ops allocate with. No device is needed.

use crate::blas;
use crate::machine::Target;
use crate::ops;
use engine::backend::{Heads, Scratch};
use engine::memory::arena::{Arena, ArenaSpec};
use engine::memory::free_list::Allocator;

/// Alignment of blocks in bytes: a multiple of the L2 cache line, and what cuBLASLt and the copy engine require.
const ALIGN: usize = 256;

/// Target number of logits in a chunk: 256 MiB of bf16.
const LOGITS: usize = 1 << 27;

/// Memory sizes on a kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaScratch {
    /// Multiprocessors, which determine the partial sums of the gradients of norms and biases.
    pub processors: usize,
    pub target: Target,
}

impl CudaScratch {
    /// The device with this driver name; an A100 if the name is unknown.
    pub fn of(name: &str) -> CudaScratch {
        let has = |word: &str| name.split([' ', '-']).any(|w| w.eq_ignore_ascii_case(word));
        let (processors, target) = match () {
            _ if has("H100") && has("PCIe") => (114, Target::Sm90a),
            _ if has("H100") || has("H200") || has("GH200") || has("H800") => (132, Target::Sm90a),
            _ => (108, Target::Sm80),
        };
        CudaScratch { processors, target }
    }

    /// Bytes of the workspace that all matrix multiplications share.
    pub fn workspace(&self) -> usize {
        blas::workspace(self.target)
    }
}

impl Scratch for CudaScratch {
    fn allocator(&self, small: usize) -> Box<dyn Allocator> {
        Box::new(Arena::new(ArenaSpec::boundless(small)))
    }

    fn fixed(&self) -> Vec<usize> {
        vec![self.workspace()]
    }

    fn block(&self, bytes: usize) -> usize {
        bytes.max(1).next_multiple_of(ALIGN)
    }

    /// 1024 to 2048 rows: with fewer the head's gradient is read and written too often, more only cost memory.
    fn logits_rows(&self, cols: usize) -> usize {
        (LOGITS / cols / 256 * 256).clamp(1024, 2048)
    }

    /// At least 256 rows per chunk, so that a chunk's matrix multiplication is efficient.
    fn comm_chunks(&self, rows: usize) -> usize {
        (rows / 256).clamp(1, 4)
    }

    /// Matrix multiplications share the workspace.
    fn matmul(&self, _: [usize; 3]) -> Vec<usize> {
        Vec::new()
    }

    fn matmul_acc(&self, _: [usize; 3]) -> Vec<usize> {
        Vec::new()
    }

    fn grouped(&self, _: usize, _: usize) -> Vec<usize> {
        Vec::new()
    }

    fn grouped_acc(&self, _: usize, _: usize) -> Vec<usize> {
        Vec::new()
    }

    fn rmsnorm_bwd(&self, rows: usize, cols: usize) -> Vec<usize> {
        vec![size_of::<f32>() * ops::norm_parts(rows, cols, self.processors)]
    }

    fn layernorm_bwd(&self, rows: usize, cols: usize) -> Vec<usize> {
        vec![size_of::<f32>() * ops::layernorm_parts(rows, cols, self.processors)]
    }

    fn bias_bwd(&self, rows: usize, cols: usize) -> Vec<usize> {
        vec![size_of::<f32>() * ops::bias_parts(rows, cols, self.processors)]
    }

    fn qk_norm_rope_bwd(&self, rows: usize, h: Heads) -> Vec<usize> {
        vec![size_of::<f32>() * ops::qk_norm_parts(rows, h, self.processors)]
    }

    fn attention(&self, _: usize, _: Heads) -> Vec<usize> {
        Vec::new()
    }

    /// The statistics, and the parts' sums, which may be empty.
    fn attention_bwd(&self, rows: usize, h: Heads) -> Vec<usize> {
        let s = shape(rows, h);
        let sums = ops::sums_len(s, ops::attention_parts(s));
        vec![size_of::<u32>() * ops::stats_len(s), size_of::<f32>() * sums]
    }

    /// The words of the sort, and the partial sums.
    fn embed_bwd(&self, tokens: usize, cols: usize) -> Vec<usize> {
        vec![size_of::<u32>() * ops::embed_words(tokens), size_of::<f32>() * ops::embed_parts(tokens, cols)]
    }

    fn route_bwd(&self, rows: usize, experts: usize) -> Vec<usize> {
        vec![size_of::<f32>() * ops::route_parts(rows, experts)]
    }

    fn sum_squares(&self, elements: usize) -> Vec<usize> {
        vec![size_of::<f64>() * ops::squares_parts(elements)]
    }
}

/// The attention shape of `rows` rows.
pub(super) fn shape(rows: usize, h: Heads) -> ops::Shape {
    assert_eq!((rows % h.seq, h.query % h.kv), (0, 0), "{rows} rows for {h:?}");
    let sequences = rows / h.seq;
    ops::Shape { query: h.query, kv: h.kv, dim: h.dim, seq: h.seq, sequences, scale: h.scale, cap: h.cap }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::config::{Axis, Config, ranks_used};
    use half::bf16;
    use plan::dry_run::plan;
    use std::path::Path;

    #[test]
    fn a_device_is_known_by_its_name() {
        for (name, processors, target) in [
            ("NVIDIA A100-SXM4-40GB", 108, Target::Sm80),
            ("NVIDIA H100 PCIe", 114, Target::Sm90a),
            ("NVIDIA H100 80GB HBM3", 132, Target::Sm90a),
            ("NVIDIA H200", 132, Target::Sm90a),
        ] {
            assert_eq!(CudaScratch::of(name), CudaScratch { processors, target }, "{name}");
        }
    }

    #[test]
    fn chunks_of_logits_have_one_to_two_thousand_rows() {
        let rows = |cols| CudaScratch::of("A100").logits_rows(cols);
        assert_eq!([128_256, 99_487, 43_176, 5_397].map(rows), [1024, 1280, 2048, 2048]);
    }

    /// Checks every stage of every model in `configs/`; of the tensor-parallel ranks the first has the largest shard.
    #[test]
    fn fragmentation_stays_below_three_percent_exhaustive() {
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
        let files = std::fs::read_dir(configs).unwrap().map(|entry| entry.unwrap().path());
        let mut ranks_seen = 0;
        for path in files.filter(|path| path.extension().is_some_and(|e| e == "toml")) {
            let config = Config::read(&path, &[]).unwrap();
            let mesh = config.mesh(config.parallel.ranks.unwrap_or(ranks_used(&config.parallel))).unwrap();
            let is_first = |&rank: &usize| mesh.coord(rank, Axis::Tensor) + mesh.replica(rank) == 0;
            for rank in (0..mesh.ranks()).filter(is_first) {
                let usage = plan::<bf16>(&config, &mesh, rank, CudaScratch::of("A100")).unwrap().usage;
                let lost = (usage.reserved - usage.peak) as f64 / usage.peak as f64;
                assert!(lost < 0.03, "rank {rank} of {}: {usage:?}", path.display());
                ranks_seen += 1;
            }
        }
        assert!(ranks_seen > 40, "{ranks_seen} ranks");
    }
}
