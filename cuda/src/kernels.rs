//! Every kernel by the file that it stands in, with the arguments that it takes. The texts are part of the program.

use crate::args;
use crate::machine::Target;
use std::marker::PhantomData;

/// A kernel that takes a pointer to one `A`.
pub struct Kernel<A> {
    pub name: &'static str,
    args: PhantomData<fn(&A)>,
}

impl<A> Kernel<A> {
    /// `extern "C" name` must take one `A`.
    pub const fn named(name: &'static str) -> Self {
        Kernel { name, args: PhantomData }
    }
}

impl<A> Copy for Kernel<A> {}
impl<A> Clone for Kernel<A> {
    fn clone(&self) -> Self {
        *self
    }
}

/// A file of kernels, compiled as one.
#[derive(Debug, PartialEq, Eq)]
pub struct File {
    pub name: &'static str,
    pub text: &'static str,
    pub kernels: &'static [&'static str],
    /// What it is compiled for, where its instructions are not everywhere.
    pub only: Option<Target>,
}

impl File {
    /// Whether it is compiled for this.
    pub fn is_for(&self, target: Target) -> bool {
        self.only.is_none_or(|only| only == target)
    }
}

/// The files that are compiled for an architecture.
pub fn files_for(target: Target) -> impl Iterator<Item = &'static File> {
    FILES.iter().filter(move |file| file.is_for(target))
}

macro_rules! kernels {
    (@only) => { None };
    (@only $target:ident) => { Some(Target::$target) };
    ($($file:literal $(only $target:ident)? { $($kernel:ident = $name:literal: $args:ident;)* })*) => {
        $($(pub const $kernel: Kernel<args::$args> = Kernel::named($name);)*)*

        /// All files, in the order of the layers.
        pub const FILES: &[File] = &[$(File {
            name: $file,
            text: include_str!(concat!("../kernels/", $file)),
            kernels: &[$($name),*],
            only: kernels!(@only $($target)?),
        }),*];
    };
}

kernels! {
    "rmsnorm.cu" {
        RMSNORM = "rmsnorm": RmsNorm;
        RMSNORM_AGAIN = "rmsnorm_recompute": RmsNorm;
        RMSNORM_BWD = "rmsnorm_bwd": RmsNormBwd;
        RMSNORM_BWD_LONG = "rmsnorm_bwd_long": RmsNormBwd;
        SUM_ROWS = "sum_rows": SumRows;
    }
    "embedding.cu" {
        EMBED = "embed": Embed;
        EMBED_SORT = "embed_sort": EmbedSort;
        EMBED_MERGE = "embed_merge": EmbedSort;
        EMBED_BWD = "embed_bwd": EmbedBwd;
        EMBED_BWD_RUNS = "embed_bwd_runs": EmbedBwd;
    }
    "rope.cu" {
        ROPE = "rope": Rope;
    }
    "attention.cu" {
        ATTENTION_64 = "attention_64": Attention;
        ATTENTION_128 = "attention_128": Attention;
    }
    "attention_stats.cu" {
        ATTENTION_STATS_64 = "attention_stats_64": AttentionBwd;
        ATTENTION_STATS_128 = "attention_stats_128": AttentionBwd;
    }
    "attention_dkv.cu" {
        ATTENTION_DKV_64 = "attention_dkv_64": AttentionBwd;
        ATTENTION_DKV_128 = "attention_dkv_128": AttentionBwd;
        ATTENTION_DKV_SUM_64 = "attention_dkv_sum_64": AttentionBwd;
        ATTENTION_DKV_SUM_128 = "attention_dkv_sum_128": AttentionBwd;
    }
    "attention_dq.cu" {
        ATTENTION_DQ_64 = "attention_dq_64": AttentionBwd;
        ATTENTION_DQ_128 = "attention_dq_128": AttentionBwd;
    }
    "attention_sm90.cu" only Sm90a {
        ATTENTION_SM90_64 = "attention_sm90_64": AttentionTiles;
        ATTENTION_SM90_128 = "attention_sm90_128": AttentionTiles;
    }
    "attention_dkv_sm90.cu" only Sm90a {
        ATTENTION_DKV_SM90_64 = "attention_dkv_sm90_64": AttentionTilesBwd;
        ATTENTION_DKV_SM90_128 = "attention_dkv_sm90_128": AttentionTilesBwd;
        ATTENTION_DKV_SUM_SM90_64 = "attention_dkv_sum_sm90_64": AttentionTilesBwd;
        ATTENTION_DKV_SUM_SM90_128 = "attention_dkv_sum_sm90_128": AttentionTilesBwd;
    }
    "attention_dq_sm90.cu" only Sm90a {
        ATTENTION_DQ_SM90_64 = "attention_dq_sm90_64": AttentionTilesBwd;
        ATTENTION_DQ_SM90_128 = "attention_dq_sm90_128": AttentionTilesBwd;
    }
    "swiglu.cu" {
        SWIGLU = "swiglu": SwiGlu;
        SWIGLU_BWD = "swiglu_bwd": SwiGlu;
    }
    "xent.cu" {
        XENT_STATS = "xent_stats": XentStats;
        XENT_COMBINE = "xent_combine": XentCombine;
        XENT_TOTALS = "xent_totals": XentTotals;
        XENT_GRAD = "xent_grad": XentGrad;
    }
    "elementwise.cu" {
        ROUND = "round_bf16": Round;
        WIDEN = "widen_bf16": Widen;
        ADD = "add_bf16": Add;
        FILL = "copy_f32": Fill;
        SQUARES = "squares": SumSquares;
        SQUARES_TOTAL = "squares_total": SumSquares;
    }
    "adamw.cu" {
        ADAMW = "adamw": AdamW;
        ADAMW_NORMS = "adamw_norms": AdamW;
        CLIP_FACTOR = "clip_factor": Clip;
    }
}

/// What the files include, by name.
pub const HEADERS: &[(&str, &str)] = &[
    ("prim.cuh", include_str!("../kernels/prim.cuh")),
    ("prim_hopper.cuh", include_str!("../kernels/prim_hopper.cuh")),
    ("common.cuh", include_str!("../kernels/common.cuh")),
    ("args.cuh", include_str!("../kernels/args.cuh")),
    ("args_attention.cuh", include_str!("../kernels/args_attention.cuh")),
    ("attention.cuh", include_str!("../kernels/attention.cuh")),
    ("attention_bwd.cuh", include_str!("../kernels/attention_bwd.cuh")),
    ("tile.cuh", include_str!("../kernels/tile.cuh")),
    ("args_sm90.cuh", include_str!("../kernels/args_sm90.cuh")),
    ("attention_sm90.cuh", include_str!("../kernels/attention_sm90.cuh")),
    ("ring_sm90.cuh", include_str!("../kernels/ring_sm90.cuh")),
    ("tile_sm90.cuh", include_str!("../kernels/tile_sm90.cuh")),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// A file or a kernel that is not in the table would never be compiled.
    #[test]
    fn the_table_holds_what_stands_in_the_folder() {
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
