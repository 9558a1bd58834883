// LayerNorm (Ba et al. 2016): y = n w + b with n = (x - mean) rstd, rstd = 1 / sqrt(var(x) + eps), and
// dx = rstd (g - mean(g) - n mean(g n)) with g = dy w. A block processes a row, which it reads once: each thread keeps
// its elements in registers. The gradients dw = sum of dy n and db = sum of dy are summed over the rows of a block,
// then over the blocks in order (`sum_rows`).
#include "args.cuh"
#include "common.cuh"

// Vectors of eight elements that a thread keeps: 1024 threads cover the maximum of 16384 columns.
constexpr int KEPT = 2;

// The first column of this thread's vector k.
DEVICE u32 column(int k) { return (k * threads() + thread()) * 8; }

// Keeps the row, and returns this thread's sum.
DEVICE float read_row(const LayerNorm& a, u64 start, Reg<u32, 4 * KEPT>& kept) {
    bool wide = rows_aligned(a.x, a.d);
    float sum = 0;
    UNROLL for (int k = 0; k < KEPT; k++) {
        u32 i = column(k);
        if (i >= a.d) continue;
        V16 x = load8(a.x, start + i, a.d - i, wide);
        UNROLL for (int j = 0; j < 4; j++) {
            sum += low(x.w[j]);
            sum += high(x.w[j]);
            kept[4 * k + j] = x.w[j];
        }
    }
    return sum;
}

// This thread's sum of (x - mean)^2, of the elements that exist.
DEVICE float squares(const LayerNorm& a, const Reg<u32, 4 * KEPT>& kept, float mean) {
    float sum = 0;
    UNROLL for (int k = 0; k < KEPT; k++) {
        u32 i = column(k);
        if (i >= a.d) continue;
        UNROLL for (u32 j = 0; j < 8; j++) {
            u32 pair = fresh(kept[4 * k + j / 2]);
            float x = (j % 2 ? high(pair) : low(pair)) - mean;
            if (i + j < a.d) sum = fmadd(x, x, sum);
        }
    }
    return sum;
}

DEVICE void write_row(const LayerNorm& a, u64 start, const Reg<u32, 4 * KEPT>& kept, float mean, float rstd) {
    bool wide_w = aligned(a.w), wide_bias = aligned(a.bias), wide_y = rows_aligned(a.y, a.d);
    UNROLL for (int k = 0; k < KEPT; k++) {
        u32 i = column(k);
        if (i >= a.d) continue;
        V16 w = load8(a.w, i, a.d - i, wide_w), bias = load8(a.bias, i, a.d - i, wide_bias), y;
        UNROLL for (int j = 0; j < 4; j++) {
            // Unpacked anew: kept as floats since the sum, the row would take twice the registers.
            u32 x = fresh(kept[4 * k + j]);
            float first = fmadd((low(x) - mean) * rstd, low(w.w[j]), low(bias.w[j]));
            y.w[j] = pack2(first, fmadd((high(x) - mean) * rstd, high(w.w[j]), high(bias.w[j])));
        }
        store8(a.y, start + i, a.d - i, wide_y, y);
    }
}

// y, mean and rstd. Shared memory: 256 bytes.
KERNEL(layernorm, LayerNorm, 1024) {
    u64 start = static_cast<u64>(block()) * a.d;
    float d = static_cast<float>(a.d);
    Reg<u32, 4 * KEPT> kept;
    float mean = div_rn(block_sum(read_row(a, start, kept), shared_base()), d);
    float var = div_rn(block_sum(squares(a, kept, mean), shared_base() + 128), d);
    float rstd = div_rn(1.0f, sqrt_rn(var + a.eps));
    if (thread() == 0) {
        st(a.stats, 2 * static_cast<u64>(block()), mean);
        st(a.stats, 2 * static_cast<u64>(block()) + 1, rstd);
    }
    write_row(a, start, kept, mean, rstd);
}

// -- backward --

// The sum of g, and that of g (x - mean).
struct Sums {
    float g, gx;
};

// The sums over the block, on every thread, as `block_sum`. `at`: 256 bytes of shared memory.
DEVICE Sums block_sums(Sums s, u32 at HERE) {
    s = {warp_sum(s.g AT), warp_sum(s.gx AT)};
    u32 lane = thread() % 32, mine = at + thread() / 32 * 8;
    if (lane == 0) {
        sts(mine, bits_of(s.g) AT);
        sts(mine + 4, bits_of(s.gx) AT);
    }
    sync(AT_ONLY);
    s = {0, 0};
    if (lane < threads() / 32) s = {f32_of(lds(at + lane * 8 AT)), f32_of(lds(at + lane * 8 + 4 AT))};
    return {warp_sum(s.g AT), warp_sum(s.gx AT)};
}

// The statistics of a row, and what its elements' gradients share: mean(g), and mean(g n).
struct RowStats {
    float mean, rstd, g, gn;
};
DEVICE RowStats row_stats(const LayerNormBwd& a, u64 row) {
    return {ld(a.stats, 2 * row), ld(a.stats, 2 * row + 1), 0, 0};
}
DEVICE void take(RowStats& r, Sums s, u32 d) {
    r.g = div_rn(s.g, static_cast<float>(d));
    r.gn = div_rn(s.gx * r.rstd, static_cast<float>(d));
}

DEVICE void add(Sums& s, float x, float dy, float w, const RowStats& r) {
    s.g += dy * w;
    s.gx = fmadd(dy * w, x - r.mean, s.gx);
}

DEVICE float normed(float x, const RowStats& r) { return (x - r.mean) * r.rstd; }

// dx + dres of an element.
DEVICE float gradient(float x, float dy, float w, float dres, const RowStats& r) {
    return fmadd(r.rstd, fmadd(-normed(x, r), r.gn, dy * w - r.g), dres);
}
DEVICE u32 gradients(u32 x, u32 dy, u32 w, u32 dres, const RowStats& r) {
    return pack2(gradient(low(x), low(dy), low(w), low(dres), r), gradient(high(x), high(dy), high(w), high(dres), r));
}

struct RowBwd {
    Reg<u32, 4 * KEPT> x, dy, dres;
};

// Loads all of a row before the first arithmetic, so that a thread waits for memory once a row.
DEVICE void read_row(const LayerNormBwd& a, u64 row, RowBwd& r) {
    UNROLL for (int k = 0; k < KEPT; k++) {
        u32 i = column(k);
        V16 x = {}, dy = {}, dres = {};
        if (i < a.d) {
            x = ld16(a.x, row * a.d + i);
            dy = ld16(a.dy, row * a.d + i);
            if (a.dres.n) dres = ld16(a.dres, row * a.d + i);
        }
        UNROLL for (int j = 0; j < 4; j++) {
            r.x[4 * k + j] = x.w[j];
            r.dy[4 * k + j] = dy.w[j];
            r.dres[4 * k + j] = dres.w[j];
        }
    }
}

// The gradients of the weight and of the bias, of this thread's columns.
struct Weights {
    Reg<float, 8 * KEPT> dw, db;
};

// dx of one row; adds to the gradients of the weights. With `fresh` a pair is unpacked where it is needed.
DEVICE void row_bwd(const LayerNormBwd& a, u64 row, u32 shared, const Reg<u32, 4 * KEPT>& w, Weights& to) {
    RowStats r = row_stats(a, row);
    RowBwd v;
    read_row(a, row, v);
    Sums s = {0, 0};
    UNROLL for (int j = 0; j < 4 * KEPT; j++) {
        u32 x = v.x[j], dy = v.dy[j], pair = fresh(w[j]);
        add(s, low(x), low(dy), low(pair), r);
        add(s, high(x), high(dy), high(pair), r);
        to.dw[2 * j] = fmadd(low(dy), normed(low(x), r), to.dw[2 * j]);
        to.dw[2 * j + 1] = fmadd(high(dy), normed(high(x), r), to.dw[2 * j + 1]);
        to.db[2 * j] += low(dy);
        to.db[2 * j + 1] += high(dy);
    }
    take(r, block_sums(s, shared), a.d);
    UNROLL for (int k = 0; k < KEPT; k++) {
        if (column(k) >= a.d) continue;
        V16 dx;
        UNROLL for (int j = 0; j < 4; j++) {
            int at = 4 * k + j;
            dx.w[j] = gradients(fresh(v.x[at]), fresh(v.dy[at]), fresh(w[at]), v.dres[at], r);
        }
        st16(a.dy, row * a.d + column(k), dx);
    }
}

// Writes this thread's columns of a block's row of partial sums.
DEVICE void write_parts(const LayerNormBwd& a, u64 row, const Reg<float, 8 * KEPT>& of) {
    UNROLL for (int k = 0; k < 2 * KEPT; k++) {
        u32 i = column(k / 2) + k % 2 * 4;
        if (i >= a.d) continue;
        V16 v = {bits_of(of[4 * k]), bits_of(of[4 * k + 1]), bits_of(of[4 * k + 2]), bits_of(of[4 * k + 3])};
        st16(a.parts, row * a.d + i, v);
    }
}

// Overwrites dy with dx (+ dres), for up to 8192 columns. Each block loops over rows with a grid stride and writes
// partial sums of dw and db. d is a multiple of 8, and everything is aligned to 16 bytes. Shared memory: 512 bytes, in
// two halves that rows alternate between, so that one barrier per row is enough.
KERNEL(layernorm_bwd, LayerNormBwd, 512) {
    Reg<u32, 4 * KEPT> w;
    Weights to;
    UNROLL for (int k = 0; k < KEPT; k++) {
        V16 v = {};
        if (column(k) < a.d) v = ld16(a.w, column(k));
        UNROLL for (int j = 0; j < 4; j++) w[4 * k + j] = v.w[j];
        UNROLL for (int j = 0; j < 8; j++) to.dw[8 * k + j] = to.db[8 * k + j] = 0;
    }
    u32 half = 0;
    for (u64 row = block(); row < a.rows; row += blocks()) {
        row_bwd(a, row, shared_base() + half, w, to);
        half ^= 256;
    }
    write_parts(a, block(), to.dw);
    write_parts(a, static_cast<u64>(blocks()) + block(), to.db);
}

// Adds to an element of this block's partial sums of dw and db, which are kept in memory; starts them at its first row.
DEVICE void add_to_parts(const LayerNormBwd& a, bool first, u32 i, float x, float dy, const RowStats& r) {
    u64 w = static_cast<u64>(block()) * a.d + i, b = w + static_cast<u64>(blocks()) * a.d;
    st(a.parts, w, fmadd(dy, normed(x, r), first ? 0.0f : ld(a.parts, w)));
    st(a.parts, b, dy + (first ? 0.0f : ld(a.parts, b)));
}

// The same bits for any d and any alignment, slower: element by element, and read again where it is needed again.
KERNEL(layernorm_bwd_unaligned, LayerNormBwd, 1024, 1) {
    u32 half = 0;
    for (u64 row = block(); row < a.rows; row += blocks()) {
        u64 start = row * a.d;
        RowStats r = row_stats(a, row);
        Sums s = {0, 0};
        for (u32 i = thread() * 8; i < a.d; i += threads() * 8) {
            u32 n = a.d - i;
            V16 x = load8(a.x, start + i, n, false), dy = load8(a.dy, start + i, n, false), w = load8(a.w, i, n, false);
            UNROLL for (u32 j = 0; j < 8; j++) {
                if (j >= n) continue;
                add(s, pick8(x, j), pick8(dy, j), pick8(w, j), r);
                add_to_parts(a, row == block(), i + j, pick8(x, j), pick8(dy, j), r);
            }
        }
        take(r, block_sums(s, shared_base() + half), a.d);
        for (u32 i = thread() * 8; i < a.d; i += threads() * 8) {
            u32 n = a.d - i;
            V16 x = load8(a.x, start + i, n, false), dy = load8(a.dy, start + i, n, false), w = load8(a.w, i, n, false);
            V16 dres = {}, dx;
            if (a.dres.n) dres = load8(a.dres, start + i, n, false);
            UNROLL for (int j = 0; j < 4; j++) dx.w[j] = gradients(x.w[j], dy.w[j], w.w[j], dres.w[j], r);
            store8(a.dy, start + i, n, false, dx);
        }
        half ^= 256;
    }
}
