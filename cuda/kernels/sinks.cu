// Sinks of attention (Xiao et al. 2024): one more score s of each head's softmax, without a value.
// lse' = log(e^lse + e^s), o' = o e^(lse - lse'); ds = -sum over the rows of e^(s - lse') (do . o').
// A few neighbouring lanes process a head of a row, eight elements each.
#include "args_attention.cuh"
#include "common.cuh"

// e^x.
DEVICE float exponential(float x) { return fast_exp2(x * 1.44269504f); }

struct WithSink {
    float lse, share;
};

// lse' and e^(lse - lse'), by the exponential of the smaller score over the larger one.
DEVICE WithSink with_sink(float lse, float sink) {
    float apart = lse - sink, smaller = exponential(apart < 0 ? apart : -apart), sum = 1.0f + smaller;
    return {(apart > 0 ? lse : sink) + ln(sum), (apart < 0 ? smaller : 1.0f) * fast_rcp(sum)};
}

KERNEL(add_sinks, Sinks, 256) {
    u32 lane = thread() % a.lanes, column = lane * 8;
    u64 head = static_cast<u64>(block()) * (threads() / a.lanes) + thread() / a.lanes;
    u32 left = head < a.lse.n && column < a.dim ? a.dim - column : 0;
    bool wide = rows_aligned(a.o, a.dim);
    V16 o = load8(a.o, head * a.dim + column, left, wide);
    float share = 0;
    if (lane == 0 && left) {
        WithSink with = with_sink(ld(a.lse, head), f32_of(ld(a.sinks, head % a.heads)));
        st(a.lse, head, with.lse);
        share = with.share;
    }
    share = f32_of(shfl(bits_of(share), thread() % 32 - lane));
    UNROLL for (int i = 0; i < 4; i++) o.w[i] = pack2(low(o.w[i]) * share, high(o.w[i]) * share);
    store8(a.o, head * a.dim + column, left, wide, o);
}

// Rows that a lane reads at once.
constexpr u32 AT_ONCE = 4;

// A block processes a head, and its lanes every so many rows. Shared memory: 128 bytes.
KERNEL(sinks_bwd, SinksBwd, 512) {
    u32 apart = threads() / a.lanes, column = thread() % a.lanes * 8, left = column < a.dim ? a.dim - column : 0;
    bool wide = rows_aligned(a.o, a.dim) && aligned(a.do_);
    float sink = f32_of(ld(a.sinks, block())), sum = 0;
    for (u32 first = thread() / a.lanes; first < a.rows; first += AT_ONCE * apart) {
        Reg<u32, 4 * AT_ONCE> o, do_;
        Reg<float, AT_ONCE> lse;
        UNROLL for (u32 k = 0; k < AT_ONCE; k++) {
            u32 row = first + k * apart, n = row < a.rows ? left : 0;
            u64 at = static_cast<u64>(row) * a.heads + block();
            V16 of_o = load8(a.o, at * a.dim + column, n, wide), of_do = load8(a.do_, at * a.dim + column, n, wide);
            // Rows that do not exist have no share of the gradient.
            lse[k] = n ? ld(a.lse, at) : infinity();
            UNROLL for (int j = 0; j < 4; j++) {
                o[4 * k + j] = of_o.w[j];
                do_[4 * k + j] = of_do.w[j];
            }
        }
        UNROLL for (u32 k = 0; k < AT_ONCE; k++) {
            float d = 0;
            UNROLL for (u32 j = 4 * k; j < 4 * k + 4; j++) {
                d = fmadd(high(o[j]), high(do_[j]), fmadd(low(o[j]), low(do_[j]), d));
            }
            sum = fmadd(exponential(sink - lse[k]), d, sum);
        }
    }
    sum = block_sum(sum, shared_base());
    if (thread() == 0) st(a.dsinks, block(), ld(a.dsinks, block()) - sum);
}
