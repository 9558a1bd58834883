// Tiles in shared memory, and matrix multiplication on them by tensor cores.
//
// A bf16 tile [ROWS, D] consists of pages of 64 columns, in which a row is 128 bytes. Chunk c of row r (16 bytes) is
// stored at index c ^ (r % 8) of its row, so that one chunk of eight rows, and the eight chunks of one row, use all 32
// banks. A tile is aligned to 128 bytes.
#pragma once
#include "common.cuh"

constexpr u32 ROW_BYTES = 128;
constexpr u32 PAGE_COLUMNS = 64;

template <int ROWS, int D> DEVICE constexpr u32 tile_bytes() { return ROWS * D * 2; }

// A warp's accumulators [16 M, 8 N]: of each piece [16, 8] the four elements that `mma` keeps in a lane, which are
// (g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1) with g = lane / 4 and t = 2 (lane % 4).
template <int M, int N> struct Sums {
    Reg<float, 4> at[M][N];
};

// A left factor [16 M, 16 K] of bf16 in a warp's registers, in the layout of `mma`.
template <int M, int K> struct Left {
    Reg<u32, 4> at[M][K];
};

// Sets accumulators, or a left factor, to one value. Registers that are set only when a warp has work must also be set
// when it has none: otherwise the compiler keeps their values from one loop iteration to the next.
template <int M, int N> DEVICE void fill(Sums<M, N>& c, float value) {
    UNROLL for (int m = 0; m < M; m++) {
        UNROLL for (int n = 0; n < N; n++) {
            UNROLL for (int e = 0; e < 4; e++) c.at[m][n][e] = value;
        }
    }
}
template <int M, int K> DEVICE void fill(Left<M, K>& a, u32 value) {
    UNROLL for (int m = 0; m < M; m++) {
        UNROLL for (int k = 0; k < K; k++) {
            UNROLL for (int w = 0; w < 4; w++) a.at[m][k][w] = value;
        }
    }
}

// The elements 2 half, 2 half + 1 of a piece are neighbours: the pairs of the accumulators (m, 2 k) and (m, 2 k + 1)
// are the four words of the left factor (m, k).
template <int M, int N> DEVICE Reg<u32, 4> packed(const Sums<M, N>& c, int m, int k HERE) {
    Reg<u32, 4> words;
    UNROLL for (int w = 0; w < 4; w++) {
        const Reg<float, 4>& piece = c.at[m][2 * k + w / 2];
        words[w] = pack2(piece[w % 2 * 2], piece[w % 2 * 2 + 1] AT);
    }
    return words;
}

// -- the addresses that a lane reads --

// For [16, 16] at row 0 and column 0 of the tile: a left factor as stored, or a right factor transposed.
DEVICE u32 lanes_down(u32 tile) {
    u32 lane = thread() % 32;
    return tile + lane % 16 * ROW_BYTES + (lane / 16 ^ lane % 8) * 16;
}
// The same for a right factor whose columns are the tile's rows.
DEVICE u32 lanes_across(u32 tile) {
    u32 lane = thread() % 32;
    return tile + (lane / 16 * 8 + lane % 8) * ROW_BYTES + (lane / 8 % 2 ^ lane % 8) * 16;
}
// The same at `row` and `chunk` of a tile of ROWS rows, which are multiples of 8 and of 2.
template <int ROWS> DEVICE u32 moved(u32 lanes, int row, int chunk) {
    return (lanes ^ chunk % 8 * 16) + chunk / 8 * ROWS * ROW_BYTES + row * ROW_BYTES;
}

// -- matrix multiplication --

// c [16 M, 8 N] += a b^T with a [16 M, D] at the lanes `a` of a tile of A_ROWS rows, and b [8 N, D] at the lanes `b`.
template <int D, int A_ROWS, int B_ROWS, int M, int N> DEVICE void add_product_nt(Sums<M, N>& c, u32 a, u32 b HERE) {
    UNROLL for (int k = 0; k < D / 16; k++) {
        Reg<u32, 4> left[M];
        UNROLL for (int m = 0; m < M; m++) ldmatrix(left[m], moved<A_ROWS>(a, 16 * m, 2 * k) AT);
        UNROLL for (int n = 0; n < N; n += 2) {
            Reg<u32, 4> right;
            ldmatrix(right, moved<B_ROWS>(b, 8 * n, 2 * k) AT);
            UNROLL for (int m = 0; m < M; m++) {
                mma(c.at[m][n], left[m], right[0], right[1] AT);
                mma(c.at[m][n + 1], left[m], right[2], right[3] AT);
            }
        }
    }
}

// The same for rows at `a` and `b` of the tiles, one page of columns after the other, so that the compiler does not
// interleave the pages and run out of registers.
template <int D, int A_ROWS, int B_ROWS, int M, int N> DEVICE void product_by_pages(Sums<M, N>& c, u32 a, u32 b HERE) {
    fill(c, 0.0f);
    ROLLED for (u32 page = 0; page < D / PAGE_COLUMNS; page++) {
        add_product_nt<PAGE_COLUMNS, A_ROWS, B_ROWS>(c, lanes_down(a), lanes_across(b) AT);
        a += A_ROWS * ROW_BYTES;
        b += B_ROWS * ROW_BYTES;
    }
}

// c [16 M, 8 N] += a b with a [16 M, 16 K] in registers and b [16 K, 8 N] at the lanes `b` of a tile of 16 K rows.
template <int M, int N, int K> DEVICE void add_product(Sums<M, N>& c, const Left<M, K>& a, u32 b HERE) {
    UNROLL for (int k = 0; k < K; k++) {
        UNROLL for (int n = 0; n < N; n += 2) {
            Reg<u32, 4> right;
            ldmatrix_trans(right, moved<16 * K>(b, 16 * k, n) AT);
            UNROLL for (int m = 0; m < M; m++) {
                mma(c.at[m][n], a.at[m][k], right[0], right[1] AT);
                mma(c.at[m][n + 1], a.at[m][k], right[2], right[3] AT);
            }
        }
    }
}

// -- between global and shared memory --

// Rows of one head in a matrix of `cols` columns: the first element, and the number of rows.
struct Strip {
    u64 from;
    u32 cols, rows;
};

// The first element of a strip that this thread copies.
DEVICE u64 first_copied(Strip s) {
    u32 me = fresh(thread());
    return s.from + static_cast<u64>(me / 8) * s.cols + me % 8 * 8;
}

// Starts to copy ROWS rows of a head to the tile at `to`, this thread from element `from` on; `rows` of them exist, the
// others are zero.
template <int ROWS, int D, int THREADS>
DEVICE void load_rows(u32 to, View<const bf16> x, u64 from, u32 cols, u32 rows HERE) {
    u32 me = fresh(thread()), row = me / 8, chunk = me % 8;
    to += row * ROW_BYTES + (chunk ^ row % 8) * 16;
    UNROLL for (u32 r = 0; r < ROWS; r += THREADS / 8) {
        u32 bytes = row + r < rows ? 16 : 0;
        UNROLL for (u32 page = 0; page < D / PAGE_COLUMNS; page++) {
            cp_async16(to + page * ROWS * ROW_BYTES + r * ROW_BYTES, x, from + page * PAGE_COLUMNS, bytes AT);
        }
        from += THREADS / 8 * cols;
    }
}

// The same for a strip.
template <int ROWS, int D, int THREADS> DEVICE void load_tile(u32 to, View<const bf16> x, Strip s HERE) {
    load_rows<ROWS, D, THREADS>(to, x, first_copied(s), s.cols, s.rows AT);
}

// Writes accumulators [16 M, D], times `factor` of each lane's 2 M rows, to a strip. They are transposed to whole rows
// in the warp's rows of the tile of ROWS rows at `tile`, which are overwritten and which no other warp may use.
template <int ROWS, int D, int M>
DEVICE void store_rows(View<bf16> to, Strip s, u32 tile, const Sums<M, D / 8>& c,
                       const Reg<float, 2 * M>& factor HERE) {
    u32 lane = thread() % 32, g = lane / 4, t = lane % 4;
    warp_sync(AT_ONLY);
    UNROLL for (u32 n = 0; n < D / 8; n++) {
        u32 at = tile + n / 8 * ROWS * ROW_BYTES + g * ROW_BYTES + (n % 8 ^ g) * 16 + t * 4;
        UNROLL for (u32 r = 0; r < 2 * M; r++) {
            const Reg<float, 4>& piece = c.at[r / 2][n];
            sts(at + r * 8 * ROW_BYTES, pack2(piece[r % 2 * 2] * factor[r], piece[r % 2 * 2 + 1] * factor[r] AT) AT);
        }
    }
    warp_sync(AT_ONLY);
    u32 chunk = lane % 8;
    UNROLL for (u32 r = 0; r < 16 * M; r += 4) {
        u32 row = r + lane / 8;
        if (row >= s.rows) continue;
        UNROLL for (u32 page = 0; page < D / PAGE_COLUMNS; page++) {
            V16 v = lds16(tile + page * ROWS * ROW_BYTES + row * ROW_BYTES + (chunk ^ row % 8) * 16 AT);
            st16_whole(to, s.from + static_cast<u64>(row) * s.cols + page * PAGE_COLUMNS + chunk * 8, v AT);
        }
    }
}
