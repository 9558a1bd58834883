// dq of attention (Dao 2023; for this architecture Shah et al. 2024): with P = e^(s - lse) recomputed, dP = do v^T,
// dS = P * (dP - D), times the derivative of the cap if there is one, and dq = scale dS k. As in the forward pass, a
// block loops over items of 128 queries of one head, the producer warpgroup loads tiles, and each of the two consumers
// has 64 of the queries. While one consumer computes dS, the tensor cores work for the other.
#include "attention_bwd.cuh"
#include "attention_sm90.cuh"

// q and do, the pipeline of tiles of k and v, and a word for each consumer's thread.
template <int D> struct Tiles {
    static constexpr u32 HALF = TILE_BYTES<ROWS, D>;
    Ring<1, 2 * HALF> queries;
    Ring<2, 2 * HALF> keys;
    u32 words;
};

template <int D> DEVICE Tiles<D> make_tiles() {
    constexpr u32 BOTH = 2 * Tiles<D>::HALF;
    u32 base = shared_base(), bars = base + 3 * BOTH;
    Tiles<D> tiles = {{base, bars, 0}, {base + BOTH, bars + 16, 0}, bars + 48};
    if (thread() == 0) {
        make_ring(tiles.queries);
        make_ring(tiles.keys);
        mbar_init_fence();
    }
    sync();
    return tiles;
}

template <int D> DEVICE void produce(const AttentionTilesBwd& a, Tiles<D> to) {
    constexpr u32 PAGES = D / 64, HALF = Tiles<D>::HALF;
    for (u32 i = first_item(); i < items(a); i = next_item(i)) {
        Item item = item_at(a, i);
        const Head& h = item.h;
        open_place(to.queries, 2 * HALF);
        bring(to.queries, 0, a.qkv, item.first, h.query * PAGES, item.sequence);
        bring(to.queries, HALF, a.do_, item.first, h.query * PAGES, item.sequence);
        to.queries.turn++;
        for (u32 tile = item.last_tile + 1; tile-- > item.first_tile;) {
            open_place(to.keys, 2 * HALF);
            bring(to.keys, 0, a.qkv, tile * ROWS, (h.heads + h.kv) * PAGES, item.sequence);
            bring(to.keys, HALF, a.qkv, tile * ROWS, (h.heads + h.kv_heads + h.kv) * PAGES, item.sequence);
            to.keys.turn++;
        }
    }
}

// lse2 and D of the lane's two queries.
struct Numbers {
    float lse2[2], delta[2];
};

DEVICE Numbers numbers_of(const AttentionTilesBwd& a, const Item& item, u32 first) {
    u64 record = record_of(item.sequence * item.h.heads + item.h.query, item.h.seq, first);
    Numbers n;
    UNROLL for (int r = 0; r < 2; r++) {
        u64 at = record + stat_place(sum_row(2 * r));
        n.lse2[r] = f32_of(ld(a.stats, at + LSE2));
        n.delta[r] = f32_of(ld(a.stats, at + DELTA));
    }
    return n;
}

// Computes P from the scores, times the derivative of the cap if there is one; returns the largest element, which needs
// all of them.
template <bool CAPPED> DEVICE float sensitivities(Reg<float, ROWS / 2>& s, float power, const Numbers& n) {
    float most = 0;
    UNROLL for (int i = 0; i < ROWS / 2; i++) {
        s[i] = sensitivity<CAPPED>(s[i], power, -n.lse2[i / 2 % 2]);
        most = larger(most, s[i]);
    }
    return most;
}

// dS = P * (dP - D).
DEVICE void score_gradients(Reg<float, ROWS / 2>& dp, const Reg<float, ROWS / 2>& p, const Numbers& n) {
    UNROLL for (int i = 0; i < ROWS / 2; i++) dp[i] = p[i] * (dp[i] - n.delta[i / 2 % 2]);
}

// dS, the left factor of dq, and the s and dp that it is computed from.
struct Factor {
    Reg<float, ROWS / 2> s, dp;
    Reg<u32, 4> ds[ROWS / 16];
};

// Computes the factor of the tile of keys from `key` on. Only s and dp are in flight.
template <bool CAPPED>
DEVICE void make_factor(Factor& f, const Pair& queries, const Numbers& n, const Scores& scores, u32 key, u32 word) {
    wgmma_wait<1>();
    pin(f.s);
    if constexpr (CAPPED) cap(f.s, scores.inner);
    mask(f.s, queries, key);
    before_wait(word, bits_of(sensitivities<CAPPED>(f.s, scores.power, n)));
    wgmma_wait<0>();
    pin(f.dp);
    score_gradients(f.dp, f.s, n);
    round_sums<ROWS>(f.ds, f.dp);
}

// Processes the 64 queries of an item that belong to this warpgroup, number `mine` of two.
template <int D, bool CAPPED>
DEVICE void attend(const AttentionTilesBwd& a, Tiles<D>& from, const Item& item, u32 mine) {
    constexpr u32 HALF = Tiles<D>::HALF;
    u32 first = item.first + mine * 64;
    Pair queries = pair_of(a.starts, item.h, first);
    Numbers numbers = numbers_of(a, item, first);
    Factor f;
    Reg<float, D / 2> dq;
    UNROLL for (int i = 0; i < D / 2; i++) dq[i] = 0;
    u32 q = await(from.queries) + mine * 64 * ROW, k = await(from.keys), word = word_of(from.words);
    wgmma_fence(dq);
    // s = q k^T, dp = do v^T
    product_along<D, ROWS, ROWS>(f.s, q, k);
    wgmma_commit();
    product_along<D, ROWS, ROWS>(f.dp, q + HALF, k + HALF);
    wgmma_commit();
    make_factor<CAPPED>(f, queries, numbers, a.scores, item.last_tile * ROWS, word);
    for (u32 tile = item.last_tile; tile-- > item.first_tile;) {
        // dq += dS k; then, when the factor's registers are free, s and dp of the next tile.
        wgmma_fence(f.ds);
        add_product_across<D, ROWS>(dq, f.ds, k);
        wgmma_commit();
        k = await(next_of(from.keys));
        wgmma_wait<0>();
        pin(f.ds);
        release(from.keys);
        product_along<D, ROWS, ROWS>(f.s, q, k);
        wgmma_commit();
        product_along<D, ROWS, ROWS>(f.dp, q + HALF, k + HALF);
        wgmma_commit();
        make_factor<CAPPED>(f, queries, numbers, a.scores, tile * ROWS, word);
    }
    release(from.queries);
    wgmma_fence(f.ds);
    add_product_across<D, ROWS>(dq, f.ds, k);
    wgmma_commit();
    wgmma_wait<0>();
    pin(dq);
    pin(f.ds);
    release(from.keys);
    UNROLL for (int i = 0; i < D / 2; i++) dq[i] *= a.scores.scale;
    Strip to = q_rows<D>(item.h, first);
    store_sums<D>(a.dqkv, to.from, to.cols, to.rows, dq);
}

template <int D, bool CAPPED> DEVICE void query_gradients(const AttentionTilesBwd& a) {
    Tiles<D> tiles = make_tiles<D>();
    if (thread() < WARPGROUP) {
        give_registers<24>();
        if (thread() == 0) produce<D>(a, tiles);
    } else {
        take_registers<240>();
        u32 mine = thread() / WARPGROUP - 1;
        for (u32 i = first_item(); i < items(a); i = next_item(i)) attend<D, CAPPED>(a, tiles, item_at(a, i), mine);
    }
}

KERNEL(attention_dq_sm90_64, AttentionTilesBwd, 3 * WARPGROUP, 1) { query_gradients<64, false>(a); }
KERNEL(attention_dq_sm90_128, AttentionTilesBwd, 3 * WARPGROUP, 1) { query_gradients<128, false>(a); }
KERNEL(attention_dq_sm90_64_capped, AttentionTilesBwd, 3 * WARPGROUP, 1) { query_gradients<64, true>(a); }
KERNEL(attention_dq_sm90_128_capped, AttentionTilesBwd, 3 * WARPGROUP, 1) { query_gradients<128, true>(a); }
