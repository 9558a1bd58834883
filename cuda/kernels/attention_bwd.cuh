// Shared by the kernels of attention's backward pass: the recomputation of P, and the statistics of queries.
#pragma once
#include "attention.cuh"

// P is passed on as f16, times 2^12: it has 11 significant bits down to 2^-26.
constexpr float P_BITS = 12;
constexpr float P_UNIT = 1.0f / 4096;

// P = e^(s - lse) = 2^(x power - lse2) of the score s that is held as x, with lse2 = lse log2(e), times 2^bits.
DEVICE float probability(float x, float power, float bits_less_lse2) {
    return fast_exp2(fmadd(x, power, bits_less_lse2));
}
// P, times the derivative of the cap if there is one: dS divided by dP - D.
template <bool CAPPED> DEVICE float sensitivity(float x, float power, float bits_less_lse2) {
    float p = probability(x, power, bits_less_lse2);
    return CAPPED ? p * slope_of_tanh(x) : p;
}

// -- stats --

// A record of 64 queries of a head: lse2, D = rowsum(do * o) and the starts, 64 numbers each.
constexpr u32 RECORD = 3 * 64;
enum Stat : u32 { LSE2 = 0, DELTA = 64, START = 128 };

// The index of query q of 64: so that the columns 2 (lane % 4), + 1 of two adjacent pieces of `Sums` are 16 bytes.
DEVICE u32 stat_place(u32 q) { return q / 16 * 16 + q % 8 / 2 * 4 + q / 8 % 2 * 2 + q % 2; }

// The record of 64 queries of query head `n`, counted over all sequences; a head has an even number of records.
DEVICE u64 record_of(u32 n, u32 seq, u32 first) {
    return (static_cast<u64>(n) * ((seq + 127) / 128 * 2) + first / 64) * RECORD;
}

// One statistic of the four queries that a lane has in the pieces 2 k, 2 k + 1.
DEVICE V16 stats_of(u32 stats, Stat which, int k) {
    return lds16(stats + (k / 4 * RECORD + which + k % 4 * 16 + thread() % 4 * 4) * 4);
}

// -- which queries see a block's keys --

// The first query after `last` that sees no key up to `last`, by binary search, since starts ascend.
DEVICE u32 first_blind(View<const u32> starts, const Head& h, u32 last) {
    u32 from = last + 1, to = h.seq;
    while (from < to) {
        u32 mid = from + (to - from) / 2;
        if (start_of(starts, h, mid) > last) {
            to = mid;
        } else {
            from = mid + 1;
        }
    }
    return from;
}
