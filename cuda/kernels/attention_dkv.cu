// dk and dv of attention (Dao 2023): with P = e^(q k^T / sqrt(d) - lse) made again, dv = P^T do, dP = do v^T,
// dS = P * (dP - D) and dk = dS^T q / sqrt(d). A block takes 128 keys of a key/value head, and goes over the tiles of
// queries that see them, of one query head after another.
//
// Two warps share 32 keys. The maker of dv makes P^T = k q^T and sums P^T do; the maker of dk makes dP^T = v do^T and
// sums dS^T q. Both factors stay in the registers of their makers; only P goes from the first to the second. The
// second is a phase behind, so that one's exponentials meet the other's products:
//
//   phase 2i      dv: P(i)            dk: += dS(i-1)^T q(i-1)    do(i) comes
//   phase 2i + 1  dv: += P(i)^T do(i) dk: dS(i)                  q(i + 1) comes
#include "attention_bwd.cuh"

constexpr int THREADS = 256;
constexpr int KEYS = 128;

// Queries of a tile: so many that a product has as many steps with either size of a head.
template <int D> DEVICE constexpr int queries() { return 8192 / D; }
template <int D> DEVICE constexpr u32 record_bytes() { return queries<D>() / 64 * RECORD * 4; }

// Where tiles lie in shared memory: k, v, two of q, do; P; two of stats.
template <int D> struct Shared {
    static constexpr int Q = queries<D>();
    u32 k, v, q, do_, p, stats;
};

template <int D> DEVICE Shared<D> shared() {
    u32 k = shared_base(), v = k + tile_bytes<KEYS, D>(), q = v + tile_bytes<KEYS, D>();
    u32 do_ = q + 2 * tile_bytes<queries<D>(), D>(), p = do_ + tile_bytes<queries<D>(), D>();
    return {k, v, q, do_, p, p + KEYS * queries<D>() * 2};
}

// The tiles of queries that a block goes over: `tiles` of each of `heads` query heads, from `h` on.
struct Walk {
    Head h;
    u32 first, tiles, heads;
};

template <int D> DEVICE Walk walk_of(const AttentionBwd& a, u32 key) {
    constexpr u32 Q = queries<D>();
    // A block's key/value head among all sequences', and its part of the query heads of that.
    u32 n = block() / a.parts, part = block() % a.parts, group = a.heads / a.kv_heads, heads = group / a.parts;
    Head h = head_of(a, n / a.kv_heads * a.heads + n % a.kv_heads * group + part * heads);
    u32 last = key + KEYS < h.seq ? key + KEYS - 1 : h.seq - 1;
    u32 end = first_blind(a.starts, h, last);
    return {h, key / Q * Q, (end - key / Q * Q + Q - 1) / Q, heads};
}

// Tile i of the walk: its head, and its first query.
struct Step {
    Head h;
    u32 query;
};

template <int D> DEVICE Step step(const Walk& walk, u32 i) {
    Step s = {walk.h, walk.first + i % walk.tiles * queries<D>()};
    s.h.query += i / walk.tiles;
    return s;
}

template <int D> DEVICE void load_q(const AttentionBwd& a, const Shared<D>& to, const Walk& walk, u32 i) {
    constexpr int Q = queries<D>();
    Step s = step<D>(walk, i);
    load_tile<Q, D, THREADS>(to.q + i % 2 * tile_bytes<Q, D>(), a.qkv, q_rows<D>(s.h, s.query));
    u64 record = record_of(s.h.row / s.h.seq * s.h.heads + s.h.query, s.h.seq, s.query);
    u32 chunk = thread();
    if (chunk < record_bytes<D>() / 16) {
        cp_async16(to.stats + i % 2 * record_bytes<D>() + chunk * 16, a.stats, record + chunk * 4, 16);
    }
}

template <int D> DEVICE void load_do(const AttentionBwd& a, const Shared<D>& to, const Walk& walk, u32 i) {
    Step s = step<D>(walk, i);
    load_tile<queries<D>(), D, THREADS>(to.do_, a.do_, o_rows<D>(s.h, s.query));
}

// Scores of 32 keys with the tile's queries become -infinity where a query does not see a key.
template <int N> DEVICE void mask_transposed(Sums<2, N>& s, u32 stats, u32 query, u32 key) {
    u32 g = thread() % 32 / 4, t = thread() % 4 * 2;
    UNROLL for (u32 k = 0; k < N / 2; k++) {
        V16 starts = stats_of(stats, START, k);
        UNROLL for (u32 c = 0; c < 4; c++) {
            u32 start = starts.w[c], span = query + 16 * k + c / 2 * 8 + t + c % 2 - start;
            UNROLL for (u32 r = 0; r < 4; r++) {
                float& x = s.at[r / 2][2 * k + c / 2][r % 2 * 2 + c % 2];
                x = key + 8 * r + g - start <= span ? x : -infinity();
            }
        }
    }
}

// P^T of the scores, rounded, and as f16 to the lane of the other warp that has the same elements.
template <int D, int N> DEVICE void probabilities(Left<2, N / 2>& to, Sums<2, N>& s, u32 stats, u32 exchange) {
    UNROLL for (int k = 0; k < N / 2; k++) {
        V16 lse = stats_of(stats, LSE, k);
        UNROLL for (int m = 0; m < 2; m++) {
            V16 pairs;
            UNROLL for (int w = 0; w < 4; w++) {
                Reg<float, 4>& piece = s.at[m][2 * k + w / 2];
                UNROLL for (int e = 0; e < 2; e++) {
                    float& x = piece[w % 2 * 2 + e];
                    x = probability<D>(x, f32_of(lse.w[w / 2 * 2 + e]));
                }
                pairs.w[w] = pack2_f16(piece[w % 2 * 2], piece[w % 2 * 2 + 1]);
            }
            to.at[m][k] = packed(s, m, k);
            sts16(exchange + (2 * k + m) * 512, pairs);
        }
    }
}

// dS^T = P^T * (dP^T - D), rounded.
template <int N> DEVICE void score_gradients(Left<2, N / 2>& to, Sums<2, N>& dp, u32 stats, u32 exchange) {
    UNROLL for (int k = 0; k < N / 2; k++) {
        V16 delta = stats_of(stats, DELTA, k);
        UNROLL for (int m = 0; m < 2; m++) {
            V16 pairs = lds16(exchange + (2 * k + m) * 512);
            UNROLL for (int w = 0; w < 4; w++) {
                Reg<float, 4>& piece = dp.at[m][2 * k + w / 2];
                float &first = piece[w % 2 * 2], &second = piece[w % 2 * 2 + 1];
                first = low_f16(pairs.w[w]) * (first - f32_of(delta.w[w / 2 * 2]));
                second = high_f16(pairs.w[w]) * (second - f32_of(delta.w[w / 2 * 2 + 1]));
            }
            to.at[m][k] = packed(dp, m, k);
        }
    }
}

// Whose 32 keys a warp has, and which of their gradients it makes.
struct Maker {
    u32 keys;
    bool of_dk;
};

DEVICE Maker maker() { return {thread() / 32 % 4 * 32, thread() / 128 == 1}; }

// dv, or dk / sqrt(d), of the warp's keys from `key` on. The rows of its own left factor are used up.
template <int D> DEVICE void store(const AttentionBwd& a, const Head& h, u32 key, const Sums<2, D / 8>& sums) {
    Maker me = maker();
    Reg<float, 4> factor;
    UNROLL for (int r = 0; r < 4; r++) factor[r] = me.of_dk ? P_UNIT * inverse_root<D>() : P_UNIT;
    Strip to = me.of_dk ? k_rows<D>(h, key + me.keys) : v_rows<D>(h, key + me.keys);
    u32 tile = shared_base() + (me.of_dk ? tile_bytes<KEYS, D>() : 0) + me.keys * ROW_BYTES;
    store_rows<KEYS, D, 2>(a.dqkv, to, tile, sums, factor);
}

// The sums of one block as they lie in registers, of a part of the query heads of key/value head `n`.
template <int D> DEVICE u64 part_of(const AttentionBwd& a, u32 n, u32 part, u32 piece) {
    u64 block = (static_cast<u64>(n) * a.parts + part) * ((a.seq + KEYS - 1) / KEYS) + block_y();
    return ((block * (D / 4) + piece) * THREADS + thread()) * 4;
}

template <int D> DEVICE void store_part(const AttentionBwd& a, const Sums<2, D / 8>& sums) {
    UNROLL for (u32 i = 0; i < D / 4; i++) {
        const Reg<float, 4>& x = sums.at[i % 2][i / 2];
        V16 v = {bits_of(x[0]), bits_of(x[1]), bits_of(x[2]), bits_of(x[3])};
        st16(a.sums, part_of<D>(a, block() / a.parts, block() % a.parts, i), v);
    }
}

template <int D> DEVICE void key_gradients(const AttentionBwd& a) {
    constexpr int Q = queries<D>();
    Shared<D> at = shared<D>();
    Maker me = maker();
    u32 key = block_y() * KEYS, mine = key + me.keys;
    Walk walk = walk_of<D>(a, key);
    u32 left = (me.of_dk ? at.v : at.k) + me.keys * ROW_BYTES;
    u32 exchange = at.p + me.keys * Q * 2 + thread() % 32 * 16;
    load_tile<KEYS, D, THREADS>(at.k, a.qkv, k_rows<D>(walk.h, key));
    load_tile<KEYS, D, THREADS>(at.v, a.qkv, v_rows<D>(walk.h, key));
    load_q<D>(a, at, walk, 0);
    cp_commit();

    Sums<2, D / 8> sums;
    clear(sums);
    // P^T or dS^T, and whether there is any.
    Left<2, Q / 16> factor;
    bool seen = false;
    u32 steps = walk.tiles * walk.heads;
    for (u32 phase = 0; phase <= 2 * steps; phase++) {
        u32 i = phase / 2, slot = i % 2;
        cp_wait<0>();
        sync();
        if (phase % 2 == 0 && i < steps) load_do<D>(a, at, walk, i);
        if (phase % 2 == 1 && i + 1 < steps) load_q<D>(a, at, walk, i + 1);
        cp_commit();
        if ((phase % 2 == 1) != me.of_dk) {
            // dv += P^T do, dk += dS^T q
            if (seen) add_product(sums, factor, lanes_down(me.of_dk ? at.q + (slot ^ 1) * tile_bytes<Q, D>() : at.do_));
            continue;
        }
        if (i == steps) break;
        u32 query = walk.first + i % walk.tiles * Q, stats = at.stats + slot * record_bytes<D>();
        u32 start = lds(stats + START * 4), last_start = lds(stats + record_bytes<D>() - 4);
        seen = query + Q > mine && start < mine + 32;
        if (!seen) continue;
        // k q^T, v do^T
        Sums<2, Q / 8> s;
        clear(s);
        u32 right = me.of_dk ? at.do_ : at.q + slot * tile_bytes<Q, D>();
        add_product_nt<D, KEYS, Q>(s, lanes_down(left), lanes_across(right));
        if (me.of_dk) {
            score_gradients(factor, s, stats, exchange);
        } else {
            if (query < mine + 31 || last_start > mine) mask_transposed(s, stats, query, mine);
            probabilities<D>(factor, s, stats, exchange);
        }
    }
    if (a.parts == 1) {
        store<D>(a, walk.h, key, sums);
    } else {
        store_part<D>(a, sums);
    }
}

KERNEL(attention_dkv_64, AttentionBwd, THREADS, 1) { key_gradients<64>(a); }
KERNEL(attention_dkv_128, AttentionBwd, THREADS, 1) { key_gradients<128>(a); }

// dk and dv from the sums of all parts, in order.
template <int D> DEVICE void sum_parts(const AttentionBwd& a) {
    Sums<2, D / 8> sums;
    clear(sums);
    for (u32 part = 0; part < a.parts; part++) {
        UNROLL for (u32 i = 0; i < D / 4; i++) {
            V16 v = ld16(a.sums, part_of<D>(a, block(), part, i));
            UNROLL for (int e = 0; e < 4; e++) sums.at[i % 2][i / 2][e] += f32_of(v.w[e]);
        }
    }
    u32 n = block(), group = a.heads / a.kv_heads;
    Head h = head_of(a, n / a.kv_heads * a.heads + n % a.kv_heads * group);
    store<D>(a, h, block_y() * KEYS, sums);
}

KERNEL(attention_dkv_sum_64, AttentionBwd, THREADS) { sum_parts<64>(a); }
KERNEL(attention_dkv_sum_128, AttentionBwd, THREADS, 1) { sum_parts<128>(a); }
