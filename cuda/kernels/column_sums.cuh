// Sums of the rows of a matrix, each times a weight, by blocks of 256 threads that take 256 columns.
#pragma once
#include "common.cuh"

// Columns of a block, and its warps.
constexpr u32 COLUMNS = 256, WARPS = 8;
// Rows that a warp reads at once.
constexpr u32 AT_ONCE = 4;

// The rows first .. last of a matrix of `stride` columns, in those from `column` on, of which `left` are added up.
struct Slab {
    u32 column, stride, left, first, last;
};

// Sums eight columns over every eighth row, from this warp's on. `weight` is also asked for rows behind the last one.
template <class Weight>
DEVICE void sum_rows(View<const bf16> x, const Slab& s, Weight weight, Reg<float, 8>& sum HERE) {
    u32 mine = thread() % 32 * 8, column = s.column + mine, left = mine < s.left ? s.left - mine : 0;
    bool wide = s.stride % 8 == 0 && past16(x, s.column) == 0;
    UNROLL for (int i = 0; i < 8; i++) sum[i] = 0;
    for (u32 row = s.first + thread() / 32; row < s.last; row += AT_ONCE * WARPS) {
        Reg<u32, 4 * AT_ONCE> words;
        Reg<float, AT_ONCE> factor;
        UNROLL for (u32 k = 0; k < AT_ONCE; k++) {
            u32 at = row + k * WARPS;
            V16 v = load8(x, static_cast<u64>(at) * s.stride + column, at < s.last ? left : 0, wide AT);
            factor[k] = weight(at);
            UNROLL for (int j = 0; j < 4; j++) words[4 * k + j] = v.w[j];
        }
        UNROLL for (u32 j = 0; j < 4 * AT_ONCE; j++) {
            sum[2 * (j % 4)] += factor[j / 4] * low(words[j]);
            sum[2 * (j % 4) + 1] += factor[j / 4] * high(words[j]);
        }
    }
}

// The sum over the rows of this thread's column: the warps' sums in order. Shared memory: 8192 bytes.
template <class Weight> DEVICE float column_sum(View<const bf16> x, const Slab& s, Weight weight HERE) {
    Reg<float, 8> sum;
    sum_rows(x, s, weight, sum AT);
    u32 mine = shared_base() + (thread() / 32 * COLUMNS + thread() % 32 * 8) * 4;
    UNROLL for (u32 i = 0; i < 8; i += 4) {
        sts16(mine + i * 4, V16{bits_of(sum[i]), bits_of(sum[i + 1]), bits_of(sum[i + 2]), bits_of(sum[i + 3])} AT);
    }
    sync(AT_ONLY);
    float total = 0;
    for (u32 w = 0; w < WARPS; w++) total += f32_of(lds(shared_base() + (w * COLUMNS + thread()) * 4 AT));
    return total;
}
