// The arguments of the attention kernels. `cuda/src/ops/attention.rs` has the same structs; both assert the sizes.
#pragma once
#include "prim.cuh"

// qkv [T, (heads + 2 kv_heads) D], starts [T], o [T, heads D], lse [T, heads]; T is a multiple of seq.
struct Attention {
    View<const bf16> qkv;
    View<const u32> starts;
    View<bf16> o;
    View<float> lse;
    u32 seq, heads, kv_heads;
    u32 unused;
};
static_assert(sizeof(Attention) == 80, "as in cuda/src/ops");

// do, o [T, heads D], lse [T, heads], dqkv as qkv. Scratch between the kernels: stats, 3 numbers per head and query;
// sums, the gradients of each part where `parts` blocks share a key/value head.
struct AttentionBwd {
    View<const bf16> qkv;
    View<const bf16> do_;
    View<const bf16> o;
    View<const u32> starts;
    View<const float> lse;
    View<bf16> dqkv;
    View<u32> stats;
    View<float> sums;
    u32 seq, heads, kv_heads, parts;
};
static_assert(sizeof(AttentionBwd) == 144, "as in cuda/src/ops");
