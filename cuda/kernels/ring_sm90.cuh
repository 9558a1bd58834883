// The pipeline of tiles from the producer warpgroup to the two consumers, and how they share the work. Each stage of a
// ring has two mbarriers: "full", its tile has arrived, and "empty", all consumers have released it.
#pragma once
#include "tile_sm90.cuh"

constexpr u32 WARPGROUP = 128;
// Warps that read each tile; one lane of each releases it.
constexpr u32 READERS = 2 * WARPGROUP / 32;

// S stages of BYTES bytes from `tiles` on, with mbarriers from `bars` on; `turn` counts the tiles that this thread has
// passed.
template <int S, u32 BYTES> struct Ring {
    u32 tiles, bars, turn;
};

template <int S, u32 B> DEVICE u32 tile_of(const Ring<S, B>& r) { return r.tiles + r.turn % S * B; }
template <int S, u32 B> DEVICE u32 full_of(const Ring<S, B>& r) { return r.bars + r.turn % S * 16; }
template <int S, u32 B> DEVICE u32 empty_of(const Ring<S, B>& r) { return full_of(r) + 8; }
template <int S, u32 B> DEVICE u32 parity_of(const Ring<S, B>& r) { return r.turn / S % 2; }

template <int S, u32 B> DEVICE void make_ring(const Ring<S, B>& r HERE) {
    UNROLL for (u32 i = 0; i < S; i++) {
        mbar_init(r.bars + i * 16, 1 AT);
        mbar_init(r.bars + i * 16 + 8, READERS AT);
    }
}

// Waits until the next stage is empty, and announces the bytes to be loaded into it. Called by one thread.
template <int S, u32 B> DEVICE void open_place(const Ring<S, B>& r, u32 bytes HERE) {
    mbar_wait(empty_of(r), parity_of(r) ^ 1 AT);
    mbar_expect(full_of(r), bytes AT);
}
// Loads a tile to byte `at` of the stage.
template <int S, u32 B>
DEVICE void bring(const Ring<S, B>& r, u32 at, const TensorMap& map, u32 row, u32 page, u32 sequence HERE) {
    tma_load(tile_of(r) + at, map, full_of(r), 0, row, page, sequence AT);
}
// Loads one tile that fills the stage.
template <int S, u32 B>
DEVICE void bring_one(Ring<S, B>& r, const TensorMap& map, u32 row, u32 page, u32 sequence HERE) {
    open_place(r, B AT);
    bring(r, 0, map, row, page, sequence AT);
    r.turn++;
}

// Waits for the next tile.
template <int S, u32 B> DEVICE u32 await(const Ring<S, B>& r HERE) {
    mbar_wait(full_of(r), parity_of(r) AT);
    return tile_of(r);
}
// The ring's state after this thread has released its tile.
template <int S, u32 B> DEVICE Ring<S, B> next_of(Ring<S, B> r) {
    r.turn++;
    return r;
}
// Releases the tile on behalf of this warp.
template <int S, u32 B> DEVICE void release(Ring<S, B>& r HERE) {
    warp_sync(AT_ONLY);
    if (thread() % 32 == 0) mbar_arrive(empty_of(r) AT);
    r.turn++;
}

// The two consumers alternate in issuing their wgmma.
DEVICE void await_turn(u32 mine HERE) { group_sync(1 + mine, 2 * WARPGROUP AT); }
DEVICE void give_turn(u32 mine HERE) { group_arrive(1 + (mine ^ 1), 2 * WARPGROUP AT); }

// The items of a block: one from every `blocks()` items, alternately from both ends, so that long items, which come
// first, are distributed evenly.
DEVICE u32 first_item() { return block(); }
DEVICE u32 next_item(u32 i) { return (i / blocks() + 2) * blocks() - 1 - i % blocks(); }
