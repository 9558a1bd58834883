// The arguments of attention's kernels for sm_90a; `cuda/src/args/attention_sm90.rs` has the same structs. Tiles are of
// the columns of a head.
#pragma once
#include "prim_hopper.cuh"

// As `Attention`; tiles of 128 rows.
struct AttentionTiles {
    View<const u32> starts;
    View<bf16> o;
    View<float> lse;
    u32 seq, heads, kv_heads, sequences;
    TensorMap qkv;
};
static_assert(sizeof(AttentionTiles) == 256, "as in args/attention_sm90.rs");
