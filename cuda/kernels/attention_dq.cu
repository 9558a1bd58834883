// dq of attention (Dao 2023): with P = e^(q k^T / sqrt(d) - lse) made again, dP = do v^T, dS = P * (dP - D) and
// dq = dS k / sqrt(d). As forward, a block takes queries of one head, 32 a warp, and goes over its tiles of keys from
// the diagonal back; dq stays in registers.
#include "attention_bwd.cuh"

constexpr int KEYS = 64;

// The numbers of a lane's four queries.
struct Stats {
    Reg<float, 4> lse, delta;
};

DEVICE Stats stats_of(const AttentionBwd& a, u32 first) {
    Stats of;
    u64 record = record_of(block(), a.seq, first / 64 * 64);
    UNROLL for (u32 r = 0; r < 4; r++) {
        u64 at = record + stat_place(first % 64 + 8 * r + thread() % 32 / 4);
        of.lse[r] = f32_of(ld(a.stats, at + LSE));
        of.delta[r] = f32_of(ld(a.stats, at + DELTA));
    }
    return of;
}

// P in pairs of f16.
template <int D, int N> DEVICE void probabilities(Left<2, N / 2>& p, const Sums<2, N>& s, const Stats& of) {
    UNROLL for (int k = 0; k < N / 2; k++) {
        UNROLL for (int m = 0; m < 2; m++) {
            UNROLL for (int w = 0; w < 4; w++) {
                const Reg<float, 4>& piece = s.at[m][2 * k + w / 2];
                float lse = of.lse[2 * m + w % 2];
                float first = probability<D>(piece[w % 2 * 2], lse), second = probability<D>(piece[w % 2 * 2 + 1], lse);
                p.at[m][k][w] = pack2_f16(first, second);
            }
        }
    }
}

// dS = P * (dP - D) in the place of P.
template <int N> DEVICE void score_gradients(Left<2, N / 2>& p, const Sums<2, N>& dp, const Stats& of) {
    UNROLL for (int k = 0; k < N / 2; k++) {
        UNROLL for (int m = 0; m < 2; m++) {
            UNROLL for (int w = 0; w < 4; w++) {
                const Reg<float, 4>& piece = dp.at[m][2 * k + w / 2];
                float delta = of.delta[2 * m + w % 2];
                u32 pair = p.at[m][k][w];
                float first = low_f16(pair) * (piece[w % 2 * 2] - delta);
                float second = high_f16(pair) * (piece[w % 2 * 2 + 1] - delta);
                p.at[m][k][w] = pack2(first, second);
            }
        }
    }
}

// Shared memory: the tiles of q and do, and two of keys. In these k and v change places from tile to tile: the next k
// comes while dq is summed, into what was v's, and the next v while s is made.
template <int D, int WARPS> DEVICE void query_gradients(const AttentionBwd& a) {
    constexpr int QUERIES = 32 * WARPS, THREADS = 32 * WARPS;
    Head h = head_of(a, block());
    u32 first = ((a.seq + QUERIES - 1) / QUERIES - 1 - block_y()) * QUERIES;
    u32 end = first + QUERIES < a.seq ? first + QUERIES : a.seq, warp = thread() / 32 * 32;
    Queries mine = queries_of(a.starts, h, first + warp);
    u32 q = shared_base(), do_ = q + tile_bytes<QUERIES, D>();
    u32 k = do_ + tile_bytes<QUERIES, D>(), v = k + tile_bytes<KEYS, D>();
    u32 my_q = q + warp * ROW_BYTES, my_do = do_ + warp * ROW_BYTES;

    u32 key = (end - 1) / KEYS * KEYS, last_key = start_of(a.starts, h, first) / KEYS * KEYS;
    load_tile<QUERIES, D, THREADS>(q, a.qkv, q_rows<D>(h, first));
    load_tile<QUERIES, D, THREADS>(do_, a.do_, o_rows<D>(h, first));
    load_tile<KEYS, D, THREADS>(k, a.qkv, k_rows<D>(h, key));
    cp_commit();
    // Behind the sequence there may be no record: those queries are not written.
    Stats of = stats_of(a, mine.first < h.seq ? mine.first : first);
    Sums<2, D / 8> dq;
    clear(dq);
    while (true) {
        // k has come, and nobody reads the other tile any more.
        cp_wait<0>();
        sync();
        load_tile<KEYS, D, THREADS>(v, a.qkv, v_rows<D>(h, key));
        cp_commit();
        bool seen = sees(mine, key, KEYS);
        Left<2, KEYS / 16> p;
        if (seen) {
            // s = q k^T
            Sums<2, KEYS / 8> s;
            clear(s);
            add_product_nt<D, QUERIES, KEYS>(s, lanes_down(my_q), lanes_across(k));
            if (!sees_all(mine, key, KEYS)) mask(s, a.starts, h, mine.first, key);
            probabilities<D>(p, s, of);
        }
        cp_wait<0>();
        sync();
        if (seen) {
            // dP = do v^T
            Sums<2, KEYS / 8> dp;
            clear(dp);
            add_product_nt<D, QUERIES, KEYS>(dp, lanes_down(my_do), lanes_across(v));
            score_gradients(p, dp, of);
        }
        // Nobody reads v any more.
        sync();
        if (key > last_key) load_tile<KEYS, D, THREADS>(v, a.qkv, k_rows<D>(h, key - KEYS));
        cp_commit();
        // dq += dS k
        if (seen) add_product(dq, p, lanes_down(k));
        if (key == last_key) break;
        key -= KEYS;
        u32 other = k;
        k = v;
        v = other;
    }
    Reg<float, 4> factor;
    UNROLL for (int r = 0; r < 4; r++) factor[r] = P_UNIT * inverse_root<D>();
    store_rows<QUERIES, D, 2>(a.dqkv, q_rows<D>(h, mine.first), my_q, dq, factor);
}

KERNEL(attention_dq_64, AttentionBwd, 128, 2) { query_gradients<64, 4>(a); }
KERNEL(attention_dq_128, AttentionBwd, 256, 1) { query_gradients<128, 8>(a); }
