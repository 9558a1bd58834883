// dq of attention (Dao 2023): with P = e^(q k^T / sqrt(d) - lse) recomputed, dP = do v^T, dS = P * (dP - D) and
// dq = dS k / sqrt(d). As in the forward pass, a block processes queries of one head, 32 per warp, and loops over the
// tiles of keys from the diagonal back; dq stays in registers.
#include "attention_bwd.cuh"

constexpr int KEYS = 64;

// One statistic of the lane's query r of four, from the warp's half of a record.
DEVICE u32 stat_of(u32 half, Stat which, u32 r) {
    return lds(half + (which + stat_place(thread() % 32 / 4 + 8 * r)) * 4);
}
DEVICE Reg<float, 4> stats_of(u32 half, Stat which) {
    Reg<float, 4> of;
    UNROLL for (u32 r = 0; r < 4; r++) of[r] = f32_of(stat_of(half, which, r));
    return of;
}

DEVICE Queries queries_of(u32 half, u32 first) {
    return {first, lds(half + (START + stat_place(0)) * 4), lds(half + (START + stat_place(31)) * 4)};
}

// Starts to copy the records of the block's queries; beyond the last query they are zero.
template <int QUERIES> DEVICE void load_stats(u32 to, const AttentionBwd& a, u32 first) {
    u64 i = record_of(block(), a.seq, first) + thread() * 4, end = record_of(block() + 1, a.seq, 0);
    for (u32 chunk = thread(); chunk < QUERIES / 64 * RECORD / 4; chunk += QUERIES) {
        cp_async16(to + chunk * 16, a.stats, i, i < end ? 16 : 0);
        i += QUERIES * 4;
    }
}

// Computes P, as pairs of f16.
template <int D, int N> DEVICE void probabilities(Left<2, N / 2>& p, const Sums<2, N>& s, u32 stats) {
    Reg<float, 4> lse2 = stats_of(stats, LSE2);
    UNROLL for (int k = 0; k < N / 2; k++) {
        UNROLL for (int m = 0; m < 2; m++) {
            UNROLL for (int w = 0; w < 4; w++) {
                const Reg<float, 4>& piece = s.at[m][2 * k + w / 2];
                float less = P_BITS - lse2[2 * m + w % 2];
                p.at[m][k][w] =
                    pack2_f16(probability<D>(piece[w % 2 * 2], less), probability<D>(piece[w % 2 * 2 + 1], less));
            }
        }
    }
}

// Overwrites P with dS = P * (dP - D), for the keys from 16 `from` on.
template <int N, int K> DEVICE void score_gradients(Left<2, K>& p, int from, const Sums<2, N>& dp, u32 stats) {
    Reg<float, 4> deltas = stats_of(stats, DELTA);
    UNROLL for (int k = 0; k < N / 2; k++) {
        UNROLL for (int m = 0; m < 2; m++) {
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
template <int D, int WARPS> DEVICE void query_gradients(const AttentionBwd& a) {
    constexpr int QUERIES = 32 * WARPS, THREADS = 32 * WARPS;
    Head h = head_of(a, block());
    u32 first = ((a.seq + QUERIES - 1) / QUERIES - 1 - block_y()) * QUERIES;
    u32 end = first + QUERIES < a.seq ? first + QUERIES : a.seq;
    u32 warp = thread() / 32 * 32;
    u32 q = shared_base(), do_ = q + tile_bytes<QUERIES, D>();
    u32 tiles = do_ + tile_bytes<QUERIES, D>(), k = 0;
    u32 stats = tiles + 2 * tile_bytes<KEYS, D>(), my_stats = stats + (warp / 64 * RECORD + warp % 64) * 4;
    u32 my_q = q + warp * ROW_BYTES, my_do = do_ + warp * ROW_BYTES;

    u32 last_key = start_of(a.starts, h, first) / KEYS * KEYS;
    Stream keys = stream_of<D>(h, (end - 1) / KEYS * KEYS);
    load_tile<QUERIES, D, THREADS>(q, a.qkv, q_rows<D>(h, first));
    load_tile<QUERIES, D, THREADS>(do_, a.do_, o_rows<D>(h, first));
    load_k<KEYS, D, THREADS>(tiles, a, keys);
    load_stats<QUERIES>(stats, a, first);
    cp_commit();
    Sums<2, D / 8> dq;
    fill(dq, 0.0f);
    while (true) {
        // k has arrived, and no thread reads the other tile any more.
        cp_wait<0>();
        sync();
        u32 v = k ^ tile_bytes<KEYS, D>();
        load_v<KEYS, D, THREADS>(tiles + v, a, keys);
        cp_commit();
        u32 key = keys.key;
        Queries mine = queries_of(my_stats, first + warp);
        bool seen = sees(mine, key, KEYS);
        Left<2, KEYS / 16> p;
        if (seen) {
            // s = q k^T
            Sums<2, KEYS / 8> s;
            product_by_pages<D, QUERIES, KEYS>(s, my_q, tiles + k);
            if (!sees_all(mine, key, KEYS)) {
                mask(s, mine.first, key, [&](u32 r) { return stat_of(my_stats, START, r); });
            }
            probabilities<D>(p, s, my_stats);
        } else {
            fill(p, 0u);
        }
        cp_wait<0>();
        sync();
        if (seen) {
            // dP = do v^T, for one half of the keys after the other, because registers are scarce.
            UNROLL for (int half = 0; half < 2; half++) {
                Sums<2, KEYS / 16> dp;
                product_by_pages<D, QUERIES, KEYS>(dp, my_do, tiles + v + half * (KEYS / 2 * ROW_BYTES));
                score_gradients(p, half * (KEYS / 32), dp, my_stats);
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
    Reg<float, 4> factor;
    UNROLL for (int r = 0; r < 4; r++) factor[r] = P_UNIT * inverse_root<D>();
    store_rows<QUERIES, D, 2>(a.dqkv, q_rows<D>(head_of(a, fresh(block())), first + warp), my_q, dq, factor);
}

KERNEL(attention_dq_64, AttentionBwd, 128, 2) { query_gradients<64, 4>(a); }
KERNEL(attention_dq_128, AttentionBwd, 256, 1) { query_gradients<128, 8>(a); }
