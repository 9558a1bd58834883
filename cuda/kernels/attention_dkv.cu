// dk and dv of attention (Dao 2023): with P = e^(s - lse) recomputed, dv = P^T do, dP = do v^T, dS = P * (dP - D),
// times the derivative of the cap if there is one, and dk = scale dS^T q. A block processes 64 M keys of a key/value
// head. It loops over the tiles of queries that see them, one query head after another.
//
// Two warps share 16 M keys: 32, or 16 where heads have 256 elements. The dv warp computes P^T = k q^T and accumulates
// P^T do; the dk warp computes dP^T = v do^T and accumulates dS^T q. Both factors stay in registers; only P is passed
// from the first to the second. The second is one phase behind, so that the exponentials of one overlap with the
// multiplications of the other:
//
//   phase 2i      dv: P(i)            dk: += dS(i-1)^T q(i-1)    loads do(i)
//   phase 2i + 1  dv: += P(i)^T do(i) dk: dS(i)                  loads q(i + 1)
#include "attention_bwd.cuh"

constexpr int THREADS = 256;

// The pieces of 16 keys of a warp, and the keys of a block.
template <int D> DEVICE constexpr int pieces() { return D == 256 ? 1 : 2; }
template <int D> DEVICE constexpr int keys() { return 64 * pieces<D>(); }
// Queries per tile: so many that the work of a warp per tile is the same for 64 and 128, and half of that for 256.
template <int D> DEVICE constexpr int queries() { return 8192 / D; }
// Tiles of 32 queries have the record of 64.
template <int D> DEVICE constexpr u32 record_bytes() { return (queries<D>() + 63) / 64 * RECORD * 4; }

// The layout of shared memory: k, v, two tiles of q, do, P, two tiles of stats.
template <int D> struct Shared {
    static constexpr int Q = queries<D>();
    u32 k, v, q, do_, p, stats;
};

template <int D> DEVICE Shared<D> shared() {
    constexpr int KEYS = keys<D>();
    u32 k = shared_base(), v = k + tile_bytes<KEYS, D>(), q = v + tile_bytes<KEYS, D>();
    u32 do_ = q + 2 * tile_bytes<queries<D>(), D>(), p = do_ + tile_bytes<queries<D>(), D>();
    return {k, v, q, do_, p, p + KEYS * queries<D>() * 2};
}

// A tile of queries in a block's loop: of `head`, from `query` on. For each head the loop covers `first` .. `end`.
struct Step {
    Head head;
    u32 query, first, end, heads_end;
};

template <int D> DEVICE Step first_step(const AttentionBwd& a, u32 key) {
    // The block's key/value head, counted over all sequences, and its part of that head's query heads.
    u32 n = block() / a.parts, part = block() % a.parts, group = a.heads / a.kv_heads, heads = group / a.parts;
    Head h = head_of(a, n * group + part * heads);
    u32 last = key + keys<D>() < h.seq ? key + keys<D>() - 1 : h.seq - 1, first = key / queries<D>() * queries<D>();
    return {h, first, first, first_blind(a.starts, h, last), h.query + heads};
}

DEVICE bool over(const Step& s) { return s.head.query == s.heads_end; }

template <int D> DEVICE void advance(Step& s) {
    s.query += queries<D>();
    if (s.query < s.end) return;
    s.query = s.first;
    s.head.query++;
}

// Loads q and its stats into one of two buffers.
template <int D> DEVICE void load_q(const AttentionBwd& a, const Shared<D>& to, const Step& s, u32 place) {
    constexpr int Q = queries<D>();
    load_tile<Q, D, THREADS>(to.q + place * tile_bytes<Q, D>(), a.qkv, q_rows<D>(s.head, s.query));
    u64 record = record_of(s.head.row / a.seq * a.heads + s.head.query, a.seq, s.query);
    u32 chunk = thread();
    if (chunk < record_bytes<D>() / 16) {
        cp_async16(to.stats + place * record_bytes<D>() + chunk * 16, a.stats, record + chunk * 4, 16);
    }
}

// Scores of the warp's keys with the tile's queries become -infinity where a query does not see a key.
template <int M, int N> DEVICE void mask_transposed(Sums<M, N>& s, u32 stats, u32 query, u32 key) {
    u32 g = thread() % 32 / 4, t = thread() % 4 * 2;
    UNROLL for (u32 k = 0; k < N / 2; k++) {
        V16 starts = stats_of(stats, START, k);
        UNROLL for (u32 c = 0; c < 4; c++) {
            u32 start = starts.w[c], span = query + 16 * k + c / 2 * 8 + t + c % 2 - start;
            UNROLL for (u32 r = 0; r < 2 * M; r++) {
                float& x = s.at[r / 2][2 * k + c / 2][r % 2 * 2 + c % 2];
                x = key + 8 * r + g - start <= span ? x : -infinity();
            }
        }
    }
}

// Computes P^T of the scores, rounded, and passes it as f16 to the lane of the other warp that has the same elements;
// where there is a cap, times its derivative.
template <bool CAPPED, int M, int N>
DEVICE void probabilities(Left<M, N / 2>& to, Sums<M, N>& s, float power, u32 stats, u32 exchange) {
    UNROLL for (int k = 0; k < N / 2; k++) {
        V16 lse2 = stats_of(stats, LSE2, k);
        UNROLL for (int m = 0; m < M; m++) {
            V16 pairs;
            UNROLL for (int w = 0; w < 4; w++) {
                Reg<float, 4>& piece = s.at[m][2 * k + w / 2];
                float slopes[2] = {1, 1};
                UNROLL for (int e = 0; e < 2; e++) {
                    float& x = piece[w % 2 * 2 + e];
                    if (CAPPED) slopes[e] = slope_of_tanh(x);
                    x = probability(x, power, P_BITS - f32_of(lse2.w[w / 2 * 2 + e]));
                }
                float first = piece[w % 2 * 2], second = piece[w % 2 * 2 + 1];
                pairs.w[w] = CAPPED ? pack2_f16(first * slopes[0], second * slopes[1]) : pack2_f16(first, second);
            }
            to.at[m][k] = packed(s, m, k);
            sts16(exchange + (M * k + m) * 512, pairs);
        }
    }
}

// dS^T = P^T * (dP^T - D), rounded.
template <int M, int N>
DEVICE void score_gradients(Left<M, N / 2>& to, Sums<M, N>& dp, u32 stats, u32 exchange) {
    UNROLL for (int k = 0; k < N / 2; k++) {
        V16 delta = stats_of(stats, DELTA, k);
        UNROLL for (int m = 0; m < M; m++) {
            V16 pairs = lds16(exchange + (M * k + m) * 512);
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

// A warp's keys, and whether it computes their dk or their dv.
struct Maker {
    u32 keys;
    bool of_dk;
};

template <int D> DEVICE Maker maker() { return {thread() / 32 % 4 * (16 * pieces<D>()), thread() / 128 == 1}; }

// A warp's accumulators, of dk or of dv.
template <int D> using Gradients = Sums<pieces<D>(), D / 8>;

// Stores dv, or dk, of the warp's keys, if a block has all query heads of its key/value head. Overwrites the rows of
// the warp's own left factor.
template <int D> DEVICE void store(const AttentionBwd& a, const Gradients<D>& sums) {
    constexpr int M = pieces<D>(), KEYS = keys<D>();
    Maker me = maker<D>();
    u32 key = block_y() * KEYS;
    Head h = head_of(a, block() * (a.heads / a.kv_heads));
    Reg<float, 2 * M> factor;
    UNROLL for (int r = 0; r < 2 * M; r++) factor[r] = me.of_dk ? P_UNIT * a.scores.scale : P_UNIT;
    Strip to = me.of_dk ? k_rows<D>(h, key + me.keys) : v_rows<D>(h, key + me.keys);
    u32 tile = shared_base() + (me.of_dk ? tile_bytes<KEYS, D>() : 0) + me.keys * ROW_BYTES;
    store_rows<KEYS, D, M>(a.dqkv, to, tile, sums, factor);
}

// The element at which a block stores its accumulators, in register order, for a part of key/value head `n`.
template <int D> DEVICE u64 part_of(const AttentionBwd& a, u32 n, u32 part, u32 piece) {
    constexpr int KEYS = keys<D>();
    u64 block = (static_cast<u64>(n) * a.parts + part) * ((a.seq + KEYS - 1) / KEYS) + block_y();
    return ((block * (D / 8 * pieces<D>()) + piece) * THREADS + thread()) * 4;
}

template <int D> DEVICE void store_part(const AttentionBwd& a, const Gradients<D>& sums) {
    constexpr int M = pieces<D>();
    UNROLL for (u32 i = 0; i < D / 8 * M; i++) {
        const Reg<float, 4>& x = sums.at[i % M][i / M];
        V16 v = {bits_of(x[0]), bits_of(x[1]), bits_of(x[2]), bits_of(x[3])};
        st16(a.sums, part_of<D>(a, block() / a.parts, block() % a.parts, i), v);
    }
}

// Begins a phase: waits for the copies of the last one, and until no thread reads the destination of the next copy. In
// even phases that is do of the tile, in odd phases q of the next tile.
template <int D> DEVICE void begin_phase(const AttentionBwd& a, const Shared<D>& to, Step& step, u32& phase) {
    cp_wait<0>();
    sync();
    if (phase % 2) advance<D>(step);
    if (!over(step)) {
        if (phase % 2) {
            load_q<D>(a, to, step, (phase + 1) / 2 % 2);
        } else {
            load_tile<queries<D>(), D, THREADS>(to.do_, a.do_, o_rows<D>(step.head, step.query));
        }
    }
    cp_commit();
    phase++;
}

// P^T or dS^T of the warp's keys from `key` on with a tile of queries; zeros and false if no query sees a key.
template <int D, bool CAPPED, int M, int K>
DEVICE bool make_factor(Left<M, K>& factor, const Shared<D>& at, u32 q, u32 stats, u32 query, u32 key,
                        const Scores& scores) {
    constexpr int Q = queries<D>(), KEYS = keys<D>();
    constexpr u32 LAST = (Q - 1) / 64 * RECORD + START + (Q - 1) % 64;
    Maker me = maker<D>();
    u32 start = lds(stats + (START + stat_place(0)) * 4), last_start = lds(stats + LAST * 4);
    if (query + Q <= key || start >= key + 16 * M) {
        fill(factor, 0u);
        return false;
    }
    // k q^T, v do^T
    Sums<M, Q / 8> s;
    fill(s, 0.0f);
    u32 left = (me.of_dk ? at.v : at.k) + me.keys * ROW_BYTES;
    add_product_nt<D, KEYS, Q>(s, lanes_down(left), lanes_across(me.of_dk ? at.do_ : q));
    u32 exchange = at.p + me.keys * Q * 2 + thread() % 32 * 16;
    if (me.of_dk) {
        score_gradients(factor, s, stats, exchange);
    } else {
        if constexpr (CAPPED) cap(s, scores.inner);
        if (query < key + 16 * M - 1 || last_start > key) mask_transposed(s, stats, query, key);
        probabilities<CAPPED>(factor, s, scores.power, stats, exchange);
    }
    return true;
}

template <int D, bool CAPPED> DEVICE void key_gradients(const AttentionBwd& a) {
    constexpr int Q = queries<D>(), M = pieces<D>(), KEYS = keys<D>();
    Shared<D> at = shared<D>();
    Maker me = maker<D>();
    u32 key = block_y() * KEYS, phase = 0;
    Step step = first_step<D>(a, key);
    load_tile<KEYS, D, THREADS>(at.k, a.qkv, k_rows<D>(step.head, key));
    load_tile<KEYS, D, THREADS>(at.v, a.qkv, v_rows<D>(step.head, key));
    load_q<D>(a, at, step, 0);
    cp_commit();
    Gradients<D> sums;
    fill(sums, 0.0f);
    if (me.of_dk) begin_phase<D>(a, at, step, phase);
    // One of the two phases advances the step to the next tile, for either warp.
    while (!over(step)) {
        u32 query = step.query, place = phase / 2 % 2;
        u32 q = at.q + place * tile_bytes<Q, D>(), stats = at.stats + place * record_bytes<D>();
        if constexpr (Q < 64) stats += query % 64 * 4;
        Left<M, Q / 16> factor;
        begin_phase<D>(a, at, step, phase);
        bool seen = make_factor<D, CAPPED>(factor, at, q, stats, query, key + me.keys, a.scores);
        begin_phase<D>(a, at, step, phase);
        // dv += P^T do, dk += dS^T q
        if (seen) add_product(sums, factor, lanes_down(me.of_dk ? q : at.do_));
    }
    if (!me.of_dk) begin_phase<D>(a, at, step, phase);
    if (a.parts == 1) {
        store<D>(a, sums);
    } else {
        store_part<D>(a, sums);
    }
}

KERNEL(attention_dkv_64, AttentionBwd, THREADS, 1) { key_gradients<64, false>(a); }
KERNEL(attention_dkv_128, AttentionBwd, THREADS, 1) { key_gradients<128, false>(a); }
KERNEL(attention_dkv_256, AttentionBwd, THREADS, 1) { key_gradients<256, false>(a); }
KERNEL(attention_dkv_64_capped, AttentionBwd, THREADS, 1) { key_gradients<64, true>(a); }
KERNEL(attention_dkv_128_capped, AttentionBwd, THREADS, 1) { key_gradients<128, true>(a); }
KERNEL(attention_dkv_256_capped, AttentionBwd, THREADS, 1) { key_gradients<256, true>(a); }

// dk and dv from the sums of all parts, in order.
template <int D> DEVICE void sum_parts(const AttentionBwd& a) {
    constexpr int M = pieces<D>();
    Gradients<D> sums;
    fill(sums, 0.0f);
    for (u32 part = 0; part < a.parts; part++) {
        UNROLL for (u32 i = 0; i < D / 8 * M; i++) {
            V16 v = ld16(a.sums, part_of<D>(a, block(), part, i));
            UNROLL for (int e = 0; e < 4; e++) sums.at[i % M][i / M][e] += f32_of(v.w[e]);
        }
    }
    store<D>(a, sums);
}

KERNEL(attention_dkv_sum_64, AttentionBwd, THREADS) { sum_parts<64>(a); }
KERNEL(attention_dkv_sum_128, AttentionBwd, THREADS, 1) { sum_parts<128>(a); }
KERNEL(attention_dkv_sum_256, AttentionBwd, THREADS, 1) { sum_parts<256>(a); }
