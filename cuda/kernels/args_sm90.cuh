// The arguments of the kernels for sm_90a. `cuda/src/ops/attention_sm90.rs` and `grouped_sm90.rs` have the same
// structs. Tiles of attention hold the columns of one head.
#pragma once
#include "args_attention.cuh"
#include "args_experts.cuh"
#include "prim_hopper.cuh"

// Like `Attention`, with a map of tiles of 128 rows.
struct AttentionTiles {
    View<const u32> starts;
    View<bf16> o;
    View<float> lse;
    u32 seq, heads, kv_heads, sequences;
    Scores scores;
    TensorMap qkv;
};
static_assert(sizeof(AttentionTiles) == 256, "as in cuda/src/ops");

// Like `AttentionBwd`, with maps of tiles of 64 and of 128 rows.
struct AttentionTilesBwd {
    View<const u32> starts;
    View<const u32> stats;
    View<bf16> dqkv;
    View<float> sums;
    u32 seq, heads, kv_heads, sequences, parts;
    Scores scores;
    TensorMap qkv64, qkv, do64, do_;
};
static_assert(sizeof(AttentionTilesBwd) == 640, "as in cuda/src/ops");

// Like `Grouped`, with maps of tiles of 128 rows of x, and of w of 256 rows of n, or of 64 rows of k, by 64 columns or
// 256.
struct GroupedTiles {
    View<const u32> counts;
    View<bf16> y;
    GroupBias bias;
    u32 first, rows, n, k;
    TensorMap x, w;
};
static_assert(sizeof(GroupedTiles) == 384, "as in cuda/src/ops");

// Like `GroupedAcc`, with maps of tiles of 64 rows by 128 columns of dy and by 256 of x.
struct GroupedAccTiles {
    View<const u32> counts;
    View<float> dw;
    u32 first, rows, n, k;
    TensorMap dy, x;
};
static_assert(sizeof(GroupedAccTiles) == 384, "as in cuda/src/ops");
