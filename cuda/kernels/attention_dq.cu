// dq of attention (Dao 2023): with P = e^(s - lse) recomputed, dP = do v^T, dS = P * (dP - D), times the derivative of
// the cap if there is one, and dq = scale dS k. As in the forward pass, a block processes queries of one head, 16 M per
// warp, and loops over the tiles of keys from the diagonal back; dq stays in registers.
#include "attention_bwd.cuh"

// One statistic of the lane's query r of 2 M, from the warp's part of a record.
DEVICE u32 stat_of(u32 part, Stat which, u32 r) {
    return lds(part + (which + stat_place(thread() % 32 / 4 + 8 * r)) * 4);
}
template <int M> DEVICE Reg<float, 2 * M> stats_of(u32 part, Stat which) {
    Reg<float, 2 * M> of;
    UNROLL for (u32 r = 0; r < 2 * M; r++) of[r] = f32_of(stat_of(part, which, r));
    return of;
}

template <int ROWS> DEVICE Queries<ROWS> queries_of(u32 part, u32 first) {
    return {first, lds(part + (START + stat_place(0)) * 4), lds(part + (START + stat_place(ROWS - 1)) * 4)};
}

// Starts to copy the records of the block's queries; beyond the last query they are zero.
template <int QUERIES, int THREADS> DEVICE void load_stats(u32 to, const AttentionBwd& a, u32 first) {
    u64 i = record_of(block(), a.seq, first) + thread() * 4, end = record_of(block() + 1, a.seq, 0);
    for (u32 chunk = thread(); chunk < QUERIES / 64 * RECORD / 4; chunk += THREADS) {
        cp_async16(to + chunk * 16, a.stats, i, i < end ? 16 : 0);
        i += THREADS * 4;
    }
}

// Computes P, times the derivative of the cap if there is one, as pairs of f16.
template <bool CAPPED, int M, int N>
DEVICE void sensitivities(Left<M, N / 2>& p, const Sums<M, N>& s, float power, u32 stats) {
    Reg<float, 2 * M> lse2 = stats_of<M>(stats, LSE2);
    UNROLL for (int k = 0; k < N / 2; k++) {
        UNROLL for (int m = 0; m < M; m++) {
            UNROLL for (int w = 0; w < 4; w++) {
                const Reg<float, 4>& piece = s.at[m][2 * k + w / 2];
                float less = P_BITS - lse2[2 * m + w % 2];
                p.at[m][k][w] = pack2_f16(sensitivity<CAPPED>(piece[w % 2 * 2], power, less),
                                          sensitivity<CAPPED>(piece[w % 2 * 2 + 1], power, less));
            }
        }
    }
}

// Overwrites P with dS = P * (dP - D), for the keys from 16 `from` on.
template <int M, int N, int K> DEVICE void score_gradients(Left<M, K>& p, int from, const Sums<M, N>& dp, u32 stats) {
    Reg<float, 2 * M> deltas = stats_of<M>(stats, DELTA);
    UNROLL for (int k = 0; k < N / 2; k++) {
        UNROLL for (int m = 0; m < M; m++) {
            UNROLL for (int w = 0; w < 4; w++) {
                const Reg<float, 4>& piece = dp.at[m][2 * k + w / 2];
                float delta = deltas[2 * m + w % 2];
                u32& pair = p.at[m][from + k][w];
                float first = low_f16(pair) * (piece[w % 2 * 2] - delta);
                float second = high_f16(pair) * (piece[w % 2 * 2 + 1] - delta);
                pair = pack2(first, second);
            }
        }
    }
}

// Shared memory: the tiles of q and do, two more tiles for k and v, and the stats. k and v swap tiles in each
// iteration: the next k is loaded into v's tile while dq is accumulated, and the next v while s is computed.
template <int D, int KEYS, int WARPS, int M, bool CAPPED> DEVICE void query_gradients(const AttentionBwd& a) {
    constexpr int ROWS = 16 * M, QUERIES = ROWS * WARPS, THREADS = 32 * WARPS;
    // dP is computed for one half of the keys after the other where registers are scarce.
    constexpr int HALVES = M == 1 ? 1 : 2, PART = KEYS / HALVES;
    Head h = head_of(a, block());
    u32 first = ((a.seq + QUERIES - 1) / QUERIES - 1 - block_y()) * QUERIES;
    u32 end = first + QUERIES < a.seq ? first + QUERIES : a.seq;
    u32 warp = thread() / 32 * ROWS;
    u32 q = shared_base(), do_ = q + tile_bytes<QUERIES, D>();
    u32 tiles = do_ + tile_bytes<QUERIES, D>(), k = 0;
    u32 stats = tiles + 2 * tile_bytes<KEYS, D>(), my_stats = stats + (warp / 64 * RECORD + warp % 64) * 4;
    u32 my_q = q + warp * ROW_BYTES, my_do = do_ + warp * ROW_BYTES;

    u32 last_key = start_of(a.starts, h, first) / KEYS * KEYS;
    Stream keys = stream_of<D>(h, (end - 1) / KEYS * KEYS);
    load_tile<QUERIES, D, THREADS>(q, a.qkv, q_rows<D>(h, first));
    load_tile<QUERIES, D, THREADS>(do_, a.do_, o_rows<D>(h, first));
    load_k<KEYS, D, THREADS>(tiles, a, keys);
    load_stats<QUERIES, THREADS>(stats, a, first);
    cp_commit();
    Sums<M, D / 8> dq;
    fill(dq, 0.0f);
    while (true) {
        // k has arrived, and no thread reads the other tile any more.
        cp_wait<0>();
        sync();
        u32 v = k ^ tile_bytes<KEYS, D>();
        load_v<KEYS, D, THREADS>(tiles + v, a, keys);
        cp_commit();
        u32 key = keys.key;
        Queries<ROWS> mine = queries_of<ROWS>(my_stats, first + warp);
        bool seen = sees(mine, key, KEYS);
        Left<M, KEYS / 16> p;
        if (seen) {
            // s = q k^T
            Sums<M, KEYS / 8> s;
            product_by_pages<D, QUERIES, KEYS>(s, my_q, tiles + k);
            if constexpr (CAPPED) cap(s, a.scores.inner);
            if (!sees_all(mine, key, KEYS)) {
                mask(s, mine.first, key, [&](u32 r) { return stat_of(my_stats, START, r); });
            }
            sensitivities<CAPPED>(p, s, a.scores.power, my_stats);
        } else {
            fill(p, 0u);
        }
        cp_wait<0>();
        sync();
        if (seen) {
            // dP = do v^T
            UNROLL for (int half = 0; half < HALVES; half++) {
                Sums<M, PART / 8> dp;
                product_by_pages<D, QUERIES, KEYS>(dp, my_do, tiles + v + half * (PART * ROW_BYTES));
                score_gradients(p, half * (PART / 16), dp, my_stats);
            }
        }
        // Nobody reads v any more.
        sync();
        go_back<KEYS, D>(keys, a);
        if (key > last_key) load_k<KEYS, D, THREADS>(tiles + v, a, keys);
        cp_commit();
        // dq += dS k
        if (seen) add_product(dq, p, lanes_down(tiles + k));
        if (key <= last_key) break;
        k = v;
    }
    Reg<float, 2 * M> factor;
    UNROLL for (int r = 0; r < 2 * M; r++) factor[r] = P_UNIT * a.scores.scale;
    store_rows<QUERIES, D, M>(a.dqkv, q_rows<D>(head_of(a, fresh(block())), first + warp), my_q, dq, factor);
}

KERNEL(attention_dq_64, AttentionBwd, 128, 2) { query_gradients<64, 64, 4, 2, false>(a); }
KERNEL(attention_dq_128, AttentionBwd, 256, 1) { query_gradients<128, 64, 8, 2, false>(a); }
KERNEL(attention_dq_256, AttentionBwd, 256, 1) { query_gradients<256, 32, 8, 1, false>(a); }
KERNEL(attention_dq_64_capped, AttentionBwd, 128, 2) { query_gradients<64, 64, 4, 2, true>(a); }
KERNEL(attention_dq_128_capped, AttentionBwd, 256, 1) { query_gradients<128, 64, 8, 2, true>(a); }
KERNEL(attention_dq_256_capped, AttentionBwd, 256, 1) { query_gradients<256, 32, 8, 1, true>(a); }
