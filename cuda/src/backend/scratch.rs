//! What the backend takes of its slab, said without a device: by the functions that it takes it by.

use crate::blas;
use crate::geometry;
use crate::geometry::attention::{self, Shape};
use crate::machine::Target;
use engine::backend::{Heads, Scratch};
use engine::memory::arena::{Arena, ArenaSpec};
use engine::memory::free_list::Allocator;

/// Blocks begin at multiples of it: a line that processors read at once, and what cuBLASLt and the copy engine ask for.
const ALIGN: usize = 256;

/// Logits that are made at once, where their rows allow it: 256 MiB of bf16.
const LOGITS: usize = 1 << 27;

/// The memory of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaScratch {
    /// Multiprocessors: RMSNorm's gradient is summed in parts of as many.
    pub processors: usize,
    pub target: Target,
}

impl CudaScratch {
    /// Of the device that its driver calls `name`; of an A100 where the name is not known.
    pub fn of(name: &str) -> CudaScratch {
        let has = |word: &str| name.split([' ', '-']).any(|w| w.eq_ignore_ascii_case(word));
        let (processors, target) = match () {
            _ if has("H100") && has("PCIe") => (114, Target::Sm90a),
            _ if has("H100") || has("H200") || has("GH200") || has("H800") => (132, Target::Sm90a),
            _ => (108, Target::Sm80),
        };
        CudaScratch { processors, target }
    }

    /// Bytes of the workspace that cuBLASLt's products share.
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

    /// From 1024 to 2048: fewer read and write the head's gradient too often, more take memory and save nothing.
    fn logits_rows(&self, cols: usize) -> usize {
        (LOGITS / cols / 256 * 256).clamp(1024, 2048)
    }

    /// A piece is worth a product of its own: from 256 rows of each rank on.
    fn comm_chunks(&self, rows: usize) -> usize {
        (rows / 256).clamp(1, 4)
    }

    /// Products share the workspace.
    fn matmul(&self, _: [usize; 3]) -> Vec<usize> {
        Vec::new()
    }

    fn matmul_acc(&self, _: [usize; 3]) -> Vec<usize> {
        Vec::new()
    }

    fn rmsnorm_bwd(&self, rows: usize, cols: usize) -> Vec<usize> {
        vec![size_of::<f32>() * geometry::norm_parts(rows, cols, self.processors)]
    }

    fn attention(&self, _: usize, _: Heads) -> Vec<usize> {
        Vec::new()
    }

    /// The statistics, and the sums of the parts, which may be none.
    fn attention_bwd(&self, rows: usize, h: Heads) -> Vec<usize> {
        let s = Shape { query: h.query, kv: h.kv, dim: h.dim, seq: h.seq, sequences: rows / h.seq };
        let sums = attention::sums_len(s, attention::parts(s));
        vec![size_of::<u32>() * attention::stats_len(s), size_of::<f32>() * sums]
    }

    /// The words of the sort, and the sums of runs.
    fn embed_bwd(&self, tokens: usize, cols: usize) -> Vec<usize> {
        vec![size_of::<u32>() * geometry::embed_words(tokens), size_of::<f32>() * geometry::embed_parts(tokens, cols)]
    }

    fn sum_squares(&self, elements: usize) -> Vec<usize> {
        vec![size_of::<f64>() * geometry::squares_parts(elements)]
    }
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
    fn logits_are_made_a_thousand_rows_or_two_at_once() {
        let rows = |cols| CudaScratch::of("A100").logits_rows(cols);
        assert_eq!([128_256, 99_487, 43_176, 5_397].map(rows), [1024, 1280, 2048, 2048]);
    }

    /// Of every stage of every model in `configs/`; of tensor-parallel ranks the first has the largest share.
    #[test]
    fn little_of_a_slab_lies_between_blocks_exhaustive() {
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
        let files = std::fs::read_dir(configs).unwrap().map(|entry| entry.unwrap().path());
        let mut ranks_seen = 0;
        for path in files.filter(|path| path.extension().is_some_and(|e| e == "toml")) {
            let config = Config::read(&path, &[]).unwrap();
            let mesh = config.mesh(config.parallel.ranks.unwrap_or(ranks_used(&config.parallel))).unwrap();
            let is_first = |&rank: &usize| mesh.coord(rank, Axis::Tensor) + mesh.coord(rank, Axis::Data) == 0;
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
