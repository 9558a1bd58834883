// Each primitive of `prim_hopper.cuh` by itself, like `probes.cu`, for devices with sm_90a.
#include "tile_sm90.cuh"

// x is a matrix of bf16, two in each word; the map describes its tiles of 64 rows and 64 columns.
struct ProbeTiles {
    View<const u32> x;
    View<u32> y;
    u32 cols, row, page, sequence;
    u64 unused[10];
    TensorMap map;
};
static_assert(sizeof(ProbeTiles) == 256, "as in probes.rs");

constexpr u32 TILE = TILE_BYTES<64, 64>;
// Shared memory holds three tiles, then the mbarriers, which begin here.
DEVICE u32 bars() { return shared_base() + 3 * TILE; }

DEVICE void open_bar(u32 bar, u32 count) {
    if (thread() == 0) {
        mbar_init(bar, count);
        mbar_init_fence();
    }
    sync();
}

// Starts to load tile i of shared memory; only the first thread calls this, after it has announced the bytes.
DEVICE void bring(const ProbeTiles& a, u32 i, u32 row, u32 page) {
    tma_load(shared_base() + i * TILE, a.map, bars(), 0, row, page, a.sequence);
}

// -- the copy engine and mbarriers --

// y: a tile as it lies in shared memory, then the same tile loaded once more after all threads had read it.
KERNEL(probe_tma, ProbeTiles, 128) {
    open_bar(bars(), 1);
    for (u32 turn = 0; turn < 2; turn++) {
        if (thread() == 0) {
            mbar_expect(bars(), TILE);
            bring(a, 0, a.row, a.page);
        }
        mbar_wait(bars(), turn);
        for (u32 i = thread(); i < TILE / 4; i += 128) st(a.y, turn * (TILE / 4) + i, lds(shared_base() + i * 4));
        sync();
    }
}

// y: the words of shared memory after a bulk copy of the matrix from `row` on: 12 copied words, the others unchanged.
KERNEL(probe_bulk, ProbeTiles, 128) {
    open_bar(bars(), 1);
    sts(shared_base() + thread() * 4, thread());
    proxy_fence();
    sync();
    if (thread() == 0) {
        mbar_expect(bars(), 3 * 16);
        bulk_load(shared_base() + 32, a.x, a.row * a.cols / 2, 3 * 16, bars());
    }
    mbar_wait(bars(), 0);
    st(a.y, thread(), lds(shared_base() + thread() * 4));
}

// The first two warps pass words to the others through two buffers in turn, each with a "full" and an "empty" mbarrier.
KERNEL(probe_mbarrier, ProbeTiles, 128) {
    u32 mine = thread() % 64;
    if (thread() == 0) {
        for (u32 i = 0; i < 4; i++) mbar_init(bars() + i * 8, 64);
        mbar_init_fence();
    }
    sync();
    for (u32 turn = 0; turn < 7; turn++) {
        u32 place = turn % 2, full = bars() + place * 16, empty = full + 8;
        u32 at = shared_base() + (place * 64 + mine) * 4;
        if (thread() < 64) {
            mbar_wait(empty, turn / 2 % 2 ^ 1);
            sts(at, ld(a.x, turn * 64 + mine));
            mbar_arrive(full);
        } else {
            mbar_wait(full, turn / 2 % 2);
            st(a.y, turn * 64 + mine, lds(shared_base() + (place * 64 + 63 - mine) * 4));
            mbar_arrive(empty);
        }
    }
}

// -- barriers of some warps --

// The first warp writes, arrives at a barrier without waiting, and the second reads. The others use another barrier.
KERNEL(probe_group, ProbeTiles, 128) {
    u32 at = shared_base() + thread() * 4;
    sts(at, ld(a.x, thread()));
    if (thread() < 32) {
        group_arrive(1, 64);
    } else if (thread() < 64) {
        group_sync(1, 64);
        st(a.y, thread() - 32, lds(at - 128));
    } else {
        group_sync(2, 64);
        st(a.y, thread() - 32, lds(shared_base() + (thread() ^ 32) * 4));
    }
}

// -- registers --

// The first warpgroup gives away registers, so that the other two can take more.
KERNEL(probe_registers, ProbeTiles, 384, 1) {
    if (thread() < 128) {
        give_registers<24>();
        st(a.y, thread(), ld(a.x, thread()));
    } else {
        take_registers<240>();
        Reg<u32, 160> all;
        UNROLL for (u32 i = 0; i < 160; i++) all[i] = fresh(ld(a.x, (thread() + i) % 384));
        u32 sum = 0;
        UNROLL for (u32 i = 0; i < 160; i++) sum = sum * 3 + fresh(all[i]);
        st(a.y, thread(), sum);
    }
}

// -- products of a warpgroup --

// Reads this lane's words of the left operand [64, 16]: columns from 16 k on of the matrix's first 64 rows.
DEVICE void read_a(const ProbeTiles& a, Reg<u32, 4>& p, u32 k) {
    u32 row = sum_row(0), column = k * 16 + thread() % 4 * 2;
    UNROLL for (u32 i = 0; i < 4; i++) p[i] = ld(a.x, ((row + i % 2 * 8) * a.cols + column + i / 2 * 8) / 2);
}

// y [64, N] = a b, with a [64, 64] the first 64 rows of the matrix. b consists of its rows from 64 on: N rows of 64
// columns, or with ACROSS 64 rows of N columns. With REGISTERS, a is in registers and 1 is added to each sum. With
// LEFT_ACROSS, the first 64 rows are a^T.
template <int N, bool ACROSS, bool REGISTERS, bool LEFT_ACROSS = false> DEVICE void product(const ProbeTiles& a) {
    open_bar(bars(), 1);
    if (thread() == 0) {
        mbar_expect(bars(), (1 + N / 64) * TILE);
        bring(a, 0, 0, 0);
        for (u32 i = 0; i < N / 64; i++) bring(a, 1 + i, ACROSS ? 64 : 64 + 64 * i, ACROSS ? i : 0);
    }
    Reg<u32, 4> p[4];
    Reg<float, N / 2> sums;
    UNROLL for (u32 k = 0; k < 4; k++) read_a(a, p[k], k);
    UNROLL for (int i = 0; i < N / 2; i++) sums[i] = 1.0f;
    mbar_wait(bars(), 0);
    wgmma_fence(sums, p);
    UNROLL for (int k = 0; k < 4; k++) {
        u32 at = shared_base() + TILE;
        u64 b = ACROSS ? across<64 * ROW>(at + k * 16 * ROW) : along(columns<N>(at, k));
        u32 left = shared_base();
        u64 whole = LEFT_ACROSS ? across<64 * ROW>(left + k * 16 * ROW) : along(columns<64>(left, k));
        if (REGISTERS) {
            wgmma<ACROSS>(sums, p[k], b);
        } else if (k == 0) {
            wgmma_new<ACROSS, LEFT_ACROSS>(sums, whole, b);
        } else {
            wgmma<ACROSS, LEFT_ACROSS>(sums, whole, b);
        }
    }
    wgmma_commit();
    wgmma_wait<0>();
    pin(sums);
    UNROLL for (int i = 0; i < N / 2; i++) st(a.y, sum_row(i) * N + sum_column(i) + i % 2, bits_of(sums[i]));
}

KERNEL(probe_wgmma_64, ProbeTiles, 128, 1) { product<64, false, false>(a); }
KERNEL(probe_wgmma_128, ProbeTiles, 128, 1) { product<128, false, false>(a); }
KERNEL(probe_wgmma_across_64, ProbeTiles, 128, 1) { product<64, true, false>(a); }
KERNEL(probe_wgmma_across_128, ProbeTiles, 128, 1) { product<128, true, false>(a); }
KERNEL(probe_wgmma_left_across_64, ProbeTiles, 128, 1) { product<64, false, false, true>(a); }
KERNEL(probe_wgmma_left_across_128, ProbeTiles, 128, 1) { product<128, false, false, true>(a); }
KERNEL(probe_wgmma_both_across_64, ProbeTiles, 128, 1) { product<64, true, false, true>(a); }
KERNEL(probe_wgmma_both_across_128, ProbeTiles, 128, 1) { product<128, true, false, true>(a); }
KERNEL(probe_wgmma_registers_64, ProbeTiles, 128, 1) { product<64, false, true>(a); }
KERNEL(probe_wgmma_registers_128, ProbeTiles, 128, 1) { product<128, false, true>(a); }
KERNEL(probe_wgmma_registers_across_64, ProbeTiles, 128, 1) { product<64, true, true>(a); }
KERNEL(probe_wgmma_registers_across_128, ProbeTiles, 128, 1) { product<128, true, true>(a); }

// Operands that threads wrote: the proxy fence makes them visible to the product.
KERNEL(probe_proxy_fence, ProbeTiles, 128, 1) {
    for (u32 i = thread(); i < 2 * TILE / 4; i += 128) {
        // Word w of row r of the matrix's first 64 columns; tile 0 has its first 64 rows, tile 1 the next.
        u32 r = i / 32, w = i % 32;
        sts(shared_base() + r * ROW + ((w / 4 ^ r % 8) * 4 + w % 4) * 4, ld(a.x, r * a.cols / 2 + w));
    }
    proxy_fence();
    sync();
    Reg<float, 32> sums;
    wgmma_fence();
    product_along<64, 64, 64>(sums, shared_base(), shared_base() + TILE);
    wgmma_commit();
    wgmma_wait<0>();
    pin(sums);
    UNROLL for (int i = 0; i < 32; i++) st(a.y, sum_row(i) * 64 + sum_column(i) + i % 2, bits_of(sums[i]));
}
