// Tiles in shared memory as TMA writes them, and wgmma on them. A bf16 tile of R rows and D columns consists of D / 64
// pages of R rows of 128 bytes; the 16-byte chunks of row r are swizzled by XOR r % 8. Tiles are aligned to 1024 bytes.
// No PTX here.
#pragma once
#include "prim_hopper.cuh"

constexpr u32 ROW = 128;
// Eight rows, after which the swizzle pattern repeats.
constexpr u32 EIGHT_ROWS = 8 * ROW;

template <int R, int D> constexpr u32 TILE_BYTES = R * D * 2;

// Matrix descriptors: the operand's start, the strides of eight rows and of 64 columns (a page), all in units of 16
// bytes, and the swizzle mode of 128 bytes.
constexpr u64 SWIZZLED = 1ull << 62 | static_cast<u64>(EIGHT_ROWS / 16) << 32;
// For operands with rows of m or n, along which k runs: the 16 k of one wgmma lie in one page.
DEVICE u64 along(u32 at) { return SWIZZLED | 1ull << 16 | at / 16; }
// For operands with rows of k, along which n runs.
template <u32 PAGE> DEVICE u64 across(u32 at) { return SWIZZLED | static_cast<u64>(PAGE / 16) << 16 | at / 16; }

// The 16 columns from 16 k on of a tile whose pages have R rows.
template <int R> DEVICE u32 columns(u32 tile, int k) { return tile + k / 4 * (R * ROW) + k % 4 * 32; }

// s [64, N] = a b^T over D columns: 64 rows of a tile of RA rows from `a` on, the N rows of the tile b.
template <int D, int RA, int N> DEVICE void product_along(Reg<float, N / 2>& s, u32 a, u32 b HERE) {
    wgmma_new<false>(s, along(a), along(b) AT);
    UNROLL for (int k = 1; k < D / 16; k++) wgmma<false>(s, along(columns<RA>(a, k)), along(columns<N>(b, k)) AT);
}

// o [64, D] += p [64, K] b [K, D]; p in registers, b a tile.
template <int D, int K> DEVICE void add_product_across(Reg<float, D / 2>& o, Reg<u32, 4> (&p)[K / 16], u32 b HERE) {
    UNROLL for (int k = 0; k < K / 16; k++) wgmma<true>(o, p[k], across<K * ROW>(b + k * 16 * ROW) AT);
}

// Rounds accumulators to the left operand of the next wgmma: a lane holds the same elements of 16 columns in both.
template <int N> DEVICE void round_sums(Reg<u32, 4> (&p)[N / 16], const Reg<float, N / 2>& s HERE) {
    UNROLL for (int k = 0; k < N / 16; k++) {
        UNROLL for (int i = 0; i < 4; i++) p[k][i] = pack2(s[8 * k + 2 * i], s[8 * k + 2 * i + 1] AT);
    }
}

// The row, of the warpgroup's 64, and the first column of the accumulators i and i + 1.
DEVICE u32 sum_row(int i) { return thread() % 128 / 32 * 16 + thread() % 32 / 4 + i / 2 % 2 * 8; }
DEVICE u32 sum_column(int i) { return i / 4 * 8 + thread() % 4 * 2; }

// Transposes the words of a quad of lanes: lane t gets word t of each.
DEVICE void turn_quad(Reg<u32, 4>& w HERE) {
    u32 lane = thread();
    UNROLL for (u32 d = 1; d < 4; d *= 2) {
        UNROLL for (u32 i = 0; i < 4; i++) {
            if (i & d) continue;
            // A lane keeps the word of its own side and exchanges the other.
            u32 other = shfl_xor(lane & d ? w[i] : w[i + d], d AT);
            if (lane & d) {
                w[i] = other;
            } else {
                w[i + d] = other;
            }
        }
    }
}

// Rounds accumulators [64, D] and stores the first `rows` rows and `columns` columns to `to`, the first at element
// `start`, rows `pitch` apart; both are multiples of 8, and the columns one of 32.
template <int D>
DEVICE void store_part(View<bf16> to, u64 start, u64 pitch, u32 rows, u32 columns, const Reg<float, D / 2>& s HERE) {
    UNROLL for (int j = 0; j < D / 2; j += 16) {
        if (static_cast<u32>(j) * 2 >= columns) continue;
        UNROLL for (int half = 0; half < 4; half += 2) {
            Reg<u32, 4> w;
            UNROLL for (int i = 0; i < 4; i++) w[i] = pack2(s[j + 4 * i + half], s[j + 4 * i + half + 1] AT);
            turn_quad(w AT);
            u32 row = sum_row(half), column = j * 2 + thread() % 4 * 8;
            if (row < rows) st16_whole(to, start + row * pitch + column, V16{w[0], w[1], w[2], w[3]} AT);
        }
    }
}

// All columns of it.
template <int D>
DEVICE void store_sums(View<bf16> to, u64 start, u64 pitch, u32 rows, const Reg<float, D / 2>& s HERE) {
    store_part<D>(to, start, pitch, rows, D, s AT);
}
