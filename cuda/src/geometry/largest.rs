//! The launch of each kernel that asks most of a multiprocessor: what the table of `cuda/README.md` is about.

use super::attention::{self, HEAD_DIMS, Shape};
use super::{Geometry, NORM_BWD_COLUMNS, NORM_COLUMNS, attention_sm90};
use super::{adamw_norms, clip_factor, elementwise, squares, squares_total};
use super::{embed, embed_bwd, embed_merge, embed_sort, rmsnorm, rmsnorm_bwd, rope, sum_rows, swiglu};
use super::{xent_combine, xent_grad, xent_stats, xent_totals};

/// Far more than blocks have threads, where shapes have no bound.
const MANY: usize = 1 << 20;

/// Over all shapes that a kernel takes; None of a name that is no kernel's.
pub fn largest(kernel: &str) -> Option<Geometry> {
    Some(match kernel {
        "rmsnorm" | "rmsnorm_recompute" => rmsnorm(1, NORM_COLUMNS),
        "rmsnorm_bwd" => rmsnorm_bwd(1, NORM_BWD_COLUMNS, 1),
        "rmsnorm_bwd_long" => rmsnorm_bwd(1, NORM_COLUMNS, 1),
        "sum_rows" => sum_rows(MANY),
        "embed" => embed(1, MANY),
        "embed_sort" => embed_sort(MANY),
        "embed_merge" => embed_merge(MANY),
        "embed_bwd" | "embed_bwd_runs" => embed_bwd(MANY, 1),
        "rope" => rope(1, MANY, 128),
        "swiglu" | "swiglu_bwd" => swiglu(1, MANY),
        "xent_stats" => xent_stats(1, MANY),
        "xent_combine" => xent_combine(MANY),
        "xent_totals" => xent_totals(),
        "xent_grad" => xent_grad(1, MANY),
        "round_bf16" | "widen_bf16" | "add_bf16" | "copy_f32" | "adamw" => elementwise(MANY, 4, 1),
        "squares" => squares(MANY),
        "squares_total" => squares_total(1),
        "adamw_norms" => adamw_norms(MANY),
        "clip_factor" => clip_factor(),
        _ => return of_attention(kernel),
    })
}

/// Attention's kernels end in the size of a head.
fn of_attention(kernel: &str) -> Option<Geometry> {
    let (kernel, dim) = kernel.rsplit_once('_')?;
    let dim = dim.parse().ok().filter(|dim| HEAD_DIMS.contains(dim))?;
    let s = Shape { query: 1, kv: 1, dim, seq: MANY, sequences: 1 };
    Some(match kernel {
        "attention" => attention::forward(s),
        "attention_stats" => attention::stats(s),
        "attention_dkv" => attention::dkv(s, 1),
        "attention_dkv_sum" => attention::dkv_sum(s),
        "attention_dq" => attention::dq(s),
        "attention_sm90" => attention_sm90::forward(s, 1),
        "attention_dkv_sm90" => attention_sm90::dkv(s, 1),
        "attention_dkv_sum_sm90" => attention_sm90::dkv_sum(s),
        "attention_dq_sm90" => attention_sm90::dq(s, 1),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{FILES, File, HEADERS};

    /// A kernel's bound of threads, in its declaration, is what it is launched with at most.
    #[test]
    fn every_kernel_is_launched_with_the_threads_that_it_is_compiled_for() {
        for file in FILES {
            for line in file.text.lines().filter_map(|line| line.strip_prefix("KERNEL(")) {
                let parts: Vec<&str> = line.split([',', ')']).map(str::trim).collect();
                let most = largest(parts[0]).unwrap_or_else(|| panic!("largest() does not know {}", parts[0]));
                assert_eq!(most.block, product(parts[2], file), "threads of {}", parts[0]);
            }
        }
        assert_eq!(largest("nobody"), None);
    }

    /// Of numbers, and of constants that the file or a header defines.
    fn product(text: &str, file: &File) -> u32 {
        let value = |word: &str| -> u32 {
            let ends = format!(" {word} = ");
            let texts = std::iter::once(file.text).chain(HEADERS.iter().map(|(_, text)| *text));
            let mut lines = texts.flat_map(str::lines).filter_map(|line| line.strip_prefix("constexpr"));
            let found = lines.find_map(|line| line.split_once(&ends)?.1.strip_suffix(';')?.parse().ok());
            found.unwrap_or_else(|| panic!("{}: {word} is no number", file.name))
        };
        text.split(" * ").map(|word| word.parse().unwrap_or_else(|_| value(word))).product()
    }
}
