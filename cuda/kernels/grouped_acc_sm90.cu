// The gradients of experts' weights on sm_90a, dw += dy^T x over the rows of each expert. A block loops over tiles
// [128, 256] of the result, whose depth is the number of rows of one expert. As in `grouped_sm90.cu`, the producer
// warpgroup loads tiles of 64 in the depth by TMA, four stages ahead, and each of the two consumers has 64 of the
// result's rows. Both operands lie in shared memory with rows of the depth.
#include "args_sm90.cuh"
#include "grouped.cuh"
#include "ring_sm90.cuh"

constexpr u32 COLUMNS = 256, DEPTH = 64, STAGES = 4;
constexpr u32 DY_BYTES = TILE_BYTES<DEPTH, TILE>, X_BYTES = TILE_BYTES<DEPTH, COLUMNS>;
// Columns of one wgmma, and bytes of a page of 64 columns.
constexpr u32 HALF = 128, PAGE_BYTES = DEPTH * ROW;

using Stages = Ring<STAGES, DY_BYTES + X_BYTES>;

// A tile of an expert's gradient, which has no rows of dy and x where nothing is to be added.
struct Part {
    Rows of;
    u32 row, column;
};

DEVICE u32 tiles_across(const GroupedAccTiles& a) { return (a.k + COLUMNS - 1) / COLUMNS; }
DEVICE u32 tiles_down(const GroupedAccTiles& a) { return (a.n + TILE - 1) / TILE; }
DEVICE u32 tiles(const GroupedAccTiles& a) { return static_cast<u32>(a.counts.n) * tiles_down(a) * tiles_across(a); }

// Tile number `i`: those of the same expert are neighbours.
DEVICE Part part_of(const GroupedAccTiles& a, u32 i HERE) {
    u32 across = tiles_across(a), down = tiles_down(a);
    Rows of = rows_of_expert(a.counts, a.first, a.rows, i / across / down AT);
    return {of, i / across % down * TILE, i % across * COLUMNS};
}

// One warp, whose first lane loads.
DEVICE void produce(const GroupedAccTiles& a, Stages to) {
    for (u32 i = block(); i < tiles(a); i += blocks()) {
        Part p = part_of(a, i);
        if (thread()) continue;
        for (u32 row = 0; row < p.of.rows; row += DEPTH) {
            open_place(to, DY_BYTES + X_BYTES);
            bring(to, 0, a.dy, p.of.first + row, p.row / 64, 0);
            bring(to, DY_BYTES, a.x, p.of.first + row, p.column / 64, 0);
            to.turn++;
        }
    }
}

// Overwrites a stage's rows from `rows` on, which are those of the next expert or of no expert, with zeros. All
// consumers work together, and see all zeros afterwards.
DEVICE void clear_rows(u32 stage, u32 rows) {
    constexpr u32 PAGES = (TILE + COLUMNS) / 64, CHUNKS = ROW / 16;
    u32 surplus = DEPTH - rows;
    for (u32 i = thread() - WARPGROUP; i < PAGES * surplus * CHUNKS; i += 2 * WARPGROUP) {
        u32 row = i / CHUNKS, page = row / surplus;
        sts16(stage + page * PAGE_BYTES + (rows + row % surplus) * ROW + i % CHUNKS * 16, V16{});
    }
    proxy_fence();
    group_sync(1, 2 * WARPGROUP);
}

// c += a stage's product, for the 64 columns of dy in the page at `dy`.
DEVICE void multiply(Reg<float, HALF / 2> (&c)[2], u32 dy, u32 x) {
    UNROLL for (u32 k = 0; k < DEPTH; k += 16) {
        UNROLL for (u32 half = 0; half < 2; half++) {
            u64 left = across<PAGE_BYTES>(dy + k * ROW);
            wgmma<true, true>(c[half], left, across<PAGE_BYTES>(x + half * 2 * PAGE_BYTES + k * ROW));
        }
    }
}

// Adds accumulators [64, HALF] to dw, the first of them at element `start`: the columns that exist, of `left`.
DEVICE void add_sums(const GroupedAccTiles& a, u64 start, u32 left, const Reg<float, HALF / 2>& c) {
    UNROLL for (int r = 0; r < 2; r++) {
        u64 from = start + static_cast<u64>(sum_row(2 * r)) * a.k + sum_column(0);
        Reg<float, HALF / 4> sum;
        UNROLL for (u32 j = 0; j < HALF / 8; j++) {
            V8 old = j * 8 < left ? ld8(a.dw, from + 8 * j) : V8{};
            UNROLL for (u32 e = 0; e < 2; e++) sum[2 * j + e] = f32_of(old.w[e]);
        }
        UNROLL for (u32 j = 0; j < HALF / 8; j++) {
            float first = sum[2 * j] + c[4 * j + 2 * r], second = sum[2 * j + 1] + c[4 * j + 2 * r + 1];
            if (j * 8 < left) st8(a.dw, from + 8 * j, V8{bits_of(first), bits_of(second)});
        }
    }
}

// Computes the 64 rows of a tile that belong to this warpgroup, number `mine` of two.
DEVICE void consume(const GroupedAccTiles& a, Stages& from, const Part& p, u32 mine) {
    Reg<float, HALF / 2> c[2];
    UNROLL for (int half = 0; half < 2; half++) {
        UNROLL for (u32 i = 0; i < HALF / 2; i++) c[half][i] = 0;
    }
    ROLLED for (u32 row = 0; row < p.of.rows; row += DEPTH) {
        u32 stage = await(from);
        if (p.of.rows - row < DEPTH) clear_rows(stage, p.of.rows - row);
        wgmma_fence(c);
        multiply(c, stage + mine * PAGE_BYTES, stage + DY_BYTES);
        wgmma_commit();
        wgmma_wait<0>();
        pin(c);
        release(from);
    }
    u32 row = p.row + mine * 64;
    if (row >= a.n) return;
    u64 start = (static_cast<u64>(p.of.expert) * a.n + row) * a.k + p.column;
    UNROLL for (u32 half = 0; half < 2; half++) {
        u32 column = p.column + half * HALF;
        if (column < a.k) add_sums(a, start + half * HALF, a.k - column, c[half]);
    }
}

// Shared memory: the stages and their mbarriers.
KERNEL(grouped_tn_acc_sm90, GroupedAccTiles, 3 * WARPGROUP, 1) {
    u32 base = shared_base();
    Stages stages = {base, base + STAGES * (DY_BYTES + X_BYTES), 0};
    if (thread() == 0) {
        make_ring(stages);
        mbar_init_fence();
    }
    sync();
    if (thread() < WARPGROUP) {
        give_registers<40>();
        if (thread() < 32) produce(a, stages);
    } else {
        take_registers<232>();
        u32 mine = thread() / WARPGROUP - 1;
        for (u32 i = block(); i < tiles(a); i += blocks()) {
            Part p = part_of(a, i);
            if (p.of.rows) consume(a, stages, p, mine);
        }
    }
}
