// Statistics of every query for attention's backward pass: the logsumexp to base 2, D = rowsum(do * o) and the start,
// in the order in which the other kernels read them. Queries beyond the end of a sequence get zeros.
#include "attention_bwd.cuh"

constexpr int THREADS = 256;

// This lane's part of the dot product of a row: eight columns.
DEVICE float dot8(const V16& x, const V16& y) {
    float sum = 0;
    UNROLL for (int i = 0; i < 4; i++) {
        sum = fmadd(low(x.w[i]), low(y.w[i]), sum);
        sum = fmadd(high(x.w[i]), high(y.w[i]), sum);
    }
    return sum;
}

// A block processes 64 queries of a head, with D / 8 lanes per query.
template <int D> DEVICE void stats(const AttentionBwd& a) {
    constexpr u32 LANES = D / 8;
    Head h = head_of(a, block());
    u32 first = block_y() * 64, lane = thread() % LANES;
    u64 record = record_of(block(), h.seq, first);
    Strip rows = o_rows<D>(h, first);
    UNROLL for (u32 r = 0; r < 64; r += THREADS / LANES) {
        u32 row = r + thread() / LANES;
        u64 i = rows.from + static_cast<u64>(row) * rows.cols + lane * 8;
        float delta = row < rows.rows ? dot8(ld16(a.do_, i), ld16(a.o, i)) : 0.0f;
        UNROLL for (u32 mask = LANES / 2; mask; mask /= 2) delta += shfl_xor(delta, mask);
        if (lane) continue;
        u64 lse = static_cast<u64>(h.row + first + row) * h.heads + h.query;
        u64 at = record + stat_place(row);
        st(a.stats, at + LSE2, row < rows.rows ? bits_of(ld(a.lse, lse) * LOG2_E) : 0u);
        st(a.stats, at + DELTA, bits_of(delta));
        st(a.stats, at + START, start_of(a.starts, h, first + row));
    }
}

KERNEL(attention_stats_64, AttentionBwd, THREADS) { stats<64>(a); }
KERNEL(attention_stats_128, AttentionBwd, THREADS) { stats<128>(a); }
KERNEL(attention_stats_256, AttentionBwd, THREADS) { stats<256>(a); }
