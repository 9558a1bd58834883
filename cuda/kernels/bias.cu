// Biases: x += b in every row, and db += the sum of the rows of dy: first over slabs of rows, then over the slabs in
// order (`sum_rows`).
#include "args.cuh"
#include "column_sums.cuh"

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
    float bias = f32_of(ld(a.bias, i % a.n));
    st(a.x, i, ld(a.x, i) + bias);
}

// Block (columns, slab). Shared memory: 8192 bytes.
KERNEL(bias_bwd, BiasBwd, 256) {
    u32 first = block_y() * a.each, last = first + a.each < a.rows ? first + a.each : a.rows;
    u32 column = block() * COLUMNS;
    float sum = column_sum(a.dy, {column, a.n, a.n - column, first, last}, [](u32) { return 1.0f; });
    column += thread();
    if (column < a.n) st(a.parts, static_cast<u64>(block_y()) * a.n + column, sum);
}
