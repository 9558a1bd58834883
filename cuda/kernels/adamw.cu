// AdamW in one pass over a shard: updates f32 master weights and moments in place, writes new weights rounded to bf16.
// m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, master -= rate m / (sqrt(v scale) + eps) + decay master.
// `adamw_norms` also computes the squared norms that a run may log. `judge` decides about a step.
#include "args.cuh"
#include "common.cuh"

// The decrease of one element's weight. `m` and `v` become the new moments.
DEVICE float change(const AdamW& a, float g, float decay, float master, float& m, float& v) {
    m = fmadd(a.beta1, m, a.fresh1 * g);
    v = fmadd(a.beta2, v, a.fresh2 * g * g);
    float step = div_rn(a.rate * m, sqrt_rn(v * a.scale) + a.eps);
    return fmadd(decay, master, step);
}

// Sums of squares of g, the new weight, its change, m and v, or none. In f64, because shards are long.
struct Squares {
    double of[5];
};
struct None {};

DEVICE void add(Squares& sums, float g, float master, float lost, float m, float v) {
    double x[] = {g, master, lost, m, v};
    UNROLL for (int i = 0; i < 5; i++) sums.of[i] = fmadd(x[i], x[i], sums.of[i]);
}
DEVICE void add(None&, float, float, float, float, float) {}

// Four elements from i on, of which `n` exist.
struct Four {
    u64 i;
    u32 n;
    V16 g, master, m, v;
};

DEVICE Four read4(const AdamW& a, u64 i, bool wide) {
    u32 n = a.g.n - i < 4 ? static_cast<u32>(a.g.n - i) : 4;
    V16 g = load4(a.g, i, n, wide), master = load4(a.master, i, n, wide);
    V16 m = load4(a.m, i, n, wide), v = load4(a.v, i, n, wide);
    return {i, n, g, master, m, v};
}

template <class Sums> DEVICE void update4(const AdamW& a, float factor, Four& x, Sums& sums) {
    UNROLL for (int e = 0; e < 4; e++) {
        float decay = x.i + e < a.decayed ? a.decay : 0.0f, scaled = f32_of(x.g.w[e]) * factor;
        float m = f32_of(x.m.w[e]), v = f32_of(x.v.w[e]);
        float lost = change(a, scaled, decay, f32_of(x.master.w[e]), m, v);
        float next = f32_of(x.master.w[e]) - lost;
        x.master.w[e] = bits_of(next);
        x.m.w[e] = bits_of(m);
        x.v.w[e] = bits_of(v);
        // Beyond the last element the change may be 0 / 0.
        if (static_cast<u32>(e) < x.n) add(sums, scaled, next, lost, m, v);
    }
}

DEVICE void write4(const AdamW& a, const Four& x, bool wide, bool wide_out) {
    store4(a.master, x.i, x.n, wide, x.master);
    store4(a.m, x.i, x.n, wide, x.m);
    store4(a.v, x.i, x.n, wide, x.v);
    u32 low = pack2(f32_of(x.master.w[0]), f32_of(x.master.w[1]));
    store4_rounded(a.out, x.i, x.n, wide_out, low, pack2(f32_of(x.master.w[2]), f32_of(x.master.w[3])));
}

// A thread has four elements at a time: a warp's loads and stores are whole sectors, and all loads come before the
// first store.
template <class Sums> DEVICE void update(const AdamW& a, Sums& sums) {
    bool wide = aligned(a.g) && aligned(a.master) && aligned(a.m) && aligned(a.v), wide_out = aligned(a.out);
    float factor = ld(a.factor, 1);
    // A step that is skipped leaves everything as it is.
    if (!(factor == factor)) return;
    u64 stride = static_cast<u64>(blocks()) * threads() * 4;
    for (u64 i = (static_cast<u64>(block()) * threads() + thread()) * 4; i < a.g.n; i += stride) {
        Four x = read4(a, i, wide);
        update4(a, factor, x, sums);
        write4(a, x, wide, wide_out);
    }
}

KERNEL(adamw, AdamW, 256) {
    None none;
    update(a, none);
}

// Also writes partial sums, one per warp, of the squares of the scaled gradients, the new weights, their change and
// the new moments, one sum after another.
KERNEL(adamw_norms, AdamW, 256) {
    Squares squares = {};
    update(a, squares);
    u64 warps = blocks() * (threads() / 32), warp = block() * (threads() / 32) + thread() / 32;
    UNROLL for (int i = 0; i < 5; i++) {
        double sum = warp_sum(squares.of[i]);
        if (thread() % 32 == 0) st(a.parts, i * warps + warp, sum);
    }
}

// Judgements of a step, as the engine numbers them.
enum { ACCEPTED, LOSS_SPIKE, NORM_SPIKE, NOT_FINITE };

// Whether x > mean + threshold * population standard deviation of the n values from `first` on. With their sum S and
// sum of squares Q that is n x - S > 0 and (n x - S)^2 > threshold^2 (n Q - S^2), without a division or a root.
DEVICE bool is_above(const Judge& a, u32 first, float x) {
    double sum = 0, squares = 0, n = a.window, t = a.threshold;
    ROLLED for (u32 i = 0; i < a.window; i++) {
        double v = ld(a.state, first + i);
        sum = sum + v;
        squares = fmadd(v, v, squares);
    }
    double above = fmadd(n, static_cast<double>(x), -sum), spread = fmadd(n, squares, -(sum * sum));
    return above > 0 && above * above > t * t * spread;
}

// Compares a step with the last accepted ones, and adds it to them if it is accepted.
DEVICE u32 compare(const Judge& a, float loss, float norm) {
    u32 held = static_cast<u32>(ld(a.state, 0)), next = static_cast<u32>(ld(a.state, 1));
    bool full = held == a.window && a.threshold > 0;
    if (full && is_above(a, 2, loss)) return LOSS_SPIKE;
    if (full && is_above(a, 2 + a.window, norm)) return NORM_SPIKE;
    st(a.state, 2 + next, loss);
    st(a.state, 2 + a.window + next, norm);
    st(a.state, 0, static_cast<float>(held < a.window ? held + 1 : held));
    st(a.state, 1, static_cast<float>(next + 1 < a.window ? next + 1 : 0));
    return ACCEPTED;
}

DEVICE bool is_finite(float x) { return (bits_of(x) & 0x7f800000u) != 0x7f800000u; }

// norm = sqrt(square) / tokens, factor = min(1, clip / (norm + 1e-6)) / tokens, or NaN if the step is to update
// nothing. One thread does the work.
KERNEL(judge, Judge, 32) {
    if (thread()) return;
    float tokens = ld(a.totals, 2), per_token = div_rn(1.0f, tokens > 1 ? tokens : 1.0f);
    float loss = ld(a.totals, 0) * per_token, norm = sqrt_rn(ld(a.square, 0)) * per_token;
    float ratio = div_rn(a.clip, norm + 1e-6f), shrink = a.clip > 0 && ratio < 1 ? ratio : 1.0f;
    u32 judgement = NOT_FINITE;
    // After a step that is not finite none updates: the next one may be on its way before the host knows.
    if (is_finite(loss) && is_finite(norm) && ld(a.state, 0) >= 0) {
        judgement = ACCEPTED;
        if (tokens > 0) judgement = compare(a, loss, norm);
    } else {
        st(a.state, 0, -1.0f);
    }
    bool updates = judgement == ACCEPTED || (judgement != NOT_FINITE && !a.skips);
    st(a.out, 0, norm);
    st(a.out, 1, updates ? shrink * per_token : f32_of(0x7fc00000u));
    st(a.out, 2, static_cast<float>(judgement));
}
