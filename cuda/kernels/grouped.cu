// Matrix products of rows that are grouped by expert, each row with the weights of its expert:
//   nt: y = x w^T + p bias    nn: y = x w    tn_acc: dw += dy^T x over the rows of each expert
// A block computes a tile [128, 128] of the result in registers, over tiles of 64 in the depth of the product, of which
// the next is copied to shared memory while one is multiplied. Every sum has one order.
//
// Kernels named `unaligned` are for matrices whose rows are not aligned to sixteen bytes. They read single elements.
#include "grouped.cuh"
#include "tile.cuh"

constexpr u32 DEPTH = 64, THREADS = 128;
// Rows and columns of a warp's part of the tile: two by two warps.
constexpr u32 PART = 64;
// Bytes of a warp's part of one operand in a stage, of an operand, and of a stage.
constexpr u32 PART_BYTES = PART * ROW_BYTES, OPERAND = 2 * PART_BYTES, STAGE = 2 * OPERAND;

using Tile = Sums<PART / 16, PART / 8>;

enum Form { NT, NN, TN };

// -- operands --

// A part of a matrix of `stride` columns, from element `from` on, with this number of rows and columns that exist.
struct Matrix {
    u64 from;
    u32 stride, rows, cols;
};

// Copies ROWS rows and PAGES pages of columns to a tile. What does not exist is zero.
template <int ROWS, int PAGES, bool ALIGNED> DEVICE void load_part(u32 to, View<const bf16> x, const Matrix& m HERE) {
    u32 me = fresh(thread()), row = me / 8, chunk = me % 8;
    u64 from = m.from + static_cast<u64>(row) * m.stride + chunk * 8;
    to += row * ROW_BYTES + (chunk ^ row % 8) * 16;
    UNROLL for (u32 r = 0; r < ROWS; r += THREADS / 8) {
        UNROLL for (u32 page = 0; page < PAGES; page++) {
            u32 column = page * PAGE_COLUMNS + chunk * 8, at = to + page * ROWS * ROW_BYTES + r * ROW_BYTES;
            u32 left = row + r < m.rows && column < m.cols ? m.cols - column : 0;
            u64 i = from + page * PAGE_COLUMNS;
            if constexpr (ALIGNED) {
                cp_async16(at, x, i, left ? 16 : 0 AT);
            } else {
                sts16(at, load8(x, i, left, false AT) AT);
            }
        }
        from += THREADS / 8 * m.stride;
    }
}

// A left factor is stored as its rows, or transposed; a right factor transposed as the rows of b^T.
DEVICE constexpr bool left_is_down(Form form) { return form != TN; }
DEVICE constexpr bool right_is_down(Form form) { return form == NT; }

// Copies the next tile of one operand: rows over 64 columns, after which come more columns, or 64 rows.
template <bool DOWN, bool ALIGNED> DEVICE void load_operand(u32 to, View<const bf16> x, Matrix& m HERE) {
    if constexpr (DOWN) {
        load_part<TILE, 1, ALIGNED>(to, x, m AT);
        m.from += DEPTH;
        m.cols -= DEPTH;
    } else {
        load_part<DEPTH, 2, ALIGNED>(to, x, m AT);
        m.from += static_cast<u64>(DEPTH) * m.stride;
        m.rows -= DEPTH;
    }
}

// -- the product --

// c += the product of a stage's operands, for this warp's part of the tile.
template <Form FORM> DEVICE void multiply(Tile& c, u32 stage HERE) {
    u32 warp = thread() / 32, a = stage + warp / 2 * PART_BYTES, b = stage + OPERAND + warp % 2 * PART_BYTES;
    a = left_is_down(FORM) ? lanes_down(a) : lanes_across(a);
    b = right_is_down(FORM) ? lanes_across(b) : lanes_down(b);
    UNROLL for (int k = 0; k < static_cast<int>(DEPTH) / 16; k++) {
        Reg<u32, 4> left[PART / 16];
        UNROLL for (int m = 0; m < static_cast<int>(PART) / 16; m++) {
            if constexpr (left_is_down(FORM)) {
                ldmatrix(left[m], moved<TILE>(a, 16 * m, 2 * k) AT);
            } else {
                ldmatrix_trans(left[m], moved<DEPTH>(a, 16 * k, 2 * m) AT);
            }
        }
        UNROLL for (int n = 0; n < static_cast<int>(PART) / 8; n += 2) {
            Reg<u32, 4> right;
            if constexpr (right_is_down(FORM)) {
                ldmatrix(right, moved<TILE>(b, 8 * n, 2 * k) AT);
            } else {
                ldmatrix_trans(right, moved<DEPTH>(b, 16 * k, n) AT);
            }
            UNROLL for (int m = 0; m < static_cast<int>(PART) / 16; m++) {
                mma(c.at[m][n], left[m], right[0], right[1] AT);
                mma(c.at[m][n + 1], left[m], right[2], right[3] AT);
            }
        }
    }
}

// c = the product of the parts a of x and b of w, `depth` deep. Shared memory: two stages, which are free afterwards.
template <Form FORM, bool ALIGNED>
DEVICE void product(Tile& c, View<const bf16> x, Matrix a, View<const bf16> w, Matrix b, u32 depth HERE) {
    fill(c, 0.0f);
    u32 stage = shared_base(), other = stage + STAGE;
    auto load = [&](u32 to) {
        load_operand<left_is_down(FORM), ALIGNED>(to, x, a AT);
        load_operand<right_is_down(FORM), ALIGNED>(to + OPERAND, w, b AT);
        cp_commit();
    };
    load(stage);
    ROLLED for (u32 left = (depth + DEPTH - 1) / DEPTH; left; left--) {
        // The stage has come, and nobody reads the other one any more.
        cp_wait<0>(AT_ONLY);
        sync(AT_ONLY);
        if (left > 1) load(other);
        multiply<FORM>(c, stage AT);
        u32 next = other;
        other = stage;
        stage = next;
    }
    sync(AT_ONLY);
}

// -- y = x w^T and y = x w --

// c += the bias of the expert `of`, in the tile that begins at `column`. Rows that do not exist read no weight.
DEVICE void add_bias(Tile& c, const GroupBias& b, const Rows& of, u32 column HERE) {
    u32 lane = thread() % 32, warp = thread() / 32, row = warp / 2 * PART + lane / 4;
    // Columns in front of the bias become numbers far behind it.
    u32 first = column + warp % 2 * PART + lane % 4 * 2 - b.first;
    Reg<float, PART / 8> weight;
    Reg<float, PART / 4> bias;
    UNROLL for (u32 r = 0; r < PART / 8; r++) {
        weight[r] = row + 8 * r < of.rows ? bias_weight(b, of.first + row + 8 * r AT) : 0.0f;
    }
    UNROLL for (u32 i = 0; i < PART / 4; i++) bias[i] = bias_at(b, of.expert, first + i / 2 * 8 + i % 2 AT);
    UNROLL for (u32 i = 0; i < PART / 4; i++) {
        if (first + i / 2 * 8 + i % 2 >= b.width) continue;
        UNROLL for (u32 r = 0; r < PART / 8; r++) {
            float& sum = c.at[r / 2][i / 2][r % 2 * 2 + i % 2];
            sum = fmadd(weight[r], bias[i], sum);
        }
    }
}

// Writes the tile's rows and columns that exist. They are transposed to whole rows in shared memory.
template <bool ALIGNED> DEVICE void store_tile(View<bf16> y, const Matrix& m, const Tile& c HERE) {
    u32 lane = thread() % 32, g = lane / 4, t = lane % 4, warp = thread() / 32;
    u32 mine = shared_base() + warp * PART_BYTES;
    UNROLL for (u32 n = 0; n < PART / 8; n++) {
        u32 at = mine + g * ROW_BYTES + (n ^ g) * 16 + t * 4;
        UNROLL for (u32 r = 0; r < PART / 8; r++) {
            const Reg<float, 4>& piece = c.at[r / 2][n];
            sts(at + r * 8 * ROW_BYTES, pack2(piece[r % 2 * 2], piece[r % 2 * 2 + 1] AT) AT);
        }
    }
    warp_sync(AT_ONLY);
    u32 chunk = lane % 8, column = warp % 2 * PART + chunk * 8, left = column < m.cols ? m.cols - column : 0;
    u32 first = warp / 2 * PART + lane / 8;
    UNROLL for (u32 r = 0; r < PART; r += 4) {
        u32 row = r + lane / 8;
        if (first + r >= m.rows || !left) continue;
        V16 v = lds16(mine + row * ROW_BYTES + (chunk ^ row % 8) * 16 AT);
        u64 i = m.from + static_cast<u64>(first + r) * m.stride + column;
        if constexpr (ALIGNED) {
            st16_whole(y, i, v AT);
        } else {
            store8(y, i, left, false, v AT);
        }
    }
}

// Block (columns, tile of rows). Shared memory: 65536 bytes.
template <Form FORM, bool ALIGNED> DEVICE void grouped(const Grouped& a) {
    Rows of = rows_of_tile(a.counts, a.first, a.rows, block_y());
    if (!of.rows) return;
    u32 column = block() * TILE;
    u64 w = static_cast<u64>(of.expert) * a.n * a.k;
    Matrix left = {static_cast<u64>(of.first) * a.k, a.k, of.rows, a.k}, right;
    if constexpr (right_is_down(FORM)) {
        right = {w + static_cast<u64>(column) * a.k, a.k, a.n - column, a.k};
    } else {
        right = {w + column, a.n, a.k, a.n - column};
    }
    Tile c;
    product<FORM, ALIGNED>(c, a.x, left, a.w, right, a.k);
    if constexpr (FORM == NT) {
        if (a.bias.bias.n) add_bias(c, a.bias, of, column);
    }
    store_tile<ALIGNED>(a.y, {static_cast<u64>(of.first) * a.n + column, a.n, of.rows, a.n - column}, c);
}

KERNEL(grouped_nt, Grouped, 128, 2) { grouped<NT, true>(a); }
KERNEL(grouped_nn, Grouped, 128, 2) { grouped<NN, true>(a); }
KERNEL(grouped_nt_unaligned, Grouped, 128, 2) { grouped<NT, false>(a); }
KERNEL(grouped_nn_unaligned, Grouped, 128, 2) { grouped<NN, false>(a); }

// -- dw += dy^T x --

// Two neighbours in a row, of which `n` exist. `PAIRS`: rows are aligned to eight bytes.
template <bool PAIRS> DEVICE V8 load2(View<float> x, u64 i, u32 n HERE) {
    V8 v = {};
    if constexpr (PAIRS) {
        if (n) v = ld8(x, i AT);
    } else {
        if (n) v.w[0] = bits_of(ld(x, i AT));
        if (n > 1) v.w[1] = bits_of(ld(x, i + 1 AT));
    }
    return v;
}
template <bool PAIRS> DEVICE void store2(View<float> x, u64 i, u32 n, float first, float second HERE) {
    if constexpr (PAIRS) {
        if (n) st8(x, i, V8{bits_of(first), bits_of(second)} AT);
    } else {
        if (n) st(x, i, first AT);
        if (n > 1) st(x, i + 1, second AT);
    }
}

// Adds the tile's rows and columns that exist to dw.
template <bool PAIRS> DEVICE void add_tile(View<float> dw, const Matrix& m, const Tile& c HERE) {
    u32 lane = thread() % 32, warp = thread() / 32;
    u32 row = warp / 2 * PART + lane / 4, column = warp % 2 * PART + lane % 4 * 2;
    u32 left = column < m.cols ? m.cols - column : 0;
    UNROLL for (u32 r = 0; r < PART / 8; r++) {
        if (row + 8 * r >= m.rows) continue;
        u64 from = m.from + static_cast<u64>(row + 8 * r) * m.stride + column;
        Reg<float, PART / 4> sum;
        UNROLL for (u32 n = 0; n < PART / 8; n++) {
            V8 old = load2<PAIRS>(dw, from + 8 * n, left > 8 * n ? left - 8 * n : 0 AT);
            UNROLL for (u32 e = 0; e < 2; e++) sum[2 * n + e] = f32_of(old.w[e]);
        }
        UNROLL for (u32 n = 0; n < PART / 8; n++) {
            const Reg<float, 4>& piece = c.at[r / 2][n];
            float first = sum[2 * n] + piece[r % 2 * 2], second = sum[2 * n + 1] + piece[r % 2 * 2 + 1];
            store2<PAIRS>(dw, from + 8 * n, left > 8 * n ? left - 8 * n : 0, first, second AT);
        }
    }
}

// Block (columns, rows, expert). Shared memory: 65536 bytes.
template <bool ALIGNED> DEVICE void grouped_acc(const GroupedAcc& a) {
    Rows of = rows_of_expert(a.counts, a.first, a.rows, block_z());
    if (!of.rows) return;
    u32 column = block() * TILE, row = block_y() * TILE;
    u64 first = of.first;
    Matrix left = {first * a.n + row, a.n, of.rows, a.n - row};
    Matrix right = {first * a.k + column, a.k, of.rows, a.k - column};
    Tile c;
    product<TN, ALIGNED>(c, a.dy, left, a.x, right, of.rows);
    u64 at = (static_cast<u64>(of.expert) * a.n + row) * a.k + column;
    Matrix to = {at, a.k, a.n - row, a.k - column};
    if (a.k % 2 == 0 && past16(a.dw, 0) % 8 == 0) {
        add_tile<true>(a.dw, to, c);
    } else {
        add_tile<false>(a.dw, to, c);
    }
}

KERNEL(grouped_tn_acc, GroupedAcc, 128, 2) { grouped_acc<true>(a); }
KERNEL(grouped_tn_acc_unaligned, GroupedAcc, 128, 2) { grouped_acc<false>(a); }
