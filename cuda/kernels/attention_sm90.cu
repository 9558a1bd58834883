// Causal attention in tiles (Dao 2023; for this architecture Shah et al. 2024): o = softmax(s) v with s = scale q k^T,
// or cap tanh(scale q k^T / cap). A block loops over items of 128 queries of one head. The producer warpgroup loads q,
// and tiles of 128 keys from the diagonal back, by TMA with two stages each for k and v. Each of the two consumers has
// 64 of the queries. While the tensor cores compute o += P v of one tile, and the other consumer's multiplications, a
// consumer computes the next tile's P from scores that were started before.
#include "attention_sm90.cuh"

// The kernel's tiles in shared memory, followed by their mbarriers and a word for each consumer's thread.
template <int D> struct Tiles {
    Ring<1, TILE_BYTES<ROWS, D>> q;
    Ring<2, TILE_BYTES<ROWS, D>> k, v;
    u32 words;
};

template <int D> DEVICE Tiles<D> make_tiles() {
    constexpr u32 TILE = TILE_BYTES<ROWS, D>;
    u32 base = shared_base(), bars = base + 5 * TILE;
    Tiles<D> tiles = {{base, bars, 0}, {base + TILE, bars + 16, 0}, {base + 3 * TILE, bars + 48, 0}, bars + 80};
    if (thread() == 0) {
        make_ring(tiles.q);
        make_ring(tiles.k);
        make_ring(tiles.v);
        mbar_init_fence();
    }
    sync();
    return tiles;
}

template <int D> DEVICE void produce(const AttentionTiles& a, Tiles<D> to) {
    constexpr u32 PAGES = D / 64;
    for (u32 i = first_item(); i < items(a); i = next_item(i)) {
        Item item = item_at(a, i);
        Head h = item.h;
        bring_one(to.q, a.qkv, item.first, h.query * PAGES, item.sequence);
        for (u32 tile = item.last_tile + 1; tile-- > item.first_tile;) {
            bring_one(to.k, a.qkv, tile * ROWS, (h.heads + h.kv) * PAGES, item.sequence);
            bring_one(to.v, a.qkv, tile * ROWS, (h.heads + h.kv_heads + h.kv) * PAGES, item.sequence);
        }
    }
}

// For the lane's two queries, the running maximum m, in powers of two, and the sum l over the lane's own keys.
struct Running {
    Reg<float, 2> m, l;
};

// Updates m to the largest score and rescales l. Returns the factor that rescales o.
DEVICE Reg<float, 2> move_maximum(Running& run, const Reg<float, ROWS / 2>& s, float power) {
    Reg<float, 2> most, shrink;
    UNROLL for (int r = 0; r < 2; r++) {
        most[r] = s[2 * r];
        UNROLL for (int i = 0; i < ROWS / 2; i++) most[r] = i / 2 % 2 == r ? larger(most[r], s[i]) : most[r];
        most[r] = larger(most[r], shfl_xor(most[r], 1));
        most[r] = larger(most[r], shfl_xor(most[r], 2));
        float m = larger(run.m[r], most[r] * power);
        shrink[r] = fast_exp2(run.m[r] - m);
        run.l[r] *= shrink[r];
        run.m[r] = m;
    }
    return shrink;
}

// P = 2^(s power - m), which l accumulates.
DEVICE void exponentials(Running& run, Reg<float, ROWS / 2>& s, float power) {
    UNROLL for (int i = 0; i < ROWS / 2; i++) {
        s[i] = fast_exp2(fmadd(s[i], power, -run.m[i / 2 % 2]));
        run.l[i / 2 % 2] += s[i];
    }
}

// o = sums / l and lse = ln(l 2^m).
template <int D>
DEVICE void finish(const AttentionTiles& a, const Head& h, const Running& run, u32 first, Reg<float, D / 2>& o) {
    Reg<float, 2> factor;
    UNROLL for (int r = 0; r < 2; r++) {
        float l = run.l[r];
        l += shfl_xor(l, 1);
        l += shfl_xor(l, 2);
        factor[r] = fast_rcp(l);
        u32 query = first + sum_row(2 * r);
        if (thread() % 4 == 0 && query < h.seq) {
            st(a.lse, static_cast<u64>(h.row + query) * h.heads + h.query, (run.m[r] + fast_log2(l)) * LN_2);
        }
    }
    UNROLL for (int i = 0; i < D / 2; i++) o[i] *= factor[i / 2 % 2];
    Strip to = o_rows<D>(h, first);
    store_sums<D>(a.o, to.from, to.cols, to.rows, o);
}

// Processes the 64 queries of an item that belong to this warpgroup, number `mine` of two.
template <int D, bool CAPPED>
DEVICE void attend(const AttentionTiles& a, Tiles<D>& from, const Item& item, u32 mine) {
    u32 first = item.first + mine * 64;
    Pair queries = pair_of(a.starts, item.h, first);
    Reg<float, ROWS / 2> s;
    Reg<float, D / 2> o;
    Reg<u32, 4> p[ROWS / 16];
    Running run;
    UNROLL for (int i = 0; i < D / 2; i++) o[i] = 0;
    UNROLL for (int r = 0; r < 2; r++) {
        run.m[r] = -infinity();
        run.l[r] = 0;
    }
    u32 q = await(from.q) + mine * 64 * ROW, k = await(from.k);
    // s = q k^T of the tile on the diagonal.
    wgmma_fence();
    product_along<D, ROWS, ROWS>(s, q, k);
    wgmma_commit();
    wgmma_wait<0>();
    pin(s);
    release(from.k);
    if constexpr (CAPPED) cap(s, a.scores.inner);
    mask(s, queries, item.last_tile * ROWS);
    move_maximum(run, s, a.scores.power);
    exponentials(run, s, a.scores.power);
    round_sums<ROWS>(p, s);
    for (u32 tile = item.last_tile; tile-- > item.first_tile;) {
        // s = q k^T of this tile, then o += P v of the last, alternating with the other consumer.
        k = await(from.k);
        await_turn(mine);
        wgmma_fence(o, p);
        product_along<D, ROWS, ROWS>(s, q, k);
        wgmma_commit();
        add_product_across<D, ROWS>(o, p, await(from.v));
        wgmma_commit();
        give_turn(mine);
        wgmma_wait<1>();
        pin(s);
        release(from.k);
        if constexpr (CAPPED) cap(s, a.scores.inner);
        mask(s, queries, tile * ROWS);
        Reg<float, 2> shrink = move_maximum(run, s, a.scores.power);
        exponentials(run, s, a.scores.power);
        before_wait(word_of(from.words), bits_of(run.l[0] + run.l[1]));
        wgmma_wait<0>();
        pin(o);
        pin(p);
        release(from.v);
        UNROLL for (int i = 0; i < D / 2; i++) o[i] *= shrink[i / 2 % 2];
        round_sums<ROWS>(p, s);
    }
    release(from.q);
    u32 v = await(from.v);
    wgmma_fence(o, p);
    add_product_across<D, ROWS>(o, p, v);
    wgmma_commit();
    wgmma_wait<0>();
    pin(o);
    pin(p);
    release(from.v);
    finish<D>(a, item.h, run, first, o);
}

template <int D, bool CAPPED> DEVICE void attention(const AttentionTiles& a) {
    Tiles<D> tiles = make_tiles<D>();
    if (thread() < WARPGROUP) {
        give_registers<24>();
        if (thread() == 0) produce<D>(a, tiles);
    } else {
        take_registers<240>();
        u32 mine = thread() / WARPGROUP - 1;
        if (mine == 1) give_turn(mine);
        for (u32 i = first_item(); i < items(a); i = next_item(i)) attend<D, CAPPED>(a, tiles, item_at(a, i), mine);
    }
}

KERNEL(attention_sm90_64, AttentionTiles, 3 * WARPGROUP, 1) { attention<64, false>(a); }
KERNEL(attention_sm90_128, AttentionTiles, 3 * WARPGROUP, 1) { attention<128, false>(a); }
KERNEL(attention_sm90_64_capped, AttentionTiles, 3 * WARPGROUP, 1) { attention<64, true>(a); }
KERNEL(attention_sm90_128_capped, AttentionTiles, 3 * WARPGROUP, 1) { attention<128, true>(a); }
