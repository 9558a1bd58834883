// Causal attention in tiles (Dao 2023): o = softmax(s) v with s = scale q k^T, or cap tanh(scale q k^T / cap). A block
// processes 128 queries of one head. It loops over the tiles of keys from the diagonal back, with a running maximum m
// and sum l for each query. A warp has 16 M of the queries, and keeps their scores and accumulators of o in registers:
// 32 queries, or 16 where heads have 256 elements.
#include "attention.cuh"

constexpr int QUERIES = 128;
// m is updated only if the scores have grown by more than this power of two: P stays below 2^8, o is rarely rescaled.
constexpr float SLACK = 8;

// A warp's running softmax: for each lane's 2 M queries m, in powers of two, and l, over the lane's own keys.
template <int D, int M> struct Running {
    Reg<float, 2 * M> m, l;
    Sums<M, D / 8> o;
};

template <int D, int M> DEVICE void begin(Running<D, M>& run) {
    UNROLL for (int r = 0; r < 2 * M; r++) {
        run.m[r] = -infinity();
        run.l[r] = 0;
    }
    fill(run.o, 0.0f);
}

// The largest score of each of the lane's queries.
template <int M, int N> DEVICE Reg<float, 2 * M> row_maxima(const Sums<M, N>& s) {
    Reg<float, 2 * M> most;
    UNROLL for (int n = 0; n < N; n++) {
        UNROLL for (int r = 0; r < 2 * M; r++) {
            const Reg<float, 4>& piece = s.at[r / 2][n];
            float here = larger(piece[r % 2 * 2], piece[r % 2 * 2 + 1]);
            most[r] = n ? larger(most[r], here) : here;
        }
    }
    UNROLL for (u32 mask = 1; mask <= 2; mask *= 2) {
        UNROLL for (int r = 0; r < 2 * M; r++) most[r] = larger(most[r], shfl_xor(most[r], mask));
    }
    return most;
}

// Updates m to the scores' maximum if that has grown by more than SLACK, and rescales l and o.
template <int D, int M, int N> DEVICE void move_maximum(Running<D, M>& run, const Sums<M, N>& s, float power) {
    Reg<float, 2 * M> maxima = row_maxima(s), shrink;
    bool moves = false;
    UNROLL for (int r = 0; r < 2 * M; r++) {
        float most = maxima[r] * power;
        bool grown = most > run.m[r] + SLACK;
        shrink[r] = grown ? fast_exp2(run.m[r] - most) : 1.0f;
        run.m[r] = grown ? most : run.m[r];
        moves |= grown;
    }
    // All lanes or none, because warp-wide multiplications follow.
    if (!warp_any(moves)) return;
    UNROLL for (int r = 0; r < 2 * M; r++) {
        run.l[r] *= shrink[r];
        UNROLL for (int n = 0; n < D / 8; n++) {
            UNROLL for (int e = 0; e < 2; e++) run.o.at[r / 2][n][r % 2 * 2 + e] *= shrink[r];
        }
    }
}

// P = 2^(s power - m), rounded; l accumulates the unrounded values.
template <int D, int M, int N>
DEVICE void softmax(Left<M, N / 2>& p, Running<D, M>& run, Sums<M, N>& s, float power) {
    UNROLL for (int k = 0; k < N / 2; k++) {
        UNROLL for (int r = 0; r < 2 * M; r++) {
            UNROLL for (int e = 0; e < 4; e++) {
                float& x = s.at[r / 2][2 * k + e / 2][r % 2 * 2 + e % 2];
                x = fast_exp2(fmadd(x, power, -run.m[r]));
                run.l[r] += x;
            }
        }
        UNROLL for (int m = 0; m < M; m++) p.at[m][k] = packed(s, m, k);
    }
}

// o = sums / l and lse = ln(l 2^m). Overwrites the warp's rows of the queries' tile.
template <int D, int M>
DEVICE void finish(const Attention& a, const Head& h, Running<D, M>& run, u32 first, u32 tile) {
    u32 g = thread() % 32 / 4, t = thread() % 4;
    Reg<float, 2 * M> factor;
    UNROLL for (int r = 0; r < 2 * M; r++) {
        float l = run.l[r];
        UNROLL for (u32 mask = 1; mask <= 2; mask *= 2) l += shfl_xor(l, mask);
        factor[r] = fast_rcp(l);
        u32 query = first + 8 * r + g;
        if (t == 0 && query < h.seq) {
            st(a.lse, static_cast<u64>(h.row + query) * h.heads + h.query, (run.m[r] + fast_log2(l)) * LN_2);
        }
    }
    store_rows<QUERIES, D, M>(a.o, o_rows<D>(h, first), tile, run.o, factor);
}

// Shared memory: the tiles of q, k and v.
template <int D, int KEYS, int M, bool CAPPED> DEVICE void attention(const Attention& a) {
    constexpr int ROWS = 16 * M, THREADS = QUERIES / ROWS * 32;
    Head h = head_of(a, block());
    // The last queries have the most keys, and are processed first.
    u32 first = ((a.seq + QUERIES - 1) / QUERIES - 1 - block_y()) * QUERIES;
    u32 end = first + QUERIES < a.seq ? first + QUERIES : a.seq, warp = thread() / 32 * ROWS;
    Queries<ROWS> mine = {first + warp, start_of(a.starts, h, first + warp),
                          start_of(a.starts, h, first + warp + ROWS - 1)};
    u32 q = shared_base(), k = q + tile_bytes<QUERIES, D>(), v = k + tile_bytes<KEYS, D>();
    u32 my_rows = q + warp * ROW_BYTES;

    u32 last_key = start_of(a.starts, h, first) / KEYS * KEYS;
    Stream keys = stream_of<D>(h, (end - 1) / KEYS * KEYS);
    load_tile<QUERIES, D, THREADS>(q, a.qkv, q_rows<D>(h, first));
    load_k<KEYS, D, THREADS>(k, a, keys);
    cp_commit();
    Running<D, M> run;
    begin(run);
    while (true) {
        // k has come, and nobody reads v any more.
        cp_wait<0>();
        sync();
        load_v<KEYS, D, THREADS>(v, a, keys);
        cp_commit();
        u32 key = keys.key;
        bool seen = sees(mine, key, KEYS);
        Sums<M, KEYS / 8> s;
        // s = q k^T
        if (seen) {
            product_by_pages<D, QUERIES, KEYS>(s, my_rows, k);
            if constexpr (CAPPED) cap(s, a.scores.inner);
        }
        // v has come, and nobody reads k any more.
        cp_wait<0>();
        sync();
        go_back<KEYS, D>(keys, a);
        if (key > last_key) load_k<KEYS, D, THREADS>(k, a, keys);
        cp_commit();
        if (seen) {
            if (!sees_all(mine, key, KEYS)) {
                Head now = head_of(a, fresh(block()));
                u32 query = mine.first + thread() % 32 / 4;
                mask(s, mine.first, key, [&](u32 r) { return start_of(a.starts, now, query + 8 * r); });
            }
            move_maximum(run, s, a.scores.power);
            Left<M, KEYS / 16> p;
            softmax(p, run, s, a.scores.power);
            // o += P v
            add_product(run.o, p, lanes_down(v));
        }
        if (key <= last_key) break;
    }
    finish(a, head_of(a, fresh(block())), run, mine.first, my_rows);
}

KERNEL(attention_64, Attention, 128, 2) { attention<64, 128, 2, false>(a); }
KERNEL(attention_128, Attention, 128, 2) { attention<128, 64, 2, false>(a); }
KERNEL(attention_256, Attention, 256, 1) { attention<256, 64, 1, false>(a); }
KERNEL(attention_64_capped, Attention, 128, 2) { attention<64, 64, 2, true>(a); }
KERNEL(attention_128_capped, Attention, 128, 2) { attention<128, 32, 2, true>(a); }
KERNEL(attention_256_capped, Attention, 256, 1) { attention<256, 64, 1, true>(a); }
