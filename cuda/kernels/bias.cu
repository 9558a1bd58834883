// Biases: x += b in every row, and db += the sum of the rows of dy: first over slabs of rows, then over the slabs in
// order (`sum_rows`).
#include "args.cuh"
#include "common.cuh"

// Block (row, part) processes a part of a row, eight elements per thread.
KERNEL(add_bias, AddBias, 256) {
    u32 column = (block_y() * threads() + thread()) * 8;
    if (column >= a.n) return;
    u64 at = static_cast<u64>(block()) * a.n + column;
    u32 left = a.n - column;
    bool wide = rows_aligned(a.x, a.n);
    V16 x = load8(a.x, at, left, wide), bias = load8(a.bias, column, left, aligned(a.bias));
    UNROLL for (int i = 0; i < 4; i++) {
        x.w[i] = pack2(low(x.w[i]) + low(bias.w[i]), high(x.w[i]) + high(bias.w[i]));
    }
    store8(a.x, at, left, wide, x);
}

// One element per thread: rows have as many elements as a router has experts.
KERNEL(add_bias_f32, AddBiasF32, 256) {
    u64 i = static_cast<u64>(block()) * threads() + thread();
    if (i >= a.x.n) return;
    float bias = f32_of(static_cast<u32>(ld(a.bias, i % a.n).bits) << 16);
    st(a.x, i, ld(a.x, i) + bias);
}

// Rows that a warp of `bias_bwd` reads at once.
constexpr u32 AT_ONCE = 4;
// Columns of a block of `bias_bwd`, and its warps.
constexpr u32 COLUMNS = 256;
constexpr u32 WARPS = 8;

// Block (columns, slab): each lane sums eight columns over every eighth row of the slab, then the warps are summed in
// order. Shared memory: 8192 bytes.
KERNEL(bias_bwd, BiasBwd, 256) {
    u32 lane = thread() % 32, warp = thread() / 32, column = block() * COLUMNS + lane * 8;
    u32 first = block_y() * a.each, last = first + a.each < a.rows ? first + a.each : a.rows;
    u32 left = column < a.n ? a.n - column : 0;
    bool wide = rows_aligned(a.dy, a.n);
    Reg<float, 8> sum;
    UNROLL for (int i = 0; i < 8; i++) sum[i] = 0;
    for (u32 row = first + warp; row < last; row += AT_ONCE * WARPS) {
        Reg<u32, 4 * AT_ONCE> dy;
        UNROLL for (u32 k = 0; k < AT_ONCE; k++) {
            u32 at = row + k * WARPS;
            V16 v = load8(a.dy, static_cast<u64>(at) * a.n + column, at < last ? left : 0, wide);
            UNROLL for (int j = 0; j < 4; j++) dy[4 * k + j] = v.w[j];
        }
        UNROLL for (u32 j = 0; j < 4 * AT_ONCE; j++) {
            sum[2 * (j % 4)] += low(dy[j]);
            sum[2 * (j % 4) + 1] += high(dy[j]);
        }
    }
    u32 mine = shared_base() + (warp * COLUMNS + lane * 8) * 4;
    UNROLL for (u32 i = 0; i < 8; i += 4) {
        sts16(mine + i * 4, V16{bits_of(sum[i]), bits_of(sum[i + 1]), bits_of(sum[i + 2]), bits_of(sum[i + 3])});
    }
    sync();
    column = block() * COLUMNS + thread();
    if (column >= a.n) return;
    float total = 0;
    for (u32 w = 0; w < WARPS; w++) total += f32_of(lds(shared_base() + (w * COLUMNS + thread()) * 4));
    st(a.parts, static_cast<u64>(block_y()) * a.n + column, total);
}
