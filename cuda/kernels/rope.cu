// RoPE in place on the packed projection, in the halves layout: the pair (x_j, x_{j + d/2}) of a head is rotated by
// the angle of its row's position in the table; sign -1 rotates back. A thread processes eight pairs of one head of a
// row.
#include "args.cuh"
#include "common.cuh"

KERNEL(rope, Rope, 256) {
    u32 half = a.dim / 2, vectors = (half + 7) / 8, items = a.heads * vectors;
    u32 at = block() * threads() + thread(), row = at / items;
    if (row >= a.rows) return;
    u32 item = at % items, j = item % vectors * 8, left = half - j;
    u64 angles = static_cast<u64>(ld(a.positions, row)) * a.dim;
    bool wide = a.cols % 8 == 0 && half % 8 == 0 && aligned(a.qkv), wide_table = half % 4 == 0 && aligned(a.table);
    u64 first = static_cast<u64>(row) * a.cols + static_cast<u64>(item / vectors) * a.dim + j, second = first + half;
    V16 x1 = load8(a.qkv, first, left, wide), x2 = load8(a.qkv, second, left, wide), y1, y2;
    Reg<float, 8> cos, sin;
    UNROLL for (u32 k = 0; k < 8; k += 4) {
        u32 rest = left > k ? left - k : 0;
        V16 c = load4(a.table, angles + j + k, rest, wide_table);
        V16 s = load4(a.table, angles + half + j + k, rest, wide_table);
        UNROLL for (u32 i = 0; i < 4; i++) {
            cos[k + i] = f32_of(c.w[i]);
            sin[k + i] = a.sign * f32_of(s.w[i]);
        }
    }
    UNROLL for (int i = 0; i < 4; i++) {
        float low1 = low(x1.w[i]), high1 = high(x1.w[i]), low2 = low(x2.w[i]), high2 = high(x2.w[i]);
        float c = cos[2 * i], s = sin[2 * i], next_c = cos[2 * i + 1], next_s = sin[2 * i + 1];
        y1.w[i] = pack2(low1 * c - low2 * s, high1 * next_c - high2 * next_s);
        y2.w[i] = pack2(low2 * c + low1 * s, high2 * next_c + high1 * next_s);
    }
    store8(a.qkv, first, left, wide, y1);
    store8(a.qkv, second, left, wide, y2);
}
