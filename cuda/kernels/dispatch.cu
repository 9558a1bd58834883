// Dispatch of rows to experts: a stable sort of the choices by expert, copies of rows, and sums of a token's rows.
#include "args_experts.cuh"
#include "common.cuh"
#include "sort.cuh"

// Sorts the keys of each chunk of choices, one per thread.
KERNEL(choices_sort, SortChoices, 1024) {
    u64 at = static_cast<u64>(block()) * CHUNK + thread();
    u32 key = at < a.chosen.n ? ld(a.chosen, at) * CHUNK + thread() : NOWHERE;
    key = sorted_chunk(key);
    if (at < a.places.n) st(a.places, at, key);
}

// Block `chunk` moves the keys of a chunk to their places in the whole order; the block behind the last one counts the
// choices of each expert. Shared memory: a word for each expert, the keys of other chunks that come before its keys.
KERNEL(choices_merge, SortChoices, 1024) {
    u32 lane = thread() % 32, before = shared_base();
    u64 mine = static_cast<u64>(block()) * CHUNK, at = mine + thread();
    for (u32 expert = thread() / 32; expert < a.experts; expert += threads() / 32) {
        u32 n = 0;
        for (u64 chunk = lane * CHUNK; chunk < a.places.n; chunk += 32 * CHUNK) {
            if (chunk != mine) n += below(a.places, chunk, (chunk < mine ? expert + 1 : expert) * CHUNK);
        }
        n = warp_sum(n);
        if (lane == 0) sts(before + expert * 4, n);
    }
    sync();
    if (mine >= a.places.n) {
        for (u32 expert = thread(); expert < a.experts; expert += threads()) {
            u32 from = expert ? lds(before + (expert - 1) * 4) : 0;
            st(a.counts, expert, lds(before + expert * 4) - from);
        }
    } else if (at < a.places.n) {
        u32 key = ld(a.places, at);
        st(a.order, thread() + lds(before + key / CHUNK * 4), static_cast<u32>(mine) + key % CHUNK);
    }
}

// The place of each choice is the inverse of the order.
KERNEL(choices_places, SortChoices, 256) {
    u64 place = static_cast<u64>(block()) * threads() + thread();
    if (place < a.order.n) st(a.places, ld(a.order, place), static_cast<u32>(place));
}

// -- rows --

// Vectors that a thread reads at once.
constexpr u32 AT_ONCE = 4;

// Copies AT_ONCE vectors of sixteen bytes, the first one number `first` of y, and the next ones `threads()` further.
// `row_vectors`: vectors of a row; `all`: of y.
template <class T> DEVICE void take_vectors(const TakeRows<T>& a, u32 first, u32 row_vectors, u32 all HERE) {
    constexpr u32 EACH = 16 / sizeof(T);
    Reg<u32, AT_ONCE> from;
    Reg<u32, 4 * AT_ONCE> words;
    UNROLL for (u32 k = 0; k < AT_ONCE; k++) {
        u32 at = first + k * threads();
        from[k] = at < all ? ld(a.index, at / row_vectors AT) : 0;
    }
    UNROLL for (u32 k = 0; k < AT_ONCE; k++) {
        u32 at = first + k * threads();
        V16 v = {};
        if (at < all) v = ld16(a.x, static_cast<u64>(from[k] / a.per) * a.cols + at % row_vectors * EACH AT);
        UNROLL for (int w = 0; w < 4; w++) words[4 * k + w] = v.w[w];
    }
    UNROLL for (u32 k = 0; k < AT_ONCE; k++) {
        u32 at = first + k * threads();
        V16 v = {words[4 * k], words[4 * k + 1], words[4 * k + 2], words[4 * k + 3]};
        if (at < all) st16(a.y, static_cast<u64>(at) * EACH, v AT);
    }
}

// Rows of vectors of sixteen bytes where all of them are aligned, else of single elements.
template <class T> DEVICE void take_rows(const TakeRows<T>& a) {
    constexpr u32 EACH = 16 / sizeof(T);
    u32 first = block() * threads() * AT_ONCE + thread(), stride = blocks() * threads();
    if (a.cols % EACH == 0 && aligned(a.x) && aligned(a.y)) {
        u32 all = static_cast<u32>(a.y.n / EACH);
        for (u32 i = first; i < all; i += stride * AT_ONCE) take_vectors(a, i, a.cols / EACH, all);
        return;
    }
    for (u64 i = block() * threads() + thread(); i < a.y.n; i += stride) {
        u32 at = static_cast<u32>(i);
        u64 row = ld(a.index, at / a.cols) / a.per;
        st(a.y, i, ld(a.x, row * a.cols + at % a.cols));
    }
}

KERNEL(take_rows_32, TakeRows32, 256) { take_rows(a); }
KERNEL(take_rows_16, TakeRows16, 256) { take_rows(a); }

// Block (token, part) sums a part of a token's rows, eight elements per thread.
KERNEL(sum_choices, SumChoices, 256) {
    u32 column = (block_y() * threads() + thread()) * 8;
    if (column >= a.d) return;
    u32 left = a.d - column;
    u64 token = block();
    bool wide = rows_aligned(a.x, a.d) && rows_aligned(a.y, a.d);
    Reg<float, 8> sum;
    UNROLL for (int i = 0; i < 8; i++) sum[i] = 0;
    for (u32 j = 0; j < a.k; j += AT_ONCE) {
        Reg<u32, AT_ONCE> places;
        Reg<u32, 4 * AT_ONCE> rows;
        UNROLL for (u32 k = 0; k < AT_ONCE; k++) places[k] = j + k < a.k ? ld(a.places, token * a.k + j + k) : 0;
        UNROLL for (u32 k = 0; k < AT_ONCE; k++) {
            u64 from = static_cast<u64>(places[k]) * a.d + column;
            V16 v = load8(a.x, from, j + k < a.k ? left : 0, wide);
            UNROLL for (int w = 0; w < 4; w++) rows[4 * k + w] = v.w[w];
        }
        // Adding zero for a row that does not exist changes no sum: none is -0.
        UNROLL for (u32 w = 0; w < 4 * AT_ONCE; w++) {
            sum[2 * (w % 4)] += low(rows[w]);
            sum[2 * (w % 4) + 1] += high(rows[w]);
        }
    }
    V16 y;
    UNROLL for (int i = 0; i < 4; i++) y.w[i] = pack2(sum[2 * i], sum[2 * i + 1]);
    store8(a.y, token * a.d + column, left, wide, y);
}
