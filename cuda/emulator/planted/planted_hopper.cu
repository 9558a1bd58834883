// Kernels of sm_90a with one bug each, for the emulator's own tests: the line that it must name ends in `BUG` and the
// kernel's name. `pipeline_of_tiles` and `cube_of_tile` have none.
#include "tile_sm90.cuh"

struct PlantedTiles {
    View<float> y;
    // Tiles of 64 rows and 64 columns.
    TensorMap x;
};

constexpr u32 TURNS = 3;

// The bug of a pipeline; the enumerators are the names of its kernels.
enum Bug {
    pipeline,
    no_full_wait,
    wrong_parity,
    no_bytes,
    too_many_bytes,
    no_empty_wait,
    freed_early,
    lost_arrival,
    early_sums,
    unpinned,
    touched_late,
    never_waited,
    no_init_fence,
    left_copy,
    lost_warp,
};

// Shared memory: a tile, and two mbarriers behind it.
struct Places {
    u32 tile = shared_base(), full = tile + TILE_BYTES<64, 64>, empty = full + 8;
};

template <Bug BUG> DEVICE void produce(const PlantedTiles& a, Places p) {
    if (thread() != 0) return;
    for (u32 i = 0; i < TURNS; i++) {
        if (BUG != no_empty_wait) mbar_wait(p.empty, i % 2 ^ 1);
        u32 bytes = BUG == too_many_bytes ? TILE_BYTES<64, 64> + 16 : TILE_BYTES<64, 64>;
        if (BUG == no_bytes) {
            mbar_arrive(p.full);
        } else {
            mbar_expect(p.full, bytes);  // BUG no_empty_wait
        }
        // The calls are on separate lines, because the reports differ.
        if (BUG == no_init_fence) {
            tma_load(p.tile, a.x, p.full, 0, i * 64, 0, 0);  // BUG no_init_fence
        } else if (BUG == no_empty_wait || BUG == freed_early) {
            tma_load(p.tile, a.x, p.full, 0, i * 64, 0, 0);  // BUG no_empty_wait freed_early
        } else {
            tma_load(p.tile, a.x, p.full, 0, i * 64, 0, 0);
        }
    }
    if (BUG == left_copy) {
        mbar_wait(p.empty, TURNS % 2 ^ 1);
        mbar_expect(p.full, TILE_BYTES<64, 64>);
        tma_load(p.tile, a.x, p.full, 0, 0, 0, 0);  // BUG left_copy
    }
}

// One lane of each warp says that the warp is done with the tile.
template <Bug BUG> DEVICE void free_tile(Places p) {
    bool lost = BUG == lost_arrival && thread() / 32 == 6;
    if (thread() % 32 == 0 && !lost) mbar_arrive(p.empty);
}

// y [64, 64] = the sum over the tiles of x x^T.
template <Bug BUG> DEVICE void consume(const PlantedTiles& a, Places p) {
    Reg<float, 32> sums;
    UNROLL for (int i = 0; i < 32; i++) sums[i] = 0;
    for (u32 i = 0; i < TURNS; i++) {
        if (BUG == too_many_bytes) {
            mbar_wait(p.full, i % 2);  // BUG too_many_bytes
        } else if (BUG == wrong_parity) {
            mbar_wait(p.full, i % 2 ^ 1);
        } else if (BUG != no_full_wait) {
            mbar_wait(p.full, i % 2);
        }
        wgmma_fence(sums);
        if (BUG == touched_late && i) sums[0] += 1.0f;
        if (BUG == lost_warp && thread() / 32 == 5) return;
        UNROLL for (int k = 0; k < 4; k++) {
            u64 rows = along(columns<64>(p.tile, k));
            wgmma<false>(sums, rows, rows);  // BUG no_full_wait wrong_parity no_bytes touched_late never_waited
        }
        wgmma_commit();
        if (BUG == freed_early) free_tile<BUG>(p);
        if (BUG == early_sums) sums[3] *= 1.0f;  // BUG early_sums
        if (BUG == never_waited && i == TURNS - 1) return;
        wgmma_wait<0>();  // BUG lost_warp
        if (BUG != unpinned || i < TURNS - 1) pin(sums);
        if (BUG != freed_early) free_tile<BUG>(p);
    }
    UNROLL for (int i = 0; i < 32; i++) {
        st(a.y, sum_row(i) * 64 + sum_column(i) + i % 2, sums[i]);  // BUG unpinned
    }
}

template <Bug BUG> DEVICE void run(const PlantedTiles& a) {
    Places p;
    if (thread() == 0) {
        mbar_init(p.full, 1);
        mbar_init(p.empty, 4);
        if (BUG != no_init_fence) mbar_init_fence();
    }
    sync();
    if (thread() < 128) {
        give_registers<24>();
        produce<BUG>(a, p);
    } else {
        take_registers<240>();
        consume<BUG>(a, p);
    }
}

KERNEL(pipeline_of_tiles, PlantedTiles, 256, 1) { run<pipeline>(a); }
KERNEL(no_full_wait, PlantedTiles, 256, 1) { run<no_full_wait>(a); }
KERNEL(wrong_parity, PlantedTiles, 256, 1) { run<wrong_parity>(a); }
KERNEL(no_bytes, PlantedTiles, 256, 1) { run<no_bytes>(a); }
KERNEL(too_many_bytes, PlantedTiles, 256, 1) { run<too_many_bytes>(a); }
KERNEL(no_empty_wait, PlantedTiles, 256, 1) { run<no_empty_wait>(a); }
KERNEL(freed_early, PlantedTiles, 256, 1) { run<freed_early>(a); }
KERNEL(lost_arrival, PlantedTiles, 256, 1) { run<lost_arrival>(a); }
KERNEL(early_sums, PlantedTiles, 256, 1) { run<early_sums>(a); }
KERNEL(unpinned, PlantedTiles, 256, 1) { run<unpinned>(a); }
KERNEL(touched_late, PlantedTiles, 256, 1) { run<touched_late>(a); }
KERNEL(never_waited, PlantedTiles, 256, 1) { run<never_waited>(a); }
KERNEL(no_init_fence, PlantedTiles, 256, 1) { run<no_init_fence>(a); }
KERNEL(left_copy, PlantedTiles, 256, 1) { run<left_copy>(a); }
KERNEL(lost_warp, PlantedTiles, 256, 1) { run<lost_warp>(a); }

// The kernels below need no pipeline. Loads one tile of x.
DEVICE Places bring(const PlantedTiles& a) {
    Places p;
    if (thread() == 0) {
        mbar_init(p.full, 1);
        mbar_init_fence();
    }
    sync();
    if (thread() == 0) {
        mbar_expect(p.full, TILE_BYTES<64, 64>);
        tma_load(p.tile, a.x, p.full, 0, 0, 0, 0);
    }
    mbar_wait(p.full, 0);
    return p;
}

DEVICE void store(const PlantedTiles& a, const Reg<float, 32>& sums) {
    UNROLL for (int i = 0; i < 32; i++) st(a.y, sum_row(i) * 64 + sum_column(i) + i % 2, sums[i]);
}

// y = (x x^T) x: the sums of the first product are an operand of the second.
DEVICE void cube(const PlantedTiles& a, u64 wrong) {
    Places p = bring(a);
    Reg<float, 32> s, o;
    Reg<u32, 4> operand[4];
    wgmma_fence();
    product_along<64, 64, 64>(s, p.tile, p.tile);
    wgmma_commit();
    wgmma_wait<0>();
    pin(s);
    round_sums<64>(operand, s);
    UNROLL for (int i = 0; i < 32; i++) o[i] = 0;
    wgmma_fence(o, operand);
    UNROLL for (int k = 0; k < 4; k++) {
        wgmma<true>(o, operand[k], across<64 * ROW>(p.tile + k * 16 * ROW) + wrong);
    }
    wgmma_commit();
    wgmma_wait<0>();
    pin(o);
    store(a, o);
}

KERNEL(cube_of_tile, PlantedTiles, 256, 1) { cube(a, 0); }
// Eight rows of k are taken to lie twice as far from the next eight.
KERNEL(wrong_stride, PlantedTiles, 256, 1) { cube(a, 64ull << 32); }

// The generic stores of all threads are read by a product.
KERNEL(no_proxy_fence, PlantedTiles, 256, 1) {
    u32 tile = shared_base();
    for (u32 i = thread(); i < TILE_BYTES<64, 64> / 4; i += 128) sts(tile + 4 * i, 0);
    sync();
    Reg<float, 32> s;
    wgmma_fence();
    product_along<64, 64, 64>(s, tile, tile);  // BUG no_proxy_fence
    wgmma_commit();
    wgmma_wait<0>();
    pin(s);
    store(a, s);
}

// The copy engine overwrites data that a thread wrote, without a fence.
KERNEL(copy_over_stores, PlantedTiles, 256, 1) {
    Places p;
    if (thread() == 0) {
        mbar_init(p.full, 1);
        mbar_init_fence();
        sts(p.tile, 0);
        mbar_expect(p.full, TILE_BYTES<64, 64>);
        tma_load(p.tile, a.x, p.full, 0, 0, 0, 0);  // BUG copy_over_stores
    }
    sync();
    mbar_wait(p.full, 0);
}

// Registers of the first product are read where only the second wait would let them.
KERNEL(waits_for_too_few, PlantedTiles, 256, 1) {
    Places p = bring(a);
    Reg<float, 32> s, o;
    wgmma_fence();
    product_along<64, 64, 64>(s, p.tile, p.tile);
    wgmma_commit();
    product_along<64, 64, 64>(o, p.tile, p.tile);
    wgmma_commit();
    wgmma_wait<1>();
    pin(s);
    pin(o);  // BUG waits_for_too_few
    wgmma_wait<0>();
}

// The tile is written over by threads between the product and its wait.
KERNEL(stored_under_product, PlantedTiles, 256, 1) {
    Places p = bring(a);
    Reg<float, 32> s;
    wgmma_fence();
    product_along<64, 64, 64>(s, p.tile, p.tile);
    wgmma_commit();
    sts(p.tile + thread() * 4, 0);  // BUG stored_under_product
    wgmma_wait<0>();
    pin(s);
}

// Half of the threads come to a barrier of all.
KERNEL(group_too_large, PlantedTiles, 256, 1) {
    if (thread() < 64) group_sync(1, 128);  // BUG group_too_large
}

// Another barrier than the one that the first warp opens.
KERNEL(group_race, PlantedTiles, 256, 1) {
    if (thread() < 32) {
        sts(shared_base() + thread() * 4, 1);
        group_arrive(1, 64);
    } else if (thread() < 64) {
        group_sync(1, 64);
        lds(shared_base() + (thread() - 32) * 4);
    } else {
        group_sync(2, 64);
        lds(shared_base() + thread() % 32 * 4);  // BUG group_race
    }
}
