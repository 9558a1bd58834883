// Shared by the attention kernels for sm_90a: the items that a block processes, and the mask of a warpgroup's
// queries.
#pragma once
#include "args_sm90.cuh"
#include "attention.cuh"
#include "ring_sm90.cuh"

// Queries or keys per tile.
constexpr int ROWS = 128;

// 128 queries of a head, and the tiles of keys that they see.
struct Item {
    Head h;
    u32 sequence, first, first_tile, last_tile;
};

template <class Args> DEVICE u32 items(const Args& a) { return (a.seq + ROWS - 1) / ROWS * a.heads * a.sequences; }

// Items with the most keys are processed first.
template <class Args> DEVICE Item item_at(const Args& a, u32 i HERE) {
    u32 heads = a.heads * a.sequences, block = (a.seq + ROWS - 1) / ROWS - 1 - i / heads;
    Head h = head_of(a, i % heads);
    u32 first_tile = start_of(a.starts, h, block * ROWS AT) / ROWS;
    return {h, i % heads / a.heads, block * ROWS, first_tile, block};
}

// A consumer thread's word of shared memory, the first of which is at `words`. The two consumers are neighbours.
DEVICE u32 word_of(u32 words) { return words + thread() % (2 * WARPGROUP) * 4; }

// Keeps what `bits` depends on before the wait for a product that follows: ptxas moves a wait above arithmetic, but not
// above a store. Nobody reads the word.
DEVICE void before_wait(u32 word, u32 bits HERE) { sts(word, bits AT); }

// A lane's two queries of a warpgroup's 64, eight apart, and their starts.
struct Pair {
    u32 query, start[2];
};

DEVICE Pair pair_of(View<const u32> starts, const Head& h, u32 first HERE) {
    u32 query = first + sum_row(0);
    return {query, {start_of(starts, h, query AT), start_of(starts, h, query + 8 AT)}};
}

// Caps q k^T.
template <int N> DEVICE void cap(Reg<float, N>& s, float inner) {
    UNROLL for (int i = 0; i < N; i++) s[i] = tanh_of_exponent(s[i] * inner);
}

// Scores with the keys from `key` on become -infinity where a query does not see a key.
DEVICE void mask(Reg<float, ROWS / 2>& s, const Pair& q, u32 key) {
    // All lanes or none, because warp-wide products follow.
    if (!warp_any(key + ROWS > q.query + 1 || q.start[1] > key)) return;
    UNROLL for (int r = 0; r < 2; r++) {
        // For keys before the start the difference wraps around.
        u32 start = q.start[r], span = q.query + 8 * r - start, offset = fresh(key + sum_column(0) - start);
        UNROLL for (int i = 2 * r; i < ROWS / 2; i += 1 + i % 2 * 2) {
            s[i] = offset + i / 4 * 8 + i % 2 <= span ? s[i] : -infinity();
        }
    }
}
