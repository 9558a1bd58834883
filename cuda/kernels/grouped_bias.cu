// The gradients of a bias for each expert, y = .. + p bias[e]: dbias[e] += sum of p dy over the rows of expert e, and
// dp += dy . bias[e] in each row.
#include "column_sums.cuh"
#include "grouped.cuh"

// Block (columns, expert). Shared memory: 8192 bytes.
KERNEL(grouped_bias_bwd, GroupedBias, 256) {
    Rows of = rows_of_expert(a.counts, a.first, a.rows, block_y());
    if (!of.rows) return;
    u32 column = block() * COLUMNS;
    Slab rows = {a.bias.first + column, a.n, a.bias.width - column, of.first, of.first + of.rows};
    auto weight = [&](u32 row) { return row < rows.last ? bias_weight(a.bias, row) : 0.0f; };
    float sum = column_sum(a.dy, rows, weight);
    column += thread();
    if (column >= a.bias.width) return;
    u64 at = static_cast<u64>(of.expert) * a.bias.width + column;
    st(a.to, at, ld(a.to, at) + sum);
}

// Vectors of a row that a lane reads at once.
constexpr u32 VECTORS = 2;

// The product of a row's columns from element `dy` on with a bias from element `bias` on, by a warp.
DEVICE float dot(const GroupedBias& a, u64 dy, u64 bias HERE) {
    bool wide_dy = past16(a.dy, dy) == 0, wide_bias = past16(a.bias.bias, bias) == 0;
    float sum = 0;
    for (u32 column = thread() % 32 * 8; column < a.bias.width; column += VECTORS * 256) {
        Reg<u32, 4 * VECTORS> x, b;
        UNROLL for (u32 k = 0; k < VECTORS; k++) {
            u32 at = column + k * 256, left = at < a.bias.width ? a.bias.width - at : 0;
            V16 of_dy = load8(a.dy, dy + at, left, wide_dy AT);
            V16 of_bias = load8(a.bias.bias, bias + at, left, wide_bias AT);
            UNROLL for (int j = 0; j < 4; j++) {
                x[4 * k + j] = of_dy.w[j];
                b[4 * k + j] = of_bias.w[j];
            }
        }
        UNROLL for (u32 j = 0; j < 4 * VECTORS; j++) {
            sum = fmadd(high(x[j]), high(b[j]), fmadd(low(x[j]), low(b[j]), sum));
        }
    }
    return warp_sum(sum AT);
}

// A warp for each row. Rows that no expert counts are left as they are.
KERNEL(grouped_bias_dot, GroupedBias, 256) {
    u32 row = block() * WARPS + thread() / 32;
    if (row >= a.rows) return;
    u32 expert = expert_of_row(a.counts, a.first + row);
    if (expert == static_cast<u32>(a.counts.n)) return;
    float sum = dot(a, static_cast<u64>(row) * a.n + a.bias.first, static_cast<u64>(expert) * a.bias.width);
    if (thread() % 32 == 0) st(a.to, row, ld(a.to, row) + sum);
}
