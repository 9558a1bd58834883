// Sorting: the keys of a chunk by a bitonic network (Batcher 1968), and the place of a key among sorted chunks. A key
// holds what is sorted by, and in its low ten bits an index in the chunk: keys are unique, and the sort is stable.
#pragma once
#include "prim.cuh"

constexpr u32 CHUNK = 1024;
// A key that is sorted last.
constexpr u32 NOWHERE = 0xffffffffu;

// The key in this thread's place once the keys of all threads, a chunk, are sorted. Shared memory: 8192 bytes, in two
// halves that exchanges alternate between, so that one barrier each is enough.
DEVICE u32 sorted_chunk(u32 key HERE) {
    u32 me = thread(), half = 0;
    for (u32 size = 2; size <= CHUNK; size *= 2) {
        for (u32 step = size / 2; step; step /= 2) {
            u32 other;
            if (step < 32) {
                other = shfl_xor(key, step AT);
            } else {
                sts(shared_base() + half + me * 4, key AT);
                sync(AT_ONLY);
                other = lds(shared_base() + half + (me ^ step) * 4 AT);
                half ^= CHUNK * 4;
            }
            // Merges pairs of runs, one ascending and one descending, into runs of `size`.
            bool first = !(me & step), ascending = !(me & size);
            key = (first == ascending) == (key < other) ? key : other;
        }
    }
    return key;
}

// The number of keys that are less than `key` in the sorted chunk at element `chunk`, which the end may cut off.
DEVICE u32 below(View<u32> keys, u64 chunk, u32 key HERE) {
    u32 n = 0;
    UNROLL for (u32 step = CHUNK / 2; step; step /= 2) {
        u64 at = chunk + n + step - 1;
        if (at < keys.n && ld(keys, at AT) < key) n += step;
    }
    return n + (chunk + n < keys.n && ld(keys, chunk + n AT) < key);
}
