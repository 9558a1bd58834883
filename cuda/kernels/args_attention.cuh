// The arguments of the attention kernels. `cuda/src/ops/{attention,sinks}.rs` have the same structs; both sides assert
// the sizes.
#pragma once
#include "prim.cuh"

// Kernels hold the scores s = scale q k^T as x = q k^T, and s = cap tanh(scale q k^T / cap) as x = tanh(..). e^s is two
// to the power of x `power`, which is scale log2(e), or cap log2(e). `inner`, 2 log2(e) scale / cap, makes q k^T the
// exponent of two in tanh.
struct Scores {
    float scale, power, inner;
    u32 unused;
};
static_assert(sizeof(Scores) == 16, "as in cuda/src/ops");

// qkv [T, (heads + 2 kv_heads) D], starts [T], o [T, heads D], lse [T, heads]; T is a multiple of seq.
struct Attention {
    View<const bf16> qkv;
    View<const u32> starts;
    View<bf16> o;
    View<float> lse;
    u32 seq, heads, kv_heads;
    u32 unused;
    Scores scores;
};
static_assert(sizeof(Attention) == 96, "as in cuda/src/ops");

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
    Scores scores;
};
static_assert(sizeof(AttentionBwd) == 160, "as in cuda/src/ops");

// o `[rows, heads dim]` and lse `[rows, heads]` get the sinks `[heads]`. `lanes` threads, a power of two, process a
// head.
struct Sinks {
    View<bf16> o;
    View<float> lse;
    View<const bf16> sinks;
    u32 heads, dim, lanes, unused;
};
static_assert(sizeof(Sinks) == 64, "as in cuda/src/ops");

// The gradient of the sinks, dsinks `[heads]`, from do, o and lse as above, with the sinks.
struct SinksBwd {
    View<const bf16> do_;
    View<const bf16> o;
    View<const float> lse;
    View<const bf16> sinks;
    View<float> dsinks;
    u32 rows, heads, dim, lanes;
};
static_assert(sizeof(SinksBwd) == 96, "as in cuda/src/ops");
