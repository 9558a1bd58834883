// The arguments of most kernels. The files of `cuda/src/ops` have the same structs; both sides assert the sizes.
#pragma once
#include "prim.cuh"

// x, h, y `[rows, d]`, w `[d]`, to which `offset` is added, rstd `[rows]`. If h is not empty, the residual is added
// first: h += x.
struct RmsNorm {
    View<const bf16> x;
    View<bf16> h;
    View<const bf16> w;
    View<bf16> y;
    View<float> rstd;
    u32 rows, d;
    float eps, offset;
};
static_assert(sizeof(RmsNorm) == 96, "as in cuda/src/ops");

// dy is overwritten with dx, plus dres if it is not empty; partial sums parts `[blocks, d]`.
struct RmsNormBwd {
    View<const bf16> dres;
    View<bf16> dy;
    View<const bf16> x;
    View<const float> rstd;
    View<const bf16> w;
    View<float> parts;
    u32 rows, d;
    float offset;
    u32 unused;
};
static_assert(sizeof(RmsNormBwd) == 112, "as in cuda/src/ops");

// to `[cols]` += the rows of parts `[rows, cols]`, in order.
struct SumRows {
    View<const float> parts;
    View<float> to;
    u32 rows, cols;
};
static_assert(sizeof(SumRows) == 40, "as in cuda/src/ops");

// x, y `[rows, d]`, w, bias `[d]`, stats `[rows, 2]` = mean, rstd.
struct LayerNorm {
    View<const bf16> x;
    View<const bf16> w;
    View<const bf16> bias;
    View<bf16> y;
    View<float> stats;
    u32 d;
    float eps;
};
static_assert(sizeof(LayerNorm) == 88, "as in cuda/src/ops");

// dy is overwritten with dx, plus dres if it is not empty; partial sums of the gradients of w and of the bias,
// parts `[2, blocks, d]`.
struct LayerNormBwd {
    View<const bf16> dres;
    View<bf16> dy;
    View<const bf16> x;
    View<const float> stats;
    View<const bf16> w;
    View<float> parts;
    u32 rows, d;
};
static_assert(sizeof(LayerNormBwd) == 104, "as in cuda/src/ops");

// x `[rows, n]` += bias `[n]` in every row.
struct AddBias {
    View<bf16> x;
    View<const bf16> bias;
    u32 n, unused;
};
static_assert(sizeof(AddBias) == 40, "as in cuda/src/ops");

// The same for x in f32.
struct AddBiasF32 {
    View<float> x;
    View<const bf16> bias;
    u32 n, unused;
};
static_assert(sizeof(AddBiasF32) == 40, "as in cuda/src/ops");

// parts `[slabs, n]` = sums over the rows of a slab, `each` rows of dy `[rows, n]`.
struct BiasBwd {
    View<const bf16> dy;
    View<float> parts;
    u32 rows, n, each, unused;
};
static_assert(sizeof(BiasBwd) == 48, "as in cuda/src/ops");

// gate_up `[rows, 2 f]`; y `[rows, f]` is the output of forward, and dy in backward.
struct Gated {
    View<bf16> gate_up;
    View<bf16> y;
    u32 rows, f;
};
static_assert(sizeof(Gated) == 40, "as in cuda/src/ops");

// The same with weights `[rows]`; backward writes dweights `[rows]`.
struct GatedWeighted {
    View<bf16> gate_up;
    View<bf16> y;
    View<const float> weights;
    View<float> dweights;
    u32 rows, f;
};
static_assert(sizeof(GatedWeighted) == 72, "as in cuda/src/ops");

// y is the output of forward, and dy in backward, which overwrites x.
struct Gelu {
    View<bf16> x;
    View<bf16> y;
};
static_assert(sizeof(Gelu) == 32, "as in cuda/src/ops");

// qkv `[rows, cols]`, of which the leading `heads` heads of `dim` are rotated by table `[positions, dim]`.
struct Rope {
    View<bf16> qkv;
    View<const float> table;
    View<const u32> positions;
    u32 rows, cols, heads, dim;
    float sign;
};
static_assert(sizeof(Rope) == 72, "as in cuda/src/ops");

// qkv, y `[rows, cols]` = the heads of q, then of k, then of v, `dim` columns each; q and k `[dim]` are the weights of
// their norms, by which the `heads` heads of q and k are scaled before table `[positions, dim]` rotates them. A head is
// processed by `lanes` threads, a power of two.
struct QkNormRope {
    View<const bf16> qkv;
    View<bf16> y;
    View<const bf16> q;
    View<const bf16> k;
    View<const float> table;
    View<const u32> positions;
    u32 rows, cols, query, heads, dim, lanes;
    float eps;
    u32 unused;
};
static_assert(sizeof(QkNormRope) == 128, "as in cuda/src/ops");

// The gradient dqkv of y is overwritten with that of qkv. The first `q_blocks` blocks process the heads of q, the
// others those of k; each writes a row of partial sums of its weight's gradient, parts `[blocks, dim]`.
struct QkNormRopeBwd {
    View<bf16> dqkv;
    View<const bf16> qkv;
    View<const bf16> q;
    View<const bf16> k;
    View<const float> table;
    View<const u32> positions;
    View<float> parts;
    u32 rows, cols, query, heads, dim, lanes;
    float eps;
    u32 q_blocks;
};
static_assert(sizeof(QkNormRopeBwd) == 144, "as in cuda/src/ops");

// y = x rounded.
struct Round {
    View<const float> x;
    View<bf16> y;
};
static_assert(sizeof(Round) == 32, "as in cuda/src/ops");

// y = x, which is exact.
struct Widen {
    View<const bf16> x;
    View<float> y;
};
static_assert(sizeof(Widen) == 32, "as in cuda/src/ops");

// x += y.
struct Add {
    View<bf16> x;
    View<const bf16> y;
};
static_assert(sizeof(Add) == 32, "as in cuda/src/ops");

// x *= factor.
struct Scale {
    View<bf16> x;
    float factor;
    u32 unused;
};
static_assert(sizeof(Scale) == 24, "as in cuda/src/ops");

// to = from, or to = 0 if `from` is empty.
struct Copy {
    View<const float> from;
    View<float> to;
};
static_assert(sizeof(Copy) == 32, "as in cuda/src/ops");

// parts = sums of squares of x, one per warp; then out += the sums of the parts of its elements, in order.
struct SumSquares {
    View<const float> x;
    View<double> parts;
    View<float> out;
};
static_assert(sizeof(SumSquares) == 48, "as in cuda/src/ops");

// parts: one per warp, whose sum modulo 2^32 is the checksum of x.
template <class T> struct Checksum {
    View<const T> x;
    View<u32> parts;
};
using ChecksumF32 = Checksum<float>;
using ChecksumBf16 = Checksum<bf16>;
static_assert(sizeof(ChecksumF32) == 32, "as in cuda/src/ops");

// One step on a shard; all views have one length. `out` receives the new weights. factor `[1, 2]`: the second scales g.
// parts `[5, warps]`: partial sums of squares of `adamw_norms`.
struct AdamW {
    View<const float> g;
    View<const float> factor;
    View<float> master;
    View<float> m;
    View<float> v;
    View<bf16> out;
    View<double> parts;
    // Elements from here on are not decayed.
    u64 decayed;
    // beta1, 1 - beta1, beta2, 1 - beta2; lr / correction1, 1 / correction2, eps, lr weight_decay.
    float beta1, fresh1, beta2, fresh2;
    float rate, scale, eps, decay;
};
static_assert(sizeof(AdamW) == 152, "as in cuda/src/ops");

// square `[1]`, the squared norm of the summed gradients, and the loss totals `[5]` -> out `[3]` = (norm, factor,
// judgement). state `[2 + 2 window]`: the number of accepted steps in it, the place of the next one, losses, norms.
struct Judge {
    View<const float> square;
    View<const float> totals;
    View<float> state;
    View<float> out;
    float clip, threshold;
    u32 window, skips;
};
static_assert(sizeof(Judge) == 80, "as in cuda/src/ops");

// logits `[rows, cols]` of the ids first .. first + cols, targets `[rows]`; stats `[rows, 3]` = max, sum of
// exp(logit - max), and the target's logit. `cap` is the soft-cap, which only the kernels for one read.
struct XentStats {
    View<const bf16> logits;
    View<const u32> targets;
    View<float> stats;
    u32 cols, first;
    float cap;
    u32 unused;
};
static_assert(sizeof(XentStats) == 64, "as in cuda/src/ops");

// Combines the statistics `[ranks, rows, 3]` of all ranks into combined `[rows, 3]`.
struct XentCombine {
    View<const float> stats;
    View<float> combined;
    u32 ranks, rows;
};
static_assert(sizeof(XentCombine) == 40, "as in cuda/src/ops");

// totals `[5]`: the first three += sums over rows of w loss, w log(Z)^2 and w, from stats `[rows, 3]` and weights
// `[rows]`.
struct XentTotals {
    View<const float> stats;
    View<const float> weights;
    View<float> totals;
};
static_assert(sizeof(XentTotals) == 48, "as in cuda/src/ops");

// Overwrites the logits `[rows, cols]` with their gradient.
struct XentGrad {
    View<bf16> logits;
    View<const float> stats;
    View<const u32> targets;
    View<const float> weights;
    u32 cols, first;
    float z_loss, cap;
};
static_assert(sizeof(XentGrad) == 80, "as in cuda/src/ops");

// y `[T, d]` = rows of table `[held, d]`, selected by ids `[T]`; the first row has the id `first`.
struct Embed {
    View<const u32> ids;
    View<const bf16> table;
    View<bf16> y;
    u32 first, held, d, unused;
};
static_assert(sizeof(Embed) == 64, "as in cuda/src/ops");

// keys `[T, padded to a multiple of 1024]`: the sorted keys of each chunk. rows `[T]` and tokens `[T]`: all tokens
// sorted by row of the table, with their indices in ids.
struct EmbedSort {
    View<const u32> ids;
    View<u32> keys;
    View<u32> rows;
    View<u32> tokens;
    u32 first, held;
};
static_assert(sizeof(EmbedSort) == 72, "as in cuda/src/ops");

// dtable `[held, d]` += the rows of dy `[T, d]`, in the order of rows and tokens; partial sums parts `[tiles, d]`.
struct EmbedBwd {
    View<const u32> rows;
    View<const u32> tokens;
    View<const bf16> dy;
    View<float> dtable;
    View<float> parts;
    u32 d, unused;
};
static_assert(sizeof(EmbedBwd) == 88, "as in cuda/src/ops");
