// Grouped products on sm_90a, y = x w^T + p bias and y = x w. A block loops over tiles [128, 256] of the result. The
// producer warpgroup loads tiles of 64 in the depth of the product by TMA, four stages ahead, also those of the next
// tile of the result while the last one is written. Each of the two consumers has 64 of the rows; while one waits for
// its product, the tensor cores work for the other. A tile of x may reach into the rows of the next expert, which are
// not written.
#include "args_sm90.cuh"
#include "grouped.cuh"
#include "ring_sm90.cuh"

constexpr u32 COLUMNS = 256, DEPTH = 64, STAGES = 4;
constexpr u32 X_BYTES = TILE_BYTES<TILE, DEPTH>, W_BYTES = TILE_BYTES<COLUMNS, DEPTH>;
// Columns of one wgmma, and bytes of a page of w where its rows run along the depth.
constexpr u32 HALF = 128, PAGE_BYTES = DEPTH * ROW;

using Stages = Ring<STAGES, X_BYTES + W_BYTES>;

// A tile of the result.
struct Part {
    Rows of;
    u32 column;
};

// Tile number `i`: those of the same rows are neighbours. It has no rows behind the last one.
DEVICE Part part_of(const GroupedTiles& a, u32 i HERE) {
    u32 across = (a.n + COLUMNS - 1) / COLUMNS;
    return {rows_of_tile(a.counts, a.first, a.rows, i / across AT), i % across * COLUMNS};
}

// One warp, whose first lane loads.
template <bool TURNED> DEVICE void produce(const GroupedTiles& a, Stages to) {
    for (u32 i = block();; i += blocks()) {
        Part p = part_of(a, i);
        if (!p.of.rows) return;
        if (thread()) continue;
        for (u32 step = 0; step < a.k / DEPTH; step++) {
            open_place(to, X_BYTES + W_BYTES);
            bring(to, 0, a.x, p.of.first, step, 0);
            if constexpr (TURNED) {
                bring(to, X_BYTES, a.w, p.of.expert * a.n + p.column, step, 0);
            } else {
                bring(to, X_BYTES, a.w, p.of.expert * a.k + step * DEPTH, p.column / 64, 0);
            }
            to.turn++;
        }
    }
}

// c += a stage's product for the 64 rows at `x`.
template <bool TURNED> DEVICE void multiply(Reg<float, HALF / 2> (&c)[2], u32 x, u32 w) {
    UNROLL for (int k = 0; k < static_cast<int>(DEPTH) / 16; k++) {
        UNROLL for (u32 half = 0; half < 2; half++) {
            u64 left = along(columns<TILE>(x, k));
            if constexpr (TURNED) {
                wgmma<false>(c[half], left, along(columns<COLUMNS>(w + half * HALF * ROW, k)));
            } else {
                wgmma<true>(c[half], left, across<PAGE_BYTES>(w + half * 2 * PAGE_BYTES + k * 16 * ROW));
            }
        }
    }
}

// c += the bias of the columns from `column` on, in this warpgroup's 64 rows, of which those of `of` exist.
DEVICE void add_bias(Reg<float, HALF / 2>& c, const GroupBias& b, const Rows& of, u32 column) {
    // Columns in front of the bias become numbers far behind it.
    u32 first = column + sum_column(0) - b.first;
    Reg<float, 2> weight;
    Reg<float, HALF / 4> bias;
    UNROLL for (int r = 0; r < 2; r++) {
        u32 row = sum_row(2 * r);
        weight[r] = row < of.rows ? bias_weight(b, of.first + row) : 0.0f;
    }
    UNROLL for (u32 i = 0; i < HALF / 4; i++) bias[i] = bias_at(b, of.expert, first + i / 2 * 8 + i % 2);
    UNROLL for (u32 i = 0; i < HALF / 4; i++) {
        if (first + i / 2 * 8 + i % 2 >= b.width) continue;
        UNROLL for (u32 r = 0; r < 2; r++) {
            float& sum = c[i / 2 * 4 + r * 2 + i % 2];
            sum = fmadd(weight[r], bias[i], sum);
        }
    }
}

// Computes the 64 rows of a tile that belong to this warpgroup, number `mine` of two.
template <bool TURNED> DEVICE void consume(const GroupedTiles& a, Stages& from, const Part& p, u32 mine) {
    Reg<float, HALF / 2> c[2];
    UNROLL for (int half = 0; half < 2; half++) {
        UNROLL for (u32 i = 0; i < HALF / 2; i++) c[half][i] = 0;
    }
    ROLLED for (u32 step = 0; step < a.k / DEPTH; step++) {
        u32 stage = await(from);
        wgmma_fence(c);
        multiply<TURNED>(c, stage + mine * 64 * ROW, stage + X_BYTES);
        wgmma_commit();
        wgmma_wait<0>();
        pin(c);
        release(from);
    }
    Rows of = {p.of.expert, p.of.first + mine * 64, p.of.rows > mine * 64 ? p.of.rows - mine * 64 : 0};
    UNROLL for (u32 half = 0; half < 2; half++) {
        u32 column = p.column + half * HALF;
        if (column >= a.n) continue;
        if constexpr (TURNED) {
            if (a.bias.bias.n) add_bias(c[half], a.bias, of, column);
        }
        u32 left = a.n - column < HALF ? a.n - column : HALF;
        store_part<HALF>(a.y, static_cast<u64>(of.first) * a.n + column, a.n, of.rows, left, c[half]);
    }
}

// Shared memory: the stages and their mbarriers. TURNED: x w^T.
template <bool TURNED> DEVICE void grouped(const GroupedTiles& a) {
    u32 base = shared_base();
    Stages stages = {base, base + STAGES * (X_BYTES + W_BYTES), 0};
    if (thread() == 0) {
        make_ring(stages);
        mbar_init_fence();
    }
    sync();
    if (thread() < WARPGROUP) {
        give_registers<40>();
        if (thread() < 32) produce<TURNED>(a, stages);
    } else {
        take_registers<232>();
        u32 mine = thread() / WARPGROUP - 1;
        for (u32 i = block();; i += blocks()) {
            Part p = part_of(a, i);
            if (!p.of.rows) return;
            consume<TURNED>(a, stages, p, mine);
        }
    }
}

KERNEL(grouped_nt_sm90, GroupedTiles, 3 * WARPGROUP, 1) { grouped<true>(a); }
KERNEL(grouped_nn_sm90, GroupedTiles, 3 * WARPGROUP, 1) { grouped<false>(a); }
