// Cross-entropy over this rank's shard of the vocabulary: loss = log Z - logit of the target with
// log Z = max + log(sum of exp(logit - max)), and dlogit = w (p (1 + 2 z log Z) - 1 at the target).
// A block processes a row, which it reads once. The statistics of a row are (max, sum, the target's logit). With a
// soft-cap, all this is of c = cap tanh(logit / cap), and the gradient is also multiplied by dc/dlogit.
#include "args.cuh"
#include "common.cuh"

// Vectors of eight logits that a thread has in flight at once.
constexpr int AT_ONCE = 4;
// The bits of -infinity in bf16.
constexpr u32 MINUS_INFINITY = 0xff80u;
constexpr float LOG2_E = 1.442695041f;

DEVICE float minus_infinity() { return f32_of(MINUS_INFINITY << 16); }
DEVICE float exp_of(float x) { return fast_exp2(x * LOG2_E); }

// -- a row as vectors: the first ends at a multiple of 16 bytes, so all but the first and the last are whole --

struct Row {
    u64 start;
    u32 cols, vectors;
    // Elements that the first vector lacks.
    u32 lead;
};

template <class T> DEVICE Row row_of(View<T> x, u64 row, u32 cols) {
    u32 lead = past16(x, row * cols) / 2;
    return {row * cols, cols, (lead + cols + 7) / 8, lead};
}

// The first column of vector v, and its number of columns; 0 beyond the row.
DEVICE u32 column(const Row& r, u32 v) { return v ? 8 * v - r.lead : 0; }
DEVICE u32 count(const Row& r, u32 v) {
    if (v >= r.vectors) return 0;
    u32 end = 8 * v + 8 - r.lead;
    return (end < r.cols ? end : r.cols) - column(r, v);
}

// Whether this thread's vectors from v on, a block apart, are all whole.
DEVICE bool inside(const Row& r, u32 v) { return v > 0 && v + (AT_ONCE - 1) * threads() + 1 < r.vectors; }

// Reads these vectors; elements out of bounds are zero.
template <class T> DEVICE void read(View<T> x, const Row& r, u32 v, Reg<u32, 4 * AT_ONCE>& logits) {
    UNROLL for (int k = 0; k < AT_ONCE; k++) {
        u32 at = v + k * threads();
        V16 l = load8(x, r.start + column(r, at), count(r, at), true);
        UNROLL for (int j = 0; j < 4; j++) logits[4 * k + j] = l.w[j];
    }
}

// The same where all are whole.
template <class T> DEVICE void read_whole(View<T> x, const Row& r, u32 v, Reg<u32, 4 * AT_ONCE>& logits) {
    UNROLL for (int k = 0; k < AT_ONCE; k++) {
        V16 l = ld16(x, r.start + (8 * (v + k * threads()) - r.lead));
        UNROLL for (int j = 0; j < 4; j++) logits[4 * k + j] = l.w[j];
    }
}

// Sets elements out of bounds to -infinity.
DEVICE void mask(const Row& r, u32 v, Reg<u32, 4 * AT_ONCE>& logits) {
    UNROLL for (int k = 0; k < AT_ONCE; k++) {
        u32 n = count(r, v + k * threads());
        if (n >= 8) continue;
        UNROLL for (u32 i = 0; i < 8; i++) {
            if (i >= n) logits[4 * k + i / 2] |= MINUS_INFINITY << 16 * (i % 2);
        }
    }
}

// -- the soft-cap --

// No soft-cap.
struct Plain {};

struct Cap {
    // The cap, and -2 log2(e) / cap.
    float cap, rate;
};
DEVICE Cap cap_of(float cap) { return {cap, div_rn(-2.0f * LOG2_E, cap)}; }

// t = tanh(x / cap), and its derivative by x / cap. With e = exp(-2 |x| / cap) they are (1 - e) / (1 + e), with x's
// sign, and 4 e / (1 + e)^2, so that neither overflows and small derivatives keep their bits.
struct Bent {
    float t, slope;
};
DEVICE Bent bent(float x, const Cap& cap) {
    u32 sign = bits_of(x) & 0x80000000u;
    float e = fast_exp2(f32_of(bits_of(x) ^ sign) * cap.rate), r = fast_rcp(1.0f + e);
    return {f32_of(bits_of((1.0f - e) * r) | sign), 4.0f * e * r * r};
}
DEVICE float capped(float x, const Cap& cap) { return cap.cap * bent(x, cap).t; }
DEVICE float capped(float x, Plain) { return x; }

// -- statistics --

// The maximum of some logits, and the sum of exp(logit - max).
struct Sum {
    float max, sum;
};

// The sum relative to the maximum `to`; s.max may only be -infinity if `to` is.
DEVICE float shrunk(Sum s, float to) { return s.max == to ? s.sum : s.sum * exp_of(s.max - to); }

DEVICE Sum joined(Sum a, Sum b) {
    float max = larger(a.max, b.max);
    return {max, shrunk(a, max) + shrunk(b, max)};
}

DEVICE Sum warp_joined(Sum s HERE) {
    UNROLL for (u32 mask = 16; mask; mask /= 2) {
        Sum other = {shfl_xor(s.max, mask AT), shfl_xor(s.sum, mask AT)};
        s = joined(s, other);
    }
    return s;
}

// Joins the block's sums, in an order that depends only on its size. `at`: 256 bytes of shared memory.
DEVICE Sum block_joined(Sum s, u32 at HERE) {
    s = warp_joined(s AT);
    u32 lane = thread() % 32, mine = at + thread() / 32 * 8;
    if (lane == 0) {
        sts(mine, bits_of(s.max) AT);
        sts(mine + 4, bits_of(s.sum) AT);
    }
    sync(AT_ONLY);
    s = {minus_infinity(), 0};
    if (lane < threads() / 32) s = {f32_of(lds(at + lane * 8 AT)), f32_of(lds(at + lane * 8 + 4 AT))};
    return warp_joined(s AT);
}

// How many logits of each of a thread's vectors exist.
using Counts = Reg<u32, AT_ONCE>;

// Adds logits to the thread's sum, which is rescaled at most once. Beyond 2.3e38, where base2 is infinite, it is NaN.
DEVICE Sum with(Sum s, const Reg<u32, 4 * AT_ONCE>& logits, const Counts&, Plain) {
    u32 most = logits[0];
    UNROLL for (int i = 1; i < 4 * AT_ONCE; i++) most = larger2(most, logits[i]);
    float max = larger(larger(low(most), high(most)), s.max);
    // If all are -infinity each term is 0, not exp(NaN).
    float base = max == minus_infinity() ? 0 : max;
    // exp(x - base) = 2^(x log2(e) - base2 - lost), where `lost` is what rounding took from base2.
    float base2 = base * LOG2_E, lost = fmadd(base, LOG2_E, -base2), sum = 0;
    UNROLL for (int k = 0; k < AT_ONCE; k++) {
        float part = 0;
        UNROLL for (int j = 0; j < 4; j++) {
            u32 pair = logits[4 * k + j];
            part += fast_exp2(fmadd(low(pair), LOG2_E, -base2)) + fast_exp2(fmadd(high(pair), LOG2_E, -base2));
        }
        sum += part;
    }
    return {max, fmadd(sum, fast_exp2(-lost), shrunk(s, max))};
}

// The same of capped logits, which are never infinite: those that do not exist are left out of the sum. The cap keeps
// the order, so that the maximum is that of the logits.
DEVICE Sum with(Sum s, const Reg<u32, 4 * AT_ONCE>& logits, const Counts& counts, const Cap& cap) {
    u32 most = logits[0];
    UNROLL for (int i = 1; i < 4 * AT_ONCE; i++) most = larger2(most, logits[i]);
    float max = larger(capped(larger(low(most), high(most)), cap), s.max);
    float base2 = max * LOG2_E, lost = fmadd(max, LOG2_E, -base2), sum = 0;
    UNROLL for (int k = 0; k < AT_ONCE; k++) {
        float part = 0;
        UNROLL for (u32 i = 0; i < 8; i++) {
            u32 pair = logits[4 * k + i / 2];
            float c = capped(i % 2 ? high(pair) : low(pair), cap), term = fast_exp2(fmadd(c, LOG2_E, -base2));
            part += i < counts[k] ? term : 0.0f;
        }
        sum += part;
    }
    return {max, fmadd(sum, fast_exp2(-lost), s.sum * exp_of(s.max - max))};
}

// The target's logit; -infinity if it is not in this shard.
template <class C> DEVICE float target_logit(const XentStats& a, const Row& r, const C& cap) {
    // An id below `first` wraps around to one beyond the shard.
    u32 target = ld(a.targets, block()) - a.first;
    return target < a.cols ? capped(low(ld(a.logits, r.start + target).bits), cap) : minus_infinity();
}

template <class C> DEVICE void statistics(const XentStats& a, const C& cap) {
    u64 row = block();
    Row r = row_of(a.logits, row, a.cols);
    Sum s = {minus_infinity(), 0};
    // Loaded first, so that no thread waits for it at the end.
    float target = thread() == 0 ? target_logit(a, r, cap) : 0;
    for (u32 v = thread(); v < r.vectors; v += AT_ONCE * threads()) {
        Reg<u32, 4 * AT_ONCE> logits;
        Counts counts;
        if (inside(r, v)) {
            read_whole(a.logits, r, v, logits);
            UNROLL for (int k = 0; k < AT_ONCE; k++) counts[k] = 8;
        } else {
            read(a.logits, r, v, logits);
            mask(r, v, logits);
            UNROLL for (int k = 0; k < AT_ONCE; k++) counts[k] = count(r, v + k * threads());
        }
        s = with(s, logits, counts, cap);
    }
    s = block_joined(s, shared_base());
    if (thread()) return;
    st(a.stats, 3 * row, s.max);
    st(a.stats, 3 * row + 1, s.sum);
    st(a.stats, 3 * row + 2, target);
}

// Shared memory of both: 256 bytes.
KERNEL(xent_stats, XentStats, 512) { statistics(a, Plain{}); }
KERNEL(xent_stats_capped, XentStats, 512) { statistics(a, cap_of(a.cap)); }

// One thread per row; the ranks in order.
KERNEL(xent_combine, XentCombine, 256) {
    u64 row = static_cast<u64>(block()) * threads() + thread();
    if (row >= a.rows) return;
    float max = minus_infinity(), target = minus_infinity(), sum = 0;
    for (u64 rank = 0; rank < a.ranks; rank++) {
        max = larger(max, ld(a.stats, (rank * a.rows + row) * 3));
        target = larger(target, ld(a.stats, (rank * a.rows + row) * 3 + 2));
    }
    for (u64 rank = 0; rank < a.ranks; rank++) {
        u64 at = (rank * a.rows + row) * 3;
        sum += shrunk({ld(a.stats, at), ld(a.stats, at + 1)}, max);
    }
    st(a.combined, 3 * row, max);
    st(a.combined, 3 * row + 1, sum);
    st(a.combined, 3 * row + 2, target);
}

// One block: each thread sums rows a block apart, then the threads are summed. A row whose weight is 0 is skipped,
// whatever its target. Shared memory: 768 bytes.
KERNEL(xent_totals, XentTotals, 256) {
    double loss = 0, square = 0, weight = 0;
    for (u64 row = thread(); row < a.weights.n; row += threads()) {
        double w = ld(a.weights, row);
        if (w == 0) continue;
        double log_z = ld(a.stats, 3 * row) + ln(ld(a.stats, 3 * row + 1)), target = ld(a.stats, 3 * row + 2);
        loss += w * (log_z - target);
        square += w * log_z * log_z;
        weight += w;
    }
    loss = block_sum(loss, shared_base());
    square = block_sum(square, shared_base() + 256);
    weight = block_sum(weight, shared_base() + 512);
    if (thread()) return;
    st(a.totals, 0, ld(a.totals, 0) + static_cast<float>(loss));
    st(a.totals, 1, ld(a.totals, 1) + static_cast<float>(square));
    st(a.totals, 2, ld(a.totals, 2) + static_cast<float>(weight));
}

// -- gradient --

// The inputs of a row's gradient besides its logits.
struct Grad {
    float log_z, factor, w;
};

// The gradient of two logits. `target`: the index of the target among them; any other value if it is neither.
DEVICE u32 gradient(u32 pair, u32 target, const Grad& g, Plain) {
    // If p is near 1, the target's element is a small difference of two numbers, so it is rounded last.
    float first = g.factor * exp_of(low(pair) - g.log_z) - (target == 0 ? g.w : 0.0f);
    float second = g.factor * exp_of(high(pair) - g.log_z) - (target == 1 ? g.w : 0.0f);
    return pack2(first, second);
}

// The same with a soft-cap.
DEVICE u32 gradient(u32 pair, u32 target, const Grad& g, const Cap& cap) {
    Bent one = bent(low(pair), cap), two = bent(high(pair), cap);
    float first = g.factor * exp_of(fmadd(cap.cap, one.t, -g.log_z)) - (target == 0 ? g.w : 0.0f);
    float second = g.factor * exp_of(fmadd(cap.cap, two.t, -g.log_z)) - (target == 1 ? g.w : 0.0f);
    return pack2(first * one.slope, second * two.slope);
}

template <class C> DEVICE void write_gradient(const XentGrad& a, const C& cap) {
    u64 row = block();
    Row r = row_of(a.logits, row, a.cols);
    u32 target = ld(a.targets, row) - a.first;
    float w = ld(a.weights, row), log_z = ld(a.stats, 3 * row) + ln(ld(a.stats, 3 * row + 1));
    Grad g = {log_z, w * (1.0f + 2.0f * a.z_loss * log_z), w};
    for (u32 v = thread(); v < r.vectors; v += AT_ONCE * threads()) {
        Reg<u32, 4 * AT_ONCE> logits;
        if (w != 0) read(a.logits, r, v, logits);
        UNROLL for (int k = 0; k < AT_ONCE; k++) {
            u32 at = v + k * threads();
            V16 d = {};
            UNROLL for (int j = 0; j < 4; j++) {
                if (w != 0) d.w[j] = gradient(logits[4 * k + j], target - column(r, at) - 2 * j, g, cap);
            }
            store8(a.logits, r.start + column(r, at), count(r, at), true, d);
        }
    }
}

KERNEL(xent_grad, XentGrad, 512) { write_gradient(a, Plain{}); }
KERNEL(xent_grad_capped, XentGrad, 512, 3) { write_gradient(a, cap_of(a.cap)); }
