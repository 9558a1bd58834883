// dk and dv of attention (Dao 2023; for this architecture Shah et al. 2024): with P = e^(s - lse) recomputed,
// dv = P^T do, dP = do v^T, dS = P * (dP - D), times the derivative of the cap if there is one, and dk = scale dS^T q.
// A block processes 128 keys of a key/value head. The producer warpgroup loads the tiles of 64 queries that see them,
// one query head after another. Each of the two consumers has 64 of the keys. It computes P^T = k q^T and
// dP^T = v do^T, which stay in its registers as the left factors of dv and dk. While one consumer computes its factors,
// the tensor cores work for the other.
#include "attention_bwd.cuh"
#include "attention_sm90.cuh"

constexpr int QUERIES = 64;
constexpr u32 RECORD_BYTES = RECORD * 4;

// k and v, the pipeline of tiles of q, do and stats, and a word for each consumer's thread.
template <int D> struct Tiles {
    static constexpr u32 HALF = TILE_BYTES<QUERIES, D>, STATS = 2 * HALF;
    Ring<1, TILE_BYTES<ROWS, D>> k, v;
    // Stats are padded to a multiple of 1024 bytes.
    Ring<3, STATS + 1024> queries;
    u32 words;
};

template <int D> DEVICE Tiles<D> make_tiles() {
    constexpr u32 TILE = TILE_BYTES<ROWS, D>;
    u32 base = shared_base(), queries = base + 2 * TILE, bars = queries + 3 * (TILE + 1024);
    Tiles<D> tiles = {{base, bars, 0}, {base + TILE, bars + 16, 0}, {queries, bars + 32, 0}, bars + 80};
    if (thread() == 0) {
        make_ring(tiles.k);
        make_ring(tiles.v);
        make_ring(tiles.queries);
        mbar_init_fence();
    }
    sync();
    return tiles;
}

// A block's keys, and the tiles of queries that see them: `tiles` from `first` on, for each of `heads` query heads.
struct Walk {
    Head h;
    u32 sequence, key, first, tiles, heads;
};

DEVICE Walk walk_of(const AttentionTilesBwd& a) {
    // The key/value head, counted over all sequences, and the part of its query heads.
    u32 n = block() / a.parts, part = block() % a.parts, group = a.heads / a.kv_heads, heads = group / a.parts;
    u32 sequence = n / a.kv_heads, key = block_y() * ROWS;
    Head h = head_of(a, n * group + part * heads);
    u32 end = first_blind(a.starts, h, key + ROWS < h.seq ? key + ROWS - 1 : h.seq - 1);
    return {h, sequence, key, key, (end - key + QUERIES - 1) / QUERIES, heads};
}

template <int D> DEVICE void produce(const AttentionTilesBwd& a, Tiles<D> to, const Walk& walk) {
    constexpr u32 PAGES = D / 64, HALF = Tiles<D>::HALF;
    const Head& h = walk.h;
    bring_one(to.k, a.qkv, walk.key, (h.heads + h.kv) * PAGES, walk.sequence);
    bring_one(to.v, a.qkv, walk.key, (h.heads + h.kv_heads + h.kv) * PAGES, walk.sequence);
    for (u32 head = h.query; head < h.query + walk.heads; head++) {
        u64 record = record_of(walk.sequence * h.heads + head, h.seq, walk.first);
        for (u32 i = 0; i < walk.tiles; i++) {
            u32 query = walk.first + i * QUERIES;
            open_place(to.queries, 2 * HALF + RECORD_BYTES);
            bring(to.queries, 0, a.qkv64, query, head * PAGES, walk.sequence);
            bring(to.queries, HALF, a.do64, query, head * PAGES, walk.sequence);
            bulk_load(tile_of(to.queries) + 2 * HALF, a.stats, record + i * RECORD, RECORD_BYTES, full_of(to.queries));
            to.queries.turn++;
        }
    }
}

// Scores of the warpgroup's keys from `key` on become -infinity where a query does not see a key.
DEVICE void mask_transposed(Reg<float, 32>& s, u32 stats, u32 query, u32 key) {
    u32 last_start = lds(stats + RECORD_BYTES - 4);
    if (query >= key + 63 && last_start <= key) return;
    UNROLL for (int k = 0; k < QUERIES / 16; k++) {
        V16 starts = stats_of(stats, START, k);
        UNROLL for (int i = 0; i < 8; i++) {
            // For keys before the start the difference wraps around.
            u32 start = starts.w[i / 4 * 2 + i % 2], span = query + sum_column(8 * k + i) + i % 2 - start;
            s[8 * k + i] = key + sum_row(i) - start <= span ? s[8 * k + i] : -infinity();
        }
    }
}

// Computes P^T from the scores; returns the XOR of its words, which needs all of them.
DEVICE u32 probabilities(Reg<float, 32>& s, float power, u32 stats) {
    u32 all = 0;
    UNROLL for (int k = 0; k < QUERIES / 16; k++) {
        V16 lse2 = stats_of(stats, LSE2, k);
        UNROLL for (int i = 0; i < 8; i++) {
            s[8 * k + i] = probability(s[8 * k + i], power, -f32_of(lse2.w[i / 4 * 2 + i % 2]));
            all ^= bits_of(s[8 * k + i]);
        }
    }
    return all;
}

// The same with a cap: P^T is rounded to `p` at once, and its products with the derivative of the cap replace the
// scores.
DEVICE u32 capped_probabilities(Reg<u32, 4> (&p)[QUERIES / 16], Reg<float, 32>& s, float power, u32 stats) {
    u32 all = 0;
    UNROLL for (int k = 0; k < QUERIES / 16; k++) {
        V16 lse2 = stats_of(stats, LSE2, k);
        UNROLL for (int i = 0; i < 8; i += 2) {
            float first = s[8 * k + i], second = s[8 * k + i + 1];
            float p0 = probability(first, power, -f32_of(lse2.w[i / 4 * 2]));
            float p1 = probability(second, power, -f32_of(lse2.w[i / 4 * 2 + 1]));
            p[k][i / 2] = pack2(p0, p1);
            s[8 * k + i] = p0 * slope_of_tanh(first);
            s[8 * k + i + 1] = p1 * slope_of_tanh(second);
            all ^= p[k][i / 2] ^ bits_of(s[8 * k + i]) ^ bits_of(s[8 * k + i + 1]);
        }
    }
    return all;
}

// dS^T = P^T * (dP^T - D).
DEVICE void score_gradients(Reg<float, 32>& dp, const Reg<float, 32>& p, u32 stats) {
    UNROLL for (int k = 0; k < QUERIES / 16; k++) {
        V16 delta = stats_of(stats, DELTA, k);
        UNROLL for (int i = 0; i < 8; i++) {
            dp[8 * k + i] = p[8 * k + i] * (dp[8 * k + i] - f32_of(delta.w[i / 4 * 2 + i % 2]));
        }
    }
}

// The accumulators of a warpgroup's keys.
template <int D> struct Gradients {
    Reg<float, D / 2> dk, dv;
};

template <int D> DEVICE void clear(Gradients<D>& g) {
    UNROLL for (int i = 0; i < D / 2; i++) {
        g.dk[i] = 0;
        g.dv[i] = 0;
    }
}

// P^T and dS^T, the left factors of dv and dk, and the s and dp that they are computed from.
struct Factors {
    Reg<float, 32> s, dp;
    Reg<u32, 4> p[QUERIES / 16], ds[QUERIES / 16];
};

// Computes the factors of the tile of queries from `query` on. Only s and dp are in flight.
template <bool CAPPED>
DEVICE void make_factors(Factors& f, u32 stats, const Scores& scores, u32 query, u32 key, u32 word) {
    wgmma_wait<1>();
    pin(f.s);
    if constexpr (CAPPED) {
        cap(f.s, scores.inner);
        mask_transposed(f.s, stats, query, key);
        before_wait(word, capped_probabilities(f.p, f.s, scores.power, stats));
    } else {
        mask_transposed(f.s, stats, query, key);
        before_wait(word, probabilities(f.s, scores.power, stats));
    }
    wgmma_wait<0>();
    pin(f.dp);
    score_gradients(f.dp, f.s, stats);
    if constexpr (!CAPPED) round_sums<QUERIES>(f.p, f.s);
    round_sums<QUERIES>(f.ds, f.dp);
}

// Accumulates over all queries of the walk, for the warpgroup's keys from `key` on.
template <int D, bool CAPPED>
DEVICE void sum_queries(Gradients<D>& g, Tiles<D>& from, const Walk& walk, const Scores& scores, u32 key) {
    constexpr u32 HALF = Tiles<D>::HALF;
    u32 k = await(from.k) + (key - walk.key) * ROW, v = await(from.v) + (key - walk.key) * ROW;
    u32 q = await(from.queries), steps = walk.tiles * walk.heads, word = word_of(from.words);
    Factors f;
    wgmma_fence(g.dk, g.dv);
    // s = k q^T, dp = v do^T
    product_along<D, ROWS, QUERIES>(f.s, k, q);
    wgmma_commit();
    product_along<D, ROWS, QUERIES>(f.dp, v, q + HALF);
    wgmma_commit();
    make_factors<CAPPED>(f, q + 2 * HALF, scores, walk.first, key, word);
    for (u32 i = 1; i < steps; i++) {
        // dv += P^T do, dk += dS^T q; then, when the factors' registers are free, s and dp of the next tile.
        wgmma_fence(f.p, f.ds);
        add_product_across<D, QUERIES>(g.dv, f.p, q + HALF);
        add_product_across<D, QUERIES>(g.dk, f.ds, q);
        wgmma_commit();
        q = await(next_of(from.queries));
        wgmma_wait<0>();
        pin(f.p);
        pin(f.ds);
        release(from.queries);
        // With a cap, there are no registers for the descriptors of k and v from one iteration to the next.
        product_along<D, ROWS, QUERIES>(f.s, CAPPED ? fresh(k) : k, q);
        wgmma_commit();
        product_along<D, ROWS, QUERIES>(f.dp, CAPPED ? fresh(v) : v, q + HALF);
        wgmma_commit();
        make_factors<CAPPED>(f, q + 2 * HALF, scores, walk.first + i % walk.tiles * QUERIES, key, word);
    }
    wgmma_fence(f.p, f.ds);
    add_product_across<D, QUERIES>(g.dv, f.p, q + HALF);
    add_product_across<D, QUERIES>(g.dk, f.ds, q);
    wgmma_commit();
    wgmma_wait<0>();
    pin(g.dk);
    pin(g.dv);
}

// Stores dv and dk of the warpgroup's keys from `key` on.
template <int D> DEVICE void store(const AttentionTilesBwd& a, const Head& h, u32 key, Gradients<D>& g) {
    UNROLL for (int i = 0; i < D / 2; i++) g.dk[i] *= a.scores.scale;
    Strip k = k_rows<D>(h, key), v = v_rows<D>(h, key);
    store_sums<D>(a.dqkv, k.from, k.cols, k.rows, g.dk);
    store_sums<D>(a.dqkv, v.from, v.cols, v.rows, g.dv);
}

// The element at which a block stores its accumulators, in register order, for a part of key/value head `n`.
template <int D> DEVICE u64 part_of(const AttentionTilesBwd& a, u32 n, u32 part, u32 piece) {
    u64 block = (static_cast<u64>(n) * a.parts + part) * ((a.seq + ROWS - 1) / ROWS) + block_y();
    return ((block * (D / 4) + piece) * (2 * WARPGROUP) + thread() % (2 * WARPGROUP)) * 4;
}

template <int D> DEVICE void store_part(const AttentionTilesBwd& a, const Gradients<D>& g) {
    UNROLL for (u32 i = 0; i < D / 8; i++) {
        V16 dk, dv;
        UNROLL for (u32 e = 0; e < 4; e++) {
            dk.w[e] = bits_of(g.dk[4 * i + e]);
            dv.w[e] = bits_of(g.dv[4 * i + e]);
        }
        st16(a.sums, part_of<D>(a, block() / a.parts, block() % a.parts, 2 * i), dk);
        st16(a.sums, part_of<D>(a, block() / a.parts, block() % a.parts, 2 * i + 1), dv);
    }
}

template <int D, bool CAPPED> DEVICE void key_gradients(const AttentionTilesBwd& a) {
    Tiles<D> tiles = make_tiles<D>();
    Walk walk = walk_of(a);
    if (thread() >= 2 * WARPGROUP) {
        give_registers<24>();
        if (thread() == 2 * WARPGROUP) produce<D>(a, tiles, walk);
    } else {
        take_registers<240>();
        u32 key = walk.key + thread() / WARPGROUP * 64;
        Gradients<D> g;
        clear(g);
        sum_queries<D, CAPPED>(g, tiles, walk, a.scores, key);
        if (a.parts == 1) {
            store<D>(a, walk.h, key, g);
        } else {
            store_part<D>(a, g);
        }
    }
}

KERNEL(attention_dkv_sm90_64, AttentionTilesBwd, 3 * WARPGROUP, 1) { key_gradients<64, false>(a); }
KERNEL(attention_dkv_sm90_128, AttentionTilesBwd, 3 * WARPGROUP, 1) { key_gradients<128, false>(a); }
KERNEL(attention_dkv_sm90_64_capped, AttentionTilesBwd, 3 * WARPGROUP, 1) { key_gradients<64, true>(a); }
KERNEL(attention_dkv_sm90_128_capped, AttentionTilesBwd, 3 * WARPGROUP, 1) { key_gradients<128, true>(a); }

// dk and dv from the sums of all parts, in order.
template <int D> DEVICE void sum_parts(const AttentionTilesBwd& a) {
    Gradients<D> g;
    clear(g);
    for (u32 part = 0; part < a.parts; part++) {
        UNROLL for (u32 i = 0; i < D / 8; i++) {
            V16 dk = ld16(a.sums, part_of<D>(a, block(), part, 2 * i));
            V16 dv = ld16(a.sums, part_of<D>(a, block(), part, 2 * i + 1));
            UNROLL for (u32 e = 0; e < 4; e++) {
                g.dk[4 * i + e] += f32_of(dk.w[e]);
                g.dv[4 * i + e] += f32_of(dv.w[e]);
            }
        }
    }
    u32 n = block(), group = a.heads / a.kv_heads;
    Head h = head_of(a, n * group);
    store<D>(a, h, block_y() * ROWS + thread() / WARPGROUP * 64, g);
}

KERNEL(attention_dkv_sum_sm90_64, AttentionTilesBwd, 2 * WARPGROUP, 1) { sum_parts<64>(a); }
KERNEL(attention_dkv_sum_sm90_128, AttentionTilesBwd, 2 * WARPGROUP, 1) { sum_parts<128>(a); }
