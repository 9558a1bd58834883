//! The most demanding launch of each kernel: the block and shared memory in the table of `cuda/README.md`.

use super::*;
use crate::machine::Geometry;
use engine::backend::Heads;

/// Far more than the threads of a block, for shapes without a bound.
const MANY: usize = 1 << 20;

/// The largest launch over all shapes that a kernel supports; None if there is no kernel of this name.
pub fn largest(kernel: &str) -> Option<Geometry> {
    Some(match kernel {
        "rmsnorm" | "rmsnorm_recompute" => rmsnorm_geometry(1, NORM_COLUMNS),
        "rmsnorm_bwd" | "rmsnorm_bwd_unaligned" => rmsnorm_bwd_geometry(1, NORM_COLUMNS, 1),
        "sum_rows" => sum_rows_geometry(MANY),
        "layernorm" => layernorm_geometry(1, NORM_COLUMNS),
        "layernorm_bwd" => layernorm_bwd_geometry(1, LAYERNORM_COLUMNS, 1),
        "layernorm_bwd_unaligned" => layernorm_bwd_geometry(1, NORM_COLUMNS, 1),
        "add_bias" => add_bias_geometry(1, MANY),
        "add_bias_f32" => add_bias_f32_geometry(MANY),
        "bias_bwd" => bias_bwd_geometry(1, MANY, 1),
        "embed" => embed_geometry(1, MANY),
        "embed_sort" => embed_sort_geometry(MANY),
        "embed_merge" => embed_merge_geometry(MANY),
        "embed_bwd" | "embed_bwd_runs" => embed_bwd_geometry(MANY, 1),
        "rope" => rope_geometry(1, MANY, 128),
        "qk_norm_rope" => qk_norm_rope_geometry(1, Heads::full(MANY, MANY, 64, 1)),
        "qk_norm_rope_bwd" => qk_norm_rope_bwd_geometry(1, Heads::full(1, 1, NORM_HEAD, 1), 1).0,
        "add_sinks" => add_sinks_geometry(MANY, SINK_HEAD),
        "sinks_bwd" => sinks_bwd_geometry(1),
        "swiglu" | "swiglu_bwd" | "geglu" | "geglu_bwd" => gated_geometry(1, MANY),
        "swiglu_weighted" | "clamped_swiglu_weighted" => gated_geometry(1, MANY),
        "swiglu_weighted_bwd" | "clamped_swiglu_weighted_bwd" => weighted_bwd_geometry(1, MANY),
        "gelu" | "gelu_bwd" => gelu_geometry(MANY),
        "route" | "route_counts" | "route_bwd" => route_geometry(MANY),
        "route_totals" => route_totals_geometry(),
        "choices_sort" => choices_sort_geometry(MANY),
        "choices_merge" => choices_merge_geometry(MANY, EXPERTS),
        "choices_places" => choices_places_geometry(MANY),
        "take_rows_32" | "take_rows_16" => take_rows_geometry(MANY, 4, 1),
        "sum_choices" => gated_geometry(1, MANY),
        "grouped_nt" | "grouped_nn" | "grouped_nt_unaligned" | "grouped_nn_unaligned" => {
            grouped_geometry(MANY, MANY, 1)
        }
        "grouped_nt_sm90" | "grouped_nn_sm90" => grouped_sm90_geometry(MANY, MANY, 1, 1),
        "grouped_tn_acc_sm90" => grouped_acc_sm90_geometry(MANY, MANY, 1, 1),
        "grouped_tn_acc" | "grouped_tn_acc_unaligned" => grouped_acc_geometry(MANY, MANY, 1),
        "grouped_bias_bwd" => grouped_bias_bwd_geometry(MANY, 1),
        "grouped_bias_dot" => grouped_bias_dot_geometry(MANY),
        "xent_stats" | "xent_stats_capped" => xent_stats_geometry(1, MANY),
        "xent_combine" => xent_combine_geometry(MANY),
        "xent_totals" => xent_totals_geometry(),
        "xent_grad" | "xent_grad_capped" => xent_grad_geometry(1, MANY),
        "round_bf16" | "widen_bf16" | "add_bf16" | "scale_bf16" | "copy_f32" | "adamw" => {
            elementwise_geometry(MANY, 4, 1)
        }
        "checksum_f32" | "checksum_bf16" => checksum_geometry(),
        "squares" => squares_geometry(MANY),
        "squares_total" => squares_total_geometry(1),
        "adamw_norms" => adamw_norms_geometry(MANY),
        "judge" => judge_geometry(),
        _ => return largest_of_attention(kernel),
    })
}

/// The names of attention's kernels end with the head size, and those that cap scores say so behind it.
fn largest_of_attention(kernel: &str) -> Option<Geometry> {
    let (kernel, cap) = kernel.strip_suffix("_capped").map_or((kernel, None), |kernel| (kernel, Some(1.0)));
    let (kernel, dim) = kernel.rsplit_once('_')?;
    let dim = dim.parse().ok().filter(|dim| HEAD_DIMS.contains(dim))?;
    let s = Shape { cap, ..Shape::full(1, 1, dim, MANY, 1) };
    Some(match kernel {
        "attention" => forward_geometry(s),
        "attention_stats" => stats_geometry(s),
        "attention_dkv" => dkv_geometry(s, 1),
        "attention_dkv_sum" => dkv_sum_geometry(s),
        "attention_dq" => dq_geometry(s),
        "attention_sm90" => forward_sm90_geometry(s, 1),
        "attention_dkv_sm90" => dkv_sm90_geometry(s, 1),
        "attention_dkv_sum_sm90" => dkv_sum_sm90_geometry(s),
        "attention_dq_sm90" => dq_sm90_geometry(s, 1),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{FILES, HEADERS};
    use crate::machine::File;

    /// The thread bound in a kernel's declaration is its largest block.
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

    /// The value of a product of literals and of constants defined in the file or in a header.
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
