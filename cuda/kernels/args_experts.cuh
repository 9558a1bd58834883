// The arguments of the kernels of layers with experts. `cuda/src/ops/{router,dispatch,grouped,grouped_bias}.rs`
// have the same structs; both sides assert the sizes.
#pragma once
#include "prim.cuh"

// logits `[tokens, experts]`; chosen and weights `[tokens, k]`. of_chosen: weights add up to 1 over a token's choices,
// and not over all experts.
struct Route {
    View<const float> logits;
    View<u32> chosen;
    View<float> weights;
    u32 tokens, experts, k, of_chosen;
};
static_assert(sizeof(Route) == 64, "as in cuda/src/ops");

// dlogits as logits `[tokens, experts]`; dweights and chosen `[tokens, k]`; counts `[sequences, experts]`, the choices
// in each sequence of `seq` tokens. parts `[tokens, 2]`: each token's balancing loss and log(sum exp)^2, whose
// gradients have the factors of_sequence and of_token, times targets `[1]`. totals `[5]` and load `[experts]` are added
// to.
struct RouteBwd {
    View<const float> dweights;
    View<const float> logits;
    View<const u32> chosen;
    View<const float> targets;
    View<float> totals;
    View<float> load;
    View<u32> counts;
    View<float> parts;
    View<float> dlogits;
    u32 tokens, experts, k, seq, of_chosen;
    float of_sequence, of_token;
    u32 unused;
};
static_assert(sizeof(RouteBwd) == 176, "as in cuda/src/ops");

// chosen, order and places `[choices]`, counts `[experts]`. Until the places are written, `places` has the sorted keys
// of each chunk.
struct SortChoices {
    View<const u32> chosen;
    View<u32> order;
    View<u32> places;
    View<u32> counts;
    u32 experts, unused;
};
static_assert(sizeof(SortChoices) == 72, "as in cuda/src/ops");

// Row i of y `[n, cols]` is row index[i] / per of x.
template <class T> struct TakeRows {
    View<const T> x;
    View<const u32> index;
    View<T> y;
    u32 cols, per;
};
using TakeRows32 = TakeRows<u32>;
using TakeRows16 = TakeRows<bf16>;
static_assert(sizeof(TakeRows32) == 56, "as in cuda/src/ops");

// Row t of y `[tokens, d]` is the sum of the rows of x that places `[tokens, k]` names, in order.
struct SumChoices {
    View<const bf16> x;
    View<const u32> places;
    View<bf16> y;
    u32 d, k;
};
static_assert(sizeof(SumChoices) == 56, "as in cuda/src/ops");

// A bias `[experts width]` for each expert, of the rows' columns from `first` on, times weights `[rows]`. It may be
// empty, and so may the weights, which are 1 then.
struct GroupBias {
    View<const bf16> bias;
    View<const float> weights;
    u32 first, width;
};
static_assert(sizeof(GroupBias) == 40, "as in cuda/src/ops");

// y `[rows, n]` = x `[rows, k]` times the weights of each row's expert, in w `[experts n, k]`, or `[experts k, n]` for
// the product that transposes nothing, which has no bias. The rows are those from `first` on of all that counts
// `[experts]` counts.
struct Grouped {
    View<const bf16> x;
    View<const bf16> w;
    View<const u32> counts;
    View<bf16> y;
    GroupBias bias;
    u32 first, rows, n, k;
};
static_assert(sizeof(Grouped) == 120, "as in cuda/src/ops");

// dw `[experts n, k]` += dy^T x over the rows of each expert, of dy `[rows, n]` and x `[rows, k]`.
struct GroupedAcc {
    View<const bf16> dy;
    View<const bf16> x;
    View<const u32> counts;
    View<float> dw;
    u32 first, rows, n, k;
};
static_assert(sizeof(GroupedAcc) == 80, "as in cuda/src/ops");

// The gradients of a bias, from dy `[rows, n]`: `to` is that of the bias `[experts width]`, or of its weights `[rows]`.
struct GroupedBias {
    View<const bf16> dy;
    View<const u32> counts;
    GroupBias bias;
    View<float> to;
    u32 first, rows, n, unused;
};
static_assert(sizeof(GroupedBias) == 104, "as in cuda/src/ops");
