// What attention's kernels for sm_90a share: the items that a block goes through, and which keys a warpgroup's queries
// see.
#pragma once
#include "args_sm90.cuh"
#include "attention.cuh"
#include "ring_sm90.cuh"

// Queries, and keys, of a tile.
constexpr int ROWS = 128;

// 128 queries of a head, and the tiles of keys that they see.
struct Item {
    Head h;
    u32 sequence, first, first_tile, last_tile;
};

template <class Args> DEVICE u32 items(const Args& a) { return (a.seq + ROWS - 1) / ROWS * a.heads * a.sequences; }

// The queries with the most keys come first.
template <class Args> DEVICE Item item_at(const Args& a, u32 i HERE) {
    u32 heads = a.heads * a.sequences, block = (a.seq + ROWS - 1) / ROWS - 1 - i / heads;
    Head h = head_of(a, i % heads);
    u32 first_tile = start_of(a.starts, h, block * ROWS AT) / ROWS;
    return {h, i % heads / a.heads, block * ROWS, first_tile, block};
}

// A warpgroup's 64 queries: the first, and what the last sees.
struct Queries64 {
    u32 first, last_start;
};

DEVICE Queries64 queries64_of(View<const u32> starts, const Head& h, u32 first HERE) {
    return {first, start_of(starts, h, first + 63 AT)};
}

// Scores with the keys from `key` on become -infinity where a query does not see a key.
DEVICE void mask(Reg<float, ROWS / 2>& s, View<const u32> starts, const Head& h, const Queries64& q, u32 key HERE) {
    if (key + ROWS <= q.first + 1 && q.last_start <= key) return;
    UNROLL for (int r = 0; r < 2; r++) {
        u32 query = fresh(q.first) + sum_row(2 * r), start = start_of(starts, h, query AT);
        UNROLL for (int i = 2 * r; i < ROWS / 2; i += i % 2 ? 3 : 1) {
            // Left of the start the difference wraps round.
            s[i] = key + sum_column(i) + i % 2 - start <= query - start ? s[i] : -infinity();
        }
    }
}
